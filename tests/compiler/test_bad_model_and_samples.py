"""Bad models and samples, for every command that takes them: what is said, the exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from compiler.cli import MODEL, OK, cli
from tests.support.canonical import normal
from tests.support.onnx_models import Array, model, node

WRITES = {"compile": ("--target", "reference", "-o", "out"), "compress": ("-o", "out")}
"""Commands that take samples and write, and how they are run here; `out` is what they write."""
COMMANDS = {"check": ("--target", "reference"), **WRITES}

X = normal(12, 3, 8, 8)

every_command = pytest.mark.parametrize("command", COMMANDS)
every_writer = pytest.mark.parametrize("command", WRITES)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens in an empty folder."""
    monkeypatch.chdir(tmp_path)


def network(
    *shape: int | str, weights: Array | None = None, edit: Callable[[onnx.ModelProto], object] | None = None
) -> onnx.ModelProto:
    """Conv and Relu on [1, 3, 8, 8]."""
    nodes = [node("Conv", ["x", "w"], ["a"], "conv1", pads=[1, 1, 1, 1]), node("Relu", ["a"], ["y"], "relu1")]
    weights = normal(4, 3, 3, 3) if weights is None else weights
    proto = model(nodes, {"x": list(shape or (1, 3, 8, 8))}, ["y"], {"w": weights}, opset=21, ir_version=10)
    if edit:
        edit(proto)
    return proto


def run(command: str, proto: onnx.ModelProto | bytes, *options: str) -> Result:
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    Path("net.onnx").write_bytes(data)
    return CliRunner(env={"COLUMNS": "300"}).invoke(cli, [command, "net.onnx", *COMMANDS[command], *options])


def refused(result: Result, code: int, *words: str) -> None:
    """With that exit code, all of the words, and a remedy; there is nothing that was not there before."""
    assert result.exit_code == code, result.stderr
    assert [word for word in words if word not in result.stderr] == [], result.stderr
    assert "remedy: " in result.stderr
    assert "Traceback" not in result.stderr
    left = {entry.name for entry in Path().iterdir()} - {"net.onnx", "calib.npz", "calib.npy", "huge.bin", "photos"}
    assert left == set()


def done(result: Result, command: str) -> str:
    """It did it; what it said on stdout and stderr."""
    assert result.exit_code == OK, result.stderr
    assert Path("out").exists() == (command in WRITES)
    assert not [entry for entry in Path().iterdir() if entry.name.startswith(".")]
    return result.stdout + result.stderr


def with_samples(command: str, proto: onnx.ModelProto, arrays: Mapping[str, Array], *options: str) -> Result:
    np.savez("calib.npz", **arrays)  # type: ignore[arg-type]
    return run(command, proto, "--calib", "calib.npz", *options)


# Files


@every_command
@pytest.mark.parametrize(
    ("data", "words"), [(b"", "the file is empty"), (b"hello", "not an ONNX"), (b"\x08\x0a", "not an ONNX model")]
)
def test_files_that_are_no_network(command: str, data: bytes, words: str) -> None:
    refused(run(command, data), MODEL, "net.onnx", words)


@every_command
def test_a_network_of_more_than_two_gigabytes_is_refused_before_its_weights_are_read(command: str) -> None:
    size = 3 << 30
    with Path("huge.bin").open("wb") as file:
        os.ftruncate(file.fileno(), size)  # sparse: takes no room
    proto = network(edit=lambda proto: proto.graph.initializer.append(external("huge", "huge.bin", size)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(command, proto)
    refused(result, MODEL, "net.onnx: its weights take 3,221,225,904 bytes", "initializer 'huge' has 3,221,225,472")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@every_command
@pytest.mark.parametrize("location", ["../huge.bin", "/etc/passwd", "missing.bin"])
def test_external_data_elsewhere(command: str, location: str) -> None:
    proto = network(edit=lambda proto: proto.graph.initializer.append(external("huge", location, 4096)))
    refused(run(command, proto), MODEL, "initializer 'huge'", location, "beside the model file")


@every_command
def test_external_data_that_is_too_short(command: str) -> None:
    Path("huge.bin").write_bytes(bytes(100))
    proto = network(edit=lambda proto: proto.graph.initializer.append(external("huge", "huge.bin", 4096)))
    refused(run(command, proto), MODEL, "initializer 'huge'", "'huge.bin' is too short: 100 bytes, not 4096")


def external(name: str, location: str, size: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size // 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


# Weights


@every_command
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite(command: str, value: float, word: str, dtype: type) -> None:
    weights = normal(4, 3, 3, 3)
    weights[1, 2, 0, 0] = value
    result = run(command, network(weights=weights.astype(dtype)))
    refused(result, MODEL, "initializer 'w'", f"1 of 108 elements are {word}; node 'conv1' (Conv) reads it")


@every_command
def test_constant_nodes_that_are_not_finite(command: str) -> None:
    weights = normal(4, 3, 3, 3)
    weights[0] = np.nan
    made = node("Constant", [], ["w"], "made", value=numpy_helper.from_array(weights))
    proto = model([made, node("Conv", ["x", "w"], ["y"])], {"x": [1, 3, 8, 8]}, ["y"], opset=21, ir_version=10)
    refused(run(command, proto), MODEL, "node 'made' (Constant), attribute 'value': 27 of 108 elements are NaN")


@every_command
@pytest.mark.parametrize("dead", ["one output", "one input", "all"])
def test_channels_of_zeros_are_no_fault(command: str, dead: str) -> None:
    weights = normal(4, 3, 3, 3)
    {"one output": weights[1:2], "one input": weights[:, 1:2], "all": weights}[dead][:] = 0
    done(run(command, network(weights=weights)), command)


@every_command
def test_a_layer_without_channels(command: str) -> None:
    result = run(command, network(weights=np.zeros((0, 3, 3, 3), np.float32)))
    refused(result, MODEL, "node 'conv1' (Conv): 'w' of shape [0, 3, 3, 3] has no elements")


# Operators


@every_command
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op_type": "Frobnicate"}, "node 'relu1' (Frobnicate): no such operator in opset 21"),
        ({"domain": "com.acme"}, "node 'relu1' (Relu): unknown domain 'com.acme'"),
        ({"domain": "com.microsoft", "op_type": "Gelu"}, "node 'relu1' (Gelu): unknown domain 'com.microsoft'"),
    ],
)
@pytest.mark.parametrize("is_imported", [False, True])
def test_unknown_operators_and_domains(command: str, change: dict[str, str], words: str, is_imported: bool) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        for name, value in change.items():
            setattr(proto.graph.node[1], name, value)
        if is_imported and "domain" in change:
            proto.opset_import.append(helper.make_opsetid(change["domain"], 1))

    refused(run(command, network(edit=edit)), MODEL, words, "standard ONNX operators")


# Shapes


@every_command
def test_a_guess_is_offered_for_dynamic_dimensions(command: str) -> None:
    result = run(command, network("n", "c", "h", 8))
    refused(result, MODEL, "input 'x': dimension 1 (c)", "is dynamic", "--shape x=1,3,8,8")
    done(run(command, network("n", "c", "h", 8), "--shape", "x=1,3,8,8"), command)


@every_command
@pytest.mark.parametrize("option", ["--shape", "--input-shape"])
def test_the_shape_that_was_asked_for_is_taken(command: str, option: str) -> None:
    done(run(command, network("n", 3, "h", "w"), option, "x=1,3,6,5"), command)


@every_command
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("q=1,3,8,8", "no input is called 'q'; the inputs are ['x']"),
        ("x=1,4,8,8", "input 'x' has shape [n, 3, h, w], which [1, 4, 8, 8] does not fit"),
        ("x=3,8,8", "which [3, 8, 8] does not fit"),
    ],
)
def test_a_shape_that_does_not_fit(command: str, given: str, words: str) -> None:
    refused(run(command, network("n", 3, "h", "w"), "--shape", given), MODEL, words)


# Samples


@every_writer
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X[:, :, :7]}, ["array 'x' has shape [12, 3, 7, 8]", "needs [N, 3, 8, 8]"]),
        ({"x": X.transpose(0, 2, 3, 1)}, ["array 'x' has shape [12, 8, 8, 3]", "x.transpose(0, 3, 1, 2)"]),
        ({"x": X.astype(complex)}, ["array 'x' must hold numbers, not complex128"]),
        ({"x": X.astype(str)}, ["array 'x' must hold numbers"]),
        ({"photos": X}, ["no array 'x'", "the file has photos"]),
        ({}, ["no array 'x'", "the file has nothing"]),
        ({"x": X[:0]}, ["array 'x' has no samples"]),
        ({"x": np.where(X > 3, np.nan, X)}, ["array 'x': sample", "NaN or infinite"]),
        ({"x": X, "y": np.zeros(5, int)}, ["5 labels 'y' for 12 samples"]),
    ],
    ids=["shape", "channels last", "complex", "text", "name", "no arrays", "no samples", "NaN", "labels"],
)
def test_samples_that_do_not_fit(command: str, arrays: dict[str, Array], words: list[str]) -> None:
    refused(with_samples(command, network(), arrays), MODEL, "calib.npz", *words)


@every_writer
@pytest.mark.parametrize(("name", "data"), [("calib.npz", b""), ("calib.npy", b""), ("calib.npz", b"PK\x05\x06")])
def test_sample_files_that_are_empty_or_none(command: str, name: str, data: bytes) -> None:
    Path(name).write_bytes(data)
    refused(run(command, network(), "--calib", name), MODEL, name, "neither a .npz nor a .npy file")


@every_writer
def test_a_missing_sample_file(command: str) -> None:
    refused(run(command, network(), "--calib", "calib.npz"), MODEL, "calib.npz: no such file")


@every_writer
def test_an_empty_folder_of_images(command: str) -> None:
    pytest.importorskip("PIL.Image", reason="decoding needs edgec[images]")
    Path("photos").mkdir()
    refused(run(command, network(), "--calib", "photos"), MODEL, "photos: a folder without images")


@every_writer
def test_one_sample_is_enough_and_warned_of(command: str) -> None:
    for sample in (X[:1], X[0]):
        said = done(with_samples(command, network(), {"x": sample}, "--json"), command)
        assert "1 calibration sample is few" in said
    result = with_samples(command, network(), {"x": X}, "--json")
    done(result, command)
    assert json.loads(result.stdout)["warnings"] == []


@every_writer
def test_inputs_that_never_change_are_warned_of(command: str) -> None:
    said = done(with_samples(command, network(), {"x": 0 * X}, "--json"), command)
    assert "every value of input 'x' is 0: nothing can be learned" in said


@every_writer
def test_an_input_channel_that_is_always_zero_is_no_fault(command: str) -> None:
    samples = X.copy()
    samples[:, 1] = 0
    said = done(with_samples(command, network(), {"x": samples}, "--json"), command)
    assert "NaN" not in said
    assert "nothing can be learned" not in said


@every_command
def test_an_input_that_nothing_reads_is_no_fault(command: str) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [1, 4]))

    done(run(command, network(edit=edit)), command)
