"""Remove nodes that change nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import bypass, constant, integer, ints, is_op, operand, shape_of


class RemoveNoops(Rewrite):
    """Remove Identity, Dropout, Cast to the same type, and layout nodes whose result equals their input."""

    name = "remove-noops"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not _is_noop(node):
                continue
            notes.change(node)
            if not bypass(node):
                notes.changed.pop()
                notes.skip(node, "it joins an input or output of the network to another one")


def _is_noop(node: ir.Node) -> bool:
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        return _is_inference_dropout(node)
    if is_op(node, "Cast"):
        return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype is not None
    if is_op(node, "Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    if is_op(node, "Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze", "Slice", "Tile", "Resize"):
        return _keeps_shape(node) and not _reverses(node)
    if is_op(node, "Transpose"):
        perm = ints(node, "perm")
        return bool(perm) and list(perm) == sorted(perm)
    if is_op(node, "Pad"):
        pads = constant(operand(node, 1))
        return pads is not None and not pads.any()
    return is_op(node, "MaxPool", "AveragePool") and _is_unit_window(node)


def _is_inference_dropout(node: ir.Node) -> bool:
    training = operand(node, 2)
    flag = constant(training)
    mask_unused = all(not tuple(o.uses()) and not o.is_graph_output() for o in node.outputs[1:])
    return mask_unused and (training is None or (flag is not None and not flag.any()))


def _keeps_shape(node: ir.Node) -> bool:
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    return before is not None and before == after


def _reverses(node: ir.Node) -> bool:
    """Whether a Slice of equal shape may still reorder, or a Resize of equal shape may still resample."""
    if is_op(node, "Slice"):
        steps = constant(operand(node, 4))
        return operand(node, 4) is not None and (steps is None or bool(np.any(steps.astype(np.int64) < 0)))
    return is_op(node, "Resize") and operand(node, 1) is not None and constant(operand(node, 1)) is None


def _is_unit_window(node: ir.Node) -> bool:
    one = all(k == 1 for k in ints(node, "kernel_shape")) and all(s == 1 for s in ints(node, "strides"))
    return one and not any(ints(node, "pads")) and len(node.outputs) == 1 and integer(node, "ceil_mode", 0) == 0
