"""Channels that are constant leave the network: their layer does not compute them, the next ones do not read them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.constant_channels import (
    ELEMENTWISE,
    NOISE,
    Channels,
    Known,
    bias_of,
    channel_count,
    channel_weights,
    constant_channels,
    dynamic,
    is_dense,
    is_depthwise,
    pads,
    row_parts,
    strongest,
    why_not,
)
from passes.graph import Array, constant, graph_of, is_op, is_quantized, new_initializer, operand, set_input, shape_of

Mask = NDArray[np.bool_]


class RemoveDeadChannels(Rewrite):
    """Remove every channel whose value does not depend on the input, or that nothing reads.

    1. A channel of a Conv or Gemm is fixed when its weights are zero or float noise: their sum |w| is at most 1e-6 of
       the layer's largest. Its value is followed through layers, functions and pools, at the border of padded layers
       as between two bounds, which often meet again in a Relu.
    2. A channel goes where every reader can do without: a dense Conv or Gemm takes the constant into its bias (where
       it pads, only 0 is exact); a depthwise Conv, a function, a pool, an Add or Concat pass the question on.
    3. Inputs and outputs of the network, and of nodes that may mix channels, keep their shape. One channel remains.
    """

    name = "remove-dead-channels"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        if is_quantized(model.graph):
            notes.skipped[model.graph.name or "model"] = "the network is quantized"
            return
        linear = [n for n in model.graph if is_op(n, "Conv", "Gemm") and why_not(n) is None]
        known = constant_channels(model)
        plan = _Plan(known)
        _settle(model.graph, plan)
        notes.metrics.update(channels_removed=0.0, macs_before=float(sum(map(_macs, linear))))
        for node in linear:
            _describe(node, plan, notes)
        for node in model.graph:
            if why_not(node) is None:
                _shrink(node, plan)
        for value, gone in plan.removed.items():
            if gone.any():
                _, _, *rest = shape_of(value) or ()
                value.shape = ir.Shape((1, int((~gone).sum()), *rest))
        common.RemoveUnusedNodesPass()(model)
        notes.metrics["macs_after"] = float(sum(map(_macs, linear)))


# What can go


@dataclass(eq=False)
class _Plan:
    """Which channels go: all at first, until no node objects.

    Attributes:
        known: What is known about every value.
        removed: bool [C] of every value.
        reasons: Why constant channels of a value stay.
        changed: Whether anything was kept since it was last reset.
    """

    known: Known
    removed: dict[ir.Value, Mask] = field(default_factory=dict)
    reasons: dict[ir.Value, str] = field(default_factory=dict)
    changed: bool = False

    def __post_init__(self) -> None:
        self.removed = {value: np.ones(c.low.size, np.bool_) for value, c in self.known.items()}

    def keep(self, value: ir.Value, kept: Mask, reason: str) -> None:
        """Channels where `kept` holds stay."""
        gone = self.removed[value]
        new = gone & kept
        if new.any():
            if (new & self.known[value].is_constant).any():
                self.reasons.setdefault(value, reason)
            self.removed[value] = gone & ~kept
            self.changed = True


@dataclass(frozen=True, eq=False)
class _Tie:
    """Channel c of `few` stays with channels start + c * factor and the next factor - 1 ones of `many`."""

    few: ir.Value
    many: ir.Value
    factor: int = 1
    start: int = 0


def _settle(graph: ir.Graph, plan: _Plan) -> None:
    """The largest set of channels that can go."""
    for value in (*graph.inputs, *graph.outputs):
        if value in plan.removed:
            plan.keep(value, plan.removed[value].copy(), "it is an input or output of the network")
    for node in graph:
        if reason := why_not(node):
            for value in {v for v in (*node.inputs, *node.outputs) if v in plan.removed}:
                plan.keep(value, plan.removed[value].copy(), f"node {node.name!r}: {reason}")
        elif is_dense(node):
            value = dynamic(node)[0]
            refused, reason = _refused(node, plan.known[value])
            plan.keep(value, refused, reason)
    ties = [(node, tie) for node in graph if why_not(node) is None for tie in _ties(node)]
    plan.changed = True
    while plan.changed:
        plan.changed = False
        for node, tie in (*reversed(ties), *ties):
            _equalize(node, tie, plan)
        if not plan.changed:
            for value, gone in plan.removed.items():
                if gone.all():
                    plan.keep(value, np.arange(gone.size) == 0, "a tensor keeps one channel")


def _refused(node: ir.Node, source: Channels) -> tuple[Mask, str]:
    """Input channels that a dense layer needs, and why constant ones are among them."""
    reach = np.max([np.abs(channel_weights(node, rows)).sum(2).max(0) for rows in row_parts(node)], axis=0)
    is_negligible = source.doubt * reach <= NOISE * strongest(node, source)
    if pads(node):
        can_go, reason = source.is_constant & (source.low == 0), f"node {node.name!r} pads with 0, not with their value"
    else:
        can_go, reason = source.is_constant, f"node {node.name!r} amplifies them"
    return ~((can_go & is_negligible) | (reach == 0)), reason


def _ties(node: ir.Node) -> Iterator[_Tie]:
    """Channels of the operands and the result of `node` that go together or not at all."""
    result, start = node.outputs[0], 0
    if is_dense(node):
        return
    for value in dynamic(node):
        before, after = channel_count(value) or 1, channel_count(result) or 1
        if is_op(node, "Concat"):
            yield _Tie(value, result, 1, start)
            start += before
        elif before <= after:
            yield _Tie(value, result, after // before)
        else:
            yield _Tie(result, value, before // after)


def _equalize(node: ir.Node, tie: _Tie, plan: _Plan) -> None:
    count = plan.removed[tie.few].size
    members = slice(tie.start, tie.start + count * tie.factor)
    together = plan.removed[tie.many][members].reshape(count, -1).all(1) & plan.removed[tie.few]
    many = np.zeros_like(plan.removed[tie.many])
    many[members] = ~together.repeat(tie.factor)
    for value, kept, other in ((tie.few, ~together, tie.many), (tie.many, many, tie.few)):
        default = f"node {node.name!r} makes them vary"
        plan.keep(value, kept, plan.reasons.get(other, default))


def _describe(node: ir.Node, plan: _Plan, notes: Notes) -> None:
    gone, known = plan.removed[node.outputs[0]], plan.known[node.outputs[0]]
    if gone.any():
        notes.change(node)
        notes.metrics[f"channels_removed:{node.name}"] = float(gone.sum())
        notes.metrics["channels_removed"] += float(gone.sum())
    if left := int((known.is_constant & ~gone).sum()):
        reason = plan.reasons.get(node.outputs[0], "a reader needs them")
        notes.skip(node, f"{left} constant channels stay: {reason}")


def _macs(node: ir.Node) -> int:
    """Multiply-accumulates of a Conv or Gemm, dense."""
    weights, (_, _, *positions) = constant(operand(node, 1)), shape_of(node.outputs[0]) or (1, 1)
    assert weights is not None
    return int(weights.size) * math.prod(positions)


# How it goes


def _shrink(node: ir.Node, plan: _Plan) -> None:
    """Take the channels that go out of the constants and attributes of `node`."""
    gone = plan.removed[node.outputs[0]]
    if is_op(node, "Conv", "Gemm"):
        _shrink_linear(node, dynamic(node)[0], plan)
    elif is_op(node, *ELEMENTWISE) and gone.any():
        for index, value in enumerate(node.inputs):
            if value is not None and (array := constant(value)) is not None and array.size > 1:
                axis = array.ndim - (len(shape_of(node.outputs[0]) or ()) - 1)
                _put(node, index, np.compress(~gone, array, axis), "channels")
    elif is_op(node, "Reshape") and gone.any():
        _, _, *rest = shape_of(node.outputs[0]) or ()
        _put(node, 1, np.asarray([1, int((~gone).sum()), *rest], np.int64), "shape")
    elif is_op(node, "Resize") and gone.any() and (sizes := constant(operand(node, 3))) is not None and sizes.size:
        _put(node, 3, np.asarray([1, int((~gone).sum()), *sizes[2:]], np.int64), "sizes")


def _shrink_linear(node: ir.Node, source: ir.Value, plan: _Plan) -> None:
    unread, gone = plan.removed[source], plan.removed[node.outputs[0]]
    weights = constant(operand(node, 1))
    assert weights is not None
    if not (unread.any() or gone.any()):
        return
    if is_dense(node) and unread.any():
        known = plan.known[source]
        values = np.where(known.is_constant, known.low, 0.0)[unread]  # else the weights are 0
        parts = [channel_weights(node, rows)[:, unread] for rows in row_parts(node)]
        bias = bias_of(node) + np.concatenate([(part.sum(2) * values).sum(1) for part in parts])
        weights = weights[:, ~unread]
    else:
        bias = bias_of(node)
    if operand(node, 2) is not None or bias.any():
        _put(node, 2, bias[~gone].astype(np.float32), "bias")
    if is_depthwise(node):
        node.attributes["group"] = ir.AttrInt64("group", int((~unread).sum()))
    _put(node, 1, weights[~gone], "weights")


def _put(node: ir.Node, index: int, array: Array, what: str) -> None:
    set_input(node, index, new_initializer(graph_of(node), f"{node.name}_live_{what}", array))
