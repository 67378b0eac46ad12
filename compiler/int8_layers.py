"""One function per operator: the nodes that end in an int8 point become an integer layer of `backends.layers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends import fixed_point
from backends.fixed_point import Constant
from backends.layers import (
    Add,
    AveragePool,
    Concat,
    Conv,
    MaxPool,
    Mul,
    Pad,
    PoolRegion,
    PRelu,
    Requantize,
    Resize,
    Table,
    Tensor,
)
from compiler import cone_table
from compiler.int8_points import Q_MAX, Q_MIN, Network, Placed, Point, Refused, Scale, node_name
from compiler.layout import View
from compiler.operators import (
    affine_terms,
    along_axis,
    border,
    channel_constant,
    constant_of,
    divisor_runs,
    dynamic_inputs,
    is_cone_node,
    resize_factors,
    window,
)
from passes.graph import constant, integer, operand, shape_of

Lower: TypeAlias = Callable[[Network, ir.Node, Point], Placed]


@dataclass(frozen=True)
class Weights:
    """Attributes: codes int8 [C_out, C_in, ...]; scale float64 [C_out]."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float64]


@dataclass(frozen=True)
class Cone:
    """Elementwise nodes in topological order, and the one value that they start from, under all its names."""

    nodes: tuple[ir.Node, ...]
    sources: tuple[ir.Value, ...]


def cone_before(net: Network, value: ir.Value) -> Cone | None:
    """The elementwise nodes that make `value` from one int8 value, or None."""
    order: dict[ir.Node, None] = {}
    sources: dict[ir.Value, Placed] = {}

    def is_inside(current: ir.Value) -> bool:
        if (placed := net.resolve(current)) is not None:
            sources[current] = placed
            return True
        node = current.producer()
        if node is None or node.name not in net.nodes or not is_cone_node(node):
            return False
        if node not in order and not all(is_inside(value) for value in dynamic_inputs(node)):
            return False
        order[node] = None
        return True

    if not is_inside(value) or not order:
        return None
    first, *others = sources.values()
    same = all(o.tensor == first.tensor and o.view.same_order(first.view) for o in others)
    return Cone(tuple(order), tuple(sources)) if same else None


def table(net: Network, cone: Cone, point: Point) -> Placed:
    """A cone evaluated at the 256 codes of its source."""
    last = cone.nodes[-1]
    placed = net.source(last, cone.sources[0])
    x = ((cone_table.CODES - placed.tensor.zero_point) * placed.tensor.scale).astype(np.float64)
    y = cone_table.evaluate(cone.nodes, cone.sources, point.value, x)
    output = point.tensor(placed.tensor.shape)
    net.append(Table(node_name(last), placed.tensor, output, point.codes(y)))
    shape, order = shape_of(point.value), placed.view.order
    assert shape is not None
    return Placed(output, View(placed.view.chw, shape, None if order is None else order.reshape(shape)))


# Layers with weights


def conv(net: Network, node: ir.Node, point: Point) -> Placed:
    """Conv; a selection of channels before it is a matter of its weights where it has one group."""
    geometry, weights, groups = window(node), _weights(node), integer(node, "group", 1)
    codes = weights.codes.reshape(*weights.codes.shape[:2], *geometry.kernel)
    placed = net.source(node, node.inputs[0])
    channels = None if placed.view.is_map else placed.view.channels()
    if channels is not None and groups == 1:
        tensor = placed.tensor
        codes = _scattered(node, codes, channels, tensor.shape[0])
    else:
        tensor = net.map(node, node.inputs[0])
    output, view = point.map()
    config = _requantize(net, node, tensor, replace(weights, codes=codes), point)
    strides, pads, dilations = geometry.strides, geometry.pads, geometry.dilations
    net.append(Conv(node_name(node), tensor, output, codes, config, strides, pads, dilations, groups))
    return Placed(output, view)


def gemm(net: Network, node: ir.Node, point: Point) -> Placed:
    """A kernel as large as the map, its weights in the map's order."""
    weights = _weights(node)
    placed = net.source(node, node.inputs[0])
    flat = _scattered(node, weights.codes, placed.view.positions().ravel(), placed.tensor.size)
    codes = flat.reshape(len(flat), *placed.tensor.shape)
    output, view = point.map()
    config = _requantize(net, node, placed.tensor, replace(weights, codes=codes), point)
    net.append(Conv(node_name(node), placed.tensor, output, codes, config))
    return Placed(output, view)


def affine(net: Network, node: ir.Node, point: Point) -> Placed:
    """x * c + d with one c and d per channel: a depthwise 1x1 convolution of weight 1."""
    tensor, terms = net.map(node, dynamic_inputs(node)[0]), affine_terms(node)
    if terms is None:
        raise Refused(node, "its constant is neither one number nor one number per channel")
    factor, added = terms
    channels = tensor.shape[0]
    output, view = point.map()
    start = Constant(np.full(channels, -tensor.zero_point, np.int64), added / point.scale)
    config = _bounded(factor * tensor.scale / point.scale, start, point)
    codes = np.ones((channels, 1, 1, 1), np.int8)
    net.append(Conv(node_name(node), tensor, output, codes, config, groups=channels))
    return Placed(output, view)


def _weights(node: ir.Node) -> Weights:
    """Integer weights and their scale for each output channel."""
    source = node.inputs[1]
    dequantize = None if source is None else source.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        raise Refused(node, "its weights are not quantized")
    codes, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
    zero_point = constant(operand(dequantize, 2))
    if codes is None or scale is None:
        raise Refused(node, "its weights are computed at run time")
    if zero_point is not None and zero_point.astype(np.int64).any():
        remedy = "quantize weights symmetrically (onnxruntime: weight_type=QInt8)"
        raise Refused(node, "its weights are asymmetric (their zero point is not 0)", remedy)
    wide = codes.astype(np.int64)
    if wide.min(initial=0) < Q_MIN or wide.max(initial=0) > Q_MAX:
        raise Refused(node, "its weights do not fit int8")
    scales = np.broadcast_to(along_axis(scale, dequantize, wide.ndim), wide.shape)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not integer(node, "transB", 0)):
        wide, scales = wide.T, scales.T
    rows = scales.reshape(len(wide), -1)
    if (rows != rows[:, :1]).any():
        raise Refused(node, "its weights have more than one scale for an output channel")
    return Weights(np.ascontiguousarray(wide.astype(np.int8)), rows[:, 0].copy())


def _requantize(net: Network, node: ir.Node, tensor: Tensor, weights: Weights, point: Point) -> Requantize:
    """From accumulators to the point, with the bias and the input's zero point in the offset."""
    _prove_accumulator(net, node, tensor, weights.codes)
    step = tensor.scale * weights.scale
    exact, real = _bias(node, step)
    sums = weights.codes.astype(np.int64).reshape(len(step), -1).sum(axis=1)
    start = Constant(exact - tensor.zero_point * sums, real / point.scale)
    return _bounded(step / point.scale, start, point)


def _bounded(factors: NDArray[np.float64], start: Constant, point: Point) -> Requantize:
    low, high = point.low, point.high
    return fixed_point.requantize(factors, start, zero_point=point.zero_point, low=low, high=high)


def _bias(node: ir.Node, step: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(in steps of s_x * s_w, int64 [C]; real, float64 [C]): an int32 bias at that scale is exact, others are real."""
    exact, real = np.zeros(len(step), np.int64), np.zeros(len(step))
    value = operand(node, 2)
    if value is None:
        return exact, real
    codes = _codes_at(value, step)
    if codes is not None:
        return exact + codes, real
    array = constant_of(value)
    if array is None:
        raise Refused(node, "its bias is computed at run time")
    return exact, real + array.astype(np.float64).ravel()


def _codes_at(value: ir.Value, step: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The integers of a bias that is stored at scale `step`, else None."""
    dequantize = value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    codes, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
    if codes is None or scale is None or not np.allclose(scale.astype(np.float64), step, rtol=1e-6, atol=0):
        return None
    return codes.astype(np.int64).ravel()


def _prove_accumulator(net: Network, node: ir.Node, tensor: Tensor, codes: NDArray[np.int8]) -> None:
    """Each channel's final sum fits, whatever the input (intermediate wrap is harmless in two's complement)."""
    low, high = net.range(tensor)
    low, high = min(low, tensor.zero_point), max(high, tensor.zero_point)  # the border is at the zero point
    rows = codes.reshape(len(codes), -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    most, least = positive * high + negative * low, positive * low + negative * high
    limit = 1 << (net.acc_bits - 1)
    bad = np.flatnonzero((most >= limit) | (least < -limit))
    if len(bad):
        worst = max(int(most.max()), -int(least.min()))
        reason = f"the sum of output channel {bad[0]} can reach {worst}, beyond an accumulator of {net.acc_bits} bits"
        raise Refused(node, reason, "quantize with a larger weight scale, or split the layer")


def _scattered(node: ir.Node, codes: NDArray[np.int8], positions: NDArray[np.int64], size: int) -> NDArray[np.int8]:
    """Weights along axis 1 moved to where their inputs are; the weights of an input that occurs twice add up."""
    if len(positions) == size and bool((positions == np.arange(size)).all()):
        return codes
    total = np.zeros((size, len(codes), *codes.shape[2:]), np.int64)
    np.add.at(total, positions, codes.swapaxes(0, 1).astype(np.int64))
    if np.abs(total).max(initial=0) > Q_MAX and len(np.unique(positions)) < len(positions):
        raise Refused(node, "its input repeats an element, and the weights add up beyond int8")
    return np.ascontiguousarray(total.swapaxes(0, 1).astype(np.int8))


# Two values


def add(net: Network, node: ir.Node, point: Point) -> Placed:
    """Add or Sub of two values, or of a value and a constant."""
    sources = dynamic_inputs(node)
    if len(sources) == 1:
        return affine(net, node, point)
    a, b, view, is_swapped = _operands(net, node, sources, point)
    sign = -1.0 if node.op_type == "Sub" else 1.0
    signs = (sign, 1.0) if is_swapped else (1.0, sign)
    factors = (signs[0] * a.scale / point.scale, signs[1] * b.scale / point.scale)
    (multiplier_a, multiplier_b), shift = fixed_point.encode_common(factors)
    output = point.tensor(a.shape)
    net.append(Add(node_name(node), a, b, output, multiplier_a, multiplier_b, shift, point.low, point.high))
    return Placed(output, view)


def mul(net: Network, node: ir.Node, point: Point) -> Placed:
    """Mul of two values, or of a value and a constant."""
    sources = dynamic_inputs(node)
    if len(sources) == 1:
        return affine(net, node, point)
    a, b, view, _ = _operands(net, node, sources, point)
    multiplier, shift = fixed_point.encode(a.scale * b.scale / point.scale)
    output = point.tensor(a.shape)
    net.append(Mul(node_name(node), a, b, output, multiplier, shift, point.low, point.high))
    return Placed(output, view)


def _operands(
    net: Network, node: ir.Node, sources: tuple[ir.Value, ...], point: Point
) -> tuple[Tensor, Tensor, View, bool]:
    """(a, b, the output's view, whether they are swapped), a of the output's size."""
    left, right = net.source(node, sources[0]), net.source(node, sources[1])
    if left.view.same_order(right.view):
        return left.tensor, right.tensor, left.view, False
    a, b = net.map(node, sources[0]), net.map(node, sources[1])
    _, view = point.map()
    is_swapped = a.shape != view.chw
    return (b, a, view, True) if is_swapped else (a, b, view, False)


# One value


def prelu(net: Network, node: ir.Node, point: Point) -> Placed:
    tensor = net.map(node, node.inputs[0])
    slopes = channel_constant(node.inputs[1], shape_of(node.outputs[0]) or ())
    if slopes is None:
        raise Refused(node, "its slope is not a constant of one number per channel")
    factor = tensor.scale / point.scale
    (multiplier, *negative), shift = fixed_point.encode_common((factor, *(slopes * factor).tolist()))
    output, view = point.map()
    wide = _unclamped(point, output)
    net.append(PRelu(node_name(node), tensor, wide, multiplier, np.array(negative, np.int64), shift))
    _clamp(net, node, wide, output, point)
    return Placed(output, view)


def max_pool(net: Network, node: ir.Node, point: Point) -> Placed:
    """MaxPool or GlobalMaxPool."""
    tensor = net.map(node, node.inputs[0])
    output, view = point.map()
    made = _same_scale(net, tensor, output, point)
    if node.op_type == "GlobalMaxPool":
        layer = MaxPool(node_name(node), tensor, made, tensor.shape[1:])
    else:
        g = window(node)
        layer = MaxPool(node_name(node), tensor, made, g.kernel, g.strides, g.pads, g.dilations)
    net.append(layer)
    _clamp(net, node, made, output, point)
    return Placed(output, view)


def average_pool(net: Network, node: ir.Node, point: Point) -> Placed:
    """AveragePool, GlobalAveragePool, or ReduceMean over all sides of the map."""
    tensor = net.map(node, node.inputs[0])
    output, view = point.map()
    kernel, strides, pads = tensor.shape[1:], (1, 1), (0, 0, 0, 0)
    rows, columns = [(0, 1, kernel[0])], [(0, 1, kernel[1])]
    if node.op_type == "AveragePool":
        g = window(node)
        kernel, strides, pads = g.kernel, g.strides, g.pads
        rows, columns = divisor_runs(node)
    if kernel[0] * kernel[1] * -Q_MIN > 1 << (net.acc_bits - 1):
        raise Refused(node, f"the sum over its window is beyond an accumulator of {net.acc_bits} bits")
    regions = []
    for top, bottom, height in rows:
        for left, right, width in columns:
            multiplier, shift = fixed_point.encode(tensor.scale / (height * width * point.scale))
            offset = -kernel[0] * kernel[1] * tensor.zero_point * multiplier
            regions.append(PoolRegion(top, left, bottom, right, multiplier, shift, offset))
    low, high = point.low, point.high
    net.append(AveragePool(node_name(node), tensor, output, kernel, tuple(regions), strides, pads, low, high))
    return Placed(output, view)


def concat(net: Network, node: ir.Node, point: Point) -> Placed:
    parts = tuple(net.map(node, value) for value in node.inputs)
    pairs = [(1, 0) if part.scale == point.scale else fixed_point.encode(part.scale / point.scale) for part in parts]
    output, view = point.map()
    wide = _unclamped(point, output)
    multipliers, shifts = tuple(m for m, _ in pairs), tuple(s for _, s in pairs)
    net.append(Concat(node_name(node), parts, wide, multipliers, shifts))
    _clamp(net, node, wide, output, point)
    return Placed(output, view)


def resize(net: Network, node: ir.Node, point: Point) -> Placed:
    tensor, factors = net.map(node, node.inputs[0]), resize_factors(node)
    if factors is None:
        raise Refused(node, "only nearest upsampling by whole factors is supported")
    output, view = point.map()
    made = _same_scale(net, tensor, output, point)
    net.append(Resize(node_name(node), tensor, made, factors))
    _clamp(net, node, made, output, point)
    return Placed(output, view)


def pad(net: Network, node: ir.Node, point: Point) -> Placed:
    tensor, found = net.map(node, node.inputs[0]), border(node)
    if found is None:
        raise Refused(node, "only a border of one constant around the sides of a map is supported")
    pads, value = found
    output, view = point.map()
    made = _same_scale(net, tensor, output, point)
    code = Scale(made.scale, made.zero_point).quantize(value)
    if made is not output and code != made.zero_point:
        raise Refused(node, "its input and output have different scales and its border is not 0")
    net.append(Pad(node_name(node), tensor, made, pads, code))
    _clamp(net, node, made, output, point)
    return Placed(output, view)


# Layers whose kind cannot rescale or clamp are followed by a table that does.


def _same_scale(net: Network, source: Tensor, output: Tensor, point: Point) -> Tensor:
    """Where a layer that keeps its input's scale writes: the output, or a map before a table."""
    low, high = net.range(source)
    same = (source.scale, source.zero_point) == (output.scale, output.zero_point)
    if same and point.low <= low and high <= point.high:
        return output
    made = Tensor(f"{output.name}_unscaled", output.shape, source.scale, source.zero_point)
    net.ranges[made.name] = (low, high)
    return made


def _unclamped(point: Point, output: Tensor) -> Tensor:
    """Where a layer that clamps to int8 alone writes: the output, or a map before a table."""
    if (point.low, point.high) == (Q_MIN, Q_MAX):
        return output
    return replace(output, name=f"{output.name}_unclamped")


def _clamp(net: Network, node: ir.Node, made: Tensor, output: Tensor, point: Point) -> None:
    if made is not output:
        net.rescale(f"{node_name(node)}_rescale", made, output, point)


LAYERS: dict[str, Lower] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": gemm,
    "Add": add,
    "Sub": add,
    "Mul": mul,
    "Div": affine,
    "BatchNormalization": affine,
    "PRelu": prelu,
    "MaxPool": max_pool,
    "GlobalMaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": average_pool,
    "ReduceMean": average_pool,
    "Concat": concat,
    "Resize": resize,
    "Pad": pad,
}
"""By the operator of a point's anchor."""
