"""One spelling for what exporters write in several ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import (
    constant,
    graph_of,
    is_op,
    make,
    new_initializer,
    only_consumer,
    operand,
    replace,
    shape_of,
)


class CanonicalizeOps(Rewrite):
    """Rewrite synonyms.

    1. ReduceMean over the whole map is GlobalAveragePool (and Reshape); GlobalMaxPool is MaxPool.
    2. Min, Max and Clip by scalars are Clip, or Relu; two in a row are one.
    3. Sum of two is Add.
    """

    name = "canonicalize-ops"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        changed = True
        while changed:
            # What one rule writes, another one reads: Min becomes Clip, and Clip joins the Relu before it.
            changed = sum(_apply(node, notes) for node in list(model.graph)) > 0


def _apply(node: ir.Node, notes: Notes) -> bool:
    rule = _RULES.get(node.op_type) if node.graph is not None and is_op(node, node.op_type) else None
    name = node.name or node.op_type
    if rule is None or not rule(node):
        return False
    notes.changed.append(name)
    return True


def _reduce_mean(node: ir.Node) -> bool:
    axes, shape, result = constant(operand(node, 1)), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if axes is None or shape is None or result is None or len(shape) not in (3, 4):
        return False
    if sorted(int(a) % len(shape) for a in axes) != list(range(2, len(shape))):
        return False
    pooled = (*shape[:2], *(1 for _ in shape[2:]))
    pool = make("GlobalAveragePool", [node.inputs[0]], str(node.name), pooled)
    if result == pooled:
        replace(node, pool)
        return True
    target = new_initializer(graph_of(node), f"{node.name}_shape", np.asarray(result, np.int64))
    replace(node, pool, make("Reshape", [pool.outputs[0], target], f"{node.name}_flat", result))
    return True


def _global_max(node: ir.Node) -> bool:
    shape = shape_of(node.inputs[0])
    if shape is None:
        return False
    size = list(shape[2:])
    ones, zeros = [1] * len(size), [0] * (2 * len(size))
    pool = make(
        "MaxPool", [node.inputs[0]], str(node.name), shape_of(node.outputs[0]),
        kernel_shape=size, strides=ones, dilations=ones, pads=zeros,
    )  # fmt: skip
    replace(node, pool)
    return True


def _sum(node: ir.Node) -> bool:
    if len(node.inputs) != 2:
        return False
    replace(node, make("Add", list(node.inputs), str(node.name), shape_of(node.outputs[0])))
    return True


def _min_or_max(node: ir.Node) -> bool:
    if len(node.inputs) != 2:
        return False
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    bound, source = (left, node.inputs[1]) if left is not None else (right, node.inputs[0])
    if bound is None or bound.size != 1 or bound.dtype != np.float32 or source is None:
        return False
    if shape_of(source) != shape_of(node.outputs[0]):
        return False
    value = float(bound.reshape(()))
    low, high = (value, np.inf) if is_op(node, "Max") else (-np.inf, value)
    _replace_by_clip(node, source, low, high)
    return True


def _clip(node: ir.Node) -> bool:
    bounds = _bounds(node)
    source = node.inputs[0]
    if bounds is None or source is None:
        return False
    low, high = bounds
    before = source.producer()
    inner = _bounds(before) if before is not None and only_consumer(source) is node else None
    if inner is not None and before is not None:
        source = before.inputs[0]
        low, high = min(max(inner[0], low), high), max(min(inner[1], high), low)
    elif is_op(node, "Relu") or not (low == 0.0 and np.isinf(high)):
        return False
    assert source is not None
    _replace_by_clip(node, source, low, high)
    if before is not None and inner is not None:
        graph_of(before).remove(before, safe=True)
    return True


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Of a Relu, or of a Clip by constants on floats."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    if not is_op(node, "Clip") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    result = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        array = constant(operand(node, index))
        if operand(node, index) is not None and (array is None or array.size != 1):
            return None
        result.append(absent if array is None else float(array.reshape(())))
    return result[0], result[1]


def _replace_by_clip(node: ir.Node, source: ir.Value, low: float, high: float) -> None:
    shape = shape_of(node.outputs[0])
    if low == 0.0 and np.isinf(high):
        replace(node, make("Relu", [source], str(node.name), shape))
        return
    graph = graph_of(node)
    inputs: list[ir.Value | None] = [source]
    for bound, word in ((low, "min"), (high, "max")):
        array = np.asarray(bound, np.float32)
        inputs.append(None if np.isinf(bound) else new_initializer(graph, f"{node.name}_{word}", array))
    replace(node, make("Clip", inputs, str(node.name), shape))


_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "ReduceMean": _reduce_mean,
    "GlobalMaxPool": _global_max,
    "Sum": _sum,
    "Min": _min_or_max,
    "Max": _min_or_max,
    "Clip": _clip,
    "Relu": _clip,
}
