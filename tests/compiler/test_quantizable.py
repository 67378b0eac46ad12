"""What is quantized where no accelerator decides: what hangs together with weights, and why not the rest."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.quantizable import quantizable
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import imported, model, node


def test_all_that_has_integer_arithmetic_is_quantized_on_both_sides_of_what_has_not() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Softmax", ["r1"], ["s"], axis=1),
        node("Conv", ["s", "v"], ["c2"]),
        node("Relu", ["c2"], ["y"]),
    ]
    weights = {"w": normal(4, 3, 3, 3), "v": normal(2, 4, 1, 1)}
    chosen, reasons = quantizable(canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights))
    assert chosen == {"c1", "r1", "c2", "y"}
    assert set(reasons) == {"s"}
    assert reasons["s"] == "no accelerator layer executes this operator"


def test_nothing_without_weights_is_quantized_for_itself() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Softmax", ["c"], ["s"], axis=1),
        node("Relu", ["s"], ["r"]),
        node("Flatten", ["r"], ["y"]),
    ]
    chosen, reasons = quantizable(canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": normal(4, 3, 3, 3)}))
    assert chosen == {"c"}
    assert reasons["r"] == reasons["y"] == "it hangs together with no layer that has weights"


def test_a_network_that_is_quantized_already_has_no_node_to_quantize_but_its_own() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Softmax", ["d"], ["y"]),
    ]
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    chosen, reasons = quantizable(canonical(nodes, {"x": [1, 8]}, ["y"], weights))
    assert chosen == frozenset()
    assert set(reasons) == {"y"}


def test_every_node_that_computes_is_either_quantized_or_has_a_reason() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Softplus", ["c"], ["p"]),
        node("GlobalAveragePool", ["p"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "u"], ["z"], transB=1),
        node("LogSoftmax", ["z"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": normal(4, 3, 3, 3), "u": normal(5, 4)})
    loaded: ir.Model = imported(proto).model
    chosen, reasons = quantizable(loaded)
    assert chosen | set(reasons) == {str(each.name) for each in loaded.graph}
    assert not chosen & set(reasons)
    assert {"c", "z"} <= chosen
