"""Constant Mul, Add, Sub and Div into the layers beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.cleaning.fold_batchnorm import depthwise
from passes.graph import (
    absorb,
    bypass,
    constant,
    graph_of,
    integer,
    ints,
    is_op,
    is_quantized,
    make,
    new_initializer,
    only_consumer,
    operand,
    replace,
    set_input,
    shape_of,
)
from passes.weights import scale_and_shift, weights_of, why_not_linear

# Functions of one variable that a 256-entry table computes; a scalar constant beside one belongs to it.
_FUNCTIONS = frozenset({  # fmt: skip
    "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Softplus",
    "Softsign", "Mish", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "ThresholdedRelu", "Clip", "Relu",
    "Pow", "Sin", "Cos", "Atan", "Floor", "Ceil", "Round", "Sign",
})
_LINEAR = ("Conv", "Gemm", "ConvTranspose", "MatMul", "LSTM", "GRU", "RNN")


@dataclass(frozen=True, eq=False)
class _Affine:
    """y = factor * x + shift per channel, or for all alike.

    Attributes:
        source: x.
        factor: float64 [C] or [1].
        shift: float64 [C] or [1].
    """

    source: ir.Value
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]

    @property
    def is_scalar(self) -> bool:
        return self.factor.size == 1

    def per_channel(self, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.broadcast_to(self.factor, (channels,)), np.broadcast_to(self.shift, (channels,))


class FoldAffine(Rewrite):
    """Fold Mul, Add, Sub and Div by constants per channel into the Conv or Gemm before or after them.

    1. The layer before takes any of them, when nothing else reads its output.
    2. The layer after takes a factor always, and a shift where it has no padding, because padding is not shifted.
    3. What remains between two layers becomes a depthwise 1x1 Conv.

    Left alone: affine maps of the network's raw input or output, and scalars inside a function of one variable.
    """

    name = "fold-affine"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        reasons: dict[ir.Node, str] = {}
        for node in list(model.graph):
            if (affine := _affine(node)) is not None and _fold_back(node, affine):
                notes.change(node)
        # The last of a chain first: then the one before it stands beside the layer.
        for node in reversed(list(model.graph)):
            if (affine := _affine(node)) is None:
                continue
            if reason := _fold_on(node, affine):
                reasons[node] = reason
            else:
                notes.change(node)
        for node in [n for n in model.graph if n in reasons]:
            affine = _affine(node)
            assert affine is not None
            # One that stands behind a new depthwise Conv joins it.
            if _fold_back(node, affine) or _becomes_depthwise(node, affine):
                notes.change(node)
            else:
                notes.skip(node, reasons[node])


def _affine(node: ir.Node) -> _Affine | None:
    """What `node` does, when one of its operands is a constant per channel and the other is not."""
    if not is_op(node, "Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if (left is None) == (right is None):
        return None
    array = right if left is None else left
    source = node.inputs[0] if left is None else node.inputs[1]
    assert array is not None
    assert source is not None
    shape = shape_of(source)
    if shape is None or shape != shape_of(node.outputs[0]) or array.dtype != np.float32:
        return None
    flat = _channel_vector(array.astype(np.float64), shape)
    return None if flat is None else _coefficients(node, source, flat, constant_is_left=left is not None)


def _coefficients(
    node: ir.Node, source: ir.Value, flat: NDArray[np.float64], *, constant_is_left: bool
) -> _Affine | None:
    one, zero = np.ones_like(flat), np.zeros_like(flat)
    if is_op(node, "Mul"):
        return _Affine(source, flat, zero)
    if is_op(node, "Add"):
        return _Affine(source, one, flat)
    if is_op(node, "Sub"):
        return _Affine(source, -one, flat) if constant_is_left else _Affine(source, one, -flat)
    return None if constant_is_left or not flat.all() else _Affine(source, 1.0 / flat, zero)


def _channel_vector(array: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """`array` as [C] or [1] when it differs along the channel axis alone, which is 1."""
    if array.size == 1:
        return array.reshape(1)
    if array.ndim > len(shape) or len(shape) < 2:
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    return full.reshape(-1) if full.size == full.shape[1] == shape[1] else None


def _is_after_last_quantizer(node: ir.Node) -> bool:
    """Whether a quantized network ends with `node` and the like: its integer scores stay integers, ties included."""
    return is_quantized(graph_of(node)) and not _reaches(node, ("QuantizeLinear",), upstream=False)


def _fold_back(node: ir.Node, affine: _Affine) -> bool:
    producer = affine.source.producer()
    if producer is None or why_not_linear(producer) is not None or _is_after_last_quantizer(node):
        return False
    weights = weights_of(producer)
    assert weights is not None
    if scale_and_shift(producer, *affine.per_channel(weights.out_channels)) is not None:
        return False
    absorb(producer, node)
    return True


def _fold_on(node: ir.Node, affine: _Affine) -> str | None:
    """Fold into the next layer; why not, or None when done."""
    if _depends_on_raw_input_alone(node):
        return "it scales the network's input, which the host does"
    if _is_after_last_quantizer(node):
        return "it scales the network's output, which the host does"
    if affine.is_scalar and _is_inside_function(node):
        return "it is part of a function of one variable"
    consumer = only_consumer(node.outputs[0])
    if consumer is None or not is_op(consumer, "Conv", "Gemm") or consumer.inputs[0] is not node.outputs[0]:
        return "neither neighbour is a Conv or Gemm that can take it"
    weights = weights_of(consumer)
    transposed = is_op(consumer, "Gemm") and integer(consumer, "transB", 0) != 1
    if weights is None or weights.dequantize is not None or transposed:
        return f"the weights of node {consumer.name!r} are quantized or not constant"
    if operand(consumer, 2) is not None and constant(operand(consumer, 2)) is None:
        return f"the bias of node {consumer.name!r} is quantized or not constant"
    if affine.shift.any() and (any(ints(consumer, "pads")) or "auto_pad" in consumer.attributes):
        return f"node {consumer.name!r} pads, and padding is not shifted"
    _enter_input(consumer, weights.values, affine)
    if not bypass(node):
        raise AssertionError("an affine between two layers always has a consumer")
    return None


def _enter_input(consumer: ir.Node, weights: NDArray[np.generic], affine: _Affine) -> None:
    """w'[o, i] = w[o, i] * factor[i];  b'[o] = b[o] + sum over i, k of w[o, i, k] * shift[i]."""
    graph, group = graph_of(consumer), integer(consumer, "group", 1)
    out_channels, per_group = weights.shape[:2]
    factor, shift = affine.per_channel(per_group * group)
    wide = weights.astype(np.float64).reshape(group, out_channels // group, per_group, -1)
    scaled = wide * factor.reshape(group, 1, per_group, 1)
    offset = (wide * shift.reshape(group, 1, per_group, 1)).sum(axis=(2, 3)).reshape(-1)
    new = scaled.reshape(weights.shape).astype(np.float32)
    set_input(consumer, 1, new_initializer(graph, f"{consumer.name}_weights", new))
    if shift.any():
        bias = constant(operand(consumer, 2))
        total = offset if bias is None else bias.astype(np.float64) + offset
        set_input(consumer, 2, new_initializer(graph, f"{consumer.name}_bias", total.astype(np.float32)))


def _becomes_depthwise(node: ir.Node, affine: _Affine) -> bool:
    shape = shape_of(affine.source) or ()
    if len(shape) not in (2, 3, 4) or (affine.is_scalar and _is_inside_function(node)):
        return False
    if is_quantized(graph_of(node)):
        return False
    if not (_reaches(node, _LINEAR, upstream=True) and _reaches(node, _LINEAR, upstream=False)):
        return False
    factor, shift = affine.per_channel(shape[1])
    if len(shape) > 2:
        replace(node, depthwise(node, affine.source, factor, shift))
        return True
    graph, square = graph_of(node), (*shape, 1, 1)
    wide = new_initializer(graph, f"{node.name}_map", np.asarray(square, np.int64))
    flat = new_initializer(graph, f"{node.name}_row", np.asarray(shape, np.int64))
    before = make("Reshape", [affine.source, wide], f"{node.name}_to_map", square)
    conv = depthwise(node, before.outputs[0], factor, shift)
    replace(node, before, conv, make("Reshape", [conv.outputs[0], flat], f"{node.name}_from_map", shape))
    return True


def _depends_on_raw_input_alone(node: ir.Node) -> bool:
    """Whether only other affine maps and changes of layout stand between the network's input and `node`."""
    while node is not None:
        dynamic = [v for v in node.inputs if v is not None and constant(v) is None]
        if len(dynamic) != 1:
            return False
        producer = dynamic[0].producer()
        if producer is None:
            return True
        if not is_op(producer, "Mul", "Add", "Sub", "Div", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        node = producer
    return False


def _is_inside_function(node: ir.Node) -> bool:
    """Whether a neighbour is a function of one variable, or multiplies or adds branches of the same variable."""
    source = next(v for v in node.inputs if v is not None and constant(v) is None)
    neighbours = [source.producer(), *(use.node for use in node.outputs[0].uses())]
    neighbours += [use.node for use in source.uses() if use.node is not node]
    return any(n is not None and _is_function(n) for n in neighbours) and not _only_relu(source.producer(), node)


def _is_function(node: ir.Node) -> bool:
    if is_op(node, *_FUNCTIONS):
        return True
    dynamic = [v for v in node.inputs if constant(v) is None]
    return is_op(node, "Mul", "Add", "Sub", "Div") and len(dynamic) == 2 and _same_variable(dynamic)


def _same_variable(values: list[ir.Value | None]) -> bool:
    roots = {_variable(v) for v in values if v is not None}
    return len(roots) == 1


def _variable(value: ir.Value) -> ir.Value:
    """The value that a chain of functions and scalar constants starts from."""
    producer = value.producer()
    while producer is not None:
        dynamic = [v for v in producer.inputs if v is not None and constant(v) is None]
        scalars = all(a.size == 1 for v in producer.inputs if (a := constant(v)) is not None)
        if not is_op(producer, "Mul", "Add", "Sub", "Div", *_FUNCTIONS) or not dynamic or not scalars:
            return value
        roots = {_variable(v) for v in dynamic} if len(dynamic) > 1 else {dynamic[0]}
        if len(roots) != 1:
            return value
        value = roots.pop()
        producer = value.producer()
    return value


def _only_relu(producer: ir.Node | None, node: ir.Node) -> bool:
    """A Relu or Clip before and a layer after: the constant belongs to the layer, not to a table."""
    consumer = only_consumer(node.outputs[0])
    if producer is None or not is_op(producer, "Relu", "Clip") or len(producer.outputs[0].uses()) != 1:
        return False
    return consumer is not None and is_op(consumer, "Conv", "Gemm")


def _reaches(node: ir.Node, op_types: tuple[str, ...], *, upstream: bool) -> bool:
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        for other in current.predecessors() if upstream else current.successors():
            if is_op(other, *op_types):
                return True
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False
