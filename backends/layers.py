"""The lowered integer graph: frozen, typed layers that every backend takes and the reference interpreter defines.

All tensors are int8 maps [C, H, W] of one sample (vectors are [C, 1, 1], 1-D signals [C, 1, L]) with
one scale and zero_point: real = scale * (q - zero_point). `rhe` is round half to even, as in ONNX
QuantizeLinear, and zero points are added after rounding, as QuantizeLinear does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MULTIPLIER_BITS = 17
SHIFT_MAX = 47
OFFSET_BITS = 48

Shape: TypeAlias = tuple[int, int, int]
Pair: TypeAlias = tuple[int, int]
Pads: TypeAlias = tuple[int, int, int, int]
"""(top, left, bottom, right); bottom and right may exceed the kernel's need (ceil_mode)."""


@dataclass(frozen=True)
class Tensor:
    """An int8 map.

    Attributes:
        name: Unique in the graph; the ONNX value whose Q/DQ pair it stands for.
        shape: (channels, height, width) of one sample.
        scale: real = scale * (q - zero_point); positive, a float32 value.
        zero_point: -128 to 127.
    """

    name: str
    shape: Shape
    scale: float
    zero_point: int

    @property
    def size(self) -> int:
        """Elements, which are bytes."""
        channels, height, width = self.shape
        return channels * height * width


@dataclass(frozen=True, eq=False)
class Requantize:
    """Accumulator to int8, per output channel.

    y = clamp(zero_point + rhe((acc * multiplier + offset) / 2**shift), low, high), full product.

    Attributes:
        multiplier: int64 [C], signed, |multiplier| < 2**16. 0 makes a constant channel.
        shift: int64 [C], 0 to 47.
        offset: int64 [C], signed 48 bits; bias and input zero point, in units of 2**-shift.
        zero_point: Of the output.
        low: Smallest output, -128 to 127 (Relu: the zero point).
        high: Largest output.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    offset: NDArray[np.int64]
    zero_point: int = 0
    low: int = -128
    high: int = 127


@dataclass(frozen=True, eq=False)
class Conv:
    """Convolution or fully connected layer. A flattened map feeding a Gemm is a kernel as large as the map.

    acc[o, y, x] = sum over (c, ky, kx) of weights[o, c, ky, kx] * q, where q is the input, or its
    zero_point outside the map; output channel o reads input channels of group o // (C_out / groups).

    Attributes:
        weights: int8 [C_out, C_in / groups, kernel_h, kernel_w].
    """

    name: str
    input: Tensor
    output: Tensor
    weights: NDArray[np.int8]
    requantize: Requantize
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)

    @property
    def kernel(self) -> Pair:
        return self.weights.shape[2], self.weights.shape[3]

    @property
    def is_depthwise(self) -> bool:
        """Every output channel reads the input channel of the same index, and that one alone."""
        return self.groups == self.input.shape[0] == self.output.shape[0] and self.groups > 1


@dataclass(frozen=True)
class MaxPool:
    """Maximum over a window; positions outside the map count as -128. Input and output share scale and zero_point."""

    name: str
    input: Tensor
    output: Tensor
    kernel: Pair
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)


@dataclass(frozen=True)
class PoolRegion:
    """A rectangle of output positions [top:bottom, left:right] that divide by the same count."""

    top: int
    left: int
    bottom: int
    right: int
    multiplier: int
    shift: int
    offset: int


@dataclass(frozen=True)
class AveragePool:
    """Mean over a window: acc = sum of q over the kernel, zero_point outside the map, then one rounding.

    y = clamp(z_y + rhe((acc * M + B) / 2**S), low, high) with M ~ s_x / (n * s_y) * 2**S and
    B = -kernel_size * z_x * M, where n is the divisor of the region (1 to 9 of them tile the output).
    Global average pooling is a kernel as large as the map.
    """

    name: str
    input: Tensor
    output: Tensor
    kernel: Pair
    regions: tuple[PoolRegion, ...]
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    low: int = -128
    high: int = 127

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)

    @property
    def is_global(self) -> bool:
        """One output position, whose window is exactly the whole map."""
        return self.kernel == self.input.shape[1:] and self.pads == (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Table:
    """Any unary function: y = table[q + 128].

    Attributes:
        table: int8 [256], computed in float64 and rounded half to even.
    """

    name: str
    input: Tensor
    output: Tensor
    table: NDArray[np.int8]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)


@dataclass(frozen=True)
class Add:
    """Residual Add or Sub with unequal scales, one rounding.

    y = clamp(z_y + rhe(((a - z_a) * multiplier_a + (b - z_b) * multiplier_b) / 2**shift), low, high)

    Shapes: `a` is the output's; `b` the same, or [C, 1, 1] broadcast over the map. Sub has a negative multiplier.
    Multipliers are signed 17 bits.
    """

    name: str
    a: Tensor
    b: Tensor
    output: Tensor
    multiplier_a: int
    multiplier_b: int
    shift: int
    low: int = -128
    high: int = 127

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.a, self.b)


@dataclass(frozen=True)
class Mul:
    """Product of two maps, one rounding.

    y = clamp(z_y + rhe((a - z_a) * (b - z_b) * multiplier / 2**shift), low, high); shapes as in Add.
    """

    name: str
    a: Tensor
    b: Tensor
    output: Tensor
    multiplier: int
    shift: int
    low: int = -128
    high: int = 127

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.a, self.b)


@dataclass(frozen=True, eq=False)
class PRelu:
    """Per-channel slope for negative values, one rounding.

    v = q - z_x;  y = clamp(z_y + rhe(v * (multiplier if v >= 0 else negative_multiplier[c]) / 2**shift), -128, 127)

    Attributes:
        negative_multiplier: int64 [C], signed 17 bits.
    """

    name: str
    input: Tensor
    output: Tensor
    multiplier: int
    negative_multiplier: NDArray[np.int64]
    shift: int

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)


@dataclass(frozen=True)
class Concat:
    """Parts stacked along channels, each rescaled to the output's scale.

    y = clamp(z_y + rhe((q - z_part) * multipliers[i] / 2**shifts[i]), -128, 127)

    With one part it is a rescale; equal scale and zero_point are multiplier 1, shift 0.
    """

    name: str
    parts: tuple[Tensor, ...]
    output: Tensor
    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.parts


@dataclass(frozen=True)
class Resize:
    """Nearest-neighbour upsampling by whole factors: y[c, i, j] = x[c, i // factors[0], j // factors[1]]."""

    name: str
    input: Tensor
    output: Tensor
    factors: Pair

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)


@dataclass(frozen=True)
class Pad:
    """A border of a constant int8 value around the map."""

    name: str
    input: Tensor
    output: Tensor
    pads: Pads
    value: int

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.input,)


Layer: TypeAlias = Conv | MaxPool | AveragePool | Table | Add | Mul | PRelu | Concat | Resize | Pad


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Integer layers in topological order, between the cuts to the host.

    Attributes:
        name: Of the network.
        inputs: Tensors that the host quantizes and sends.
        outputs: Tensors that the host receives; each is produced by a layer or is an input.
        layers: Each reads inputs or outputs of earlier layers.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...] = field(default=())

    def tensors(self) -> Iterator[Tensor]:
        """The inputs, then every layer's output, in order."""
        yield from self.inputs
        for layer in self.layers:
            yield layer.output

    def consumers(self, tensor: Tensor) -> tuple[Layer, ...]:
        """The layers that read `tensor`, in order."""
        return tuple(layer for layer in self.layers if any(t.name == tensor.name for t in layer.inputs))


def is_selection(layer: Layer) -> bool:
    """A 1x1 Conv that only picks channels (Slice, Split, Gather): one weight of 1 for each output, exact identity."""
    if not isinstance(layer, Conv) or layer.kernel != (1, 1) or layer.groups != 1:
        return False
    one_hot = bool(np.all(layer.weights >= 0) and np.all(layer.weights.sum(axis=(1, 2, 3), dtype=np.int64) == 1))
    exact = layer.requantize
    return one_hot and bool(np.all(exact.multiplier == np.left_shift(1, exact.shift)))


def macs(layer: Layer) -> int:
    """Dense multiply-accumulates of a layer for one sample; 0 without weights, or where it only picks channels."""
    if not isinstance(layer, Conv) or is_selection(layer):
        return 0
    _, height, width = layer.output.shape
    return int(layer.weights.size) * height * width
