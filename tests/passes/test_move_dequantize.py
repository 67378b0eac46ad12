"""A DequantizeLinear moves behind layout nodes and back, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes.move_dequantize import HoistDequantize, SinkDequantize
from tests.support.canonical import canonical
from tests.support.onnx_models import assert_same_outputs, node, ops

SCALE, ZERO = np.array(0.05, np.float32), np.array(3, np.int8)
TO = {"to": np.array([1, 6, 4], np.int64), "scale": SCALE, "zero": ZERO}


def quantized(*behind: onnx.NodeProto, output: str = "y") -> ir.Model:
    pair = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ]
    return canonical([*pair, *behind], {"x": [1, 2, 3, 4]}, [output], TO)


def test_it_moves_behind_the_layout_nodes_and_back() -> None:
    loaded = quantized(
        node("Reshape", ["d", "to"], ["r"]), node("Transpose", ["r"], ["t"], perm=[0, 2, 1]), node("Neg", ["t"], ["y"])
    )
    before = loaded.clone()
    SinkDequantize()(loaded)
    assert ops(loaded) == ["QuantizeLinear", "Reshape", "Transpose", "DequantizeLinear", "Neg"]
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    assert_same_outputs(before, loaded, tolerance=0)
    HoistDequantize()(loaded)
    assert ops(loaded) == ops(before)
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    assert_same_outputs(before, loaded, tolerance=0)


def test_an_output_of_the_network_keeps_its_name() -> None:
    loaded = quantized(node("Reshape", ["d", "to"], ["y"]))
    before = loaded.clone()
    SinkDequantize()(loaded)
    assert ops(loaded) == ["QuantizeLinear", "Reshape", "DequantizeLinear"]
    assert_same_outputs(before, loaded, tolerance=0)
    HoistDequantize()(loaded)
    assert_same_outputs(before, loaded, tolerance=0)


def test_it_stays_where_integers_follow() -> None:
    again = node("QuantizeLinear", ["r", "scale", "zero"], ["p"])
    loaded = quantized(
        node("Reshape", ["d", "to"], ["r"]), again, node("DequantizeLinear", ["p", "scale", "zero"], ["y"])
    )
    before = ops(loaded)
    SinkDequantize()(loaded)
    assert ops(loaded) == before


@pytest.mark.parametrize("other", ["d", "r"])
def test_it_stays_where_another_node_reads_the_value(other: str) -> None:
    loaded = quantized(node("Reshape", ["d", "to"], ["r"]), node("Neg", [other], ["n"]), node("Neg", ["r"], ["y"]))
    loaded.graph.outputs.append(next(each.outputs[0] for each in loaded.graph if each.outputs[0].name == "n"))
    before = loaded.clone()
    SinkDequantize()(loaded)
    assert (ops(loaded) == ops(before)) == (other == "d")
    assert_same_outputs(before, loaded, tolerance=0)


def test_the_moved_file_loads_at_every_level() -> None:
    heads = [node("Reshape", ["d", "to"], ["r"]), node("Concat", ["r", "r"], ["y"], axis=1)]
    loaded = quantized(*heads)
    SinkDequantize()(loaded)
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        ort.InferenceSession(ir.to_proto(loaded).SerializeToString(), options, providers=["CPUExecutionProvider"])
