"""The small facts that a LayerGraph tells about itself."""

from __future__ import annotations

import numpy as np

from backends.layers import AveragePool, Conv, LayerGraph, MaxPool, PoolRegion, Requantize, Tensor, macs

X = Tensor("x", (4, 6, 5), 1.0, 0)
Y = Tensor("y", (4, 6, 5), 1.0, 0)
Z = Tensor("z", (4, 1, 1), 1.0, 0)
REQUANTIZE = Requantize(np.full(4, 1 << 15), np.full(4, 15), np.zeros(4, np.int64))


def _conv(groups: int) -> Conv:
    weights = np.ones((4, 4 // groups, 3, 3), np.int8)
    return Conv("conv", X, Y, weights, REQUANTIZE, pads=(1, 1, 1, 1), groups=groups)


def _pool(**changes: object) -> AveragePool:
    arguments = {"kernel": (6, 5), "regions": (PoolRegion(0, 0, 1, 1, 1, 0, 0),)} | changes
    return AveragePool("pool", Y, Z, **arguments)


def test_sizes_and_macs() -> None:
    assert X.size == 120
    assert macs(_conv(1)) == 4 * 4 * 9 * 30
    assert macs(_conv(4)) == 4 * 9 * 30
    assert macs(_pool()) == 0


def test_picking_channels_is_no_arithmetic() -> None:
    weights = np.zeros((4, 4, 1, 1), np.int8)
    weights[np.arange(4), [2, 0, 3, 3]] = 1
    assert macs(Conv("pick", X, Y, weights, REQUANTIZE)) == 0
    assert macs(Conv("scale", X, Y, weights * 2, REQUANTIZE)) == 4 * 4 * 30
    weights[0, 1] = 1
    assert macs(Conv("sum", X, Y, weights, REQUANTIZE)) == 4 * 4 * 30


def test_depthwise_is_one_input_channel_per_output() -> None:
    assert _conv(4).is_depthwise
    assert not _conv(2).is_depthwise
    assert not _conv(1).is_depthwise


def test_global_pool_is_a_window_as_large_as_the_map() -> None:
    assert _pool().is_global
    assert not _pool(kernel=(5, 5)).is_global
    assert not _pool(pads=(0, 0, 1, 0)).is_global


def test_tensors_and_consumers_are_in_order() -> None:
    peak = MaxPool("peak", Y, Z, (6, 5))
    graph = LayerGraph("net", (X,), (Z,), (_conv(1), _pool(), peak))
    assert [tensor.name for tensor in graph.tensors()] == ["x", "y", "z", "z"]
    assert [layer.name for layer in graph.consumers(Y)] == ["pool", "peak"]
    assert graph.consumers(Z) == ()
