"""The quantized ONNX file in onnxruntime against the integer layers, each layer fed the same input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from backends.base import Tensors
from backends.layers import Layer
from backends.reference import run_layer
from compiler.lowering import Lowered


@dataclass(frozen=True)
class LayerDifference:
    """How far one layer's integers are from onnxruntime's.

    Attributes:
        layer: Name of the layer.
        tensor: What it makes.
        elements: Compared.
        differing: How many are not equal.
        largest: Largest difference, in steps.
        index: Of the first difference in the ONNX value, sample first, or None.
        expected: onnxruntime's value there.
        got: The layer's value there.
    """

    layer: str
    tensor: str
    elements: int
    differing: int
    largest: int
    index: tuple[int, ...] | None = None
    expected: int | None = None
    got: int | None = None

    @property
    def share(self) -> float:
        return self.differing / self.elements


def compare_layers(
    quantized: ir.Model, lowered: Lowered, samples: Mapping[str, NDArray[np.float32]]
) -> list[LayerDifference]:
    """Compare every layer whose output is an int8 value of the quantized model.

    A layer whose input is no such value (a selection of channels) is fed what the layers before it make of such values.

    Args:
        quantized: The model that was lowered.
        samples: float32 [N, ...] by network input.

    Returns:
        One entry per compared layer, in order.
    """
    expected = onnxruntime_points(quantized, lowered, samples)
    known: Tensors = {}
    for tensor in lowered.graph.inputs:
        known[tensor.name] = lowered.points[tensor.name][1].put(expected[tensor.name])
    found = []
    for layer in lowered.graph.layers:
        got = run_layer(layer, tuple(known[tensor.name] for tensor in layer.inputs))
        known[layer.output.name] = got
        if layer.output.name not in expected:
            continue
        view, theirs = lowered.points[layer.output.name][1], expected[layer.output.name]
        found.append(_difference(layer, theirs, view.take(got)))
        if view.positions().size == layer.output.size:
            known[layer.output.name] = view.put(theirs)
    return found


def onnxruntime_points(quantized: ir.Model, lowered: Lowered, samples: Mapping[str, NDArray[np.float32]]) -> Tensors:
    """onnxruntime's int8 values [N, ...], in ONNX shape, by the name of the tensor that they are in."""
    model = quantized.clone()
    values = {value.name: value for node in model.graph for value in node.outputs}
    wanted = list(dict.fromkeys(value for value, _ in lowered.points.values()))
    model.graph.outputs.clear()
    model.graph.outputs.extend(_as_int8(model.graph, values[name]) for name in wanted)
    session = verification_session(model)
    count = len(next(iter(samples.values())))
    rows = [session.run(None, {name: array[i : i + 1] for name, array in samples.items()}) for i in range(count)]
    whole = {name: np.concatenate([np.asarray(row[k]) for row in rows]) for k, name in enumerate(wanted)}
    return {tensor: whole[value].astype(np.int8) for tensor, (value, _) in lowered.points.items()}


def _as_int8(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value, or its Cast: onnxruntime hands out no types narrower than int8."""
    if value.dtype in (None, ir.DataType.INT8):
        value.type = ir.TensorType(ir.DataType.INT8)
        return value
    cast = ir.node("Cast", [value], {"to": ir.DataType.INT8.value}, name=f"{value.name}_int8")
    graph.append(cast)
    result = cast.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_int8", ir.TensorType(ir.DataType.INT8), value.shape
    return result


def verification_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """onnxruntime without rewrites that would change the arithmetic of a QDQ model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    data = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _difference(layer: Layer, expected: NDArray[np.int8], got: NDArray[np.int8]) -> LayerDifference:
    off = np.abs(expected.astype(np.int16) - got.astype(np.int16))
    differing = int(np.count_nonzero(off))
    name, tensor = layer.name, layer.output.name
    if not differing:
        return LayerDifference(name, tensor, off.size, 0, 0)
    index = tuple(int(i) for i in np.unravel_index(int(np.flatnonzero(off)[0]), off.shape))
    return LayerDifference(
        name, tensor, off.size, differing, int(off.max()), index, int(expected[index]), int(got[index])
    )
