"""Quantized ONNX to integer layers.

Lowering is driven by the QuantizeLinear nodes. What stands between one of them and the DequantizeLinear nodes that feed
it must be one layer: an anchor (Conv, Add, pool ...) with its Relu or Clip, or a cone of elementwise nodes. Each Q/DQ
pair is one int8 tensor. Reshape, Transpose and the like are bookkeeping (see `compiler.layout`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from backends.base import Unsupported, UnsupportedOpError
from backends.fixed_point import FixedPointError
from backends.layers import Layer, LayerGraph, Tensor
from compiler.int8_layers import LAYERS, cone_before, table
from compiler.int8_points import Network, Placed, Point, Refused, node_name, scale_of
from compiler.layout import View, rearrange, whole
from compiler.operators import constant_of, dynamic_inputs, is_layout
from compiler.partition import HostNode, Partition
from compiler.phases import Side, earliest
from compiler.segments import Cut, Division, Segment
from passes.cones import CLAMPS
from passes.graph import operand, shape_of

ACC_BITS = 24


@dataclass(frozen=True)
class Lowered:
    """Integer layers, and what the host does around them.

    Attributes:
        graph: All layers; inputs and outputs are what the host quantizes and dequantizes.
        segments: The same layers by the entry in which they run, in the order of execution.
        tail: Float model that computes what is left to do after the last segment, or None.
        host_nodes: What runs there, and why.
        points: Tensor name to (name of the int8 value in the quantized model, its view of the tensor).
    """

    graph: LayerGraph
    segments: tuple[Segment, ...]
    tail: ir.Model | None
    host_nodes: tuple[HostNode, ...]
    points: Mapping[str, tuple[str, View]] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Cut, ...]:
        """In the order of graph.inputs."""
        return tuple(cut for segment in self.segments for cut in segment.inputs)

    @property
    def outputs(self) -> tuple[Cut, ...]:
        """Of all segments."""
        return tuple(cut for segment in self.segments for cut in segment.outputs)

    @property
    def head(self) -> ir.Model | None:
        """What the host computes before the accelerator runs for the first time."""
        return self.segments[0].host


def lower(quantized: ir.Model, partition: Partition, *, acc_bits: int = ACC_BITS) -> Lowered:
    """Lower the accelerated part of a quantized model.

    Args:
        quantized: QDQ graph whose nodes have the names that `partition` speaks of; intact afterwards.
        partition: Of the same network.
        acc_bits: Signed accumulator width that every channel's sum must provably fit.

    Raises:
        UnsupportedOpError: with every layer that cannot be lowered.
    """
    lowering = _Lowering(quantized, partition.nodes, acc_bits)
    lowering.run()
    return lowering.result(partition.host_nodes)


@dataclass(frozen=True)
class _End:
    """What stands before a QuantizeLinear: the anchor's value, then clamps (as an interval) and layout nodes."""

    value: ir.Value
    low: float
    high: float
    layout: tuple[ir.Node, ...]


class _Lowering:
    """One run over the quantized graph, in order."""

    def __init__(self, model: ir.Model, nodes: frozenset[str], acc_bits: int) -> None:
        self.model, self.net = model, Network(nodes, acc_bits)
        self.inputs: list[Cut] = []
        self.points: dict[str, tuple[str, View]] = {}
        self.refused: list[Unsupported] = []

    def run(self) -> None:
        for node in self.model.graph:
            try:
                if node.op_type == "QuantizeLinear":
                    self._point(node)
                elif node.op_type == "DequantizeLinear" and node.inputs[0] in self.net.placed:
                    self._dequantized(node)
            except Refused as refused:
                self.refused.append(refused.unsupported)
        if self.refused:
            raise UnsupportedOpError(tuple(self.refused))

    def _point(self, node: ir.Node) -> None:
        value = node.inputs[0]
        assert value is not None
        if not self._is_accelerated(value):
            if self._is_read(node):
                self._input(node, value)
            return
        try:
            placed = self._layer(node, value)
        except Refused as refused:
            self._refuse(node, value, refused.unsupported)
        except FixedPointError as error:
            self._refuse(node, value, _overflow(value, error))
        else:
            self._place(node, placed)

    def _place(self, node: ir.Node, placed: Placed) -> None:
        self.net.placed[node.outputs[0]] = placed
        self.points.setdefault(placed.tensor.name, (node.outputs[0].name or "", placed.view))

    def _refuse(self, node: ir.Node, value: ir.Value, why: Unsupported) -> None:
        """Write down why, and go on with a map of the right shape to find the other refusals."""
        self.refused.append(why)
        view = whole(shape_of(value) or ()) or View((1, 1, 1), (1, 1))
        self._place(node, Placed(Tensor(self.net.tensor_name(node), view.chw, 1.0, 0), view))

    def _is_accelerated(self, value: ir.Value) -> bool:
        producer = value.producer()
        return value in self.net.placed or (producer is not None and producer.name in self.net.nodes)

    def _is_read(self, node: ir.Node) -> bool:
        """Whether the accelerator reads the pair that begins with this QuantizeLinear."""
        readers = [reader for dequantize in node.outputs[0].consumers() for reader in dequantize.outputs[0].consumers()]
        return any(reader.name in self.net.nodes or reader.op_type == "QuantizeLinear" for reader in readers)

    def _input(self, node: ir.Node, value: ir.Value) -> None:
        shape = shape_of(value)
        view = whole(shape or ())
        if view is None:
            raise Refused(node, f"the input '{value.name}' of shape {list(shape or ())} is no map of one sample")
        scale = scale_of(node)
        tensor = Tensor(self.net.tensor_name(node), view.chw, scale.scale, scale.zero_point)
        self.net.ranges[tensor.name] = (scale.low, scale.high)
        self.inputs.append(Cut(tensor, value.name or "", view))
        self._place(node, Placed(tensor, view))

    def _dequantized(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        quantize = source.producer()
        self.net.placed[node.outputs[0]] = self.net.placed[source]
        if quantize is not None and scale_of(quantize) != scale_of(node):
            raise Refused(node, "its scale or zero point differs from that of the QuantizeLinear before it")

    def _layer(self, node: ir.Node, value: ir.Value) -> Placed:
        """Lower what stands before a QuantizeLinear."""
        scale, end = scale_of(node), self._strip(value)
        low, high = scale.quantize(end.low), scale.quantize(end.high)
        point = Point(self.net.tensor_name(node), scale.scale, scale.zero_point, low, high, end.value)
        moved = self.net.resolve(end.value)
        placed = self._computed(point) if moved is None else self._moved(moved, point)
        self.net.ranges.setdefault(placed.tensor.name, (low, high))
        for layout in end.layout:
            placed = replace(placed, view=rearrange(layout, placed.view))
        return placed

    def _strip(self, value: ir.Value) -> _End:
        """Walk back over clamps and layout nodes to what is computed."""
        low, high, layout = -math.inf, math.inf, []
        while (node := value.producer()) is not None and node.name in self.net.nodes:
            source = dynamic_inputs(node)[0]
            if self.net.resolve(source) is not None:
                break
            if node.op_type in CLAMPS:
                first, last = _interval(node)
                low, high = _clip(first, low, high), _clip(last, low, high)  # clamps that come later clamp these bounds
            elif is_layout(node) and len(node.outputs) == 1:
                layout.append(node)
            else:
                break
            value = source
        return _End(value, low, high, tuple(reversed(layout)))

    def _computed(self, point: Point) -> Placed:
        if (cone := cone_before(self.net, point.value)) is not None:
            return table(self.net, cone, point)
        anchor = point.value.producer()
        assert anchor is not None
        if anchor.op_type not in LAYERS:
            raise Refused(anchor, "it stands alone between Q/DQ pairs, and no layer does what it does")
        return LAYERS[anchor.op_type](self.net, anchor, point)

    def _moved(self, source: Placed, point: Point) -> Placed:
        """A pair that only renames, or rescales, or clamps what another pair holds."""
        low, high = self.net.range(source.tensor)
        same = (source.tensor.scale, source.tensor.zero_point) == (point.scale, point.zero_point)
        if same and point.low <= low and high <= point.high:
            return source
        output = point.tensor(source.tensor.shape)
        self.net.rescale(f"{point.name}_rescale", source.tensor, output, point)
        return Placed(output, source.view)

    # The result

    def result(self, host_nodes: tuple[HostNode, ...]) -> Lowered:
        outputs = self._outputs()
        layers = _alive(self.net.layers, {cut.tensor.name for cut in outputs})
        read = {tensor.name for layer in layers for tensor in layer.inputs} | {cut.tensor.name for cut in outputs}
        inputs = tuple(cut for cut in self.inputs if cut.tensor.name in read)
        name = self.model.graph.name or "network"
        work = Division(self.model, self._phases())
        segments, tail = work.segments(name, layers, inputs, outputs)
        inputs = tuple(cut for segment in segments for cut in segment.inputs)
        tensors = tuple({cut.tensor.name: cut.tensor for segment in segments for cut in segment.outputs}.values())
        ordered = tuple(layer for segment in segments for layer in segment.graph.layers)
        graph = LayerGraph(name, tuple(cut.tensor for cut in inputs), tensors, ordered)
        kept = {tensor.name for tensor in graph.tensors()}
        points = {name: point for name, point in self.points.items() if name in kept}
        return Lowered(graph, segments, tail, work.placed(host_nodes, len(segments)), points)

    def _phases(self) -> dict[ir.Node, int]:
        """When each node runs."""
        computed = [node for node in self.model.graph if dynamic_inputs(node)]
        return earliest(computed, {n: Side.ACCELERATOR if self._is_inside(n) else Side.HOST for n in computed})

    def _is_inside(self, node: ir.Node) -> bool:
        ends = {"QuantizeLinear": node.outputs[0], "DequantizeLinear": node.inputs[0]}
        return node.name in self.net.nodes or ends.get(node.op_type) in self.net.placed

    def _outputs(self) -> tuple[Cut, ...]:
        """Dequantized values, or rearrangements of them, that the host reads or the network gives."""
        cuts = []
        for node in self.model.graph:
            is_accelerated = node.name in self.net.nodes or node.op_type == "DequantizeLinear"
            for value in node.outputs if is_accelerated else ():
                placed = self.net.resolve(value)
                if placed is not None and value.dtype != ir.DataType.INT8 and self._leaves(value):
                    cuts.append(Cut(placed.tensor, value.name or "", placed.view))
        return tuple(cuts)

    def _leaves(self, value: ir.Value) -> bool:
        outside = [n for n in value.consumers() if n.name not in self.net.nodes and not self._is_lowered_point(n)]
        return value.is_graph_output() or bool(outside)

    def _is_lowered_point(self, node: ir.Node) -> bool:
        return node.op_type == "QuantizeLinear" and node.outputs[0] in self.net.placed


def _overflow(value: ir.Value, error: FixedPointError) -> Unsupported:
    producer = value.producer()
    assert producer is not None
    return Unsupported(node_name(producer), producer.op_type, str(error), "quantize it with other scales")


def _interval(node: ir.Node) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    bounds = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        array = constant_of(operand(node, index))
        bounds.append(default if array is None or not array.size else float(array.ravel()[0]))
    return bounds[0], bounds[1]


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _alive(layers: list[Layer], outputs: set[str]) -> tuple[Layer, ...]:
    """Without layers whose result reaches no output."""
    wanted: set[str] = set(outputs)
    kept: list[Layer] = []
    for layer in reversed(layers):
        if layer.output.name in wanted:
            kept.append(layer)
            wanted |= {tensor.name for tensor in layer.inputs}
    return tuple(reversed(kept))
