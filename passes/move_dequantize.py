"""Moves a DequantizeLinear behind or before layout nodes: they do the same to integers and to what these stand for."""

from __future__ import annotations

import onnx_ir as ir

from passes import graph as edit
from passes.base import Notes, Rewrite

LAYOUT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


class SinkDequantize(Rewrite):
    """Move a DequantizeLinear behind the layout nodes that read it alone; every value stays the same.

    onnxruntime (1.31, at EXTENDED and ALL) does so by itself with a new pair, whose output_dtype it forgets when it
    makes int8 pairs uint8 on processors without VNNI: then it refuses the file.
    """

    name = "sink-dequantize"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not edit.is_op(node, "DequantizeLinear") or not _is_movable(node):
                continue
            while (layout := _layout_behind(node)) is not None and not _is_quantized_again(layout):
                _swap(node, layout)
                notes.change(layout)


class HoistDequantize(Rewrite):
    """Move a DequantizeLinear in front of the layout nodes between it and its QuantizeLinear: the inverse."""

    name = "hoist-dequantize"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not edit.is_op(node, "DequantizeLinear") or not _is_movable(node):
                continue
            for layout in _layouts_before(node):
                _swap(layout, node)
                notes.change(layout)


def _is_movable(dequantize: ir.Node) -> bool:
    """One scale for all of a computed tensor."""
    scale = edit.constant(edit.operand(dequantize, 1))
    return scale is not None and scale.size == 1 and edit.constant(edit.operand(dequantize, 0)) is None


def _layout_behind(dequantize: ir.Node) -> ir.Node | None:
    value = dequantize.outputs[0]
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].idx != 0:
        return None
    return uses[0].node if edit.is_op(uses[0].node, *LAYOUT) else None


def _is_quantized_again(layout: ir.Node) -> bool:
    """Whether the layout nodes end in front of a QuantizeLinear: then it is a point between two integer layers."""
    stack = list(layout.outputs[0].uses())
    while stack:
        use = stack.pop()
        if edit.is_op(use.node, "QuantizeLinear"):
            return True
        if edit.is_op(use.node, *LAYOUT):
            stack.extend(use.node.outputs[0].uses())
    return False


def _layouts_before(dequantize: ir.Node) -> list[ir.Node]:
    """The layout nodes between a QuantizeLinear and this node, from the last on, where no other node reads them."""
    found: list[ir.Node] = []
    value = dequantize.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if edit.is_op(node, "QuantizeLinear"):
            return found
        if not edit.is_op(node, *LAYOUT) or len(list(value.uses())) != 1 or value.is_graph_output():
            return []
        found.append(node)
        value = node.inputs[0]
    return []


def _swap(first: ir.Node, second: ir.Node) -> None:
    """Exchange two nodes of which the second alone reads the first; what the second computed keeps its name."""
    graph = edit.graph_of(first)
    source, between, result = first.inputs[0], first.outputs[0], second.outputs[0]
    assert source is not None
    second.replace_input_with(0, source)
    first.replace_input_with(0, result)
    for use in list(result.uses()):
        if use.node is not first:
            use.node.replace_input_with(use.idx, between)
    for index, value in enumerate(graph.outputs):
        if value is result:
            graph.outputs[index] = between
    between.name, result.name = result.name, between.name
    is_layout = edit.is_op(second, *LAYOUT)  # a layout node keeps the type and makes the shape
    between.type, result.type = result.type, source.type if is_layout else result.type
    between.shape, result.shape = result.shape, result.shape if is_layout else source.shape
    graph.remove(first)
    graph.insert_after(second, first)
