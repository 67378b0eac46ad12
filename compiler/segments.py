"""Which layers run in which entry into the accelerator, and what the host does in each of its turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from backends.layers import Layer, LayerGraph, Tensor
from compiler.layout import View
from compiler.operators import dynamic_inputs
from compiler.partition import HostNode, side_of
from compiler.phases import Side


@dataclass(frozen=True)
class Cut:
    """A value that passes between host and accelerator, quantized or dequantized on the host.

    Attributes:
        tensor: Its int8 map.
        value: Name of the float value on the host's side of the quantized model.
        view: Where each element of the value is in the map.
    """

    tensor: Tensor
    value: str
    view: View


@dataclass(frozen=True)
class Segment:
    """One entry into the accelerator, and what the host does before it.

    Attributes:
        host: Float model that computes what the entry needs and the host does not have yet, or None.
        inputs: What the host quantizes and sends.
        graph: The layers. Its inputs are those of `inputs`, then tensors of earlier segments that pass as they are.
        outputs: What the host dequantizes; two of them may be views of one tensor. Outputs of the graph that are not
            among them are there for later segments.
    """

    host: ir.Model | None
    inputs: tuple[Cut, ...]
    graph: LayerGraph
    outputs: tuple[Cut, ...]


@dataclass(frozen=True)
class Division:
    """Divides a network into what runs in each turn of host and accelerator.

    Attributes:
        model: The quantized model.
        phases: Of its nodes; see `compiler.phases`.
    """

    model: ir.Model
    phases: Mapping[ir.Node, int]

    def segments(
        self, name: str, layers: tuple[Layer, ...], inputs: tuple[Cut, ...], outputs: tuple[Cut, ...]
    ) -> tuple[tuple[Segment, ...], ir.Model | None]:
        """The segments, and what the host does after the last one."""
        values = {value.name or "": value for node in self.model.graph for value in node.outputs}
        values |= {value.name or "": value for value in self.model.graph.inputs}
        entry = {cut.tensor.name: self._entry(values[cut.value]) for cut in inputs}
        for layer in layers:
            entry[layer.output.name] = max(entry[tensor.name] for tensor in layer.inputs)
        entry |= _first_read(layers, entry, {cut.tensor.name for cut in outputs})
        count = max(entry.values(), default=0) + 1
        host = self._host_models(values, inputs, outputs, entry, count)
        found = []
        for index in range(count):
            sent = tuple(cut for cut in inputs if entry[cut.tensor.name] == index)
            received = tuple(cut for cut in outputs if entry[cut.tensor.name] == index)
            own = tuple(layer for layer in layers if entry[layer.output.name] == index)
            graph = _segment_graph(name, own, sent, received, _read_later(layers, entry, index))
            found.append(Segment(host[index], sent, graph, received))
        return tuple(found), host[count]

    def placed(self, host_nodes: tuple[HostNode, ...], count: int) -> tuple[HostNode, ...]:
        """The host's nodes with the turn in which they run, without quantizers that became a cut."""
        phases = {node.name or node.op_type: phase for node, phase in self.phases.items()}
        found = []
        for node in host_nodes:
            phase = phases.get(node.name, 2 * node.after)
            if phase % 2 == Side.HOST:
                after = min(phase // 2, count)
                found.append(replace(node, after=after, side=side_of(after, count)))
        return tuple(found)

    def _entry(self, value: ir.Value) -> int:
        """The first entry that can read a value of the host."""
        producer = value.producer()
        return 0 if producer is None else (self.phases[producer] + 1) // 2

    def _host_models(
        self,
        values: Mapping[str, ir.Value],
        inputs: tuple[Cut, ...],
        outputs: tuple[Cut, ...],
        entry: Mapping[str, int],
        count: int,
    ) -> list[ir.Model | None]:
        """What the host computes before each entry and after the last one: each of its nodes runs once."""
        turns = {node: phase // 2 for node, phase in self.phases.items() if phase % 2 == Side.HOST}
        wanted = {values[cut.value] for cut in inputs} | set(self.model.graph.outputs)
        needed = _needed(wanted, turns)
        received = {values[cut.value]: entry[cut.tensor.name] for cut in outputs}
        models: list[ir.Model | None] = []
        for turn in range(count + 1):
            own = {node: None for node in turns if turns[node] == turn and node in needed}
            later = {v for node in needed if turns[node] > turn for v in node.inputs if v is not None}
            made = [v for node in own for v in node.outputs if v in wanted or v in later]
            read = dict.fromkeys(v for node in own for v in dynamic_inputs(node) if v.producer() not in own)
            models.append(_extracted(self.model, list(read), [v.name or "" for v in made]) if made else None)
            assert all(received[v] < turn for v in read if v in received)
        return models


def _needed(wanted: set[ir.Value], turns: Mapping[ir.Node, int]) -> set[ir.Node]:
    """The host's nodes without which something wanted cannot be had."""
    needed: set[ir.Node] = set()
    stack = [value.producer() for value in wanted]
    while stack:
        node = stack.pop()
        if node is None or node in needed or node not in turns:
            continue
        needed.add(node)
        stack += [value.producer() for value in dynamic_inputs(node)]
    return needed


def _first_read(layers: tuple[Layer, ...], entry: Mapping[str, int], outputs: set[str]) -> dict[str, int]:
    """The segment that reads each tensor first, where the host makes it and does not read it back."""
    made = {layer.output.name for layer in layers}
    found: dict[str, int] = {}
    for layer in layers:
        for name in {tensor.name for tensor in layer.inputs} - made - outputs:
            found[name] = min(found.get(name, entry[layer.output.name]), entry[layer.output.name])
    return found


def _read_later(layers: tuple[Layer, ...], entry: Mapping[str, int], index: int) -> set[str]:
    """Names of tensors that layers of later segments read."""
    return {t.name for layer in layers if entry[layer.output.name] > index for t in layer.inputs}


def _segment_graph(
    name: str, layers: tuple[Layer, ...], sent: tuple[Cut, ...], received: tuple[Cut, ...], later: set[str]
) -> LayerGraph:
    """The layers of one segment: what they read of earlier ones is an input, what later ones read is an output."""
    made = {layer.output.name for layer in layers}
    inputs = {cut.tensor.name: cut.tensor for cut in sent}
    read = {t.name: t for layer in layers for t in layer.inputs if t.name not in made}
    outputs = {cut.tensor.name: cut.tensor for cut in received}
    outputs |= {layer.output.name: layer.output for layer in layers if layer.output.name in later}
    return LayerGraph(name, tuple((inputs | read).values()), tuple(outputs.values()), layers)


def _extracted(model: ir.Model, inputs: list[ir.Value], outputs: list[str]) -> ir.Model:
    """The part of the model between `inputs` and `outputs`, as a model of its own; inputs that it does not read go."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    return ir.Model(graph, ir_version=model.ir_version)
