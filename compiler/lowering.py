"""Quantized ONNX to integer layers.

Lowering is driven by the QuantizeLinear nodes. What stands between one of them and the DequantizeLinear nodes that feed
it must be one layer: an anchor (Conv, Add, pool ...) with its Relu or Clip, or a cone of elementwise nodes. Each Q/DQ
pair is one int8 tensor. Reshape, Transpose and the like are bookkeeping (see `compiler.layout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends import fixed_point
from backends.base import Unsupported, UnsupportedOpError
from backends.fixed_point import Constant, FixedPointError
from backends.layers import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Layer,
    LayerGraph,
    MaxPool,
    Mul,
    Pad,
    PoolRegion,
    PRelu,
    Requantize,
    Resize,
    Shape,
    Table,
    Tensor,
)
from compiler import cone_table
from compiler.layout import View, rearrange, whole
from compiler.operators import (
    affine_terms,
    along_axis,
    border,
    channel_constant,
    constant_of,
    divisor_runs,
    dynamic_inputs,
    is_cone_node,
    is_layout,
    resize_factors,
    window,
)
from compiler.partition import HostNode, Partition
from passes.cones import CLAMPS
from passes.graph import constant, integer, operand, shape_of

ACC_BITS = 24
Q_MIN, Q_MAX = -128, 127


@dataclass(frozen=True)
class Cut:
    """A value that passes between host and accelerator.

    Attributes:
        tensor: Its int8 map.
        value: Name of the float value on the host's side of the quantized model.
        view: Where each element of the value is in the map.
    """

    tensor: Tensor
    value: str
    view: View


@dataclass(frozen=True)
class Lowered:
    """Integer layers, and what the host does around them.

    Attributes:
        graph: Between the cuts.
        inputs: In the order of graph.inputs.
        outputs: What the host receives; two of them may be views of one tensor.
        head: Float model from the network's inputs to the input cuts, or None where they are the same.
        tail: Float model from the output cuts to the network's outputs, or None where they are the same.
        host_nodes: What runs there, and why.
        points: Tensor name to (name of the int8 value in the quantized model, its view of the tensor).
    """

    graph: LayerGraph
    inputs: tuple[Cut, ...]
    outputs: tuple[Cut, ...]
    head: ir.Model | None
    tail: ir.Model | None
    host_nodes: tuple[HostNode, ...]
    points: Mapping[str, tuple[str, View]] = field(default_factory=dict)


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
class _Scale:
    """Quantization of one int8 point; codes outside low..high do not occur."""

    scale: float
    zero_point: int
    low: int = Q_MIN
    high: int = Q_MAX

    def quantize(self, real: float) -> int:
        """QuantizeLinear of one number, infinity included."""
        if math.isinf(real):
            return self.high if real > 0 else self.low
        return min(max(round(real / self.scale) + self.zero_point, self.low), self.high)


@dataclass(frozen=True)
class _Placed:
    """A value that lives in an int8 tensor."""

    tensor: Tensor
    view: View


@dataclass(frozen=True)
class _Cone:
    """What stands before a QuantizeLinear: an anchor value, then clamps (as an interval) and layout nodes."""

    value: ir.Value
    low: float
    high: float
    layout: tuple[ir.Node, ...]


class _Refused(Exception):
    """A layer that cannot be lowered; (node, reason)."""

    def __init__(self, node: ir.Node, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.unsupported = Unsupported(node.name or node.op_type, node.op_type, reason, remedy)


class _Lowering:
    """One run over the quantized graph, in order."""

    def __init__(self, model: ir.Model, nodes: frozenset[str], acc_bits: int) -> None:
        self.model, self.nodes, self.acc_bits = model, nodes, acc_bits
        self.layers: list[Layer] = []
        self.inputs: list[Cut] = []
        self.placed: dict[ir.Value, _Placed] = {}
        """int8 values, and float values behind DequantizeLinear."""
        self.points: dict[str, tuple[str, View]] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        """Codes that a tensor can hold, where fewer than all."""
        self.refused: list[Unsupported] = []
        self._selected: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    # The walk

    def run(self) -> None:
        for node in self.model.graph:
            try:
                if node.op_type == "QuantizeLinear":
                    self._point(node)
                elif node.op_type == "DequantizeLinear" and node.inputs[0] in self.placed:
                    self._dequantized(node)
            except _Refused as refused:
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
            self.placed[node.outputs[0]] = placed = self._layer(node, value)
        except _Refused as refused:
            self._refuse(node, value, refused.unsupported)
        except FixedPointError as error:
            producer = value.producer()
            assert producer is not None
            self._refuse(node, value, Unsupported(producer.name or "", producer.op_type, str(error)))
        else:
            self.points.setdefault(placed.tensor.name, (node.outputs[0].name or "", placed.view))

    def _refuse(self, node: ir.Node, value: ir.Value, why: Unsupported) -> None:
        """Write down why, and go on with a map of the right shape to find the other refusals."""
        self.refused.append(why)
        view = whole(shape_of(value) or ()) or View((1, 1, 1), (1, 1))
        self.placed[node.outputs[0]] = _Placed(Tensor(_point_name(node), view.chw, 1.0, 0), view)

    def _is_accelerated(self, value: ir.Value) -> bool:
        producer = value.producer()
        return value in self.placed or (producer is not None and producer.name in self.nodes)

    def _is_read(self, node: ir.Node) -> bool:
        """Whether a node on the accelerator reads the pair that begins with this QuantizeLinear."""
        readers = [reader for dequantize in node.outputs[0].consumers() for reader in dequantize.outputs[0].consumers()]
        return any(reader.name in self.nodes or reader.op_type == "QuantizeLinear" for reader in readers)

    def _input(self, node: ir.Node, value: ir.Value) -> None:
        shape = shape_of(value)
        view = whole(shape or ())
        if view is None:
            reason = f"the input '{value.name}' of shape {list(shape or ())} is no map of one sample"
            self._refuse(node, value, Unsupported(node.name or "", node.op_type, reason))
            return
        scale = self._scale(node)
        tensor = Tensor(_point_name(node), view.chw, scale.scale, scale.zero_point)
        self.ranges[tensor.name] = (scale.low, scale.high)
        self.inputs.append(Cut(tensor, value.name or "", view))
        self.placed[node.outputs[0]] = _Placed(tensor, view)
        self.points[tensor.name] = (node.outputs[0].name or "", view)

    def _dequantized(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        placed, scale = self.placed[source], self._scale(node)
        quantize = source.producer()
        if quantize is not None and self._scale(quantize) != scale and not self.refused:
            reason = "its scale or zero point differs from that of the QuantizeLinear before it"
            self.refused.append(Unsupported(node.name or "", node.op_type, reason))
        self.placed[node.outputs[0]] = placed

    def _scale(self, node: ir.Node) -> _Scale:
        """Scale and zero point of an activation's Q or DQ node."""
        scale, zero_point = constant(operand(node, 1)), constant(operand(node, 2))
        dtype = node.inputs[2].dtype if operand(node, 2) is not None else ir.DataType.UINT8
        limits = _LIMITS.get(dtype) if dtype is not None else None
        if scale is None or scale.size != 1 or (operand(node, 2) is not None and zero_point is None):
            raise _Refused(node, "activations need one constant scale and zero point")
        if limits is None:
            raise _Refused(node, f"activations of type {dtype} are not supported, int8 and narrower are")
        zero = 0 if zero_point is None else int(zero_point.ravel()[0])
        return _Scale(float(scale.ravel()[0]), zero, *limits)

    # One point

    def _layer(self, node: ir.Node, value: ir.Value) -> _Placed:
        """Lower what stands before a QuantizeLinear."""
        scale = self._scale(node)
        cone = self._strip(value)
        anchor = cone.value.producer()
        low, high = scale.quantize(cone.low), scale.quantize(cone.high)
        point = _Point(_point_name(node), scale.scale, scale.zero_point, low, high, cone.value)
        if (moved := self._resolve(cone.value)) is not None:
            placed = self._moved(moved, point, node)
        else:
            assert anchor is not None
            placed = self._computed(anchor, point, cone)
        self.ranges.setdefault(placed.tensor.name, (low, high))
        for layout in cone.layout:
            placed = replace(placed, view=rearrange(layout, placed.view))
        return placed

    def _computed(self, anchor: ir.Node, point: _Point, cone: _Cone) -> _Placed:
        if (source := self._cone_source(cone.value)) is not None:
            return self._table(anchor, point, cone, *source)
        method = _ANCHORS.get(anchor.op_type)
        if method is None:
            raise _Refused(anchor, "it stands alone between Q/DQ pairs, and no layer does what it does")
        return method(self, anchor, point)

    def _strip(self, value: ir.Value) -> _Cone:
        """Walk back over clamps and layout nodes to the anchor's output."""
        low, high, layout = -math.inf, math.inf, []
        while (node := value.producer()) is not None and node.name in self.nodes:
            source = dynamic_inputs(node)[0]
            if self._resolve(source) is not None:
                break
            if node.op_type in CLAMPS:
                clamp_low, clamp_high = _interval(node)
                # What comes later in the graph is applied later: it clamps this one's bounds.
                low, high = _clip(clamp_low, low, high), _clip(clamp_high, low, high)
            elif is_layout(node) and len(node.outputs) == 1:
                layout.append(node)
            else:
                break
            value = source
        return _Cone(value, low, high, tuple(reversed(layout)))

    def _resolve(self, value: ir.Value) -> _Placed | None:
        """Where a float value lives: behind a DequantizeLinear, with layout nodes after it at most."""
        if value in self.placed:
            return self.placed[value]
        node = value.producer()
        if node is None or not is_layout(node) or node.name not in self.nodes:
            return None
        source = self._resolve(dynamic_inputs(node)[0])
        if source is None:
            return None
        index = next(i for i, output in enumerate(node.outputs) if output is value)
        return _Placed(source.tensor, rearrange(node, source.view, index))

    def _source(self, node: ir.Node, value: ir.Value) -> _Placed:
        placed = self._resolve(value)
        if placed is None:
            raise _Refused(node, f"its input '{value.name}' is not quantized")
        return placed

    def _map(self, node: ir.Node, value: ir.Value) -> Tensor:
        """The [C, H, W] tensor that a value is; a selection of channels becomes a map of its own."""
        placed = self._source(node, value)
        if placed.view.is_map:
            return placed.tensor
        channels = placed.view.channels()
        if channels is None:
            raise _Refused(node, "its input is rearranged in a way that no [C, H, W] map can follow")
        return self._select(placed.tensor, channels, value.name or "")

    def _select(self, tensor: Tensor, channels: NDArray[np.int64], name: str) -> Tensor:
        """Channels of a map by a 1x1 convolution that copies: weights one-hot, multiplier 1."""
        key = (tensor.name, tuple(channels.tolist()))
        if key not in self._selected:
            count = len(channels)
            weights = np.zeros((count, tensor.shape[0], 1, 1), np.int8)
            weights[np.arange(count), channels] = 1
            output = Tensor(f"{name}_selected", (count, *tensor.shape[1:]), tensor.scale, tensor.zero_point)
            one = np.full(count, 1 << (fixed_point.MANTISSA_BITS - 1), np.int64)
            shift = np.full(count, fixed_point.MANTISSA_BITS - 1, np.int64)
            config = Requantize(one, shift, -tensor.zero_point * one, tensor.zero_point)
            self.layers.append(Conv(f"{name}_select", tensor, output, weights, config))
            self.ranges[output.name] = self._range(tensor)
            self._selected[key] = output
        return self._selected[key]

    def _range(self, tensor: Tensor) -> tuple[int, int]:
        return self.ranges.get(tensor.name, (Q_MIN, Q_MAX))

    def _moved(self, source: _Placed, point: _Point, node: ir.Node) -> _Placed:
        """A pair that only renames, or rescales, or clamps what another pair holds."""
        low, high = self._range(source.tensor)
        same = (source.tensor.scale, source.tensor.zero_point) == (point.scale, point.zero_point)
        if same and point.low <= low and high <= point.high:
            return source
        output = point.tensor(source.tensor.shape)
        self._rescale(f"{point.name}_rescale", source.tensor, output, point)
        return _Placed(output, source.view)

    def _rescale(self, name: str, source: Tensor, output: Tensor, point: _Point) -> None:
        x = (cone_table.CODES - source.zero_point) * source.scale
        self.layers.append(Table(name, source, output, point.codes(x)))

    # Cones

    def _cone_source(self, value: ir.Value) -> tuple[list[ir.Value], list[ir.Node]] | None:
        """The one placed value (under all its names) from which elementwise nodes make `value`; the nodes in order."""
        order: dict[ir.Node, None] = {}
        sources: dict[ir.Value, None] = {}

        def visit(current: ir.Value) -> bool:
            if self._resolve(current) is not None:
                sources[current] = None
                return True
            node = current.producer()
            if node is None or node.name not in self.nodes or not is_cone_node(node):
                return False
            if node not in order and not all([visit(operand_) for operand_ in dynamic_inputs(node)]):
                return False
            order[node] = None
            return True

        if not visit(value) or not order:
            return None
        distinct = {(p.tensor.name, id(p.view.order)) for v in sources if (p := self._resolve(v)) is not None}
        return (list(sources), list(order)) if len(distinct) == 1 else None

    def _table(
        self, anchor: ir.Node, point: _Point, cone: _Cone, sources: list[ir.Value], nodes: list[ir.Node]
    ) -> _Placed:
        placed = self._source(anchor, sources[0])
        x = (cone_table.CODES - placed.tensor.zero_point) * placed.tensor.scale
        output = point.tensor(placed.tensor.shape)
        y = cone_table.evaluate(nodes, sources, cone.value, x)
        self.layers.append(Table(_name(anchor), placed.tensor, output, point.codes(y)))
        shape = shape_of(cone.value)
        assert shape is not None
        order = placed.view.order
        return _Placed(output, View(placed.view.chw, shape, None if order is None else order.reshape(shape)))

    # Anchors

    def _conv(self, node: ir.Node, point: _Point) -> _Placed:
        geometry = window(node)
        weights = self._weights(node)
        codes = weights.codes.reshape(*weights.codes.shape[:2], *geometry.kernel)
        groups = integer(node, "group", 1)
        placed = self._source(node, node.inputs[0])
        tensor = placed.tensor
        channels = None if placed.view.is_map else placed.view.channels()
        if channels is not None and groups == 1:
            codes = _scattered(node, codes, channels, tensor.shape[0], axis=1)
        elif not placed.view.is_map:
            tensor = self._map(node, node.inputs[0])
        output, view = point.map()
        config = self._requantize(node, tensor, codes, weights, point)
        self.layers.append(
            Conv(
                _name(node), tensor, output, codes, config, geometry.strides, geometry.pads, geometry.dilations, groups
            )
        )
        return _Placed(output, view)

    def _gemm(self, node: ir.Node, point: _Point) -> _Placed:
        """A kernel as large as the map, its weights in the map's order."""
        weights = self._weights(node)
        placed = self._source(node, node.inputs[0])
        positions = placed.view.positions().ravel()
        flat = _scattered(node, weights.codes, positions, placed.tensor.size, axis=1)
        codes = flat.reshape(len(flat), *placed.tensor.shape)
        output, view = point.map()
        config = self._requantize(node, placed.tensor, codes, weights, point)
        self.layers.append(Conv(_name(node), placed.tensor, output, codes, config))
        return _Placed(output, view)

    def _weights(self, node: ir.Node) -> _Weights:
        """Integer weights [C_out, C_in, ...], their scale [C_out], and the bias."""
        dequantize = node.inputs[1].producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise _Refused(node, "its weights are not quantized")
        codes, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
        zero_point = constant(operand(dequantize, 2))
        if codes is None or scale is None:
            raise _Refused(node, "its weights are computed at run time")
        if zero_point is not None and zero_point.astype(np.int64).any():
            raise _Refused(
                node, "its weights are asymmetric (their zero point is not 0)", "quantize weights symmetrically"
            )
        if codes.astype(np.int64).min(initial=0) < Q_MIN or codes.astype(np.int64).max(initial=0) > Q_MAX:
            raise _Refused(node, "its weights do not fit int8")
        codes = codes.astype(np.int8)
        scales = np.broadcast_to(along_axis(scale, dequantize, codes.ndim), codes.shape)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not integer(node, "transB", 0)):
            codes, scales = codes.T, scales.T
        rows = scales.reshape(len(codes), -1)
        if (rows != rows[:, :1]).any():
            raise _Refused(node, "its weights have more than one scale per output channel")
        return _Weights(np.ascontiguousarray(codes), rows[:, 0].copy())

    def _requantize(
        self, node: ir.Node, tensor: Tensor, codes: NDArray[np.int8], weights: _Weights, point: _Point
    ) -> Requantize:
        self._prove_accumulator(node, tensor, codes)
        reals = tensor.scale * weights.scale / point.scale
        exact, real = self._bias(node, tensor.scale * weights.scale)
        sums = codes.astype(np.int64).reshape(len(codes), -1).sum(axis=1)
        added = Constant(exact - tensor.zero_point * sums, real / point.scale)
        return fixed_point.requantize(reals, added, zero_point=point.zero_point, low=point.low, high=point.high)

    def _bias(self, node: ir.Node, step: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(int64 [C] in steps of s_x * s_w, float64 [C] real): an int32 bias at that scale is exact."""
        exact, real = np.zeros(len(step), np.int64), np.zeros(len(step))
        value = operand(node, 2)
        if value is None:
            return exact, real
        dequantize = value.producer()
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            codes, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
            if codes is not None and scale is not None:
                if np.allclose(scale.astype(np.float64), step, rtol=1e-6, atol=0):
                    return exact + codes.astype(np.int64).ravel(), real
        array = constant_of(value)
        if array is None:
            raise _Refused(node, "its bias is computed at run time")
        return exact, real + array.astype(np.float64).ravel()

    def _prove_accumulator(self, node: ir.Node, tensor: Tensor, codes: NDArray[np.int8]) -> None:
        """Each channel's final sum fits, whatever the input (intermediate wrap is harmless in two's complement)."""
        low, high = self._range(tensor)
        low, high = min(low, tensor.zero_point), max(high, tensor.zero_point)  # the border
        rows = codes.reshape(len(codes), -1).astype(np.int64)
        positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
        most, least = positive * high + negative * low, positive * low + negative * high
        limit = 1 << (self.acc_bits - 1)
        bad = np.flatnonzero((most >= limit) | (least < -limit))
        if len(bad):
            worst = max(int(most.max()), -int(least.min()))
            reason = f"the sum of output channel {bad[0]} can reach {worst}, an accumulator of {self.acc_bits} bits holds less"
            raise _Refused(node, reason, "quantize with a larger weight scale, or split the layer")

    def _add(self, node: ir.Node, point: _Point) -> _Placed:
        sources = dynamic_inputs(node)
        if len(sources) == 1:
            return self._affine(node, point)
        a, b, view, is_swapped = self._operands(node, sources, point)
        sign = -1.0 if node.op_type == "Sub" else 1.0
        signs = (sign, 1.0) if is_swapped else (1.0, sign)
        factors = (signs[0] * a.scale / point.scale, signs[1] * b.scale / point.scale)
        (multiplier_a, multiplier_b), shift = fixed_point.encode_common(factors)
        output = point.tensor(a.shape)
        self.layers.append(Add(_name(node), a, b, output, multiplier_a, multiplier_b, shift, point.low, point.high))
        return _Placed(output, view)

    def _mul(self, node: ir.Node, point: _Point) -> _Placed:
        sources = dynamic_inputs(node)
        if len(sources) == 1:
            return self._affine(node, point)
        a, b, view, _ = self._operands(node, sources, point)
        multiplier, shift = fixed_point.encode(a.scale * b.scale / point.scale)
        output = point.tensor(a.shape)
        self.layers.append(Mul(_name(node), a, b, output, multiplier, shift, point.low, point.high))
        return _Placed(output, view)

    def _operands(
        self, node: ir.Node, sources: tuple[ir.Value, ...], point: _Point
    ) -> tuple[Tensor, Tensor, View, bool]:
        """(a, b, the output's view, whether they are swapped), a of the output's size."""
        left, right = self._source(node, sources[0]), self._source(node, sources[1])
        if left.view.same_order(right.view) and shape_of(sources[0]) == shape_of(point.value):
            return left.tensor, right.tensor, left.view, False
        a, b = self._map(node, sources[0]), self._map(node, sources[1])
        view = whole(shape_of(point.value) or ())
        assert view is not None
        is_swapped = a.shape != view.chw
        return (b, a, view, True) if is_swapped else (a, b, view, False)

    def _affine(self, node: ir.Node, point: _Point) -> _Placed:
        """x * c + d with one c and d per channel: a depthwise 1x1 convolution of weight 1."""
        tensor = self._map(node, dynamic_inputs(node)[0])
        terms = affine_terms(node)
        if terms is None:
            raise _Refused(node, "its constant is neither one number nor one number per channel")
        factor, added = terms
        channels = tensor.shape[0]
        codes = np.ones((channels, 1, 1, 1), np.int8)
        constants = Constant(np.full(channels, -tensor.zero_point, np.int64), added / point.scale)
        config = fixed_point.requantize(
            factor * tensor.scale / point.scale, constants, zero_point=point.zero_point, low=point.low, high=point.high
        )
        output, view = point.map()
        self.layers.append(Conv(_name(node), tensor, output, codes, config, groups=channels))
        return _Placed(output, view)

    def _prelu(self, node: ir.Node, point: _Point) -> _Placed:
        tensor = self._map(node, node.inputs[0])
        shape = shape_of(node.outputs[0])
        slopes = channel_constant(node.inputs[1], shape or ())
        if slopes is None:
            raise _Refused(node, "its slope is not a constant of one number per channel")
        factor = tensor.scale / point.scale
        (multiplier, *negative), shift = fixed_point.encode_common((factor, *(slopes * factor).tolist()))
        output, view = point.map()
        wide = self._unclamped(point, output)
        self.layers.append(PRelu(_name(node), tensor, wide, multiplier, np.array(negative, np.int64), shift))
        self._clamp(node, wide, output, point)
        return _Placed(output, view)

    def _max_pool(self, node: ir.Node, point: _Point) -> _Placed:
        tensor = self._map(node, node.inputs[0])
        output, view = point.map()
        if node.op_type == "GlobalMaxPool":
            kernel, strides, pads, dilations = tensor.shape[1:], (1, 1), (0, 0, 0, 0), (1, 1)
        else:
            geometry = window(node)
            kernel, strides, pads, dilations = geometry.kernel, geometry.strides, geometry.pads, geometry.dilations
        made = self._same_scale(tensor, output, point)
        self.layers.append(MaxPool(_name(node), tensor, made, kernel, strides, pads, dilations))
        self._clamp(node, made, output, point)
        return _Placed(output, view)

    def _average_pool(self, node: ir.Node, point: _Point) -> _Placed:
        tensor = self._map(node, node.inputs[0])
        output, view = point.map()
        if node.op_type == "AveragePool":
            geometry = window(node)
            (rows, columns), kernel, strides, pads = (
                divisor_runs(node),
                geometry.kernel,
                geometry.strides,
                geometry.pads,
            )
        else:
            kernel, strides, pads = tensor.shape[1:], (1, 1), (0, 0, 0, 0)
            rows, columns = [(0, 1, kernel[0])], [(0, 1, kernel[1])]
        regions = []
        for top, bottom, height in rows:
            for left, right, width in columns:
                multiplier, shift = fixed_point.encode(tensor.scale / (height * width * point.scale))
                offset = -kernel[0] * kernel[1] * tensor.zero_point * multiplier
                regions.append(PoolRegion(top, left, bottom, right, multiplier, shift, offset))
        limit = 1 << (self.acc_bits - 1)
        if kernel[0] * kernel[1] * -Q_MIN > limit:
            raise _Refused(node, f"the sum over its window does not fit {self.acc_bits} bits")
        self.layers.append(
            AveragePool(_name(node), tensor, output, kernel, tuple(regions), strides, pads, point.low, point.high)
        )
        return _Placed(output, view)

    def _concat(self, node: ir.Node, point: _Point) -> _Placed:
        parts = tuple(self._map(node, value) for value in node.inputs if value is not None)
        pairs = [_rescaling(part, point) for part in parts]
        output, view = point.map()
        wide = self._unclamped(point, output)
        multipliers, shifts = tuple(m for m, _ in pairs), tuple(s for _, s in pairs)
        self.layers.append(Concat(_name(node), parts, wide, multipliers, shifts))
        self._clamp(node, wide, output, point)
        return _Placed(output, view)

    def _resize(self, node: ir.Node, point: _Point) -> _Placed:
        tensor = self._map(node, node.inputs[0])
        factors = resize_factors(node)
        if factors is None:
            raise _Refused(node, "only nearest upsampling by whole factors is supported")
        output, view = point.map()
        made = self._same_scale(tensor, output, point)
        self.layers.append(Resize(_name(node), tensor, made, factors))
        self._clamp(node, made, output, point)
        return _Placed(output, view)

    def _pad(self, node: ir.Node, point: _Point) -> _Placed:
        tensor = self._map(node, node.inputs[0])
        found = border(node)
        if found is None:
            raise _Refused(node, "only a border of one constant around the sides of a map is supported")
        pads, value = found
        output, view = point.map()
        made = self._same_scale(tensor, output, point)
        code = _Scale(made.scale, made.zero_point).quantize(value)
        if made is not output and code != tensor.zero_point:
            raise _Refused(node, "its input and output have different scales and its border is not 0")
        self.layers.append(Pad(_name(node), tensor, made, pads, code))
        self._clamp(node, made, output, point)
        return _Placed(output, view)

    # Layers whose kind cannot clamp or rescale are followed by a table that does.

    def _same_scale(self, source: Tensor, output: Tensor, point: _Point) -> Tensor:
        """Where a layer that keeps its input's scale writes: the output, or a map before a table."""
        same = (source.scale, source.zero_point) == (output.scale, output.zero_point)
        low, high = self._range(source)
        if same and point.low <= low and high <= point.high:
            return output
        made = Tensor(f"{output.name}_unscaled", output.shape, source.scale, source.zero_point)
        self.ranges[made.name] = (low, high)
        return made

    def _unclamped(self, point: _Point, output: Tensor) -> Tensor:
        """Where a layer that clamps to int8 alone writes: the output, or a map before a table."""
        if (point.low, point.high) == (Q_MIN, Q_MAX):
            return output
        return replace(output, name=f"{output.name}_unclamped")

    def _clamp(self, node: ir.Node, made: Tensor, output: Tensor, point: _Point) -> None:
        if made is not output:
            self._rescale(f"{_name(node)}_rescale", made, output, point)

    # The result

    def result(self, host_nodes: tuple[HostNode, ...]) -> Lowered:
        outputs = self._outputs()
        tensors = tuple({cut.tensor.name: cut.tensor for cut in outputs}.values())
        layers = _alive(self.layers, tensors)
        read = {tensor.name for layer in layers for tensor in layer.inputs} | {tensor.name for tensor in tensors}
        inputs = tuple(cut for cut in self.inputs if cut.tensor.name in read)
        graph = LayerGraph(self.model.graph.name or "network", tuple(c.tensor for c in inputs), tensors, layers)
        kept = {tensor.name for tensor in graph.tensors()}
        points = {name: point for name, point in self.points.items() if name in kept}
        head, tail = self._head(inputs), self._tail(outputs)
        return Lowered(graph, inputs, outputs, head, tail, host_nodes, points)

    def _outputs(self) -> tuple[Cut, ...]:
        """Dequantized values, or rearrangements of them, that the host reads or the network gives."""
        cuts = []
        for node in self.model.graph:
            is_accelerated = node.name in self.nodes or node.op_type == "DequantizeLinear"
            for value in node.outputs if is_accelerated else ():
                placed = self._resolve(value)
                if placed is not None and value.dtype != ir.DataType.INT8 and self._leaves(value):
                    cuts.append(Cut(placed.tensor, value.name or "", placed.view))
        return tuple(cuts)

    def _leaves(self, value: ir.Value) -> bool:
        outside = [n for n in value.consumers() if n.name not in self.nodes and not self._is_lowered_point(n)]
        return value.is_graph_output() or bool(outside)

    def _is_lowered_point(self, node: ir.Node) -> bool:
        return node.op_type == "QuantizeLinear" and node.outputs[0] in self.placed

    def _head(self, inputs: tuple[Cut, ...]) -> ir.Model | None:
        """From the network's inputs to the cuts, and to whatever else the tail reads."""
        fed = {value.name for value in self.model.graph.inputs}
        wanted = [cut.value for cut in inputs if cut.value not in fed]
        return _extracted(self.model, list(self.model.graph.inputs), wanted) if wanted else None

    def _tail(self, outputs: tuple[Cut, ...]) -> ir.Model | None:
        """From the cuts (and the network's inputs, where the tail reads them) to the network's outputs."""
        cut = {c.value for c in outputs}
        wanted = [value.name or "" for value in self.model.graph.outputs if value.name not in cut]
        if not wanted:
            return None
        by_name = {value.name: value for node in self.model.graph for value in node.outputs}
        sources = [by_name[name] for name in dict.fromkeys(c.value for c in outputs)]
        return _extracted(self.model, [*self.model.graph.inputs, *sources], wanted)


@dataclass(frozen=True)
class _Point:
    """The int8 point that a layer ends in: its quantization, and the float value before clamps and layout."""

    name: str
    scale: float
    zero_point: int
    low: int
    high: int
    value: ir.Value

    def tensor(self, shape: Shape) -> Tensor:
        return Tensor(self.name, shape, self.scale, self.zero_point)

    def map(self) -> tuple[Tensor, View]:
        """The tensor of a value that is a map of its own."""
        shape = shape_of(self.value) or ()
        view = whole(shape)
        if view is None:
            producer = self.value.producer()
            assert producer is not None
            raise _Refused(producer, f"its output of shape {list(shape)} is no map of one sample")
        return self.tensor(view.chw), view

    def codes(self, real: NDArray[np.float64]) -> NDArray[np.int8]:
        """int8 [256] of real numbers, half to even; where a function is undefined, the zero point."""
        steps = np.nan_to_num(real / self.scale, nan=0.0, posinf=1e9, neginf=-1e9)
        return np.clip(np.rint(steps) + self.zero_point, self.low, self.high).astype(np.int8)


@dataclass(frozen=True)
class _Weights:
    """int8 [C_out, C_in, ...] and float64 [C_out]."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float64]


_ANCHORS: dict[str, Callable[[_Lowering, ir.Node, _Point], _Placed]] = {
    "Conv": _Lowering._conv,
    "Gemm": _Lowering._gemm,
    "MatMul": _Lowering._gemm,
    "Add": _Lowering._add,
    "Sub": _Lowering._add,
    "Mul": _Lowering._mul,
    "Div": _Lowering._affine,
    "BatchNormalization": _Lowering._affine,
    "PRelu": _Lowering._prelu,
    "MaxPool": _Lowering._max_pool,
    "GlobalMaxPool": _Lowering._max_pool,
    "AveragePool": _Lowering._average_pool,
    "GlobalAveragePool": _Lowering._average_pool,
    "ReduceMean": _Lowering._average_pool,
    "Concat": _Lowering._concat,
    "Resize": _Lowering._resize,
    "Pad": _Lowering._pad,
}

_LIMITS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


def _point_name(node: ir.Node) -> str:
    """The float value for which a QuantizeLinear stands, by its name before quantization."""
    source = node.inputs[0]
    assert source is not None
    return node.metadata_props.get("edgec.point") or source.name or ""


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


def _scattered(
    node: ir.Node, codes: NDArray[np.int8], positions: NDArray[np.int64], size: int, *, axis: int
) -> NDArray[np.int8]:
    """Weights along `axis` moved to the places where their inputs are; inputs that occur twice add up."""
    if len(positions) == size and (positions == np.arange(size)).all():
        return codes
    total = np.zeros((len(codes), size, *codes.shape[2:]), np.int64)
    np.add.at(total, (slice(None), positions), codes)
    if np.abs(total).max(initial=0) > Q_MAX:
        raise _Refused(node, "its input repeats an element, and the weights add up beyond int8")
    return total.astype(np.int8)


def _rescaling(part: Tensor, point: _Point) -> tuple[int, int]:
    if part.scale == point.scale:
        return 1, 0
    return fixed_point.encode(part.scale / point.scale)


def _alive(layers: list[Layer], outputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
    """Without layers whose result reaches no output."""
    wanted, kept = {tensor.name for tensor in outputs}, []
    for layer in reversed(layers):
        if layer.output.name in wanted:
            kept.append(layer)
            wanted |= {tensor.name for tensor in layer.inputs}
    return tuple(reversed(kept))


def _extracted(model: ir.Model, inputs: list[ir.Value], outputs: list[str]) -> ir.Model:
    """The part of the model between `inputs` and `outputs`, as a model of its own; inputs that it does not read go."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    return ir.Model(graph, ir_version=model.ir_version)


def _name(node: ir.Node) -> str:
    return node.name or node.op_type
