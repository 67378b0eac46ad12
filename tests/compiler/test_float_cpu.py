from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from compiler import artefact, float_cpu
from compiler.cli import cli
from compiler.host import HostError

pytest.importorskip("tvm")
pytestmark = pytest.mark.tvm

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], env={"COLUMNS": "300"})
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("float") / "out"
    code, told = run("compile", EXAMPLES / "digits_cnn.onnx", "--target", "cpu", "--float", "-o", out)
    assert code == 0, told
    assert "agree with onnxruntime, tolerance 0.0001" in told
    return out


def test_the_report_says_which_nodes_run_in_float(folder: Path) -> None:
    report = json.loads((folder / artefact.REPORT_JSON).read_text())
    model = onnx.load(folder / artefact.MODEL)
    assert report["float_nodes"] == {node.name: node.op_type for node in model.graph.node}
    assert report["verify"]["elements"] > 0
    assert report["verify"]["mismatches"] == 0
    assert json.loads((folder / artefact.MANIFEST).read_text())["options"]["arithmetic"] == "float"


def test_run_verify_and_eval_work_on_it(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "y.npz"
    data = EXAMPLES / "digits_test.npz"
    code, told = run("run", folder, "--input", data, "--output", results, "--limit", 50, "--threads", 2)
    assert code == 0, told
    (scores,) = np.load(results).values()
    assert np.mean(scores.argmax(axis=1) == np.load(data)["y"][:50]) > 0.9
    code, told = run("verify", folder, "--random", 3)
    assert code == 0, told
    code, told = run("eval", folder, "--data", data, "--limit", 50, "--json")
    assert code == 0, told


def test_verify_finds_a_wrong_element(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / artefact.MODEL)
    weights = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1)
    weights.CopyFrom(numpy_helper.from_array(np.float32(0.5) * numpy_helper.to_array(weights), weights.name))
    changed = float_cpu.stored.ir.serde.deserialize_model(model)
    samples = {
        v.name: np.ones((1, *[d.dim_value for d in v.type.tensor_type.shape.dim][1:]), np.float32)
        for v in model.graph.input
    }
    verdict = float_cpu.verify(folder, changed, samples)
    assert not verdict.passed
    assert "onnxruntime has" in verdict.differences[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, "is missing; given"),
        (lambda x: {n: v[:, :, :-1] for n, v in x.items()}, "expected"),
        (lambda x: {n: v * np.float32(np.nan) for n, v in x.items()}, "has a value that is not a number"),
    ],
)
def test_samples_that_do_not_fit_are_refused(folder: Path, change, message: str) -> None:
    loaded = float_cpu.library.load(folder / artefact.CPU)
    sample = {tensor.name: np.ones(tensor.shape, np.float32) for tensor in loaded.inputs}
    float_cpu.checked(loaded, sample)
    with pytest.raises(HostError, match=message):
        float_cpu.checked(loaded, change(sample))
    loaded.close()


def test_float_needs_the_cpu_target(tmp_path: Path) -> None:
    code, told = run("compile", EXAMPLES / "digits_cnn.onnx", "--float", "-o", tmp_path / "out")
    assert code == 2
    assert "needs --target cpu, not 'fpga'" in told
    assert not (tmp_path / "out").exists()


def test_float_compresses_nothing(tmp_path: Path) -> None:
    arguments = ("--target", "cpu", "--float", "--weights", "4", "-o", tmp_path / "out")
    code, told = run("compile", EXAMPLES / "digits_cnn.onnx", *arguments)
    assert code == 2
    assert "takes no bits and no budgets" in told


def test_a_node_that_cannot_be_imported_is_an_error_of_the_target(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("NonZero", ["a"], ["y"], name="places"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("y", TensorProto.INT64, [2, None]),
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:])
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    code, told = run("compile", path, "--target", "cpu", "--float", "-o", tmp_path / "out")
    assert code == 5, told
    assert "node 'places' (NonZero)" in told
    assert "remedy:" in told
    assert not (tmp_path / "out").exists()


def test_the_tail_of_an_integer_network_is_compiled_and_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(s, np.float32), n) for n, s in (("w", (8, 3, 3, 3)), ("v", (8, 5)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], name="mean"),
        helper.make_node("Flatten", ["b"], ["c"], name="flat"),
        helper.make_node("MatMul", ["c", "v"], ["d"], name="dense"),
        helper.make_node("Softmax", ["d"], ["y"], name="softmax"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "net", values[:1], values[1:], weights),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((6, 3, 8, 8), np.float32))
    code, told = run("compile", tmp_path / "net.onnx", "--target", "cpu", "--calib", tmp_path / "x.npz", "-o", out)
    assert code == 0, told
    assert json.loads((out / artefact.REPORT_JSON).read_text())["float_nodes"] == {"softmax": "Softmax"}
    assert (out / artefact.CPU / "tail" / "float.json").is_file()
    code, told = run("run", out, "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert code == 0, told
    assert np.allclose(np.load(tmp_path / "y.npz")["y"].sum(axis=1), 1, atol=1e-6)
    code, told = run("eval", out, "--data", tmp_path / "x.npz")
    assert code == 0, told
