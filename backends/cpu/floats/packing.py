"""Weights and biases in the order in which the float kernels read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.cpu.floats.kernels import Conv, Depthwise

Floats = NDArray[np.float32]


def weights(kernel: Conv | Depthwise, values: Floats) -> Floats:
    """float32 [out, in of a group, y, x] as one row."""
    if isinstance(kernel, Depthwise):
        return _depthwise(kernel, values)
    parts = []
    for group in range(kernel.groups):
        own = values[group * kernel.outputs : (group + 1) * kernel.outputs]
        padded = np.zeros((kernel.all_vectors * kernel.lanes, *own.shape[1:]), np.float32)
        padded[: len(own)] = own
        size = kernel.vectors * kernel.lanes
        blocks = (padded[first : first + size] for first in range(0, len(padded), size))
        parts += [block.transpose(2, 3, 1, 0).reshape(-1) for block in blocks]
    return np.concatenate(parts)


def _depthwise(kernel: Depthwise, values: Floats) -> Floats:
    lanes, taps = kernel.lanes, values[0].size
    vectors = -(-len(values) // lanes)
    padded = np.zeros((vectors * lanes, taps), np.float32)
    padded[: len(values)] = values.reshape(len(values), taps)
    return np.ascontiguousarray(padded.reshape(vectors, lanes, taps).transpose(0, 2, 1)).reshape(-1)


def bias(kernel: Conv | Depthwise, values: Floats) -> Floats:
    """float32 [out] as one row: [group][vector][lane]."""
    groups = 1 if isinstance(kernel, Depthwise) else kernel.groups
    own = values.reshape(groups, -1)
    padded = np.zeros((groups, -(-own.shape[1] // kernel.lanes) * kernel.lanes), np.float32)
    padded[:, : own.shape[1]] = own
    return padded.reshape(-1)
