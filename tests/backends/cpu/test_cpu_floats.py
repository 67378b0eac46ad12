from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from backends.base import UnsupportedOpError
from backends.cpu import backend, link
from backends.cpu.floats import library
from backends.cpu.floats.program import Program
from backends.cpu.machine import Machine
from compiler import float_cpu
from compiler.importer import import_model
from tests.support import float_networks
from tests.support.light_models import NAMES, light_model
from tests.support.resnet18 import resnet18
from tests.support.shared import shared

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

NEAR = 1e-5
"""Ten times closer than what is promised: relative to the largest value of an output."""
TINY = ("resnet8", "dscnn_kws", "mobilenet_vww", "autoencoder_ad", "streaming_wakeword")
ZOO = ("fastestdet", "go1_policy", "mnist_8", "super_resolution_10", "ultraface_rfb320")


def samples(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.standard_normal([d.dim_value or 1 for d in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
        if value.name not in constants
    }


def in_onnxruntime(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def program_of(model: onnx.ModelProto, machine: Machine) -> Program:
    return float_cpu.program_of(ir.serde.deserialize_model(model), machine)


def differences(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of each output, relative to its largest value."""
    assert expected.keys() == got.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape
        assert got[name].dtype == want.dtype
    return {name: float(np.abs(got[name] - want).max() / np.abs(want).max()) for name, want in expected.items()}


def assert_agrees(model: onnx.ModelProto, folder: Path, machine: Machine, *, threads: int = 1) -> None:
    given = samples(model)
    library.write(program_of(model, machine), "net", folder)
    loaded = library.load(folder, threads=threads)
    try:
        found = differences(in_onnxruntime(model, given), loaded.run(given))
    finally:
        loaded.close()
    assert {name: d for name, d in found.items() if not d < NEAR} == {}


@pytest.mark.parametrize("cpu", ["native", "haswell", "x86-64"])
def test_every_convolution_agrees_with_onnxruntime(cpu: str, tmp_path: Path) -> None:
    assert_agrees(float_networks.convolutions(), tmp_path, backend.machine(cpu), threads=2)


def test_every_other_kernel_and_operator_agrees_with_onnxruntime(tmp_path: Path) -> None:
    assert_agrees(float_networks.others(), tmp_path, backend.machine(None), threads=2)


def test_convolutions_of_a_network_have_no_transposes_between_them() -> None:
    program = program_of(resnet18(size=64, classes=10), backend.machine(None))
    ours = [call.function for call in program.calls if call.function.startswith(("conv", "pool"))]
    assert len(ours) == 23  # 20 convolutions, 2 pools, 1 GEMM
    assert not [call.function for call in program.calls if "permute" in call.function or "transpose" in call.function]


def test_the_same_bytes_at_every_compile_and_the_same_numbers_with_any_threads(tmp_path: Path) -> None:
    model = resnet18(size=64, classes=10)
    made = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        library.write(program_of(model, backend.machine("haswell")), "net", folder)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    given = samples(model)
    results = []
    for threads in (1, 2, 3):
        loaded = library.load(tmp_path / "a", threads=threads)
        results += [loaded.run(given)["y"] for _ in range(3)]
        loaded.close()
    assert all(np.array_equal(results[0], other) for other in results)


def canonical(path: Path) -> onnx.ModelProto:
    return ir.serde.serialize_model(import_model(path).model)


@pytest.mark.parametrize("cpu", ["native", "haswell"])
def test_elementary_functions_are_near_and_keep_what_is_no_number(cpu: str, tmp_path: Path) -> None:
    functions = {
        "Exp": np.exp,
        "Erf": np.vectorize(math.erf),
        "Tanh": np.tanh,
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    }
    odd = np.array([0, -0.0, 1e-30, -1e-7, 88.7, 88.8, 1e30, np.inf, -87.3, -100, -1e30, -np.inf, 4, -4, 9])
    x = np.concatenate([odd, np.linspace(-20, 20, 48 - len(odd) + 960)]).astype(np.float32)
    ones = np.where(np.isinf(x), 0, 1).astype(np.float32)  # an infinity by 0 is no number, and made inside
    ones[np.argmax(np.isinf(x))] = 1
    nodes = [helper.make_node("Mul", ["x", "ones"], ["product"], name="product")]
    nodes += [helper.make_node(op, ["product"], [op], name=op) for op in functions]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(x)]) for name in ("x", "ones", *functions)]
    graph = helper.make_graph(nodes, "net", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    library.write(program_of(model, backend.machine(cpu)), "net", tmp_path)
    loaded = library.load(tmp_path)
    got = loaded.run({"x": x[None], "ones": ones[None]})
    with pytest.raises(ValueError, match="not a number"):
        loaded.run({"x": np.full_like(x[None], np.nan), "ones": ones[None]})
    loaded.close()
    with np.errstate(all="ignore"):
        x = x * ones
        assert np.isnan(x).any()
        assert np.isinf(x).any()
        for op, function in functions.items():
            want = function(x.astype(np.float64)).astype(np.float32)
            scale = np.abs(want) if op == "Exp" else np.ones_like(want)
            np.testing.assert_array_equal(np.isnan(got[op][0]), np.isnan(want))
            np.testing.assert_array_equal(np.isinf(got[op][0]), np.isinf(want))
            near = np.isfinite(want)
            assert np.max(np.abs(got[op][0] - want)[near] - 6e-7 * scale[near]) <= 1e-37, op


def test_arguments_need_no_more_alignment_than_their_type(tmp_path: Path) -> None:
    model = float_networks.others()
    library.write(program_of(model, backend.machine(None)), "net", tmp_path)
    loaded = library.load(tmp_path)
    given = samples(model)
    expected = loaded.run(given)
    got = {tensor.name: moved(np.empty(tensor.shape, np.float32)) for tensor in loaded.outputs}
    loaded.infer([moved(given[tensor.name]) for tensor in loaded.inputs], list(got.values()))
    loaded.close()
    assert all(np.array_equal(got[name], want) for name, want in expected.items())


def moved(array: np.ndarray) -> np.ndarray:
    """A copy that begins 4 bytes behind a multiple of 64."""
    space = np.empty(array.size + 32, np.float32)
    start = (-(space.ctypes.data // 4) % 16) + 1
    copy = space[start : start + array.size].reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp"])
def test_bundled_networks_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    examples = Path(__file__).parents[3] / "examples"
    assert_agrees(canonical(examples / f"{name}.onnx"), tmp_path, backend.machine(None))


@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_networks_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    assert_agrees(canonical(shared("models", f"mlperf_tiny_{name}.onnx")), tmp_path, backend.machine(None))


@pytest.mark.parametrize(
    "name", [name if name in ("go1_policy", "mnist_8") else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_zoo_networks_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    assert_agrees(canonical(shared("zoo", f"{name}.onnx")), tmp_path, backend.machine(None))


@pytest.mark.parametrize(
    "name", [name if name == "squeezenet" else pytest.param(name, marks=pytest.mark.nightly) for name in NAMES]
)
def test_light_models_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    onnx.save(light_model(name), path)
    folder = tmp_path / "out"
    folder.mkdir()
    assert_agrees(canonical(path), folder, backend.machine(None))


_DRIVER = """#include <stdio.h>
#include <stdlib.h>
#include "edgec_net.h"
static float *block(FILE *file, size_t count) {
    float *p = calloc(count, 4);
    if (file && fread(p, 4, count, file) != count) exit(3);
    return p;
}
int main(void) {
    const size_t ins[] = {INS}, outs[] = {OUTS};
    const float *in[sizeof ins / sizeof *ins]; float *out[sizeof outs / sizeof *outs];
    FILE *file = fopen("in.bin", "rb");
    for (size_t i = 0; i < sizeof ins / sizeof *ins; i++) in[i] = block(file, ins[i]);
    for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) out[i] = block(NULL, outs[i]);
    void *network = edgec_net_open(1);
    edgec_net_infer_float(network, in, out);
    edgec_net_close(network);
    file = fopen("out.bin", "wb");
    for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) fwrite(out[i], 4, outs[i], file);
    return fclose(file);
}
"""


def test_every_convolution_agrees_on_aarch64(tmp_path: Path) -> None:
    model = float_networks.convolutions()
    given = samples(model)
    program = program_of(model, backend.machine("cortex-a72", "arm64"))
    library.write(program, "net", tmp_path)
    counts = (", ".join(str(t.bytes // 4) for t in tensors) for tensors in (program.inputs, program.outputs))
    ins, outs = counts
    (tmp_path / "main.c").write_text(_DRIVER.replace("INS", ins).replace("OUTS", outs))
    files = ("main.c", "edgec_net.c", "constants.S", "kernels.o", "-lm", "-lpthread")
    link.cc("aarch64-linux-musl", ["-O1", "-static", "-D_GNU_SOURCE", "-o", "main", *files], tmp_path)
    (tmp_path / "in.bin").write_bytes(b"".join(given[t.name].tobytes() for t in program.inputs))
    subprocess.run(["qemu-aarch64", "./main"], cwd=tmp_path, check=True, timeout=300)
    raw = np.fromfile(tmp_path / "out.bin", np.float32)
    got, start = {}, 0
    for tensor in program.outputs:
        got[tensor.name] = raw[start : start + tensor.bytes // 4].reshape(tensor.shape)
        start += tensor.bytes // 4
    found = differences(in_onnxruntime(model, given), got)
    assert {name: d for name, d in found.items() if not d < NEAR} == {}


def one_node(op: str, opset: int = 21, domain: str = "") -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node(op, ["a"], ["b"], name="odd", domain=domain),
        helper.make_node(op, ["b"], ["y"], name="odder", domain=domain),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", value[:1], value[1:])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_operators_that_tvm_does_not_know_are_all_named() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'odd' \(Unheard\): TVM imports no such operator") as caught:
        program_of(one_node("Unheard"), backend.machine("cortex-a72", "arm64"))
    assert [node.node for node in caught.value.nodes] == ["odd", "odder"]
    assert any("remedy:" in note for note in caught.value.__notes__)


def test_custom_domains_are_named() -> None:
    with pytest.raises(UnsupportedOpError, match=r"'odd' \(mine.Relu\): TVM imports no custom domain"):
        program_of(one_node("Relu", domain="mine"), backend.machine("cortex-a72", "arm64"))


def test_what_needs_the_runtime_of_tvm_is_named() -> None:
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["v", "i"], name="best"),
        helper.make_node("Relu", ["v"], ["y"], name="relu"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 9])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]
    weights = [helper.make_tensor("k", TensorProto.INT64, [1], [3])]
    model = helper.make_model(
        helper.make_graph(nodes, "net", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 21)]
    )
    with pytest.raises(UnsupportedOpError, match=r"'best' \(TopK\): TVM's code for it needs function tvm.contrib.sort"):
        program_of(onnx.shape_inference.infer_shapes(model), backend.machine("cortex-a72", "arm64"))
