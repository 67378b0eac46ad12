"""Which values of a float graph become int8: the one answer that quantize, partition and lowering share.

An accelerated node is one of four kinds:

- an *anchor* computes and ends in an int8 point of its own: Conv, Gemm, pools, Add/Sub/Mul of two points, Concat ...
- a *clamp* (Relu, Clip) that alone reads a Conv, Gemm, Add, Sub, Mul or average pool is fused: the point is behind it.
- a *cone* of elementwise nodes with one dynamic source, such as x * Sigmoid(x), has int8 points at its ends alone.
- a *keeper* moves bytes (MaxPool, Flatten, Reshape, Transpose, Pad ...): its points share one scale and zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import onnx_ir as ir

CLAMPS = frozenset({"Relu", "Clip"})
CLAMPED = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool"})
UNARY = frozenset(
    {
        *CLAMPS,
        *("Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
        *("Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
    }
)
"""Functions of one value and of constants, which a 256-entry table can hold."""
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"})
"""Elementwise functions that join a cone when their other operand is a scalar constant or of the same source."""
KEEPERS = frozenset(
    {
        *("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose"),
        *("MaxPool", "GlobalMaxPool", "Resize", "Pad", "Slice", "Split", "Gather"),
    }
)
"""Nodes that move int8 values: scale and zero point stay as they are."""


Roots: TypeAlias = dict[ir.Value, ir.Value]
"""Each value's source: itself, or the point at the start of its cone."""


class Kind(StrEnum):
    """What makes an int8 point."""

    INPUT = "input"
    ANCHOR = "anchor"
    CONE = "cone"
    KEEPER = "keeper"


@dataclass(frozen=True)
class Point:
    """A value that becomes an int8 tensor, and the nodes between it and the points that it is made of.

    Attributes:
        name: Of the value in the float graph.
        kind: Of what makes it.
        anchor: Name of the node that computes it; the last node for a cone; empty for an input.
        nodes: Names of all its nodes in topological order: the anchor and its clamps, or the whole cone.
        sources: Names of the points that it reads, without repetition, in the order of the anchor's operands.
    """

    name: str
    kind: Kind
    anchor: str = ""
    nodes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def int8_points(model: ir.Model, nodes: frozenset[str]) -> tuple[str, ...]:
    """Names of the values that get a Q/DQ pair: accelerator inputs first, then in topological order."""
    return tuple(point.name for point in points(model, nodes))


def points(model: ir.Model, nodes: frozenset[str]) -> tuple[Point, ...]:
    """The int8 points of a canonical float graph.

    Args:
        model: Canonical float graph; intact afterwards.
        nodes: Names of the nodes that run on the accelerator.

    Returns:
        Accelerator inputs in order of first use, then the others in topological order.
    """
    accelerated = [node for node in model.graph if node.name in nodes]
    roots = _settled_roots(accelerated, nodes)
    inside = _interior(accelerated, roots, nodes)
    made = [_point_of(value, roots, inside) for value in _produced(accelerated) if value not in inside]
    produced = set(_produced(accelerated))
    fed = [value for node in accelerated for value in dynamic_inputs(node) if value not in produced]
    inputs = [Point(_name(value), Kind.INPUT) for value in dict.fromkeys(fed)]
    return (*inputs, *made)


def dynamic_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """The operands of `node` that are not constants, in order."""
    return tuple(value for value in node.inputs if value is not None and not is_constant(value))


def is_constant(value: ir.Value) -> bool:
    """Whether `value` is known when the model is compiled."""
    return value.const_value is not None or value.is_initializer()


def is_cone_node(node: ir.Node) -> bool:
    """Whether `node` can be part of a 256-entry table, if its dynamic operands have one source."""
    if node.domain not in ("", "ai.onnx") or not dynamic_inputs(node):
        return False
    if node.op_type in UNARY:
        return len(dynamic_inputs(node)) == 1
    return node.op_type in BINARY and all(_is_scalar(v) for v in node.inputs if v is not None and is_constant(v))


def _is_scalar(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size == 1


def _settled_roots(accelerated: list[ir.Node], nodes: frozenset[str]) -> Roots:
    """The source of every value. A cone value that is also needed outside the cone becomes a source itself."""
    forced: set[ir.Value] = set()
    while True:
        roots = _roots(accelerated, forced, nodes)
        shared = {v for v, root in roots.items() if v is not root and _is_shared(v, root, roots, nodes)}
        if not shared:
            return roots
        forced |= shared


def _roots(accelerated: list[ir.Node], forced: set[ir.Value], nodes: frozenset[str]) -> Roots:
    roots: Roots = {}
    for node in accelerated:
        sources = {roots.setdefault(value, value) for value in dynamic_inputs(node)}
        joins = len(sources) == 1 and is_cone_node(node) and not _is_fused(node, roots, nodes)
        for value in node.outputs:
            roots[value] = next(iter(sources)) if joins and value not in forced else value
    return roots


def _is_fused(node: ir.Node, roots: Roots, nodes: frozenset[str]) -> bool:
    """Whether `node` is a clamp that alone reads a layer which can clamp, or another fused clamp."""
    if node.op_type not in CLAMPS or len(dynamic_inputs(node)) != 1:
        return False
    value = dynamic_inputs(node)[0]
    source = value.producer()
    if source is None or source.name not in nodes or len(value.uses()) != 1 or value.is_graph_output():
        return False
    if roots[value] is not value:
        return False
    return _is_fused(source, roots, nodes) or source.op_type in CLAMPED


def _is_shared(value: ir.Value, root: ir.Value, roots: Roots, nodes: frozenset[str]) -> bool:
    """Whether one reader of `value` continues its cone while another stands outside."""
    inside = [_continues(node, root, roots, nodes) for node in value.consumers()]
    return any(inside) and (not all(inside) or value.is_graph_output())


def _continues(node: ir.Node, root: ir.Value, roots: Roots, nodes: frozenset[str]) -> bool:
    return node.name in nodes and roots[node.outputs[0]] is root


def _interior(accelerated: list[ir.Node], roots: Roots, nodes: frozenset[str]) -> set[ir.Value]:
    """Values that stay inside a cone, or between an anchor and its clamp."""
    inside = set()
    for value in _produced(accelerated):
        readers = value.consumers()
        if value.is_graph_output() or not readers:
            continue
        in_cone = roots[value] is not value and all(_continues(n, roots[value], roots, nodes) for n in readers)
        if in_cone or (readers[0].name in nodes and _is_fused(readers[0], roots, nodes)):
            inside.add(value)
    return inside


def _point_of(value: ir.Value, roots: Roots, inside: set[ir.Value]) -> Point:
    members = _members(value, inside)
    root = roots[value]
    if root is not value:
        return Point(_name(value), Kind.CONE, _node_name(members[-1]), _names(members), (_name(root),))
    anchor = members[0]
    sources = tuple(dict.fromkeys(_name(v) for v in dynamic_inputs(anchor)))
    is_forced_cone = is_cone_node(anchor) and len(sources) == 1
    kind = Kind.KEEPER if anchor.op_type in KEEPERS else Kind.CONE if is_forced_cone else Kind.ANCHOR
    return Point(_name(value), kind, _node_name(anchor), _names(members), sources)


def _members(value: ir.Value, inside: set[ir.Value]) -> list[ir.Node]:
    """The nodes from which `value` is made without crossing another point, in topological order."""
    order: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        for operand in dynamic_inputs(node):
            producer = operand.producer()
            if operand in inside and producer is not None and producer not in order:
                visit(producer)
        order[node] = None

    producer = value.producer()
    assert producer is not None
    visit(producer)
    return list(order)


def _produced(accelerated: list[ir.Node]) -> list[ir.Value]:
    return [value for node in accelerated for value in node.outputs if value.name]


def _names(nodes: list[ir.Node]) -> tuple[str, ...]:
    return tuple(_node_name(node) for node in nodes)


def _node_name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
