"""The weights of a Conv or Gemm, float or dequantized integers, scaled and shifted per output channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph import Array, constant, graph_of, integer, is_op, new_initializer, only_consumer, operand, set_input


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights [out, ...] of one node.

    Attributes:
        values: float32, or integers when `dequantize` is there.
        dequantize: The DequantizeLinear between the integers and the node.
    """

    values: Array
    dequantize: ir.Node | None = None

    @property
    def out_channels(self) -> int:
        return int(self.values.shape[0])


def weights_of(node: ir.Node) -> Weights | None:
    """The constant weights of a Conv or a canonical Gemm, or None."""
    value = operand(node, 1)
    if (array := constant(value)) is not None:
        return Weights(array) if array.dtype == np.float32 else None
    producer = value.producer() if value is not None else None
    if not is_op(producer, "DequantizeLinear") or producer is None:
        return None
    integers = constant(producer.inputs[0])
    return None if integers is None or constant(operand(producer, 1)) is None else Weights(integers, producer)


def why_not_linear(node: ir.Node | None) -> str | None:
    """Why `node` is not a Conv or canonical Gemm whose output a per-channel factor and shift can enter."""
    if node is None or not is_op(node, "Conv", "Gemm"):
        return "its input is not a Conv or Gemm"
    if only_consumer(node.outputs[0]) is None:
        return f"the output of node {node.name!r} is also read elsewhere"
    if is_op(node, "Gemm") and not is_canonical_gemm(node):
        return f"node {node.name!r} has transposed or scaled operands"
    if weights_of(node) is None:
        return f"the weights of node {node.name!r} are not constant"
    if operand(node, 2) is not None and constant(operand(node, 2)) is None:
        return f"the bias of node {node.name!r} is quantized or not constant"
    return None


def is_canonical_gemm(node: ir.Node) -> bool:
    """Whether it computes x W^T + b: no scaled operand, W stored [out, in]."""
    attributes = node.attributes
    plain = all(name not in attributes or attributes[name].as_float() == 1.0 for name in ("alpha", "beta"))
    return plain and integer(node, "transA", 0) == 0 and integer(node, "transB", 0) == 1


def scale_and_shift(node: ir.Node, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> str | None:
    """Make output channel c of `node` be factor[c] * before + shift[c].

    Args:
        node: Conv or Gemm for which `why_not_linear` is None.
        factor: float64 [out].
        shift: float64 [out].

    Returns:
        Why not, or None when done.
    """
    weights = weights_of(node)
    assert weights is not None
    graph, old_bias = graph_of(node), constant(operand(node, 2))
    bias = np.zeros(weights.out_channels) if old_bias is None else old_bias.astype(np.float64)
    new_bias = (bias * factor + shift).astype(np.float32)
    new_weights = weights.values
    if weights.dequantize is None:
        column = factor.reshape((-1,) + (1,) * (weights.values.ndim - 1))
        new_weights = (weights.values.astype(np.float64) * column).astype(np.float32)
    if not (np.isfinite(new_bias).all() and np.isfinite(new_weights).all()):
        return "the folded weights would not be finite"
    if weights.dequantize is not None:
        if reason := _scale_dequantize(node, weights, factor):
            return reason
    elif np.any(factor != 1.0):
        set_input(node, 1, new_initializer(graph, f"{node.name}_weights", new_weights))
    if old_bias is not None or np.any(new_bias):
        set_input(node, 2, new_initializer(graph, f"{node.name}_bias", new_bias))
    return None


def _scale_dequantize(node: ir.Node, weights: Weights, factor: NDArray[np.float64]) -> str | None:
    """Put `factor` into the scale: the integers stay, but for the sign of a channel."""
    old = weights.dequantize
    assert old is not None
    scale, zero = constant(operand(old, 1)), constant(operand(old, 2))
    assert scale is not None
    if zero is not None and zero.any():
        return "its weights have a zero point"
    if scale.ndim > 1 or (scale.size > 1 and integer(old, "axis", 1) % weights.values.ndim != 0):
        return "the scale of its weights is not per output channel"
    if np.any(weights.values.astype(np.int64) == -128) and np.any(factor < 0):
        return "its smallest weight has no negative"
    sign = np.where(factor < 0, -1, 1) * (factor != 0)
    column = sign.reshape((-1,) + (1,) * (weights.values.ndim - 1))
    magnitude = np.where(factor == 0, 1.0, np.abs(factor))
    new_scale = (np.broadcast_to(scale.reshape(-1), factor.shape).astype(np.float64) * magnitude).astype(np.float32)
    if not (np.isfinite(new_scale).all() and (new_scale > 0).all()):
        return "the folded scale of its weights would not be a positive number"
    graph, name = graph_of(node), f"{node.name}_weights"
    values = (weights.values * column).astype(weights.values.dtype)
    inputs: list[ir.Value | None] = [
        new_initializer(graph, f"{name}_q", values),
        new_initializer(graph, f"{name}_scale", new_scale),
        new_initializer(graph, f"{name}_zero_point", np.zeros(factor.shape, values.dtype)),
    ]
    set_input(node, 1, _dequantize(node, inputs, values, old))
    return None


def replace_weights(node: ir.Node, old: Weights, values: Array) -> str | None:
    """Give `node` weights `values` of another shape, of the same dtype and output channels.

    Returns:
        Why not, or None when done.
    """
    graph, name = graph_of(node), f"{node.name}_weights"
    if old.dequantize is None:
        set_input(node, 1, new_initializer(graph, name, values))
        return None
    zero, scale = constant(operand(old.dequantize, 2)), constant(operand(old.dequantize, 1))
    assert scale is not None
    if zero is not None and zero.any():
        return "its weights have a zero point"
    if scale.size > 1 and integer(old.dequantize, "axis", 1) % old.values.ndim != 0:
        return "the scale of its weights is not per output channel"
    integers = new_initializer(graph, f"{name}_q", values)
    set_input(node, 1, _dequantize(node, [integers, *old.dequantize.inputs[1:]], values, old.dequantize))
    return None


def _dequantize(node: ir.Node, inputs: list[ir.Value | None], values: Array, old: ir.Node) -> ir.Value:
    """A DequantizeLinear along axis 0 in front of `node`, with the metadata of `old`."""
    name = f"{node.name}_weights_dq"
    new = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=name, metadata_props=dict(old.metadata_props))
    output = new.outputs[0]
    output.name, output.type, output.shape = f"{name}_out", ir.TensorType(ir.DataType.FLOAT), ir.Shape(values.shape)
    graph_of(node).insert_before(node, new)
    return output
