"""Which nodes run on the accelerator: one connected part, with the host before it (head) and after it (tail)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from backends.base import Unsupported, UnsupportedOpError
from compiler.layout import View, whole
from compiler.operators import (
    AFFINE,
    QUANTIZERS,
    WEIGHTED,
    constant_of,
    dynamic_inputs,
    is_layout,
    map_refusal,
    needs_map,
    output_view,
    why_not,
)
from passes.graph import shape_of

_REMEDY = "end the network before the node, or replace it by operators that `edgec targets` lists"
_REMEDY_TYPE = "convert the network to float32, or export it so"
_REMEDY_BATCH = "export the network for a batch of 1 (or a dynamic one, which becomes 1)"


@dataclass(frozen=True)
class HostNode:
    """A node that stays on the host.

    Attributes:
        side: "head" (before the accelerator) or "tail".
        reason: Why.
    """

    name: str
    op: str
    side: str
    reason: str


@dataclass(frozen=True)
class Partition:
    """The cut of a network between host and accelerator.

    Attributes:
        nodes: Names of the accelerated nodes.
        head: Host nodes before them, in graph order.
        tail: Host nodes after them, in graph order.
        inputs: Names of the values that enter the accelerator.
        outputs: Names of the values that leave it.
    """

    nodes: frozenset[str]
    head: tuple[HostNode, ...]
    tail: tuple[HostNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def host_nodes(self) -> tuple[HostNode, ...]:
        return (*self.head, *self.tail)


def partition(model: ir.Model) -> Partition:
    """Cut a canonical float graph, or a QDQ graph, so that everything unsupported is in the head or the tail.

    Raises:
        UnsupportedOpError: with every node that can be in neither, or where nothing can be accelerated.
    """
    computed = [node for node in model.graph if dynamic_inputs(node)]
    reasons = _reasons(computed)
    before, after = _reach(computed), _reach(list(reversed(computed)), backwards=True)
    heavy = _heavy(computed, reasons)
    in_head = _closure((n for n in computed if n in reasons and not before[n] & heavy), before)
    in_tail = _closure((n for n in computed if n in reasons and n not in in_head and not after[n] & heavy), after)
    middle = [node for node in computed if node in reasons and node not in in_head and node not in in_tail]
    if middle:
        raise UnsupportedOpError(tuple(_unsupported(node, reasons[node]) for node in middle))
    if not any(_is_quantized(node) for node in computed):
        _trim(computed, reasons, in_head, in_tail)
    chosen = [node for node in computed if node not in in_head and node not in in_tail]
    if not [node for node in chosen if node.op_type not in QUANTIZERS]:
        raise UnsupportedOpError(_nothing(model, computed, reasons))
    return _described(computed, chosen, reasons, in_head, in_tail)


def unsupported(model: ir.Model) -> dict[str, str]:
    """Every node that the accelerator cannot execute, wherever it stands: name to reason."""
    return {node.name or "": reason for node, reason in _reasons([n for n in model.graph if dynamic_inputs(n)]).items()}


def _reasons(computed: list[ir.Node]) -> dict[ir.Node, str]:
    """Why each unsupported node is so. A layout node is blamed when a reader cannot take its order of elements."""
    reasons: dict[ir.Node, str] = {}
    if any(_is_quantized(node) for node in computed):
        reasons.update(_unquantized(computed))
    while True:
        blamed = _one_round(computed, reasons)
        if not blamed:
            return reasons
        reasons.update(blamed)


def _one_round(computed: list[ir.Node], reasons: dict[ir.Node, str]) -> dict[ir.Node, str]:
    """Follow the views through the graph; new reasons for layout nodes. Fills in `reasons` of other nodes."""
    views: dict[ir.Value, View] = {}
    for node in computed:
        sources = dynamic_inputs(node)
        if node not in reasons and node.op_type not in QUANTIZERS and (reason := why_not(node)):
            reasons[node] = reason
        for value in sources:
            view = views.get(value) or whole(shape_of(value) or ())
            if view is None and node not in reasons:
                shape = shape_of(value)
                reasons[node] = f"'{value.name}' of shape {list(shape) if shape else 'unknown'} is no map of one sample"
            elif view is not None:
                views[value] = view
        if node in reasons:
            continue
        if needs_map(node, views):
            for value in sources:
                refusal = map_refusal(node, views[value])
                culprit = _layout_before(value)
                if refusal and culprit is not None:
                    return {culprit: f"it moves elements between channels, but {refusal}"}
        for index, value in enumerate(node.outputs):
            view = views[sources[0]] if node.op_type in QUANTIZERS else output_view(node, views, index)
            if view is not None:
                views[value] = view
    return {}


def _layout_before(value: ir.Value) -> ir.Node | None:
    """The nearest layout node upstream of `value` along its first operands."""
    node = value.producer()
    while node is not None and not is_layout(node):
        sources = dynamic_inputs(node)
        node = sources[0].producer() if sources else None
    return node


def _unquantized(computed: list[ir.Node]) -> dict[ir.Node, str]:
    """Nodes of a QDQ graph that are not enclosed by DequantizeLinear and QuantizeLinear."""
    reasons: dict[ir.Node, str] = {}
    for node in computed:
        if node.op_type in QUANTIZERS:
            continue
        sources = [value.producer() for value in dynamic_inputs(node)]
        if any(p is None or p in reasons or p.op_type == "QuantizeLinear" for p in sources):
            reasons[node] = "its input is not quantized in this model"
    for node in reversed(computed):
        if node.op_type in QUANTIZERS or node in reasons:
            continue
        readers = [reader for value in node.outputs for reader in value.consumers()]
        ends = any(value.is_graph_output() for value in node.outputs)
        if ends or any(r.op_type != "QuantizeLinear" and r in reasons for r in readers):
            reasons[node] = "its output is not quantized in this model"
    return reasons


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type in QUANTIZERS and constant_of(node.outputs[0]) is None


def _heavy(computed: list[ir.Node], reasons: dict[ir.Node, str]) -> set[ir.Node]:
    """The nodes for whose sake there is an accelerator: layers with weights, or whatever there is without any."""
    able = [node for node in computed if node not in reasons and node.op_type not in QUANTIZERS]
    weighted = {node for node in able if node.op_type in WEIGHTED}
    return weighted or {node for node in able if not is_layout(node)}


def _reach(ordered: list[ir.Node], *, backwards: bool = False) -> dict[ir.Node, frozenset[ir.Node]]:
    """All ancestors of each node, or all descendants."""
    found: dict[ir.Node, frozenset[ir.Node]] = {}
    for node in ordered:
        nearest = _readers(node) if backwards else _producers(node)
        found[node] = frozenset(nearest).union(*(found[n] for n in nearest if n in found))
    return found


def _producers(node: ir.Node) -> list[ir.Node]:
    return [producer for value in dynamic_inputs(node) if (producer := value.producer()) is not None]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [reader for value in node.outputs for reader in value.consumers()]


def _closure(nodes: Iterable[ir.Node], reach: dict[ir.Node, frozenset[ir.Node]]) -> set[ir.Node]:
    return {member for node in nodes for member in (node, *reach[node])}


def _trim(computed: list[ir.Node], reasons: dict[ir.Node, str], in_head: set[ir.Node], in_tail: set[ir.Node]) -> None:
    """Leave what is free on the host to it: layout and affine functions of raw inputs, layout before the tail."""
    for node in computed:
        starts = all(producer in in_head for producer in _producers(node))
        is_affine = node.op_type in AFFINE and len(dynamic_inputs(node)) == 1
        if node not in in_head and node not in in_tail and starts and (is_layout(node) or is_affine):
            in_head.add(node)
            reasons[node] = "it only prepares the network's input"
    for node in reversed(computed):
        readers = _readers(node)
        if node not in in_head and node not in in_tail and is_layout(node) and all(r in in_tail for r in readers):
            in_tail.add(node)
            reasons[node] = "it only rearranges the network's output"


def _described(
    computed: list[ir.Node],
    chosen: list[ir.Node],
    reasons: dict[ir.Node, str],
    in_head: set[ir.Node],
    in_tail: set[ir.Node],
) -> Partition:
    inside = set(chosen)
    entering = [v for node in chosen for v in dynamic_inputs(node) if v.producer() not in inside]
    made = [v for node in chosen for v in node.outputs]
    leaving = [v for v in made if v.is_graph_output() or any(r not in inside for r in v.consumers())]
    return Partition(
        nodes=frozenset(_name(node) for node in chosen if node.op_type not in QUANTIZERS),
        head=_host(computed, in_head, "head", reasons),
        tail=_host(computed, in_tail, "tail", reasons),
        inputs=tuple(dict.fromkeys(v.name or "" for v in entering)),
        outputs=tuple(v.name or "" for v in leaving),
    )


def _host(
    computed: list[ir.Node], members: set[ir.Node], side: str, reasons: dict[ir.Node, str]
) -> tuple[HostNode, ...]:
    default = {"head": "a node that runs on the host needs it", "tail": "it needs a node that runs on the host"}[side]
    return tuple(
        HostNode(_name(node), node.op_type, side, reasons.get(node, default)) for node in computed if node in members
    )


def _nothing(model: ir.Model, computed: list[ir.Node], reasons: dict[ir.Node, str]) -> tuple[Unsupported, ...]:
    found = tuple(_unsupported(node, reasons[node]) for node in computed if node in reasons)
    name = model.graph.name or "model"
    return found or (Unsupported(name, "graph", "it has no node that the accelerator could execute", _REMEDY),)


def _unsupported(node: ir.Node, reason: str) -> Unsupported:
    sizes = [shape[0] for value in dynamic_inputs(node) if (shape := shape_of(value))]
    if "a type other than float32" in reason:
        remedy = _REMEDY_TYPE
    elif "no map of one sample" in reason and any(size > 1 for size in sizes):
        remedy = _REMEDY_BATCH
    else:
        remedy = _REMEDY
    return Unsupported(_name(node), node.op_type, reason, remedy)


def _name(node: ir.Node) -> str:
    return node.name or node.op_type
