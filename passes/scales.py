"""Scales and zero points of activations: from their ranges, shared where values only move, on the machine's grid.

The integer machine rescales by multiplier / 2**shift with 16 significant bits. Scales are chosen so that every such
factor (s_a / s_y for an Add) is exactly an odd 16-bit integer over a power of two: then onnxruntime on the QDQ file and
the integers agree, and ties, which they could break differently, all but vanish.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from passes import graph as edit
from passes import statistics
from passes.cones import Kind, Point
from passes.statistics import Histogram

Q_MIN, Q_MAX = -128, 127
MANTISSA_BITS = 16
SHIFT_MAX = 47
WEIGHTED = frozenset({"Conv", "Gemm"})
LARGEST_MOVE = 2.0**-5
"""The grid of a factor that is small beside its layer's largest is coarse: a scale is not moved further than this."""


class Ranges(StrEnum):
    """How a tensor's range is chosen from its histogram."""

    MSE = "mse"
    MINMAX = "minmax"
    PERCENTILE = "percentile"


@dataclass(frozen=True)
class ActivationConfig:
    """How activations are quantized.

    Attributes:
        bits: 4, 8 or 16.
        ranges: How a range is chosen. The network's inputs always take their smallest and largest value.
        percentile: Percent of the values kept inside by Ranges.PERCENTILE.
        symmetric: Whether every zero point is 0.
        power_of_two: Whether every scale is a power of two.
    """

    bits: int = 8
    ranges: Ranges = Ranges.MSE
    percentile: float = 99.99
    symmetric: bool = False
    power_of_two: bool = False


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero_point), scale a float32 value, q a signed integer of `bits`."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def low(self) -> int:
        """The smallest q."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest q."""
        return 2 ** (self.bits - 1) - 1


Scales: TypeAlias = dict[str, Scale]


def choose_scales(
    model: ir.Model, wanted: tuple[Point, ...], histograms: dict[str, Histogram], config: ActivationConfig
) -> Scales:
    """Scale and zero point of every int8 point: from its range, shared where values only move, then put on the grid."""
    by_name = {node.name: node for node in model.graph}
    leader = _shared_scales(model, wanted)
    groups: dict[str, list[Point]] = {}
    for point in wanted:
        groups.setdefault(leader[point.name], []).append(point)
    shared = {
        name: scale_of_range(*_group_range(members, histograms, by_name, config), config)
        for name, members in groups.items()
    }
    if not config.power_of_two:  # their factors are powers of two already
        _snap_factors(wanted, by_name, leader, shared)
    return {point.name: shared[leader[point.name]] for point in wanted}


def scale_of_range(low: float, high: float, config: ActivationConfig | None = None) -> Scale:
    """The scale whose range covers [low, high] with 0 exactly at the zero point.

    Args:
        low, high: low <= 0 <= high.
        config: Bits and form; asymmetric int8 by default.
    """
    config = config or ActivationConfig()
    smallest, largest = -(2 ** (config.bits - 1)), 2 ** (config.bits - 1) - 1
    span = max(high / largest, -low / -smallest) if config.symmetric else (high - low) / (largest - smallest)
    if config.power_of_two and span > 0:
        span = 2.0 ** math.ceil(math.log2(span))
    step = float(np.float32(span))
    if not step > np.finfo(np.float32).tiny:
        return Scale(1.0, 0, config.bits)  # the tensor is 0 throughout
    zero_point = 0 if config.symmetric else int(np.clip(np.rint(smallest - low / step), smallest, largest))
    return Scale(step, zero_point, config.bits)


def to_int8(values: ArrayLike, scale: Scale) -> NDArray[np.int8]:
    """QuantizeLinear: clip(round half to even(values / scale) + zero_point), division in float32."""
    steps = np.asarray(values, np.float32) / np.float32(scale.scale)
    return np.clip(np.rint(steps) + scale.zero_point, Q_MIN, Q_MAX).astype(np.int8)


def to_real(codes: NDArray[np.int8], scale: Scale) -> NDArray[np.float32]:
    """DequantizeLinear: scale * (codes - zero_point) in float32."""
    return (codes.astype(np.int32) - scale.zero_point).astype(np.float32) * np.float32(scale.scale)


def _shared_scales(model: ir.Model, wanted: tuple[Point, ...]) -> dict[str, str]:
    """Point name to the name that stands for all points of the same scale and zero point."""
    leader = {point.name: point.name for point in wanted}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    readers = _reader_counts(model, leader)
    by_name = {node.name: node for node in model.graph}
    for point in wanted:
        is_concat = point.anchor in by_name and by_name[point.anchor].op_type == "Concat"
        for source in point.sources:
            if point.kind is Kind.KEEPER or (is_concat and readers[source] == 1):
                leader[find(source)] = find(point.name)
    return {name: find(name) for name in leader}


def _reader_counts(model: ir.Model, names: dict[str, str]) -> dict[str, int]:
    values = {value.name: value for value in [*model.graph.inputs, *_outputs(model)]}
    return {name: len(values[name].uses()) + int(values[name].is_graph_output()) for name in names}


def _group_range(
    members: list[Point], histograms: dict[str, Histogram], by_name: dict[str | None, ir.Node], config: ActivationConfig
) -> tuple[float, float]:
    """The range of points that share a scale, from the values that are computed and not those that are moved."""
    merged = Histogram()
    computed = [point for point in members if point.kind is not Kind.KEEPER]
    for point in computed or members:
        merged.merge(histograms[point.name])
    is_input = any(point.kind is Kind.INPUT for point in computed)
    low, high = _range(merged, Ranges.MINMAX if is_input else config.ranges, config)
    for point in members:
        pad = _pad_value(by_name[point.anchor]) if point.kind is Kind.KEEPER else 0.0
        low, high = min(low, pad), max(high, pad)
    return low, high


def _range(histogram: Histogram, ranges: Ranges, config: ActivationConfig) -> tuple[float, float]:
    match ranges:
        case Ranges.MSE:
            return statistics.mse_range(histogram, levels=2**config.bits)
        case Ranges.PERCENTILE:
            return statistics.percentile_range(histogram, config.percentile)
        case Ranges.MINMAX:
            return statistics.minmax_range(histogram)


def _pad_value(node: ir.Node) -> float:
    """The constant that a Pad writes, which its scale must be able to hold; 0 for other nodes."""
    if node.op_type != "Pad":
        return 0.0
    value = edit.constant(edit.operand(node, 2))
    return 0.0 if value is None or not value.size else float(value.ravel()[0])


# Factors on the machine's grid


def on_grid(factor: float) -> float:
    """The next odd 16-bit integer over a power of two (shift at most 47) that is not below `factor`.

    An odd multiplier meets a tie (a remainder of exactly half) only when the accumulator is a multiple of
    2**(shift - 1): practically never.
    """
    _, exponent = math.frexp(factor)
    shift = min(MANTISSA_BITS - exponent, SHIFT_MAX)
    multiplier = math.ceil(math.ldexp(factor, shift)) | 1
    return math.ldexp(multiplier, -shift) if multiplier < 2**MANTISSA_BITS else on_grid(math.ldexp(1.0, exponent))


def _snap_factors(
    wanted: tuple[Point, ...], by_name: dict[str | None, ir.Node], leader: dict[str, str], shared: Scales
) -> None:
    """Move the scales around layers without weights so that their factors are on the grid.

    From the outputs towards the inputs: what a layer reads is put on the grid of its output. Where another reader has
    settled the input already, the output is put on the grid of the input, if nothing has settled that.
    """
    settled: set[str] = set()
    for point in reversed(wanted):
        node = by_name.get(point.anchor)
        if point.kind is not Kind.ANCHOR or node is None or node.op_type in WEIGHTED:
            continue
        out, sources = leader[point.name], [leader[source] for source in point.sources]
        windows = _windows(node)
        factors = [_Factor(out, (source,), math.lcm(*windows), min(windows)) for source in sources]
        if node.op_type in ("Mul", "Div") and len(sources) == 1:
            continue  # its constant is put on the grid instead
        if node.op_type == "Mul" and len(sources) == 2:
            factors = [_Factor(out, (sources[0], sources[1]))]
        _snap_layer(factors, shared, settled)


@dataclass(frozen=True)
class _Factor:
    """A factor of one layer: the product of its sources' scales over the output's scale and over each window's size.

    Attributes:
        out: Whose scale divides.
        sources: Whose scales are multiplied.
        divisor: A common multiple of the window sizes of an average pool: factor = whole number * divisor / 2**shift.
        smallest: Of the window sizes.
    """

    out: str
    sources: tuple[str, ...]
    divisor: int = 1
    smallest: int = 1

    def value(self, shared: Scales) -> float:
        """Without the window."""
        return math.prod(shared[source].scale for source in self.sources) / shared[self.out].scale


def _snap_layer(factors: list[_Factor], shared: Scales, settled: set[str]) -> None:
    """Put the factors of one layer on their common grid."""
    for factor in sorted(factors, key=lambda factor: not settled.issuperset(factor.sources)):
        top = max(each.value(shared) for each in factors)
        if not 0 < top < 2**MANTISSA_BITS:
            return
        free = next((name for name in factor.sources if name not in settled and name != factor.out), None)
        if free is None and factor.out in settled:
            continue
        ratio = _on_common_grid(factor, factor.value(shared), top) / factor.value(shared)
        moved, change = (free, ratio) if free is not None else (factor.out, 1 / ratio)
        if abs(ratio - 1) < LARGEST_MOVE:
            shared[moved] = replace(shared[moved], scale=float(np.float32(shared[moved].scale * change)))
        settled.update((*factor.sources, factor.out))
    settled.update(factor.out for factor in factors)


def _on_common_grid(factor: _Factor, value: float, top: float) -> float:
    """The nearest value on the grid whose shift the layer's largest factor decides.

    value / window = multiplier / 2**shift must be exact for every window size, so value = odd * divisor / 2**shift with
    as many bits as the smallest window leaves.
    """
    _, exponent = math.frexp(top / factor.divisor)
    spare = (factor.divisor // factor.smallest - 1).bit_length() if factor.divisor > 1 else 0
    shift = min(MANTISSA_BITS - spare - exponent, SHIFT_MAX)
    multiplier = min(math.floor(math.ldexp(value / factor.divisor, shift)) | 1, 2**MANTISSA_BITS - 1)
    return math.ldexp(multiplier * factor.divisor, -shift)


def _windows(node: ir.Node) -> tuple[int, ...]:
    """The different numbers of values that an average pool divides by; 1 for other nodes."""
    shape = edit.shape_of(node.inputs[0]) or ()
    if node.op_type == "GlobalAveragePool":
        return (math.prod(shape[2:]),)
    if node.op_type != "AveragePool":
        return (1,)
    kernel, result = edit.ints(node, "kernel_shape"), edit.shape_of(node.outputs[0]) or ()
    axes = len(kernel)
    strides = edit.ints(node, "strides") or (1,) * axes
    pads = edit.ints(node, "pads") or (0,) * 2 * axes
    border = pads if edit.integer(node, "count_include_pad", 0) else (0,) * 2 * axes
    lengths = [
        {
            min(start + kernel[axis], shape[2 + axis] + border[axes + axis]) - max(start, -border[axis])
            for start in range(-pads[axis], -pads[axis] + strides[axis] * result[2 + axis], strides[axis])
        }
        for axis in range(axes)
    ]
    return tuple(sorted({math.prod(sizes) for sizes in itertools.product(*lengths)}))


def _outputs(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]
