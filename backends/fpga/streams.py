"""Weight streams: blocks of Q output channels, all-zero blocks left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.layers import Conv
from hw.config import DELTA_BITS

DELTA_LIMIT = 1 << DELTA_BITS


@dataclass(frozen=True, eq=False)
class Stream:
    """What the array consumes for one block of output channels and one group, a cycle for each entry.

    Attributes:
        weights: int8 [count, F, Q]; F is 1 outside fully connected layers.
        delta: uint8 [count], input channels skipped before the entry.
        end_tap: bool [count], the next entry belongs to the next tap.
        padding: Entries of zeros that carry a position only: long gaps, empty taps, an empty stream.
    """

    weights: NDArray[np.int8]
    delta: NDArray[np.uint8]
    end_tap: NDArray[np.bool_]
    padding: int = 0

    @property
    def count(self) -> int:
        """Cycles for each group."""
        return len(self.delta)

    def to_bytes(self) -> bytes:
        """Weight blocks as the weight memory holds them: Q weights, then delta and end_tap in one byte."""
        flags = (self.delta | self.end_tap.astype(np.uint8) << DELTA_BITS).astype(np.uint8)
        wide = self.weights.shape[1]
        column = np.broadcast_to(flags[:, None, None], (self.count, wide, 1)).view(np.int8)
        return np.concatenate([self.weights, column], axis=2).tobytes()


@dataclass(frozen=True, eq=False)
class TapWeights:
    """The stored weights of one tap: int8 [n, F, Q] for n input channels, int64 [n] ascending."""

    channels: NDArray[np.int64]
    weights: NDArray[np.int8]


def encode(taps: list[TapWeights]) -> Stream:
    """The stream of one block: taps in order, channels ascending."""
    while len(taps) > 1 and not len(taps[-1].channels):
        taps = taps[:-1]
    shape = taps[0].weights.shape[1:]
    zero = np.zeros(shape, np.int8)
    weights: list[NDArray[np.int8]] = []
    delta: list[int] = []
    end_tap: list[bool] = []
    padding = 0
    for tap in taps:
        expected = 0
        for channel, weight in zip(tap.channels.tolist(), tap.weights, strict=True):
            while channel - expected >= DELTA_LIMIT:
                weights.append(zero)
                delta.append(DELTA_LIMIT - 1)
                end_tap.append(False)
                expected += DELTA_LIMIT
                padding += 1
            weights.append(weight)
            delta.append(channel - expected)
            end_tap.append(False)
            expected = channel + 1
        if not len(tap.channels):
            weights.append(zero)
            delta.append(0)
            end_tap.append(False)
            padding += 1
        end_tap[-1] = True
    return Stream(np.array(weights, np.int8), np.array(delta, np.uint8), np.array(end_tap, bool), padding)


def dense_streams(layer: Conv, rows: int, *, keep_zeros: bool) -> tuple[tuple[Stream, ...], tuple[int, ...]]:
    """Streams of a convolution whose array multiplies one input channel by Q weights.

    Args:
        layer: With any groups; zeros between groups are never stored.
        rows: Q.
        keep_zeros: Store blocks of zero weights too (they cost time and memory like any other).

    Returns:
        One stream for each Q output channels, and the kernel taps (ky * kernel_w + kx) that they go through: those
        that no block uses are left out.
    """
    blocks = [_block_taps(layer, first, rows, keep_zeros) for first in range(0, len(layer.weights), rows)]
    taps = tuple(t for t in range(len(blocks[0])) if any(len(block[t].channels) for block in blocks)) or (0,)
    return tuple(encode([block[t] for t in taps]) for block in blocks), taps


def depthwise_streams(weights: NDArray[np.int8], rows: int) -> tuple[Stream, ...]:
    """Streams of a depthwise convolution: int8 [C, taps] weights, one entry for each tap."""
    channels, taps = weights.shape
    padded = np.zeros((-(-channels // rows) * rows, taps), np.int8)
    padded[:channels] = weights
    end = np.ones(taps, bool)
    return tuple(
        Stream(np.ascontiguousarray(block.T)[:, None, :], np.zeros(taps, np.uint8), end)
        for block in padded.reshape(-1, rows, taps)
    )


def ones_stream(taps: int, rows: int) -> tuple[Stream, ...]:
    """The stream of pools and copies: weight 1 for each tap in every row."""
    return depthwise_streams(np.ones((rows, taps), np.int8), rows)


def wide_streams(layer: Conv, rows: int, lanes: int, *, keep_zeros: bool) -> tuple[tuple[Stream, ...], tuple[int, ...]]:
    """Streams of a fully connected layer: F blocks of Q output channels in each entry; as `dense_streams`."""
    outputs, channels = layer.weights.shape[:2]
    wide = rows * lanes
    padded = np.zeros((-(-outputs // wide) * wide, channels, layer.weights[0, 0].size), np.int8)
    padded[:outputs] = layer.weights.reshape(outputs, channels, -1)
    blocks = []
    for block in padded.reshape(-1, lanes, rows, channels, padded.shape[2]):
        by_tap = block.transpose(3, 2, 0, 1)  # taps, channels, F, Q
        blocks.append([_stored(tap, np.arange(channels), np.full(channels, keep_zeros)) for tap in by_tap])
    taps = tuple(t for t in range(padded.shape[2]) if any(len(block[t].channels) for block in blocks)) or (0,)
    return tuple(encode([block[t] for t in taps]) for block in blocks), taps


def one_hot_streams(sizes: list[int], rows: int) -> tuple[Stream, ...]:
    """Output channel i is channel i of the parts in a row: for each block, the taps (parts) that it meets."""
    first = np.cumsum([0, *sizes])
    streams = []
    for block in range(0, sum(sizes), rows):
        taps = []
        for start, stop in zip(first[:-1], first[1:], strict=True):
            outputs = np.arange(max(start, block), min(stop, block + rows))
            weights = np.zeros((len(outputs), 1, rows), np.int8)
            weights[np.arange(len(outputs)), 0, outputs - block] = 1
            taps.append(TapWeights(outputs - start, weights))
        streams.append(encode(taps))
    return tuple(streams)


def without_empty_taps(streams: tuple[Stream, ...]) -> tuple[tuple[Stream, ...], tuple[int, ...]]:
    """Depthwise streams without the taps that are zero in every channel, and the taps that remain."""
    used = np.any([stream.weights.any(axis=(1, 2)) for stream in streams], axis=0)
    used[0] |= not used.any()
    kept = tuple(Stream(s.weights[used], s.delta[used], s.end_tap[used]) for s in streams)
    return kept, tuple(np.flatnonzero(used).tolist())


def _block_taps(layer: Conv, first: int, rows: int, keep_zeros: bool) -> list[TapWeights]:
    """Weights of output channels [first, first + Q), tap by tap."""
    per_group_in = layer.weights.shape[1]
    per_group_out = len(layer.weights) // layer.groups
    last = min(first + rows, len(layer.weights))
    groups = np.arange(first, last) // per_group_out
    low, high = int(groups[0]) * per_group_in, (int(groups[-1]) + 1) * per_group_in
    kernel = layer.weights[0, 0].size
    span = np.zeros((kernel, high - low, 1, rows), np.int8)
    real = np.zeros(high - low, bool)
    for row, group in enumerate(groups.tolist()):
        start = group * per_group_in - low
        span[:, start : start + per_group_in, 0, row] = layer.weights[first + row].reshape(per_group_in, kernel).T
        real[start : start + per_group_in] = True
    return [_stored(tap, np.arange(low, high), real & keep_zeros) for tap in span]


def _stored(weights: NDArray[np.int8], channels: NDArray[np.int64], keep: NDArray[np.bool_]) -> TapWeights:
    """The entries of one tap that are not all zero, or must be kept."""
    chosen = keep | weights.any(axis=(1, 2))
    return TapWeights(channels[chosen], weights[chosen])
