"""What the accelerator's operators need from ONNX nodes, and why a node is not one of them.

Each `_why_not_<op>` looks at one node of the canonical graph, float or QDQ; the same geometry functions serve lowering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends.layers import Pads, Pair
from compiler.layout import LAYOUT, View, map_shape, rearrange, whole, why_no_view
from passes.cones import CLAMPS, UNARY
from passes.graph import Array, constant, integer, ints, number, operand, shape_of, text

Views: TypeAlias = Mapping[ir.Value, View]

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
ELEMENTWISE = UNARY | {"Div", "Pow", "Min", "Max"}
MAX_POOL_REGIONS = 9


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution or pool on a [C, H, W] map; `pads` are exactly what the output needs."""

    kernel: Pair
    strides: Pair
    pads: Pads
    dilations: Pair
    declared: Pads


def constant_of(value: ir.Value | None) -> Array | None:
    """The real array of a constant: an initializer, or an initializer behind DequantizeLinear."""
    if value is None:
        return None
    if (array := constant(value)) is not None:
        return array
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if codes is None or scale is None:
        return None
    zero_point = constant(operand(node, 2))
    centred = codes.astype(np.int64) - along_axis(0 if zero_point is None else zero_point, node, codes.ndim)
    return (centred * along_axis(scale, node, codes.ndim).astype(np.float64)).astype(np.float32)


def is_known(value: ir.Value) -> bool:
    """Whether `constant_of` has an array for a value; tells without making it."""
    if constant(value) is not None:
        return True
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return False
    return constant(node.inputs[0]) is not None and constant(node.inputs[1]) is not None


def along_axis(values: Array | int, node: ir.Node, rank: int) -> NDArray[np.float64]:
    """Per-axis parameters of a Q/DQ node as an array that broadcasts against a tensor of `rank`."""
    array = np.asarray(values).astype(np.float64)
    if array.size == 1:
        return array.reshape(())
    shape = [1] * rank
    shape[integer(node, "axis", 1) % rank] = array.size
    return array.reshape(shape)


def dynamic_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """Operands that are neither constants nor constants behind DequantizeLinear."""
    return tuple(value for value in node.inputs if value is not None and not is_known(value))


def is_layout(node: ir.Node) -> bool:
    return node.op_type in LAYOUT and node.domain in ("", "ai.onnx")


def is_cone_node(node: ir.Node) -> bool:
    """Whether the node is elementwise in one dynamic source: a part of a 256-entry table."""
    others = [value for value in node.inputs if value is not None and constant_of(value) is not None]
    if node.op_type == "PRelu":
        return len(others) == 1 and others[0] is node.inputs[1] and _is_scalar(others[0])
    if node.op_type in UNARY:
        return len(dynamic_inputs(node)) == 1
    return node.op_type in AFFINE | ELEMENTWISE and all(_is_scalar(value) for value in others)


def window(node: ir.Node) -> Window:
    """Geometry of a Conv, MaxPool or AveragePool of rank 3 or 4."""
    before, after = _sides(node.inputs[0]), _sides(node.outputs[0])
    rank = len(before)
    weights = shape_of(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = _pair(ints(node, "kernel_shape") or (weights or ())[2:])
    strides = _pair(ints(node, "strides", (1,) * rank))
    dilations = _pair(ints(node, "dilations", (1,) * rank))
    pads = ints(node, "pads", (0,) * 2 * rank)
    first, last = _pair(pads[:rank], 0), _pair(pads[rank:], 0)
    (height, width), (out_h, out_w) = _pair(before), _pair(after)
    need_h = (out_h - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1 - height - first[0]
    need_w = (out_w - 1) * strides[1] + (kernel[1] - 1) * dilations[1] + 1 - width - first[1]
    needed = (first[0], first[1], max(need_h, 0), max(need_w, 0))
    # A single position is never strided over; saying so frees every backend from large strides of global windows.
    strides = (strides[0] if out_h > 1 else 1, strides[1] if out_w > 1 else 1)
    return Window(kernel, strides, needed, dilations, (*first, *last))


def divisor_runs(node: ir.Node) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """For rows and columns of an AveragePool's output: (start, end, divisor) of stretches with equal divisor."""
    geometry = window(node)
    counts_pads = bool(integer(node, "count_include_pad", 0))
    sides, outs = _pair(_sides(node.inputs[0])), _pair(_sides(node.outputs[0]))
    runs = []
    for axis in (0, 1):
        before, after = geometry.declared[axis], geometry.declared[axis + 2]
        first, last = (-before, sides[axis] + after) if counts_pads else (0, sides[axis])
        starts = np.arange(outs[axis]) * geometry.strides[axis] - before
        counts = np.minimum(starts + geometry.kernel[axis], last) - np.maximum(starts, first)
        edges = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), outs[axis]]
        runs.append([(a, b, int(counts[a])) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return runs[0], runs[1]


def resize_factors(node: ir.Node) -> Pair | None:
    """Whole factors of a nearest Resize that repeats each element, or None."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None or len(before) not in (3, 4) or before[:2] != after[:2]:
        return None
    if text(node, "mode", "nearest") != "nearest":
        return None
    factors = []
    for old, new in zip(before[2:], after[2:], strict=True):
        if new % old or not _repeats(node, old, new):
            return None
        factors.append(new // old)
    return _pair(tuple(factors))


def border(node: ir.Node) -> tuple[Pads, float] | None:
    """(pads, value) of a constant Pad of the map's sides, or None."""
    shape, pads = shape_of(node.inputs[0]), constant(operand(node, 1))
    value = constant_of(operand(node, 2))
    if shape is None or pads is None or len(shape) not in (3, 4) or text(node, "mode", "constant") != "constant":
        return None
    if operand(node, 2) is not None and value is None:
        return None
    rank, axes = len(shape), constant(operand(node, 3))
    named = [int(a) % rank for a in axes.ravel()] if axes is not None else list(range(rank))
    flat = [int(p) for p in pads.ravel()]
    first, last = [0] * rank, [0] * rank
    for i, axis in enumerate(named):
        first[axis], last[axis] = flat[i], flat[len(named) + i]
    if any(first[:2]) or any(last[:2]) or min(first + last) < 0:
        return None
    (top, left), (bottom, right) = _pair(tuple(first[2:]), 0), _pair(tuple(last[2:]), 0)
    return (top, left, bottom, right), 0.0 if value is None or not value.size else float(value.ravel()[0])


def channel_constant(value: ir.Value | None, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """A constant that broadcasts over a [1, C, ...] value with one number per channel, as float64 [C]; else None."""
    array = constant_of(value)
    if array is None or array.ndim > len(shape):
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(size != 1 for axis, size in enumerate(full.shape) if axis != 1) or full.shape[1] not in (1, shape[1]):
        return None
    return np.broadcast_to(full.astype(np.float64).ravel(), (shape[1],))


def affine_terms(node: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(factor, constant), float64 [C] each, of a node that is x * factor + constant per channel; else None."""
    shape, sources = shape_of(node.outputs[0]), dynamic_inputs(node)
    if shape is None or len(sources) != 1 or shape_of(sources[0]) != shape:
        return None
    if node.op_type == "BatchNormalization":
        return _normalization_terms(node)
    if node.op_type not in AFFINE:
        return None
    is_first = node.inputs[0] is not sources[0]
    values = channel_constant(node.inputs[0] if is_first else node.inputs[1], shape)
    if values is None:
        return None
    one, zero = np.ones_like(values), np.zeros_like(values)
    match node.op_type:
        case "Add":
            return one, values
        case "Sub":
            return (-one, values) if is_first else (one, -values)
        case "Mul":
            return values, zero
    return None if is_first or not values.all() else (1.0 / values, zero)


def _normalization_terms(node: ir.Node) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    arrays = [constant_of(value) for value in node.inputs[1:5]]
    if len(arrays) != 4 or any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, np.float64).ravel() for array in arrays)
    factor = gamma / np.sqrt(variance + number(node, "epsilon", 1e-5))
    return factor, beta - mean * factor


def why_not(node: ir.Node) -> str | None:
    """Why the accelerator cannot execute a node of the canonical graph, or None. The node is no quantizer."""
    if node.domain not in ("", "ai.onnx"):
        return f"the operator domain '{node.domain}' is unknown"
    if not dynamic_inputs(node):
        return "it computes a constant, which should have been folded"
    if any(value.dtype not in (None, ir.DataType.FLOAT) for value in dynamic_inputs(node)):
        return "it works on a type other than float32"
    for value in (*dynamic_inputs(node), *node.outputs):
        shape = shape_of(value)
        if shape is None:
            return f"the shape of '{value.name}' is not known"
        if 0 in shape:
            return f"'{value.name}' is empty"
    if is_layout(node):
        return why_no_view(node)
    check = _CHECKS.get(node.op_type)
    if check is not None:
        return check(node)
    if is_cone_node(node) and has_one_source(node):
        return None
    if node.op_type in ELEMENTWISE:
        return "it joins two different values, or a value and more than one number, and no layer does that"
    return "no accelerator layer executes this operator"


def has_one_source(node: ir.Node) -> bool:
    """Whether all dynamic operands of an elementwise node come from one value through elementwise nodes alone."""
    memo: dict[ir.Value, frozenset[ir.Value]] = {}
    operands = [_sources(value, memo) for value in dynamic_inputs(node)]
    return bool(operands) and bool(frozenset.intersection(*operands))


def _sources(value: ir.Value, memo: dict[ir.Value, frozenset[ir.Value]]) -> frozenset[ir.Value]:
    """Values that every elementwise path to `value` passes through, itself included."""
    if value not in memo:
        node = value.producer()
        found = frozenset((value,))
        if node is not None and is_cone_node(node) and dynamic_inputs(node):
            found |= frozenset.intersection(*(_sources(v, memo) for v in dynamic_inputs(node)))
        memo[value] = found
    return memo[value]


def output_view(node: ir.Node, views: Views, output: int = 0) -> View | None:
    """The view of a supported node's output."""
    shape = shape_of(node.outputs[output])
    assert shape is not None
    sources = dynamic_inputs(node)
    if is_layout(node):
        return rearrange(node, views[sources[0]], output)
    if node.op_type in WEIGHTED | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}:
        return whole(shape)
    if node.op_type in CLAMPS | ELEMENTWISE | AFFINE:
        same = [views[value] for value in sources if shape_of(value) == shape]
        if same and all(view.same_order(same[0]) for view in same):
            return same[0]
    return whole(shape)


def map_refusal(node: ir.Node, view: View) -> str | None:
    """Why a layer that needs a [C, H, W] map cannot read `view`, or None."""
    if view.is_map or view.channels() is not None:
        return None
    return f"node '{node.name}' ({node.op_type}) needs a map [C, H, W] and its elements are in another order"


def needs_map(node: ir.Node, views: Views) -> bool:
    """Whether the node reads maps as such, and not merely elements."""
    if is_layout(node) or node.op_type in QUANTIZERS or node.op_type in ("Gemm", "MatMul"):
        return False
    if is_cone_node(node):
        return False
    sources = [views[value] for value in dynamic_inputs(node) if value in views]
    joins = node.op_type in AFFINE and len(sources) == 2
    return not (joins and sources[0].same_order(sources[1]))


def _why_not_conv(node: ir.Node) -> str | None:
    weights = shape_of(node.inputs[1])
    if constant_of(node.inputs[1]) is None or weights is None:
        return "its weights are computed at run time"
    if operand(node, 2) is not None and constant_of(operand(node, 2)) is None:
        return "its bias is computed at run time"
    if text(node, "auto_pad", "NOTSET") != "NOTSET":
        return "it has auto_pad"
    if len(weights) not in (3, 4):
        return f"convolution over {len(weights) - 2} axes; 1 and 2 are supported"
    return None if min(ints(node, "pads", (0,))) >= 0 else "it has negative pads"


def _why_not_gemm(node: ir.Node) -> str | None:
    for attribute in ("alpha", "beta"):
        value = node.attributes.get(attribute)
        if value is not None and value.as_float() != 1.0:
            return f"{attribute} is {value.as_float():g}"
    if integer(node, "transA", 0):
        return "transA is set"
    bias = operand(node, 2)
    if bias is not None and channel_constant(bias, shape_of(node.outputs[0]) or ()) is None:
        return "its bias is not a constant of one number per output"
    return _why_not_matmul(node)


def _why_not_matmul(node: ir.Node) -> str | None:
    source = shape_of(node.inputs[0])
    if constant_of(node.inputs[1]) is None:
        return (
            "its weights are computed at run time"
            if constant_of(node.inputs[0]) is None
            else "its left side is constant"
        )
    if source is None or len(source) != 2 or source[0] != 1:
        return f"its input has shape {list(source or ())}; [1, features] is supported"
    return None


def _why_not_pool(node: ir.Node) -> str | None:
    shape = shape_of(node.inputs[0])
    if shape is None or len(shape) not in (3, 4):
        return f"pooling over {len(shape or ()) - 2} axes; 1 and 2 are supported"
    if text(node, "auto_pad", "NOTSET") != "NOTSET":
        return "it has auto_pad"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "its second output (indices) is used"
    geometry, starts = window(node), (_pair(_sides(node.inputs[0])), _pair(_sides(node.outputs[0])))
    for side, out, stride, first in zip(*starts, geometry.strides, geometry.pads[:2], strict=True):
        if (out - 1) * stride - first >= side:
            return "its last window starts beyond the map (ceil_mode), which runtimes treat differently"
    if node.op_type == "MaxPool":
        return None
    if any(d != 1 for d in ints(node, "dilations")):
        return "an average over a dilated window"
    rows, columns = divisor_runs(node)
    if len(rows) * len(columns) > MAX_POOL_REGIONS:
        return f"its windows have {len(rows) * len(columns)} regions of different size, {MAX_POOL_REGIONS} are possible"
    return None


def _why_not_global(node: ir.Node) -> str | None:
    shape = shape_of(node.inputs[0])
    return (
        None if shape and len(shape) in (3, 4) else f"pooling over {len(shape or ()) - 2} axes; 1 and 2 are supported"
    )


def _why_not_mean(node: ir.Node) -> str | None:
    shape, axes = shape_of(node.inputs[0]), constant(operand(node, 1))
    if shape is None or len(shape) not in (3, 4) or axes is None:
        return "only a mean over all sides of a map is supported"
    named = sorted(int(a) % len(shape) for a in axes.ravel())
    return None if named == list(range(2, len(shape))) else "only a mean over all sides of a map is supported"


def _why_not_join(node: ir.Node) -> str | None:
    """Add, Sub, Mul: two values of one shape, or one of [C, 1, 1]; or a constant per channel."""
    if is_cone_node(node) and len({id(value) for value in dynamic_inputs(node)}) == 1:
        return None
    shape, sources = shape_of(node.outputs[0]), dynamic_inputs(node)
    assert shape is not None
    if len(sources) == 1:
        return None if affine_terms(node) else "its constant is neither one number nor one number per channel"
    if node.op_type == "Div":
        return "no layer divides two values"
    shapes = [shape_of(value) or () for value in sources]
    if shapes[0] == shapes[1]:
        return None
    full, small = (0, 1) if shapes[0] == shape else (1, 0)
    if shapes[full] != shape or not _is_per_channel(shapes[small], shape):
        given = f"shapes {list(shapes[0])} and {list(shapes[1])}"
        return f"{given}; equal shapes and [1, C, 1, 1] beside [1, C, H, W] are supported"
    return None


def _why_not_normalization(node: ir.Node) -> str | None:
    return None if affine_terms(node) else "it has parameters that are computed at run time"


def _why_not_prelu(node: ir.Node) -> str | None:
    shape = shape_of(node.outputs[0])
    if shape is None or channel_constant(node.inputs[1], shape) is None:
        return "its slope is not a constant of one number per channel"
    return None


def _why_not_concat(node: ir.Node) -> str | None:
    shape = shape_of(node.outputs[0])
    if len(dynamic_inputs(node)) != len(node.inputs):
        return "one of its parts is constant"
    if shape is None or map_shape(shape) is None or integer(node, "axis", 0) % len(shape) != 1:
        return "only channels (axis 1) of [1, C, ...] can be joined"
    return None


def _why_not_resize(node: ir.Node) -> str | None:
    if resize_factors(node) is None:
        return "only nearest upsampling by whole factors is supported"
    return None


def _why_not_pad(node: ir.Node) -> str | None:
    return None if border(node) is not None else "only a border of one constant around the sides of a map is supported"


_CHECKS: dict[str, Callable[[ir.Node], str | None]] = {
    "Conv": _why_not_conv,
    "Gemm": _why_not_gemm,
    "MatMul": _why_not_matmul,
    "MaxPool": _why_not_pool,
    "AveragePool": _why_not_pool,
    "GlobalAveragePool": _why_not_global,
    "GlobalMaxPool": _why_not_global,
    "ReduceMean": _why_not_mean,
    "Add": _why_not_join,
    "Sub": _why_not_join,
    "Mul": _why_not_join,
    "Div": _why_not_join,
    "BatchNormalization": _why_not_normalization,
    "PRelu": _why_not_prelu,
    "Concat": _why_not_concat,
    "Resize": _why_not_resize,
    "Pad": _why_not_pad,
}
SUPPORTED = frozenset({*_CHECKS, *ELEMENTWISE, *LAYOUT, *QUANTIZERS})
"""Every operator that the accelerator takes in some form."""


def _is_per_channel(small: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether `small` is [1, C, 1, 1] beside the map `full`."""
    padded = (1,) * (len(full) - len(small)) + small
    return len(full) > 2 and padded == (1, full[1], *(1,) * (len(full) - 2)) and len(small) == len(full)


def _is_scalar(value: ir.Value) -> bool:
    array = constant_of(value)
    return array is not None and array.size == 1


def _sides(value: ir.Value | None) -> tuple[int, ...]:
    shape = shape_of(value)
    assert shape is not None
    return shape[2:]


def _pair(values: tuple[int, ...], fill: int = 1) -> Pair:
    """One axis as the width of a map of height 1."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def _repeats(node: ir.Node, old: int, new: int) -> bool:
    """Whether output i of a nearest Resize along one axis is input i // factor."""
    x = _resize_positions(text(node, "coordinate_transformation_mode", "half_pixel"), old, new)
    if x is None:
        return False
    match text(node, "nearest_mode", "round_prefer_floor"):
        case "floor":
            index = np.floor(x)
        case "ceil":
            index = np.ceil(x)
        case "round_prefer_ceil":
            index = np.floor(x + 0.5)
        case _:
            index = np.ceil(x - 0.5)
    return bool((np.clip(index, 0, old - 1) == np.arange(new) // (new // old)).all())


def _resize_positions(mode: str, old: int, new: int) -> NDArray[np.float64] | None:
    """Where in the input each output of a Resize along one axis falls, float64 [new]."""
    i, scale = np.arange(new, dtype=np.float64), new / old
    match mode:
        case "asymmetric":
            return i / scale
        case "half_pixel" | "half_pixel_symmetric":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if new > 1 else np.zeros(new)
        case "align_corners":
            return i * (old - 1) / (new - 1) if new > 1 else np.zeros(new)
    return None
