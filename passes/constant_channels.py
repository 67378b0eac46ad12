"""Which channels of a float graph do not depend on what the network is fed, and what value they have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from passes.cones import BINARY, UNARY
from passes.graph import Array, constant, integer, ints, is_op, number, operand, shape_of, text

NOISE = 1e-6
"""A channel depends on its inputs when their |weights| sum up to more than this share of its layer's largest sum."""

PART = 1 << 20
"""Weights that are looked at together."""
ELEMENTWISE = (*sorted(UNARY), *sorted(BINARY), "PRelu")
POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity")
# Their slope is bounded: a tiny change of the input is a tiny change of the output.
_GENTLE = frozenset(
    {  # fmt: skip
        "Abs",
        "Add",
        "Atan",
        "Celu",
        "Clip",
        "Cos",
        "Elu",
        "Erf",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Sin",
        "Softplus",
        "Softsign",
        "Sub",
        "Swish",
        "Tanh",
    }
)
# They take their smallest and largest value over a box of operands at its corners.
_AT_CORNERS = frozenset(
    {  # fmt: skip
        "Add",
        "Atan",
        "Clip",
        "Elu",
        "Erf",
        "HardSigmoid",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sub",
        "Tanh",
    }
)

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known about the channels (axis 1) of one value.

    A channel is *fixed* when it does not depend on what the network is fed. It may still have other values at the
    border than inside, where a layer pads.

    Attributes:
        low, high: float64 [C]; bounds of a fixed channel's values; infinite for the others.
        doubt: float64 [C]; share of the value's strongest channel that was neglected to call this one fixed.
    """

    low: Vector
    high: Vector
    doubt: Vector

    @property
    def is_fixed(self) -> NDArray[np.bool_]:
        return np.isfinite(self.low) & np.isfinite(self.high)

    @property
    def is_constant(self) -> NDArray[np.bool_]:
        """bool [C]: one value at every position."""
        return self.is_fixed & (self.low == self.high)

    @property
    def gain(self) -> Vector:
        """How far the network's inputs can move each channel, relative to the strongest; 1 where unknown."""
        return np.where(self.is_fixed, self.doubt, 1.0)


Known: TypeAlias = dict[ir.Value, Channels]


def channel_count(value: ir.Value | None) -> int | None:
    """C of a value [1, C, ...] of static shape, else None."""
    shape = shape_of(value)
    return shape[1] if shape is not None and len(shape) >= 2 and shape[0] == 1 and shape[1] > 0 else None


def constant_channels(model: ir.Model) -> Known:
    """What is known about every value [1, C, ...] of a canonical float graph; intact afterwards."""
    known: Known = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value not in known and (count := channel_count(value)) is not None:
                known[value] = _unknown(count)
        result = node.outputs[0]
        if result in known and why_not(node) is None:
            known[result] = _transfer(node, known)
    return known


def dynamic(node: ir.Node) -> list[ir.Value]:
    """The operands of `node` that are computed or fed, in order."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


def is_dense(node: ir.Node) -> bool:
    """Whether every output channel of `node` reads every input channel."""
    return is_op(node, "Gemm") or (is_op(node, "Conv") and integer(node, "group", 1) == 1)


def is_depthwise(node: ir.Node) -> bool:
    """Whether every output channel of `node` reads one input channel of several."""
    group = integer(node, "group", 1)
    return is_op(node, "Conv") and group > 1 and group == channel_count(node.inputs[0])


def pads(node: ir.Node) -> bool:
    """Whether a Conv or pool has padding."""
    return any(ints(node, "pads")) or text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def why_not(node: ir.Node) -> str | None:
    """Why it is not known what `node` does to channels, or None."""
    if len(node.outputs) != 1 or not dynamic(node):
        return "it has several outputs or no inputs"
    if any(channel_count(value) is None for value in (*dynamic(node), node.outputs[0])):
        return "a shape is not [1, C, ...]"
    for op_types, reason in _REASONS.items():
        if is_op(node, *op_types):
            return reason(node)
    return f"{node.op_type} may mix channels"


def _why_not_linear(node: ir.Node) -> str | None:
    weights, bias = constant(operand(node, 1)), operand(node, 2)
    if weights is None or weights.dtype != np.float32 or len(dynamic(node)) != 1:
        return "its weights are quantized or not constant"
    if bias is not None and ((array := constant(bias)) is None or array.size not in (1, weights.shape[0])):
        return "its bias is not one constant for each channel"
    if is_op(node, "Conv"):
        if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return "its padding is implicit"
        return None if is_dense(node) or is_depthwise(node) else "it is a grouped convolution"
    plain = number(node, "alpha", 1.0) == 1.0 == number(node, "beta", 1.0)
    is_canonical = plain and integer(node, "transA", 0) == 0 and integer(node, "transB", 0) == 1
    return (
        None if is_canonical and len(shape_of(node.inputs[0]) or ()) == 2 else "its operands are transposed or scaled"
    )


def _why_not_elementwise(node: ir.Node) -> str | None:
    shape = shape_of(node.outputs[0]) or ()
    if any(channel_count(v) != shape[1] or len(shape_of(v) or ()) != len(shape) for v in dynamic(node)):
        return "it broadcasts channels"
    vectors = [array for v in node.inputs if v is not None and (array := constant(v)) is not None]
    return None if all(_is_per_channel(a, shape) for a in vectors) else "its constant is not one for each channel"


def _is_per_channel(array: Array, shape: tuple[int, ...]) -> bool:
    if array.size == 1:
        return array.ndim <= len(shape)
    full = (1,) * (len(shape) - array.ndim) + array.shape
    return array.ndim <= len(shape) and array.size == full[1] == shape[1]


def _why_not_pool(node: ir.Node) -> str | None:
    return None if channel_count(node.inputs[0]) == channel_count(node.outputs[0]) else "it changes the channels"


def _why_not_resize(node: ir.Node) -> str | None:
    if text(node, "mode", "nearest") == "cubic" or "axes" in node.attributes or len(dynamic(node)) != 1:
        return "it resizes in a way that is not looked into"
    if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it crops"
    return _why_not_pool(node)


def _why_not_pad(node: ir.Node) -> str | None:
    if len(dynamic(node)) != 1 or operand(node, 3) is not None:
        return "it pads chosen axes"
    amounts = constant(operand(node, 1))
    rank = len(shape_of(node.inputs[0]) or ())
    if amounts is None or np.any(amounts.reshape(2, rank)[:, :2]):
        return "it pads channels"
    return None


def _why_not_concat(node: ir.Node) -> str | None:
    rank = len(shape_of(node.outputs[0]) or ())
    if integer(node, "axis", 0) % rank != 1:
        return "it joins another axis than the channels"
    return None if len(dynamic(node)) == len(node.inputs) else "it joins constants"


def _why_not_reshape(node: ir.Node) -> str | None:
    if is_op(node, "Squeeze") and operand(node, 1) is None:
        return "it drops every axis of size 1"
    before, after = channel_count(node.inputs[0]) or 1, channel_count(node.outputs[0]) or 1
    return None if len(dynamic(node)) == 1 and (before % after == 0 or after % before == 0) else "it mixes channels"


_REASONS: Mapping[tuple[str, ...], Callable[[ir.Node], str | None]] = {
    ("Conv", "Gemm"): _why_not_linear,
    ELEMENTWISE: _why_not_elementwise,
    POOLS: _why_not_pool,
    ("Resize",): _why_not_resize,
    ("Pad",): _why_not_pad,
    ("Concat",): _why_not_concat,
    RESHAPES: _why_not_reshape,
}


# From the operands to the result


def _transfer(node: ir.Node, known: Known) -> Channels:
    sources = [known[value] for value in dynamic(node)]
    if is_op(node, "Conv", "Gemm"):
        return _linear(node, sources[0])
    if is_op(node, *ELEMENTWISE):
        return _elementwise(node, known)
    if is_op(node, "Concat"):
        return Channels(*(np.concatenate(parts) for parts in zip(*map(_fields, sources), strict=True)))
    if is_op(node, *RESHAPES):
        return _reshaped(sources[0], channel_count(node.outputs[0]) or 1)
    low, high, doubt = _fields(sources[0])
    written = _written(node)
    return Channels(np.minimum(low, written), np.maximum(high, written), doubt) if written is not None else sources[0]


def _unknown(count: int) -> Channels:
    return Channels(np.full(count, -np.inf), np.full(count, np.inf), np.zeros(count))


def _fields(channels: Channels) -> tuple[Vector, Vector, Vector]:
    return channels.low, channels.high, channels.doubt


def _checked(low: Vector, high: Vector, doubt: Vector) -> Channels:
    """Channels; one that is fixed with more doubt than noise is not fixed."""
    is_fixed = np.isfinite(low) & np.isfinite(high) & (doubt <= NOISE)
    return Channels(np.where(is_fixed, low, -np.inf), np.where(is_fixed, high, np.inf), np.where(is_fixed, doubt, 0.0))


def _written(node: ir.Node) -> float | None:
    """What a pool or Pad puts at the border and averages with or shows; None: nothing."""
    if is_op(node, "AveragePool"):
        return 0.0 if pads(node) and integer(node, "count_include_pad", 0) else None
    if is_op(node, "Pad") and text(node, "mode", "constant") == "constant":
        value = constant(operand(node, 2))
        return 0.0 if value is None or not value.size else float(value.ravel()[0])
    return None


def _linear(node: ir.Node, source: Channels) -> Channels:
    """An output channel is fixed when what it reads is, or enters with weights that are float noise."""
    low, high, gain = (
        per_output(node, each)
        for each in (
            np.where(source.is_fixed, source.low, 0.0),
            np.where(source.is_fixed, source.high, 0.0),
            source.gain,
        )
    )
    lowest, highest, doubt = [], [], []
    for rows in row_parts(node):
        reach = np.abs(channel_weights(node, rows)).sum(2)
        doubt.append((reach * _of(gain, rows)).sum(1))
        smallest, largest = window_sums(node, rows)
        corners = np.stack([each * _of(bound, rows) for each in (smallest, largest) for bound in (low, high)])
        lowest.append(corners.min(0).sum(1))
        highest.append(corners.max(0).sum(1))
    bias = bias_of(node)
    return _checked(
        bias + np.concatenate(lowest), bias + np.concatenate(highest), np.concatenate(doubt) / strongest(node, source)
    )


def _of(vector: Vector, rows: slice) -> Vector:
    """What the rows read, of [out or 1, in]."""
    return vector if len(vector) == 1 else vector[rows]


def strongest(node: ir.Node, source: Channels) -> float:
    """The largest sum of |weights| of an output channel, over what depends on the input where there is such."""
    is_live = per_output(node, (~source.is_fixed).astype(np.float64))
    sums = []
    for rows in row_parts(node):
        reach = np.abs(channel_weights(node, rows)).sum(2)
        sums.append(((reach * _of(is_live, rows)).sum(1).max(), reach.sum(1).max()))
    return float(max(live for live, _ in sums) or max(each for _, each in sums) or 1.0)


def row_parts(node: ir.Node) -> list[slice]:
    """Output channels that are looked at together: of a huge layer few, so that what is made of them stays small."""
    shape = shape_of(node.inputs[1]) or (1,)
    step = max(1, PART // max(1, math.prod(shape[1:])))
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def channel_weights(node: ir.Node, rows: slice = slice(None)) -> Vector:
    """Weights of some output channels of a Conv or Gemm as float64 [out, in of one group, taps]."""
    weights = constant(operand(node, 1))
    assert weights is not None
    return weights[rows].astype(np.float64).reshape(-1, weights.shape[1], math.prod(weights.shape[2:]))


def window_sums(node: ir.Node, rows: slice = slice(None)) -> tuple[Vector, Vector]:
    """The smallest and largest sum of a kernel's weights over the taps that lie inside the input, over all positions.

    Returns:
        Two float64 [out, in of one group], the same array where nothing is padded.
    """
    if not pads(node):
        total = channel_weights(node, rows).sum(2)
        return total, total
    weights = constant(operand(node, 1))
    assert weights is not None
    sums = weights[rows].astype(np.float64)
    for axis, taps in enumerate(weights.shape[2:]):
        inside = _inside(node, axis, taps)
        # Consumes axis 2, the next spatial one, and appends the kinds of positions along it.
        sums = np.tensordot(sums, inside, ([2], [1]))
    flat = sums.reshape(*sums.shape[:2], -1)
    return flat.min(2), flat.max(2)


def _inside(node: ir.Node, axis: int, taps: int) -> Vector:
    """Which taps lie inside the input: 0 or 1, [different kinds of output positions, taps]."""
    rank = len(shape_of(node.inputs[0]) or ()) - 2
    size, positions = ((shape_of(v) or ())[2 + axis] for v in (node.inputs[0], node.outputs[0]))
    stride, dilation = (ints(node, name, (1,) * rank)[axis] for name in ("strides", "dilations"))
    first = ints(node, "pads", (0,) * 2 * rank)[axis]
    at = np.arange(positions)[:, None] * stride - first + np.arange(taps) * dilation
    return np.unique((at >= 0) & (at < size), axis=0).astype(np.float64)


def bias_of(node: ir.Node) -> Vector:
    """Bias of a Conv or Gemm, float64 [out]."""
    bias, count = constant(operand(node, 2)), channel_count(node.outputs[0]) or 1
    return np.zeros(count) if bias is None else np.broadcast_to(bias.astype(np.float64).reshape(-1), (count,))


def per_output(node: ir.Node, vector: Vector) -> Vector:
    """[C_in] as [out or 1, in of one group]: what each output channel reads."""
    if is_dense(node):
        return vector.reshape(1, -1)
    return vector.repeat((channel_count(node.outputs[0]) or 1) // vector.size).reshape(-1, 1)


def _elementwise(node: ir.Node, known: Known) -> Channels:
    sources = [known[value] for value in dynamic(node)]
    result = _at_corners(node, sources)
    if not is_op(node, "Mul"):
        return result
    for source in sources:
        # What 0 is multiplied with need not be known.
        is_zero = source.is_constant & (source.low == 0)
        fields = zip(_fields(source), _fields(result), strict=True)
        result = Channels(*(np.where(is_zero, zero, other) for zero, other in fields))
    return result


def _at_corners(node: ir.Node, sources: list[Channels]) -> Channels:
    """The result where every operand is fixed, from the smallest and largest value of each."""
    doubt = np.sum([source.doubt for source in sources], axis=0)
    is_fixed = np.logical_and.reduce([source.is_fixed for source in sources])
    if node.op_type not in _GENTLE or _is_weighted(node):
        is_fixed &= doubt == 0
    if node.op_type not in _AT_CORNERS or len(sources) > 2:
        is_fixed &= np.logical_and.reduce([source.is_constant for source in sources])
    if not is_fixed.any():
        return _unknown(is_fixed.size)
    corners = [_evaluated(node, bounds) for bounds in itertools.product(*((s.low, s.high) for s in sources))]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return _checked(np.where(is_fixed, low, -np.inf), np.where(is_fixed, high, np.inf), doubt)


def _is_weighted(node: ir.Node) -> bool:
    """Whether `node` multiplies each channel by a constant of its own: what is tiny in it may not be tiny after it."""
    return is_op(node, "Mul", "Div") and any(value not in dynamic(node) for value in node.inputs)


def _evaluated(node: ir.Node, values: tuple[Vector, ...]) -> Vector:
    """What onnxruntime makes of one value for each channel of the dynamic operands; 0 stands for infinity."""
    count, rank = values[0].size, len(shape_of(node.outputs[0]) or ())
    rows = iter(
        [np.where(np.isfinite(v), v, 0.0).astype(np.float32).reshape(1, count, *[1] * (rank - 2)) for v in values]
    )
    feeds: dict[str, Array] = {}
    twins: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            twins.append(None)
            continue
        known = constant(value)
        array = next(rows) if known is None else known
        feeds[f"x{index}"] = array
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        twins.append(ir.Value(name=f"x{index}", type=kind, shape=ir.Shape(array.shape)))
    copy = ir.Node("", node.op_type, twins, list(node.attributes.values()), num_outputs=1, name="constant")
    copy.outputs[0].name, copy.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    fed = [value for value in twins if value is not None]
    graph = ir.Graph(fed, copy.outputs, nodes=[copy], name="constant", opset_imports={"": 21})
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    session = ort.InferenceSession(proto.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0], np.float64).reshape(count)


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return options


def _reshaped(source: Channels, count: int) -> Channels:
    """Each channel stands for several, or several for one."""
    before = source.low.size
    if count >= before:
        return Channels(*(field.repeat(count // before) for field in _fields(source)))
    low, high, doubt = (field.reshape(count, -1) for field in _fields(source))
    return _checked(low.min(1), high.max(1), doubt.max(1))
