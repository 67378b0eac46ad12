"""Which nodes run on the accelerator, and which on the host: before it, after it, or between two of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from backends.base import Unsupported, UnsupportedOpError
from compiler.layout import View, whole
from compiler.operators import (
    AFFINE,
    QUANTIZERS,
    WEIGHTED,
    dynamic_inputs,
    is_known,
    is_layout,
    map_refusal,
    needs_map,
    output_view,
    why_not,
)
from compiler.phases import Side, earliest, entries, first_phase, latest, producers, readers, ready
from passes.graph import shape_of

_MARK = "edgec.host"
"""Metadata of a host node in a quantized model: why it is one; see `mark`."""
_REMEDY = "end the network before the node, or replace it by operators that `edgec targets` lists"
_REMEDY_CUT = "compile without --no-host, and the node runs on the host; or replace it by what `edgec targets` lists"
_REMEDY_TYPE = "convert the network to float32, or export it so"
_REMEDY_BATCH = "export the network for a batch of 1 (or a dynamic one, which becomes 1)"
HEAD, MIDDLE, TAIL = "head", "middle", "tail"


@dataclass(frozen=True)
class HostNode:
    """A node that stays on the host.

    Attributes:
        after: How many runs of the accelerator are before it.
        side: "head" (before the first), "middle" or "tail" (after the last).
        reason: Why.
    """

    name: str
    op: str
    after: int
    side: str
    reason: str


@dataclass(frozen=True)
class Partition:
    """The cut of a network between host and accelerator.

    Attributes:
        nodes: Names of the accelerated nodes.
        host_nodes: The others, in graph order.
        entries: How often the accelerator runs in one inference.
        inputs: Names of the values that enter the accelerator.
        outputs: Names of the values that leave it.
    """

    nodes: frozenset[str]
    host_nodes: tuple[HostNode, ...]
    entries: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def head(self) -> tuple[HostNode, ...]:
        return tuple(node for node in self.host_nodes if node.side == HEAD)

    @property
    def tail(self) -> tuple[HostNode, ...]:
        return tuple(node for node in self.host_nodes if node.side == TAIL)


def partition(model: ir.Model, *, may_cut: bool = True, refused: Mapping[str, str] | None = None) -> Partition:
    """Cut a canonical float graph, or a QDQ graph, into what the accelerator runs and what the host runs.

    Nodes with weights always run on the accelerator where it has a layer for them, unsupported ones on the host; that
    alone says how often the accelerator must be entered (see `compiler.phases`). All others are free. They run on the
    accelerator where that costs no further entry, and where they hang together with a node with weights in the same
    entry: a lone Relu between two host nodes gains nothing.

    Args:
        model: Intact afterwards.
        may_cut: Whether the host may run nodes between two runs of the accelerator.
        refused: Nodes that must run on the host, and why.

    Raises:
        UnsupportedOpError: where nothing can be accelerated; without `may_cut`, with every node in the way.
    """
    computed = [node for node in model.graph if dynamic_inputs(node)]
    reasons = _reasons(computed, refused or {})
    heavy = _heavy(computed, reasons)
    if not may_cut and (middle := _between(computed, reasons, heavy)):
        raise UnsupportedOpError(tuple(_unsupported(node, reasons[node], _REMEDY_CUT) for node in middle))
    sides = _chosen(computed, reasons, heavy)
    _settle(computed, sides, reasons, heavy)
    if not [n for n in computed if sides[n] is Side.ACCELERATOR and n.op_type not in QUANTIZERS]:
        raise UnsupportedOpError(_nothing(model, computed, reasons))
    return _described(computed, sides, reasons)


def mark(quantized: ir.Model, cut: Partition) -> None:
    """See to it that `partition` cuts a quantized model in the same places.

    Mostly the Q/DQ pairs say enough. Where they do not, each host node's metadata says that it is one, and why.
    """
    if partition(quantized).nodes == cut.nodes:
        return
    reasons = {node.name: node.reason for node in cut.host_nodes}
    for node in quantized.graph:
        if node.name in reasons:
            node.metadata_props[_MARK] = reasons[node.name]


def unsupported(model: ir.Model) -> dict[str, str]:
    """Every node that the accelerator cannot execute, wherever it stands: name to reason."""
    found = _reasons([node for node in model.graph if dynamic_inputs(node)], {})
    return {node.name or "": reason for node, reason in found.items()}


def _reasons(computed: list[ir.Node], refused: Mapping[str, str]) -> dict[ir.Node, str]:
    """Why each unsupported node is so. A layout node is blamed when a reader cannot take its order of elements."""
    reasons = {node: node.metadata_props[_MARK] for node in computed if _MARK in node.metadata_props}
    reasons |= {node: refused[_name(node)] for node in computed if _name(node) in refused}
    is_quantized = any(_is_quantized(node) for node in computed)
    while True:
        if is_quantized:
            _add_unquantized(computed, reasons)
        count = len(reasons)
        reasons |= _one_round(computed, reasons)
        if len(reasons) == count:
            return reasons


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


def _add_unquantized(computed: list[ir.Node], reasons: dict[ir.Node, str]) -> None:
    """Add the nodes of a QDQ graph that are not enclosed by DequantizeLinear and QuantizeLinear."""
    for node in computed:
        if node.op_type in QUANTIZERS or node in reasons:
            continue
        sources = [value.producer() for value in dynamic_inputs(node)]
        if any(p is None or p in reasons or p.op_type == "QuantizeLinear" for p in sources):
            reasons[node] = "its input is not quantized in this model"
    for node in reversed(computed):
        if node.op_type in QUANTIZERS or node in reasons:
            continue
        ends = any(value.is_graph_output() for value in node.outputs)
        if ends or any(r.op_type != "QuantizeLinear" and r in reasons for r in readers(node)):
            reasons[node] = "its output is not quantized in this model"


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type in QUANTIZERS and not is_known(node.outputs[0])


def _heavy(computed: list[ir.Node], reasons: dict[ir.Node, str]) -> set[ir.Node]:
    """The nodes for whose sake there is an accelerator: layers with weights, or whatever there is without any."""
    able = [node for node in computed if node not in reasons and node.op_type not in QUANTIZERS]
    weighted = {node for node in able if node.op_type in WEIGHTED}
    return weighted or {node for node in able if not is_layout(node)}


def _between(computed: list[ir.Node], reasons: dict[ir.Node, str], heavy: set[ir.Node]) -> list[ir.Node]:
    """The unsupported nodes with accelerated layers before and after them."""
    before, after = heavy.copy(), heavy.copy()
    for node in computed:
        if any(producer in before for producer in producers(node)):
            before.add(node)
    for node in reversed(computed):
        if any(reader in after for reader in readers(node)):
            after.add(node)
    return [node for node in computed if node in reasons and node in before and node in after]


def _chosen(computed: list[ir.Node], reasons: dict[ir.Node, str], heavy: set[ir.Node]) -> dict[ir.Node, Side]:
    """Who runs each node: as much on the accelerator as the fewest entries that are possible allow."""
    fixed = {n: Side.HOST if n in reasons else Side.ACCELERATOR if n in heavy else None for n in computed}
    last = 2 * entries(phase for node, phase in earliest(computed, fixed).items() if node in heavy)
    ends = latest(computed, fixed, last)
    sides: dict[ir.Node, Side] = {}
    phases: dict[ir.Node, int] = {}
    for node in computed:
        start, side = ready(node, phases), fixed[node]
        if side is None:
            side = Side.ACCELERATOR if first_phase(start, Side.ACCELERATOR) <= ends[node] else Side.HOST
        sides[node], phases[node] = side, first_phase(start, side)
    return sides


def _settle(
    computed: list[ir.Node], sides: dict[ir.Node, Side], reasons: dict[ir.Node, str], heavy: set[ir.Node]
) -> None:
    """Leave to the host what gains nothing on the accelerator, until nothing changes; no step adds an entry."""
    is_float = not any(_is_quantized(node) for node in computed)
    # Who quantized a node by itself wants its integers; a pair of quantizers alone is nothing that could run.
    anchors = heavy if is_float else {n for n in computed if n.op_type not in QUANTIZERS and not is_layout(n)}
    while True:
        islands = _islands(computed, sides, anchors)
        for node in islands:
            sides[node] = Side.HOST
            reasons[node] = "it hangs together with no layer that has weights"
        if not (is_float and _trim(computed, sides, reasons)) and not islands:
            return


def _islands(computed: list[ir.Node], sides: dict[ir.Node, Side], anchors: set[ir.Node]) -> list[ir.Node]:
    """Accelerated nodes that hang together with no accelerated anchor in their entry."""
    phases = earliest(computed, sides)
    reached: set[ir.Node] = set()
    stack = [node for node in computed if node in anchors and sides[node] is Side.ACCELERATOR]
    while stack:
        node = stack.pop()
        if node in reached:
            continue
        reached.add(node)
        stack += [n for n in (*producers(node), *readers(node)) if phases.get(n) == phases[node]]
    return [node for node in computed if sides[node] is Side.ACCELERATOR and node not in reached]


def _trim(computed: list[ir.Node], sides: dict[ir.Node, Side], reasons: dict[ir.Node, str]) -> bool:
    """Leave what is free on the host to it: layout beside its nodes, and affine functions of raw inputs.

    Returns:
        Whether there was any.
    """
    phases, before = earliest(computed, sides), sides.copy()
    last = 2 * entries(phases.values())
    for node in computed:
        starts = all(sides[producer] is Side.HOST for producer in producers(node))
        is_first = all(phases[producer] == 0 for producer in producers(node))
        is_affine = node.op_type in AFFINE and len(dynamic_inputs(node)) == 1
        if sides[node] is Side.ACCELERATOR and starts and (is_layout(node) or (is_affine and is_first)):
            sides[node] = Side.HOST
            what = "it only prepares the network's input" if is_first else "it only rearranges what the host makes"
            reasons[node] = what
    for node in reversed(computed):
        ends = all(sides[reader] is Side.HOST for reader in readers(node))
        if sides[node] is Side.ACCELERATOR and is_layout(node) and ends:
            sides[node] = Side.HOST
            what = "the network's output" if phases[node] == last - 1 else "what the host reads"
            reasons[node] = f"it only rearranges {what}"
    return sides != before


def _described(computed: list[ir.Node], sides: dict[ir.Node, Side], reasons: dict[ir.Node, str]) -> Partition:
    phases = earliest(computed, sides)
    inside = {node for node in computed if sides[node] is Side.ACCELERATOR}
    chosen = [node for node in computed if node in inside]
    entering = [v for node in chosen for v in dynamic_inputs(node) if v.producer() not in inside]
    made = [v for node in chosen for v in node.outputs]
    leaving = [v for v in made if v.is_graph_output() or any(r not in inside for r in v.consumers())]
    count = entries(phases[node] for node in chosen)
    return Partition(
        nodes=frozenset(_name(node) for node in chosen if node.op_type not in QUANTIZERS),
        host_nodes=tuple(_host(node, phases[node] // 2, count, reasons) for node in computed if node not in inside),
        entries=count,
        inputs=tuple(dict.fromkeys(v.name or "" for v in entering)),
        outputs=tuple(v.name or "" for v in leaving),
    )


def side_of(after: int, count: int) -> str:
    """Where the host works that has `after` of `count` runs of the accelerator before it."""
    return HEAD if not after else TAIL if after == count else MIDDLE


def _host(node: ir.Node, after: int, count: int, reasons: dict[ir.Node, str]) -> HostNode:
    side = side_of(after, count)
    default = "it needs a node that runs on the host" if after else "a node that runs on the host needs it"
    return HostNode(_name(node), node.op_type, after, side, reasons.get(node, default))


def _nothing(model: ir.Model, computed: list[ir.Node], reasons: dict[ir.Node, str]) -> tuple[Unsupported, ...]:
    found = tuple(_unsupported(node, reasons[node]) for node in computed if node in reasons)
    name = model.graph.name or "model"
    return found or (Unsupported(name, "graph", "it has no node that the accelerator could execute", _REMEDY),)


def _unsupported(node: ir.Node, reason: str, otherwise: str = _REMEDY) -> Unsupported:
    sizes = [shape[0] for value in dynamic_inputs(node) if (shape := shape_of(value))]
    if "a type other than float32" in reason:
        remedy = _REMEDY_TYPE
    elif "no map of one sample" in reason and any(size > 1 for size in sizes):
        remedy = _REMEDY_BATCH
    else:
        remedy = otherwise
    return Unsupported(_name(node), node.op_type, reason, remedy)


def _name(node: ir.Node) -> str:
    return node.name or node.op_type
