"""Pad nodes into the pads of the layer behind them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import bypass, constant, ints, is_op, operand, shape_of, text


class MergePad(Rewrite):
    """Merge a Pad by zeros into Conv, and a Pad by the lowest float into MaxPool."""

    name = "merge-pad"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not is_op(node, "Pad"):
                continue
            if reason := _why_not(node):
                notes.skip(node, reason)
                continue
            notes.change(node)
            _merge(node)


def _why_not(node: ir.Node) -> str | None:
    pads, shape = constant(operand(node, 1)), shape_of(node.inputs[0])
    if pads is None or shape is None or operand(node, 3) is not None:
        return "its pads are not constant for all axes"
    if text(node, "mode", "constant") != "constant":
        return f"its mode is {text(node, 'mode', 'constant')}"
    if np.any(pads.astype(np.int64) < 0) or pads[:2].any() or pads[len(shape) : len(shape) + 2].any():
        return "it crops, or pads batch or channels"
    consumers = [use.node for use in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or not consumers:
        return "its result is an output of the network"
    for consumer in consumers:
        if reason := _why_not_into(node, consumer):
            return reason
    return None


def _why_not_into(node: ir.Node, consumer: ir.Node) -> str | None:
    value = constant(operand(node, 2))
    fill = 0.0 if operand(node, 2) is None else None if value is None else float(value.reshape(-1)[0])
    if "pads" not in consumer.attributes or consumer.inputs[0] is not node.outputs[0]:
        return f"node {consumer.name!r} ({consumer.op_type}) reads it and has no pads"
    if is_op(consumer, "Conv"):
        return None if fill == 0.0 else f"it does not pad with 0, as node {consumer.name!r} (Conv) does"
    if is_op(consumer, "MaxPool"):
        lowest = fill is not None and fill <= float(np.finfo(np.float32).min)
        return None if lowest else f"it does not pad with the lowest float, as node {consumer.name!r} (MaxPool) does"
    return f"node {consumer.name!r} ({consumer.op_type}) reads it"


def _merge(node: ir.Node) -> None:
    pads = constant(operand(node, 1))
    assert pads is not None
    begins, ends = np.split(pads, 2)
    extra = (*begins[2:], *ends[2:])
    for consumer in [use.node for use in node.outputs[0].uses()]:
        total = [a + int(b) for a, b in zip(ints(consumer, "pads"), extra, strict=True)]
        consumer.attributes["pads"] = ir.AttrInt64s("pads", total)
    bypass(node)
