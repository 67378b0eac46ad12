"""Weights and scales in the order in which the kernels read them, and the tiles that they are read for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.cpu.machine import Machine
from backends.layers import Requantize

NARROW = float((1 << 31) - (1 << 21))
"""Rescaled values up to here are int32 after rounding, with room for a zero point."""
EXACT = 1 << 53
_LATENCY = 5
"""Of a dot instruction: a tile with fewer accumulators waits."""


@dataclass(frozen=True, eq=False)
class Part:
    """Output channels of a convolution (all of them, or of one group) and their exact rescaling.

    Attributes:
        weights: int8 [out, in, kernel_h, kernel_w].
        multiplier, offset, shift: int64 [out], for sums of stored activations.
    """

    weights: NDArray[np.int8]
    multiplier: NDArray[np.int64]
    offset: NDArray[np.int64]
    shift: NDArray[np.int64]


def integers(
    requantize: Requantize, weights: NDArray[np.int8], bias: int, chosen: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(multiplier, offset, shift) of the chosen channels; a stored activation has `bias` added, which offsets take off.

    Raises:
        AssertionError: A value could be inexact in float64; fixed-point fields are too narrow for that.
    """
    taken = weights[chosen].reshape(len(weights[chosen]), -1).astype(np.int64)
    multiplier, shift = requantize.multiplier[chosen], requantize.shift[chosen]
    offset = requantize.offset[chosen] - bias * multiplier * taken.sum(axis=1)
    largest = np.abs(taken).sum(axis=1) * 256
    assert int(largest.max(initial=0)) < 1 << 31
    assert int((largest * np.abs(multiplier) + np.abs(offset)).max(initial=0)) < EXACT
    return multiplier, offset, shift


def is_wide(part: Part, bias: int) -> bool:
    """Whether a rescaled accumulator could leave int32."""
    sums = np.abs(part.weights.astype(np.int64)).reshape(len(part.weights), -1).sum(axis=1) * (128 + bias)
    most = (sums * np.abs(part.multiplier) + np.abs(part.offset)) * np.ldexp(1.0, -part.shift)
    return bool(most.max(initial=0) > NARROW)


def scales(machine: Machine, part: Part) -> NDArray[np.generic]:
    """float64 [vector][M, B][lane], divided by 2**S; or int32 [channel][M << 6 | S, B low, B high].

    In integers B has half of 2**S in it, and a shift of 0 becomes one of 1, so that there is a half.
    """
    if not machine.has_float64:
        is_whole = part.shift == 0
        shift = np.where(is_whole, 1, part.shift)
        multiplier = np.where(is_whole, 2 * part.multiplier, part.multiplier)
        offset = np.where(is_whole, 2 * part.offset, part.offset) + np.left_shift(1, shift - 1)
        words = [multiplier << 6 | shift, offset & 0xFFFFFFFF, offset >> 32]
        return np.stack(words, axis=1).astype(np.uint32).view(np.int32)
    lanes = machine.lanes
    vectors = -(-len(part.multiplier) // lanes)
    out = np.zeros((2, vectors * lanes))
    out[0, : len(part.multiplier)] = np.ldexp(part.multiplier.astype(np.float64), -part.shift)
    out[1, : len(part.offset)] = np.ldexp(part.offset.astype(np.float64), -part.shift)
    return out.reshape(2, vectors, lanes).transpose(1, 0, 2)


def dense(machine: Machine, weights: NDArray[np.int8]) -> NDArray[np.generic]:
    """[out, run, element] to [vector][run][group][lane][element of the group]."""
    group, lanes = machine.dot.group, machine.lanes
    outputs, runs, length = weights.shape
    steps, vectors = -(-length // group), -(-outputs // lanes)
    padded = np.zeros((vectors * lanes, runs, steps * group), machine.weight)
    padded[:outputs, :, :length] = weights
    return padded.reshape(vectors, lanes, runs, steps, group).transpose(0, 2, 3, 1, 4)


_DENSE_SHARE = 0.6
"""With a larger share of the bytes, the table counted, leaving blocks of zeros out gains nothing."""


def sparse(
    packed: NDArray[np.generic], places: NDArray[np.int64]
) -> tuple[NDArray[np.generic], NDArray[np.int32]] | None:
    """Blocks of `dense` weights that are not all 0, and the table of a SparseConv; None where most are not.

    Args:
        packed: [vector][run][group][lane][element].
        places: Of each run and group in the input, from the window's origin: [run][group].
    """
    vectors = len(packed)
    blocks = packed.reshape(vectors, -1, packed.shape[3], packed.shape[4])
    kept = blocks.any(axis=(2, 3))
    if kept.sum() * (blocks[0, 0].nbytes + 4) > _DENSE_SHARE * packed.nbytes:
        return None
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    offsets = np.broadcast_to(places.ravel(), kept.shape)[kept]
    table = np.concatenate([starts, offsets]).astype(np.int32)
    weights = blocks[kept]
    return (weights if len(weights) else blocks[:1, 0]), table


def depthwise(machine: Machine, weights: NDArray[np.int8]) -> NDArray[np.generic]:
    """[channel, 1, ky, kx] to [vector][group of ky][kx][lane][ky of the group]."""
    lanes, group = machine.lanes, machine.dot.group
    channels, _, height, width = weights.shape
    vectors, groups = -(-channels // lanes), -(-height // group)
    padded = np.zeros((vectors * lanes, groups * group, width), machine.weight)
    padded[:channels, :height] = weights[:, 0]
    return padded.reshape(vectors, lanes, groups, group, width).transpose(0, 2, 4, 1, 3)


def tile(machine: Machine, channels: int, columns: int, *, most_vectors: int = 8) -> tuple[int, int]:
    """(pixels, vectors) of the accumulator tile that needs the fewest instructions for a row."""
    count = -(-channels // machine.lanes)
    best, best_cost = (1, 1), float("inf")
    for vectors in range(1, min(count, most_vectors) + 1):
        most = (machine.registers - machine.registers // 8 - vectors) // vectors
        for pixels in range(1, min(columns, most, 16) + 1):
            cost = row_cost(count, columns, pixels, vectors)
            if cost < best_cost:
                best, best_cost = (pixels, vectors), cost
    return best


def row_cost(count: int, columns: int, pixels: int, vectors: int) -> float:
    """Of a row of `columns` pixels and `count` vectors, in cycles of each step, in tiles of `pixels` x `vectors`."""
    return sum(
        _cost(p, v) * times * repeats
        for p, times in ((pixels, columns // pixels), (columns % pixels, 1))
        if p and times
        for v, repeats in ((vectors, count // vectors), (count % vectors, 1))
        if v and repeats
    )


def _cost(pixels: int, vectors: int) -> float:
    """Cycles of one step of a tile: the dot instructions, or the loads, or waiting."""
    return max(pixels * vectors, 0.7 * (pixels + vectors), _LATENCY) + 0.3


def depthwise_pixels(machine: Machine, columns: int) -> int:
    """Output pixels side by side; neighbours share loads."""
    most = max(1, min(columns, machine.registers // 3))
    return min(range(1, most + 1), key=lambda pixels: (-(-columns // pixels) * (pixels + 1), -pixels))
