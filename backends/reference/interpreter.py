"""Numpy interpreter of the integer layers, one pure function per kind: what every other backend is compared with.

Maps are int8 [N, C, H, W]. Sums of products run on float BLAS only where every partial sum is an integer that the float
format holds exactly (2**24 for float32, 2**53 for float64), so the results are the integers of the definition in
`backends.layers`. Requantization is float64 for the same reason: |acc * M + B| < 2**49, dividing by 2**S is exact, and
np.rint rounds half to even.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

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
    Pads,
    Pair,
    PRelu,
    Requantize,
    Resize,
    Table,
    Tensor,
)

Map = NDArray[np.int8]
Number = TypeVar("Number", bound=np.number)
Keep = Literal["outputs", "all"]

_EXACT_FLOAT32 = 1 << 24
_BLOCK_ELEMENTS = 1 << 22
"""Most elements of one im2col block: bounds memory, and stays near the cache."""


class InputError(ValueError):
    """An input map that is missing, unknown, or of the wrong shape or type."""


def run(graph: LayerGraph, inputs: Mapping[str, Map], *, keep: Keep = "outputs") -> dict[str, Map]:
    """Execute a graph on a batch.

    Args:
        graph: Layers in topological order.
        inputs: int8 [N, C, H, W] for each graph input, by tensor name.
        keep: "outputs", or "all" tensors including the inputs.

    Returns:
        int8 [N, C, H, W] by tensor name.
    """
    values = _checked(graph, inputs)
    last_use = {tensor.name: layer for layer in graph.layers for tensor in layer.inputs}
    wanted = {tensor.name for tensor in graph.outputs}
    for layer in graph.layers:
        values[layer.output.name] = run_layer(layer, tuple(values[tensor.name] for tensor in layer.inputs))
        if keep == "outputs":
            for name in {tensor.name for tensor in layer.inputs}:
                if last_use[name] is layer and name not in wanted:
                    del values[name]
    return values if keep == "all" else {name: values[name] for name in wanted}


def run_layer(layer: Layer, inputs: tuple[Map, ...]) -> Map:
    """Execute one layer on a batch: int8 [N, C, H, W] in the order of `layer.inputs`."""
    match layer:
        case Conv():
            return conv(layer, *inputs)
        case MaxPool():
            return max_pool(layer, *inputs)
        case AveragePool():
            return average_pool(layer, *inputs)
        case Table():
            return table(layer, *inputs)
        case Add():
            return add(layer, *inputs)
        case Mul():
            return mul(layer, *inputs)
        case PRelu():
            return prelu(layer, *inputs)
        case Concat():
            return concat(layer, inputs)
        case Resize():
            return resize(layer, *inputs)
        case Pad():
            return pad(layer, *inputs)


def conv(layer: Conv, x: Map) -> Map:
    """Convolution: exact sums, then `requantize` per output channel."""
    padded = _with_border(x, layer.pads, layer.input.zero_point)
    out = np.empty((len(x), *layer.output.shape), np.int8)
    for samples, rows in _blocks(len(x), layer):
        acc = _accumulate(layer, padded[samples], rows)
        out[samples, :, rows] = requantize(acc, layer.requantize)
    return out


def requantize(acc: NDArray[np.floating], config: Requantize) -> Map:
    """Accumulators [N, C, H, W] (integers in a float format) to int8, per channel."""
    total = acc.astype(np.float64)  # always a new array: changed in place below
    total *= _per_channel(config.multiplier)
    total += _per_channel(config.offset)
    total *= _per_channel(np.ldexp(1.0, -config.shift))
    return _finish(total, config.zero_point, config.low, config.high)


def max_pool(layer: MaxPool, x: Map) -> Map:
    """Largest value of each window."""
    padded = _with_border(x, layer.pads, -128)
    height, width = layer.output.shape[1:]
    out = np.full((len(x), *layer.output.shape), -128, np.int8)
    for ky, kx in np.ndindex(*layer.kernel):
        tap = _tap(padded, (ky * layer.dilations[0], kx * layer.dilations[1]), layer.strides, (height, width))
        np.maximum(out, tap, out=out)
    return out


def average_pool(layer: AveragePool, x: Map) -> Map:
    """Window sums, then the multiplier of the region that each output position is in."""
    acc = _window_sums(layer, x)
    out = np.empty(acc.shape, np.int8)
    for region in layer.regions:
        rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
        total = acc[:, :, rows, columns].astype(np.float64) * region.multiplier + region.offset
        out[:, :, rows, columns] = _rescaled(total, region.shift, layer.output.zero_point, layer.low, layer.high)
    return out


def table(layer: Table, x: Map) -> Map:
    """One look-up per element."""
    return layer.table[x.astype(np.int16) + 128]


def add(layer: Add, a: Map, b: Map) -> Map:
    """Sum of two rescaled maps, one rounding."""
    total = _centred(a, layer.a) * layer.multiplier_a + _centred(b, layer.b) * layer.multiplier_b
    return _rescaled(total, layer.shift, layer.output.zero_point, layer.low, layer.high)


def mul(layer: Mul, a: Map, b: Map) -> Map:
    """Product of two maps, one rounding."""
    total = _centred(a, layer.a) * _centred(b, layer.b) * layer.multiplier
    return _rescaled(total, layer.shift, layer.output.zero_point, layer.low, layer.high)


def prelu(layer: PRelu, x: Map) -> Map:
    """One multiplier for values from zero up, one per channel below."""
    value = _centred(x, layer.input)
    total = value * np.where(value >= 0, layer.multiplier, _per_channel(layer.negative_multiplier))
    return _rescaled(total, layer.shift, layer.output.zero_point)


def concat(layer: Concat, parts: tuple[Map, ...]) -> Map:
    """Parts stacked along channels, each on the output's scale."""
    zero_point = layer.output.zero_point
    scaled = [
        _rescaled(_centred(part, tensor) * multiplier, shift, zero_point)
        for part, tensor, multiplier, shift in zip(parts, layer.parts, layer.multipliers, layer.shifts, strict=True)
    ]
    return np.concatenate(scaled, axis=1)


def resize(layer: Resize, x: Map) -> Map:
    """Each element repeated."""
    return x.repeat(layer.factors[0], axis=2).repeat(layer.factors[1], axis=3)


def pad(layer: Pad, x: Map) -> Map:
    """A constant border."""
    return _with_border(x, layer.pads, layer.value)


def _accumulate(layer: Conv, padded: Map, rows: slice) -> NDArray[np.floating]:
    """Exact sums [N, C_out, rows, W] of a block, as integers in float32 or float64."""
    size = (rows.stop - rows.start, layer.output.shape[2])
    start = rows.start * layer.strides[0]
    if layer.weights.shape[1] == 1 and layer.groups > 1:
        return _depthwise_sums(layer, padded[:, :, start:], size)
    return _matrix_sums(layer, padded[:, :, start:], size)


def _matrix_sums(layer: Conv, padded: Map, size: Pair) -> NDArray[np.floating]:
    """im2col and one matrix product per group."""
    dtype = _exact_dtype(layer.weights)
    columns = _im2col(layer, padded, size).astype(dtype)
    count, _, positions = columns.shape
    grouped = columns.reshape(count, layer.groups, -1, positions)
    weights = layer.weights.astype(dtype).reshape(layer.groups, len(layer.weights) // layer.groups, -1)
    return (weights @ grouped).reshape(count, len(layer.weights), *size)


def _depthwise_sums(layer: Conv, padded: Map, size: Pair) -> NDArray[np.floating]:
    """One scaled copy per kernel tap."""
    dtype = _exact_dtype(layer.weights)
    multiplier = len(layer.weights) // layer.groups
    acc = np.zeros((len(padded), len(layer.weights), *size), dtype)
    weights = layer.weights.astype(dtype)
    for ky, kx in np.ndindex(*layer.kernel):
        tap = _tap(padded, (ky * layer.dilations[0], kx * layer.dilations[1]), layer.strides, size).astype(dtype)
        repeated = tap.repeat(multiplier, axis=1) if multiplier > 1 else tap
        repeated *= _per_channel(weights[:, 0, ky, kx])
        acc += repeated
    return acc


def _exact_dtype(weights: NDArray[np.int8]) -> np.dtype[np.floating]:
    """float32 where no partial sum of any channel, in any order, can leave its exact integers."""
    largest = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1).max() * 128
    return np.dtype(np.float32 if largest < _EXACT_FLOAT32 else np.float64)


def _im2col(layer: Conv, padded: Map, size: Pair) -> Map:
    """Windows as columns: int8 [N, C_in * kernel_h * kernel_w, positions], in the order of the weights."""
    height, width = size
    (kernel_h, kernel_w), (dilation_h, dilation_w) = layer.kernel, layer.dilations
    extent = ((kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1)
    windows = sliding_window_view(padded, extent, axis=(2, 3))
    windows = windows[:, :, :: layer.strides[0], :: layer.strides[1], ::dilation_h, ::dilation_w]
    windows = windows[:, :, :height, :width]
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(len(padded), -1, height * width)


def _window_sums(layer: AveragePool, x: Map) -> NDArray[np.int32]:
    padded = _with_border(x, layer.pads, layer.input.zero_point)
    if layer.is_global:
        return padded.sum(axis=(2, 3), keepdims=True, dtype=np.int32)
    height, width = layer.output.shape[1:]
    acc = np.zeros((len(x), *layer.output.shape), np.int32)
    for ky, kx in np.ndindex(*layer.kernel):
        acc += _tap(padded, (ky, kx), layer.strides, (height, width))
    return acc


def _tap(padded: Map, origin: Pair, strides: Pair, size: Pair) -> Map:
    """The input elements that one kernel position meets, [N, C, *size]."""
    (top, left), (stride_h, stride_w), (height, width) = origin, strides, size
    rows = slice(top, top + (height - 1) * stride_h + 1, stride_h)
    return padded[:, :, rows, left : left + (width - 1) * stride_w + 1 : stride_w]


def _with_border(x: Map, pads: Pads, value: int) -> Map:
    top, left, bottom, right = pads
    if not any(pads):
        return x
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _blocks(count: int, layer: Conv) -> Iterator[tuple[slice, slice]]:
    """(samples, output rows) that tile the work in pieces of at most about `_BLOCK_ELEMENTS`."""
    _, height, width = layer.output.shape
    per_row = width * max(layer.weights[0].size * layer.groups, len(layer.weights))
    rows = min(height, max(1, _BLOCK_ELEMENTS // per_row))
    samples = max(1, _BLOCK_ELEMENTS // (per_row * rows))
    for first in range(0, count, samples):
        for top in range(0, height, rows):
            yield slice(first, min(first + samples, count)), slice(top, min(top + rows, height))


def _centred(x: Map, tensor: Tensor) -> NDArray[np.float64]:
    return x.astype(np.float64) - tensor.zero_point


def _rescaled(total: NDArray[np.float64], shift: int, zero_point: int, low: int = -128, high: int = 127) -> Map:
    return _finish(total * 2.0**-shift, zero_point, low, high)


def _finish(scaled: NDArray[np.float64], zero_point: int, low: int, high: int) -> Map:
    """Round half to even, add the zero point, clamp. Changes `scaled`."""
    np.rint(scaled, out=scaled)
    scaled += zero_point
    np.clip(scaled, low, high, out=scaled)
    return scaled.astype(np.int8)


def _per_channel(values: NDArray[Number]) -> NDArray[Number]:
    return values.reshape(1, -1, 1, 1)


def _checked(graph: LayerGraph, inputs: Mapping[str, Map]) -> dict[str, Map]:
    """The graph's inputs, each of the right shape and type and all of one batch."""
    if unknown := sorted(set(inputs) - {tensor.name for tensor in graph.inputs}):
        raise InputError(f"unknown inputs {unknown}: the graph has {[tensor.name for tensor in graph.inputs]}")
    for tensor in graph.inputs:
        if tensor.name not in inputs:
            raise InputError(f"input '{tensor.name}' is missing")
        value = inputs[tensor.name]
        if value.dtype != np.int8 or value.ndim != 4 or value.shape[1:] != tensor.shape:
            expected = ["N", *tensor.shape]
            raise InputError(f"input '{tensor.name}': expected int8 {expected}, got {value.dtype} {list(value.shape)}")
    if len({len(inputs[tensor.name]) for tensor in graph.inputs}) > 1:
        raise InputError("the inputs differ in their number of samples")
    return {tensor.name: inputs[tensor.name] for tensor in graph.inputs}
