"""Layout changes of quantized weights into their integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import constant, graph_of, integer, ints, is_op, new_initializer, operand, replace, shape_of


class FoldWeightLayout(Rewrite):
    """Put a Transpose, or with one scale a Reshape, behind the DequantizeLinear of weights into their integers."""

    name = "fold-weight-layout"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not is_op(node, "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
                continue
            dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
            if dequantize is None or not is_op(dequantize, "DequantizeLinear"):
                continue
            if constant(dequantize.inputs[0]) is None:
                continue
            if reason := _why_not(node, dequantize):
                notes.skip(node, reason)
                continue
            notes.change(node)
            _fold(node, dequantize)


def _why_not(node: ir.Node, dequantize: ir.Node) -> str | None:
    scale = constant(operand(dequantize, 1))
    if scale is None or shape_of(node.outputs[0]) is None:
        return "its scale or shape is not constant"
    if scale.size > 1 and not is_op(node, "Transpose"):
        return "its weights have a scale per channel"
    return "its weights are quantized in blocks" if integer(dequantize, "block_size", 0) else None


def _fold(node: ir.Node, dequantize: ir.Node) -> None:
    integers = constant(dequantize.inputs[0])
    assert integers is not None
    axis = integer(dequantize, "axis", 1) % max(integers.ndim, 1)
    if is_op(node, "Transpose"):
        perm = ints(node, "perm", tuple(reversed(range(integers.ndim))))
        integers, axis = np.transpose(integers, perm), perm.index(axis)
    else:
        integers, axis = integers.reshape(shape_of(node.outputs[0]) or ()), 0
    moved = new_initializer(graph_of(node), f"{dequantize.name}_{node.name}_q", integers)
    new = ir.node(
        "DequantizeLinear",
        [moved, *dequantize.inputs[1:]],
        {"axis": axis},
        name=f"{dequantize.name}_{node.name}",
        metadata_props=dict(dequantize.metadata_props),
    )
    replace(node, new)
