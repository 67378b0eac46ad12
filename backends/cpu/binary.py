"""Convolutions of -1 and 1: bits, exclusive or, and a count of ones (XNOR-Net, Rastegari et al. 2016, section 3.2).

A bit is the sign bit of a stored activation: 1 is +1 where activations are stored with 128 added, else -1. With n taps,
acc = n - 2 * popcount(activations ^ weights); the factor and n are part of the exact rescaling. Bits outside the map
are 0, which stands for -1 or 1 instead of the zero point; what that adds to acc depends on the weights and on which
taps are outside alone, so every region of output positions with the same taps outside has offsets of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product

import numpy as np
from numpy.typing import NDArray

from backends import layers
from backends.cpu import kernels, packing, tir
from backends.cpu.kernels import Conv, Frame, Map
from backends.cpu.machine import Dot, Machine
from backends.cpu.tir import Expr
from backends.layers import LayerGraph, Tensor

WORD = 32
_LEAST_CHANNELS = 16
"""With fewer, most of a word is empty, and bytes are as fast."""
_MOST_REGIONS = 25
"""A 5 x 5 kernel with a border of 2; offsets for more regions would be larger than the weights."""


def is_binary(layer: layers.Conv, graph: LayerGraph) -> bool:
    """Whether weights and inputs are provably all -1 or 1, and bits are worth while."""
    if layer.groups != 1 or layer.input.shape[0] < _LEAST_CHANNELS or len(list(regions(layer))) > _MOST_REGIONS:
        return False
    return bool(np.all(np.abs(layer.weights) == 1)) and is_bipolar(layer.input, graph)


def is_bipolar(tensor: Tensor, graph: LayerGraph) -> bool:
    """Whether every element is provably -1 or 1."""
    producer = next((layer for layer in graph.layers if layer.output.name == tensor.name), None)
    match producer:
        case layers.Conv():
            return _never_zero(producer.requantize)
        case layers.Table():
            return bool(np.all(np.abs(producer.table) == 1))
        case layers.MaxPool():  # a window that reads nothing of the map would be -128
            covers = all(pad < side for pad, side in zip(producer.pads, producer.kernel * 2, strict=True))
            inside = covers and producer.dilations == (1, 1) and not _reads_nothing(producer)
            return inside and is_bipolar(producer.input, graph)
        case layers.Concat():
            same = all(part.zero_point == producer.output.zero_point for part in producer.parts)
            exact = all(m == 1 << s for m, s in zip(producer.multipliers, producer.shifts, strict=True))
            return same and exact and all(is_bipolar(part, graph) for part in producer.parts)
        case layers.Resize():
            return is_bipolar(producer.input, graph)
    return False


def _reads_nothing(layer: layers.MaxPool) -> bool:
    """Whether the last window of an axis begins beyond the map."""
    starts = ((layer.output.shape[1 + i] - 1) * layer.strides[i] - layer.pads[i] for i in range(2))
    return any(start >= layer.input.shape[1 + i] for i, start in enumerate(starts))


def _never_zero(requantize: layers.Requantize) -> bool:
    """Clamped to -1 and 1, and no integer accumulator is rounded to 0.

    0 needs acc * M + B within half of 2**S of -zero_point * 2**S: a multiple of M in that interval, whose ends, which
    are ties, belong to it where the zero point is even.
    """
    if (requantize.low, requantize.high) != (-1, 1):
        return False
    multiplier, shift = np.abs(requantize.multiplier), requantize.shift
    half = np.left_shift(1, shift) >> 1
    half -= (half > 0) & bool(requantize.zero_point % 2)
    middle = -requantize.zero_point * np.left_shift(1, shift) - requantize.offset
    factor = np.maximum(multiplier, 1)
    has_multiple = (middle + half) // factor * factor >= middle - half
    holds = np.where(multiplier == 0, np.abs(middle) <= half, has_multiple)
    return not bool(holds.any())


# Regions of output positions


@dataclass(frozen=True, eq=False)
class Region:
    """Output positions [top:bottom, left:right] whose windows have the same taps outside the map.

    Attributes:
        outside: bool [kernel_h, kernel_w].
    """

    top: int
    bottom: int
    left: int
    right: int
    outside: NDArray[np.bool_]


def regions(layer: layers.Conv) -> Iterator[Region]:
    """They tile the output."""
    for (top, bottom, above), (left, right, beside) in product(_spans(layer, 0), _spans(layer, 1)):
        yield Region(top, bottom, left, right, np.logical_or.outer(above, beside))


def _spans(layer: layers.Conv, axis: int) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """(first, stop, which taps are outside) along an axis of the output."""
    first = np.arange(layer.output.shape[1 + axis]) * layer.strides[axis] - layer.pads[axis]
    places = first[:, None] + np.arange(layer.kernel[axis]) * layer.dilations[axis]
    outside = (places < 0) | (places >= layer.input.shape[1 + axis])
    for _, group in groupby(range(len(outside)), key=lambda i: outside[i].tobytes()):
        members = list(group)
        yield members[0], members[-1] + 1, outside[members[0]]


# Packing


def words(channels: int) -> int:
    """Words of a pixel."""
    return -(-channels // WORD)


def bits(machine: Machine, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """-1 and 1 [out, ky, kx, c] to words [vector][ky][kx][word][lane]; what fills up the last word is 0."""
    outputs, height, width, channels = weights.shape
    vectors = -(-outputs // machine.lanes)
    ones = np.zeros((vectors * machine.lanes, height, width, words(channels) * WORD), np.bool_)
    ones[:outputs, ..., :channels] = weights == _one(machine)
    packed = np.packbits(ones, axis=-1, bitorder="little").view("<i4")
    return packed.reshape(vectors, machine.lanes, height, width, -1).transpose(0, 2, 3, 4, 1)


def _one(machine: Machine) -> int:
    """What a bit of 1 stands for."""
    return 1 if machine.bias else -1


def tile(machine: Machine, channels: int, columns: int) -> tuple[int, int]:
    """(pixels, vectors) of the accumulator tile; counting bytes needs registers for its table and masks."""
    spare = machine.registers // 8 if _counts_bytes(machine) else 0
    return packing.tile(replace(machine, registers=machine.registers - spare), channels, columns, most_vectors=4)


def part(machine: Machine, layer: layers.Conv, region: Region) -> packing.Part:
    """The exact rescaling of counts of unequal bits."""
    weights = layer.weights.astype(np.int64)
    taps = weights[0].size
    extra = (layer.input.zero_point + _one(machine)) * weights[:, :, region.outside].sum(axis=(1, 2))
    scale = layer.requantize
    multiplier, offset = -2 * scale.multiplier, scale.offset + scale.multiplier * (taps + extra)
    assert int((taps * np.abs(multiplier) + np.abs(offset)).max(initial=0)) < packing.EXACT
    return packing.Part(layer.weights, multiplier, offset, scale.shift)


# Kernels


@dataclass(frozen=True)
class Pack:
    """A stored map of -1 and 1 to bits: channel c is bit c % 32 of word c // 32 of its pixel.

    Attributes:
        output: In words.
    """

    rows: int
    columns: int
    channels: int
    input: Map
    output: Map

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = kernels.frame(name, machine, target="int32")
        full, rest = divmod(self.channels, WORD)
        with f.w.loop(f.begin, f.end) as y, f.w.loop(0, self.columns) as x:
            source = f.w.let(y * self.input.row + x * self.input.pixel)
            target = f.w.let(y * self.output.row + x * self.output.pixel)
            for word in f.w.unrolled(full, 1):
                f.w.store(f.output, target + word, _word(f, source + word * WORD, WORD))
            if rest:
                f.w.store(f.output, target + full, _word(f, source + full * WORD, rest))
        return f.w.function()


def _word(f: Frame, place: Expr, count: int) -> Expr:
    """The sign bits of `count` neighbours."""
    if f.machine.triple.startswith("x86_64") and f.machine.dot is not Dot.MULTIPLY:
        taken = tir.load_part(f.input, place, WORD, count)
        signs = tir.reinterpret(taken, "int8x32") if f.machine.item_bytes == 1 else tir.cast(taken, "int8")
        return tir.intrinsic("int32", "llvm.x86.avx2.pmovmskb", signs)
    one, word = tir.constant(1, "int32"), tir.constant(0, "int32")
    for i in range(count):  # of -1 and 1 the second bit is that of the sign
        value = tir.cast(tir.load(f.input, place + i), "int32")
        word = word | (((value >> one) & one) << tir.constant(i, "int32"))
        word = f.w.let(word)
    return word


@dataclass(frozen=True)
class XnorConv(Conv):
    """A Conv whose accumulators count unequal bits; window and steps are in words.

    Weights: [vector of output channels][run][word][lane].
    """

    def _frame(self, name: str, machine: Machine) -> Frame:
        return kernels.frame(name, machine, source="int32", weights="int32")

    def _sums(self, f: Frame, acc: Expr, origin: Expr, pixels: int, first: Expr, vectors: int) -> None:
        w, lanes, window = f.w, self.lanes, self.window
        per_vector = window.rows * window.columns * window.length * lanes
        for ky in w.unrolled(window.rows, 1):
            for kx in w.unrolled(window.columns, 1):
                run = (ky * window.columns + kx) * window.length
                weights = [(first + v) * per_vector + run * lanes for v in range(vectors)]
                start = origin + ky * window.row_step + kx * window.column_step
                if not _counts_bytes(f.machine):
                    self._count(f, acc, start, pixels, weights, 0, window.length)
                    continue
                full, rest = divmod(window.length, _MOST_BYTES)
                for part in w.unrolled(full, 1):
                    self._count_bytes(f, acc, start, pixels, weights, part * _MOST_BYTES, _MOST_BYTES)
                if rest:
                    self._count_bytes(f, acc, start, pixels, weights, full * _MOST_BYTES, rest)

    def _count(
        self, f: Frame, acc: Expr, start: Expr, pixels: int, weights: list[Expr], begin: Expr, count: int
    ) -> None:
        """acc += ones of `count` words of a run, in elements of acc: words, or bytes."""
        w, lanes, kind = f.w, self.lanes, str(acc.dtype)
        elements = lanes * 4 if kind == "int8" else lanes
        counted = f"{kind}x{elements}" if elements > 1 else kind
        for i in w.unrolled(count, 1):
            k = begin + i
            values = [w.let(tir.load(f.weights, place + k * lanes, lanes)) for place in weights]
            for p in range(pixels):
                taken = w.let(tir.spread(tir.load(f.input, start + p * self.step_column + k), lanes))
                for v, value in enumerate(values):
                    place = (p * len(weights) + v) * elements
                    unequal = taken ^ value
                    if kind == "int8":
                        unequal = tir.reinterpret(unequal, counted)
                    ones = tir.intrinsic(counted, "llvm.ctpop", unequal)
                    w.store(acc, place, tir.load(acc, place, elements) + ones)

    def _count_bytes(
        self, f: Frame, acc: Expr, start: Expr, pixels: int, weights: list[Expr], begin: Expr, count: int
    ) -> None:
        """The same through counts of bytes, which are added up once."""
        w, lanes, tiles = f.w, self.lanes, pixels * len(weights)
        counts = w.local(tiles * 4 * lanes, "int8")
        for i in range(tiles):
            w.store(counts, i * 4 * lanes, tir.constant(0, "int8", 4 * lanes))
        self._count(f, counts, start, pixels, weights, begin, count)
        low, half = tir.constant(0x00FF00FF, "int32", lanes), tir.constant(0xFFFF, "int32", lanes)
        eight, sixteen = tir.constant(8, "int32", lanes), tir.constant(16, "int32", lanes)
        for i in range(tiles):
            four = w.let(tir.reinterpret(tir.load(counts, i * 4 * lanes, 4 * lanes), f"int32x{lanes}"))
            two = w.let((four & low) + ((four >> eight) & low))
            w.store(acc, i * lanes, tir.load(acc, i * lanes, lanes) + ((two & half) + (two >> sixteen)))


_MOST_BYTES = 31
"""Words whose ones, 8 in each byte at most, are counted in uint8."""


def _counts_bytes(machine: Machine) -> bool:
    """Vectors that count the ones of bytes alone: by a table of nibbles (AVX2), or an instruction (NEON)."""
    return machine.lanes > 1 and "avx512vpopcntdq" not in machine.requires
