"""The int8 points of a quantized graph while it is being lowered: where each value lives, and in which steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends import fixed_point
from backends.base import Unsupported
from backends.layers import Conv, Layer, Requantize, Shape, Table, Tensor
from compiler import cone_table
from compiler.layout import View, rearrange, whole
from compiler.operators import dynamic_inputs, is_layout
from passes.graph import constant, operand, shape_of

Q_MIN, Q_MAX = -128, 127
_LIMITS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
}


class Refused(Exception):
    """A node that cannot be lowered, and why."""

    def __init__(self, node: ir.Node, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.unsupported = Unsupported(node_name(node), node.op_type, reason, remedy)


@dataclass(frozen=True)
class Scale:
    """Quantization of an activation; codes outside low..high do not occur."""

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
class Placed:
    """A value that lives in an int8 tensor."""

    tensor: Tensor
    view: View


@dataclass(frozen=True)
class Point:
    """The int8 point that a layer ends in.

    Attributes:
        name: Of its tensor.
        scale, zero_point: Of its quantization.
        low, high: Its smallest and largest code: of the type, and of the Relu or Clip before it.
        value: The float value that the layer computes, before clamps and layout nodes.
    """

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
            raise Refused(producer, f"its output of shape {list(shape)} is no map of one sample")
        return self.tensor(view.chw), view

    def codes(self, real: NDArray[np.float64]) -> NDArray[np.int8]:
        """int8 of real numbers, half to even; where a function is undefined, the zero point."""
        steps = np.nan_to_num(real / self.scale, nan=0.0, posinf=1e9, neginf=-1e9)
        return np.clip(np.rint(steps) + self.zero_point, self.low, self.high).astype(np.int8)


@dataclass(eq=False)
class Network:
    """A network that is being lowered.

    Attributes:
        nodes: Names of the accelerated nodes.
        acc_bits: Signed accumulator width.
        layers: So far.
        placed: int8 values, and the float values behind their DequantizeLinear.
        ranges: (smallest, largest) code by tensor name, where narrower than int8.
    """

    nodes: frozenset[str]
    acc_bits: int
    layers: list[Layer] = field(default_factory=list)
    placed: dict[ir.Value, Placed] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    _selected: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict)
    _unique_layers: _Names = field(default_factory=lambda: _Names())
    _unique_tensors: _Names = field(default_factory=lambda: _Names())

    def append(self, layer: Layer) -> None:
        """Add a layer; one float node that ends in two int8 points makes two layers of different names."""
        self.layers.append(replace(layer, name=self._unique_layers.of(layer.name)))

    def tensor_name(self, node: ir.Node) -> str:
        """A name for the point of a QuantizeLinear that no tensor has."""
        return self._unique_tensors.of(point_name(node))

    def resolve(self, value: ir.Value) -> Placed | None:
        """Where a float value lives: behind a DequantizeLinear, with layout nodes after it at most."""
        if value in self.placed:
            return self.placed[value]
        node = value.producer()
        if node is None or not is_layout(node) or node.name not in self.nodes:
            return None
        source = self.resolve(dynamic_inputs(node)[0])
        if source is None:
            return None
        index = next(i for i, output in enumerate(node.outputs) if output is value)
        return Placed(source.tensor, rearrange(node, source.view, index))

    def source(self, node: ir.Node, value: ir.Value | None) -> Placed:
        """Where an operand of `node` lives."""
        placed = None if value is None else self.resolve(value)
        if placed is None:
            raise Refused(node, f"its input '{value.name if value else ''}' is not quantized")
        return placed

    def map(self, node: ir.Node, value: ir.Value | None) -> Tensor:
        """The [C, H, W] tensor that an operand is; a selection of channels becomes a map of its own."""
        placed = self.source(node, value)
        if placed.view.is_map:
            return placed.tensor
        channels = placed.view.channels()
        if channels is None or value is None:
            raise Refused(node, "its input is rearranged in a way that no [C, H, W] map can follow")
        return self._select(placed.tensor, channels, value.name or "")

    def range(self, tensor: Tensor) -> tuple[int, int]:
        return self.ranges.get(tensor.name, (Q_MIN, Q_MAX))

    def rescale(self, name: str, source: Tensor, output: Tensor, point: Point) -> None:
        """A table from one scale to another, with the point's bounds."""
        x = ((cone_table.CODES - source.zero_point) * source.scale).astype(np.float64)
        self.append(Table(name, source, output, point.codes(x)))

    def _select(self, tensor: Tensor, channels: NDArray[np.int64], name: str) -> Tensor:
        """Channels of a map by a 1x1 convolution that copies: weights one-hot, factor 1."""
        key = (tensor.name, tuple(channels.tolist()))
        if key not in self._selected:
            count = len(channels)
            weights = np.zeros((count, tensor.shape[0], 1, 1), np.int8)
            weights[np.arange(count), channels] = 1
            output = Tensor(f"{name}_selected", (count, *tensor.shape[1:]), tensor.scale, tensor.zero_point)
            multiplier, shift = fixed_point.encode(1.0)
            one = np.full(count, multiplier, np.int64)
            config = Requantize(one, np.full(count, shift, np.int64), -tensor.zero_point * one, tensor.zero_point)
            self.append(Conv(f"{name}_select", tensor, output, weights, config))
            self.ranges[output.name] = self.range(tensor)
            self._selected[key] = output
        return self._selected[key]


@dataclass
class _Names:
    """Names already given."""

    given: set[str] = field(default_factory=set)

    def of(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.given:
            count += 1
            name = f"{wanted}_{count}"
        self.given.add(name)
        return name


def scale_of(node: ir.Node) -> Scale:
    """Scale and zero point of an activation's QuantizeLinear or DequantizeLinear."""
    scale, zero_point = constant(operand(node, 1)), constant(operand(node, 2))
    given = operand(node, 2)
    dtype = ir.DataType.UINT8 if given is None else given.dtype
    if scale is None or scale.size != 1 or (given is not None and zero_point is None):
        raise Refused(node, "an activation needs one constant scale and zero point")
    if dtype not in _LIMITS:
        raise Refused(node, f"activations of type {dtype} are not supported; int8 and narrower are")
    zero = 0 if zero_point is None else int(zero_point.ravel()[0])
    return Scale(float(scale.ravel()[0]), zero, *_LIMITS[dtype])


def point_name(node: ir.Node) -> str:
    """The float value for which a QuantizeLinear stands, by its name before quantization."""
    source = node.inputs[0]
    assert source is not None
    return node.metadata_props.get("edgec.point") or source.name or ""


def node_name(node: ir.Node) -> str:
    return node.name or node.op_type
