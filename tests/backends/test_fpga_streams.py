"""Weight streams: what is stored, what is left out, and that a decoder finds every weight again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.fixed_point import Constant, requantize
from backends.fpga.streams import Stream, dense_streams, depthwise_streams, wide_streams
from backends.layers import Conv, Tensor
from tests.support.random_layers import random_graph


def conv(weights: NDArray[np.int8], groups: int = 1) -> Conv:
    outputs, per_group, height, width = weights.shape
    x = Tensor("x", (per_group * groups, height, width), 1.0, 0)
    y = Tensor("y", (outputs, 1, 1), 1.0, 0)
    scale = requantize(np.ones(outputs), Constant(np.zeros(outputs, np.int64), np.zeros(outputs)))
    return Conv("c", x, y, weights, scale, groups=groups)


def decoded(stream: Stream, taps: tuple[int, ...], kernel: int, channels: int) -> NDArray[np.int8]:
    """[kernel, channels, F, Q], as the array sees a stream."""
    dense = np.zeros((kernel, channels, *stream.weights.shape[1:]), np.int8)
    tap = channel = 0
    for weights, delta, end in zip(stream.weights, stream.delta, stream.end_tap, strict=True):
        channel += int(delta)
        dense[taps[tap], channel] = weights
        channel, tap = (0, tap + 1) if end else (channel + 1, tap)
    return dense


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 9), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_a_stream_holds_every_weight(seed: int, channels: int, outputs: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-128, 128, (outputs, channels, 2, 2)).astype(np.int8)
    weights[rng.random(weights.shape) >= density] = 0
    streams, taps = dense_streams(conv(weights), 4, keep_zeros=False)
    for block, stream in enumerate(streams):
        found = decoded(stream, taps, 4, channels)[:, :, 0, :]
        expected = np.zeros((4, channels, 4), np.int8)
        own = weights[4 * block : 4 * block + 4]
        expected[:, :, : len(own)] = own.reshape(len(own), channels, 4).transpose(2, 1, 0)
        assert np.array_equal(found, expected)


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_a_wide_stream_holds_every_weight(seed: int, channels: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    weights = (
        rng.integers(-128, 128, (outputs, channels, 1, 1)) * (rng.random((outputs, channels, 1, 1)) < 0.3)
    ).astype(np.int8)
    streams, taps = wide_streams(conv(weights), 4, 2, keep_zeros=False)
    found = np.concatenate([decoded(s, taps, 1, channels)[0].reshape(channels, 8) for s in streams], axis=1)
    assert np.array_equal(found[:, :outputs], weights[:, :, 0, 0].T)


def test_zero_blocks_cost_nothing() -> None:
    weights = np.ones((8, 16, 1, 1), np.int8)
    weights[:, 4:12] = 0
    (stream,), _ = dense_streams(conv(weights), 8, keep_zeros=False)
    assert (stream.count, stream.padding) == (8, 0)
    assert stream.delta.tolist() == [0, 0, 0, 0, 8, 0, 0, 0]


def test_dense_keeps_zero_blocks() -> None:
    (stream,), taps = dense_streams(conv(np.zeros((8, 16, 2, 1), np.int8)), 8, keep_zeros=True)
    assert (stream.count, taps) == (32, (0, 1))


def test_a_gap_beyond_the_delta_is_a_stored_zero_block() -> None:
    weights = np.zeros((1, 200, 1, 1), np.int8)
    weights[0, 150] = 1
    (stream,), _ = dense_streams(conv(weights), 2, keep_zeros=False)
    assert (stream.delta.tolist(), stream.padding) == ([63, 63, 22], 2)


def test_an_empty_tap_between_others_is_a_stored_zero_block() -> None:
    weights = np.zeros((2, 1, 1, 3), np.int8)
    weights[0, 0, 0] = (1, 0, 1)
    weights[1, 0, 0] = (0, 1, 0)
    streams, taps = dense_streams(conv(weights), 1, keep_zeros=False)
    assert taps == (0, 1, 2)
    assert [(s.count, s.padding) for s in streams] == [(3, 1), (2, 1)]  # empty taps at the end are left out


def test_a_tap_that_no_block_uses_is_left_out() -> None:
    weights = np.zeros((2, 1, 1, 3), np.int8)
    weights[:, 0, 0, 2] = 5
    streams, taps = dense_streams(conv(weights), 1, keep_zeros=False)
    assert taps == (2,)
    assert [s.count for s in streams] == [1, 1]


def test_a_block_without_weights_is_one_zero_block() -> None:
    weights = np.zeros((2, 3, 1, 1), np.int8)
    weights[0] = 1
    streams, _ = dense_streams(conv(weights), 1, keep_zeros=False)
    assert [(s.count, s.padding) for s in streams] == [(3, 0), (1, 1)]


@pytest.mark.parametrize("keep_zeros", [False, True])
def test_zeros_between_groups_are_never_stored(keep_zeros: bool) -> None:
    streams, _ = dense_streams(conv(np.ones((8, 2, 1, 1), np.int8), groups=4), 2, keep_zeros=keep_zeros)
    assert [s.delta.tolist() for s in streams] == [[0, 0], [2, 0], [4, 0], [6, 0]]


def test_a_block_byte_holds_delta_and_end_of_tap() -> None:
    (stream,) = depthwise_streams(np.array([[1, -2], [3, 4]], np.int8), 2)
    assert stream.to_bytes() == bytes([1, 3, 0x40, 254, 4, 0x40])


def test_random_layers_have_groups_that_share_blocks() -> None:
    found = [layer for seed in range(60) for layer in random_graph(seed, 3, kinds=("conv",)).layers]
    assert any(isinstance(c, Conv) and c.groups > 1 and (len(c.weights) // c.groups) % 4 for c in found)
