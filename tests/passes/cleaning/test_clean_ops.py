"""Gemm, Clip and pooling in one spelling; no-ops gone; the runner of passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes.base import Notes, PassReport, Rewrite, run
from tests.support.onnx_models import Array, assert_same_outputs, imported, model, node, ops

RNG = np.random.default_rng(11)


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
def test_gemm_in_every_form(trans_b: int, scales: tuple[float, float], bias: tuple[int, ...] | None) -> None:
    inputs = ["x", "w"] if bias is None else ["x", "w", "b"]
    constants = {"w": weights(6, 4) if trans_b else weights(4, 6)} | ({} if bias is None else {"b": weights(*bias)})
    gemm = node("Gemm", inputs, ["y"], transB=trans_b, alpha=scales[0], beta=scales[1])
    proto = model([gemm], {"x": [1, 4]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Gemm"]
    new = result.model.graph[0]
    assert [list(v.shape) for v in new.inputs[1:]] == [[6, 4]] + ([] if bias is None else [[6]])
    assert_same_outputs(proto, result.model)


def test_matmul_of_one_row_in_three_dimensions_is_gemm() -> None:
    proto = model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 1, 4]}, ["y"], {"w": weights(4, 6)})
    result = imported(proto)
    assert ops(result.model) == ["Reshape", "Gemm", "Reshape"]
    assert_same_outputs(proto, result.model)


def test_matmul_of_one_row_takes_the_bias_behind_it() -> None:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["b", "m"], ["y"])]
    proto = model(nodes, {"x": [1, 1, 4]}, ["y"], {"w": weights(4, 6), "b": weights(6)})
    result = imported(proto)
    assert ops(result.model) == ["Reshape", "Gemm", "Reshape"]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("rows", [[5], [3, 2]])
def test_dense_layers_on_rows_become_convs(rows: list[int]) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", "v"], ["d"]),
        node("Add", ["d", "r"], ["s"]),
        node("Sigmoid", ["s"], ["y"]),
    ]
    constants = {"w": weights(4, 6), "b": weights(6), "v": weights(6, 6)}
    proto = model(nodes, {"x": [1, *rows, 4]}, ["y"], constants)
    result = imported(proto)
    after = ops(result.model)
    assert after.count("Transpose") == 2
    assert after.count("Conv") == 2
    assert "MatMul" not in after
    assert_same_outputs(proto, result.model)


def test_matmul_of_two_dynamic_tensors_stays() -> None:
    proto = model([node("MatMul", ["x", "z"], ["y"])], {"x": [1, 4], "z": [4, 3]}, ["y"])
    result = imported(proto)
    assert ops(result.model) == ["MatMul"]
    assert next(r for r in result.reports if r.name == "canonicalize-gemm").skipped == {
        "y": "its weights are not constant"
    }


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Relu", ["x"], ["r"]), node("Min", ["r", "six"], ["y"])], ["Clip"]),
        ([node("Max", ["zero", "x"], ["m"]), node("Min", ["m", "six"], ["y"])], ["Clip"]),
        ([node("Max", ["x", "zero"], ["y"])], ["Relu"]),
        ([node("Clip", ["x", "zero"], ["y"])], ["Relu"]),
        ([node("Clip", ["x", "", "six"], ["y"])], ["Clip"]),
        ([node("Clip", ["x", "zero", "six"], ["a"]), node("Clip", ["a", "one", "nine"], ["y"])], ["Clip"]),
        ([node("Sum", ["x", "x"], ["y"])], ["Add"]),
        ([node("GlobalMaxPool", ["x"], ["y"])], ["MaxPool"]),
        ([node("Identity", ["x"], ["a"]), node("Relu", ["a"], ["b"]), node("Identity", ["b"], ["y"])], ["Relu"]),
        ([node("Cast", ["x"], ["a"], to=1), node("Neg", ["a"], ["y"])], ["Neg"]),
        ([node("Dropout", ["x"], ["a"]), node("Neg", ["a"], ["y"])], ["Neg"]),
        ([node("Concat", ["x"], ["a"], axis=1), node("Neg", ["a"], ["y"])], ["Neg"]),
    ],
)
def test_synonyms_and_noops(nodes: list[object], expected: list[str]) -> None:
    scalars = {"zero": 0, "one": 1, "six": 6, "nine": 9}
    used = {name for n in nodes for name in n.input}  # type: ignore[attr-defined]
    constants = {k: np.asarray(v, np.float32) for k, v in scalars.items() if k in used}
    proto = model(nodes, {"x": [1, 3, 20, 20]}, ["y"], constants)  # type: ignore[arg-type]
    result = imported(proto)
    assert ops(result.model) == expected
    assert_same_outputs(proto, result.model)


def test_dropout_in_training_mode_is_not_removed() -> None:
    nodes = [node("Dropout", ["x", "r", "t"], ["a"]), node("Neg", ["a"], ["y"])]
    proto = model(nodes, {"x": [1, 3]}, ["y"], {"r": np.asarray(0.5, np.float32), "t": np.asarray(True)})
    assert ops(imported(proto).model) == ["Dropout", "Neg"]


def test_input_that_is_an_output_keeps_its_identity() -> None:
    proto = model([node("Identity", ["x"], ["y"])], {"x": [1, 3]}, ["y"])
    result = imported(proto)
    assert ops(result.model) == ["Identity"]
    assert "remove-noops" in {r.name for r in result.reports if r.skipped}


def test_importing_twice_changes_nothing() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER"),
        node("Relu", ["c"], ["r"]),
        node("Flatten", ["r"], ["f"]),
        node("MatMul", ["f", "v"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 2, 4, 4]}, ["y"], {"w": weights(3, 2, 3, 3), "v": weights(48, 2)})
    once = ir.serde.serialize_model(imported(proto).model)
    twice = ir.serde.serialize_model(imported(once).model)
    assert twice.graph.node == once.graph.node
    assert [t.name for t in twice.graph.initializer] == [t.name for t in once.graph.initializer]


class _Fails(Rewrite):
    name = "fails"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        raise ValueError("node 'a' (Relu): for the test")


class _Renames(Rewrite):
    name = "renames"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for n in model.graph:
            notes.change(n)
            notes.metrics["renamed"] = 1.0


def test_run_reports_each_pass_and_names_the_one_that_fails() -> None:
    loaded = imported(model([node("Relu", ["x"], ["y"], "a")], {"x": [1, 3]}, ["y"])).model
    (report,) = run([_Renames()], loaded)
    assert report == PassReport("renames", ("a",), {}, {"renamed": 1.0}, report.seconds)
    assert report.seconds > 0
    with pytest.raises(ValueError, match=r"node 'a' \(Relu\): for the test") as caught:
        run([_Renames(), _Fails()], loaded)
    assert caught.value.__notes__ == ["in pass fails"]
