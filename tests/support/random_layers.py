"""Random integer layer graphs of every layer kind, seeded: what backends are compared with the reference on.

Scales are chosen from the statistics of the weights, so that results spread over int8 and few saturate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backends.fixed_point import Constant, encode, encode_common, requantize
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
    PoolRegion,
    PRelu,
    Resize,
    Shape,
    Table,
    Tensor,
)

LARGEST_MAP = 24 * 24 * 32
"""Elements; keeps graphs inside small memories."""


def random_graph(seed: int, layers: int = 5, *, kinds: tuple[str, ...] = ()) -> LayerGraph:
    """A graph of about `layers` layers; `kinds` restricts them to names in `KINDS`."""
    return _Builder(seed, kinds or tuple(KINDS)).graph(layers)


def halves(graph: LayerGraph, at: int) -> tuple[LayerGraph, LayerGraph]:
    """A graph cut before layer `at`: what the second half needs of the first is an output there and an input here."""
    parts = (graph.layers[:at], graph.layers[at:])
    made = [{layer.output.name: layer.output for layer in part} for part in parts]
    read = [{t.name: t for layer in part for t in layer.inputs} for part in parts]
    wanted = {t.name for t in graph.outputs}
    first = tuple(t for name, t in made[0].items() if name in read[1] or name in wanted)
    second = tuple(t for name, t in made[1].items() if name in wanted)
    fed = [tuple(t for name, t in needs.items() if name not in own) for needs, own in zip(read, made, strict=True)]
    return LayerGraph(graph.name, fed[0], first, parts[0]), LayerGraph(graph.name, fed[1], second, parts[1])


def random_inputs(graph: LayerGraph, seed: int, samples: int = 1) -> dict[str, NDArray[np.int8]]:
    """int8 [samples, C, H, W] for each input, over the whole range."""
    rng = np.random.default_rng([seed, 1])
    return {t.name: rng.integers(-128, 128, (samples, *t.shape)).astype(np.int8) for t in graph.inputs}


class _Builder:
    """Grows a graph; each method adds one layer that reads an earlier tensor, or gives up and adds none."""

    def __init__(self, seed: int, kinds: tuple[str, ...]) -> None:
        self.rng = np.random.default_rng([seed, 0])
        self.kinds = kinds
        self.layers: list[Layer] = []
        self.tensors: list[Tensor] = []

    def graph(self, layers: int) -> LayerGraph:
        inputs = tuple(self._input(i) for i in range(1 + int(self.rng.random() < 0.2)))
        self.tensors += inputs
        for _ in range(50 * layers):
            if len(self.layers) >= layers:
                break
            layer = KINDS[self._pick(self.kinds)](self)
            if layer is not None:
                self.layers.append(layer)
                self.tensors.append(layer.output)
        read = {t.name for layer in self.layers for t in layer.inputs}
        outputs = [t for t in self.tensors[len(inputs) :] if t.name not in read or self.rng.random() < 0.1]
        return LayerGraph("random", inputs, tuple(outputs), tuple(self.layers))

    def conv(self) -> Layer | None:
        x = self._source()
        groups = self._pick([g for g in (1, 1, 1, 2, 3, 4) if x.shape[0] % g == 0])
        outputs = groups * self._integer(1, 24 // groups)
        return self._convolution(x, outputs, groups)

    def depthwise(self) -> Layer | None:
        x = self._source()
        return self._convolution(x, x.shape[0] * self._pick([1, 1, 1, 2]), x.shape[0])

    def fully_connected(self) -> Layer | None:
        x = self._source()
        if x.size > 3000:
            return None
        return self._dense(x, self._integer(1, 70), x.shape[1:], (0, 0, 0, 0), (1, 1), (1, 1), 1)

    def max_pool(self) -> Layer | None:
        x = self._source()
        window = self._window(x.shape)
        if window is None:
            return None
        kernel, strides, pads, dilations, size = window
        pads = (min(pads[0], kernel[0] - 1), min(pads[1], kernel[1] - 1), pads[2], pads[3])
        size = _output_size(x.shape, kernel, strides, pads, dilations)
        if min(size) < 1:
            return None
        y = self._tensor((x.shape[0], *size), like=x)
        return MaxPool(y.name, x, y, kernel, strides, pads, dilations)

    def average_pool(self) -> Layer | None:
        x = self._source()
        window = self._window(x.shape)
        if window is None:
            return None
        kernel, strides, pads, _, _ = window
        size = _output_size(x.shape, kernel, strides, pads, (1, 1))
        if min(size) < 1:
            return None
        y = self._tensor((x.shape[0], *size))
        cuts = [sorted({0, n, *([1] if n > 1 else []), *([n - 1] if n > 2 else [])}) for n in size]
        regions = [
            self._region(x, kernel, (top, left, bottom, right))
            for top, bottom in zip(cuts[0][:-1], cuts[0][1:], strict=True)
            for left, right in zip(cuts[1][:-1], cuts[1][1:], strict=True)
        ]
        return AveragePool(y.name, x, y, kernel, tuple(regions), strides, pads, *self._clamp())

    def global_pool(self) -> Layer | None:
        x = self._source()
        y = self._tensor((x.shape[0], 1, 1))
        region = self._region(x, x.shape[1:], (0, 0, 1, 1))
        return AveragePool(y.name, x, y, x.shape[1:], (region,), (1, 1), (0, 0, 0, 0), *self._clamp())

    def table(self) -> Layer | None:
        x = self._source()
        y = self._tensor(x.shape)
        return Table(y.name, x, y, self.rng.integers(-128, 128, 256).astype(np.int8))

    def add(self) -> Layer | None:
        pair = self._pair()
        if pair is None:
            return None
        a, b = pair
        y = self._tensor(a.shape)
        signs = self.rng.choice([-1.0, 1.0], 2)
        (ma, mb), shift = encode_common(
            tuple(float(s * r) for s, r in zip(signs, self.rng.uniform(0.2, 1, 2), strict=True))
        )
        return Add(y.name, a, b, y, ma, mb, shift, *self._clamp())

    def residual(self) -> Layer | None:
        """A convolution that keeps the shape of its input, and at once the sum or product with another tensor."""
        x = self._source()
        same = [t for t in self.tensors if t.shape[1:] == x.shape[1:]]
        skip = self._pick(same)
        kernel = (1, 1) if self.rng.random() < 0.3 else (min(3, x.shape[1]), 3)
        pads = (kernel[0] // 2, kernel[1] // 2, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        inner = self._dense(x, skip.shape[0], kernel, pads, (1, 1), (1, 1), 1)
        self.layers.append(inner)
        self.tensors.append(inner.output)
        y = self._tensor(skip.shape)
        a, b = (inner.output, skip) if self.rng.random() < 0.5 else (skip, inner.output)
        if self.rng.random() < 0.3:
            return Mul(y.name, a, b, y, *encode(float(self.rng.uniform(0.005, 0.02))), *self._clamp())
        (ma, mb), shift = encode_common((float(self.rng.uniform(0.2, 1)), float(self.rng.uniform(-1, -0.2))))
        return Add(y.name, a, b, y, ma, mb, shift, *self._clamp())

    def mul(self) -> Layer | None:
        pair = self._pair()
        if pair is None:
            return None
        a, b = pair
        y = self._tensor(a.shape)
        return Mul(y.name, a, b, y, *encode(float(self.rng.uniform(0.005, 0.02))), *self._clamp())

    def prelu(self) -> Layer | None:
        x = self._source()
        y = self._tensor(x.shape)
        count = self._pick([1, x.shape[0]])
        slopes = np.repeat(self.rng.uniform(-0.5, 0.5, count), x.shape[0] // count)
        multipliers, shift = encode_common((float(self.rng.uniform(0.5, 1)), *slopes.tolist()))
        return PRelu(y.name, x, y, multipliers[0], np.array(multipliers[1:], np.int64), shift)

    def concat(self) -> Layer | None:
        first = self._source()
        same = [t for t in self.tensors if t.shape[1:] == first.shape[1:]]
        parts = [first] + [self._pick(same) for _ in range(self._integer(0, 2))]
        channels = sum(p.shape[0] for p in parts)
        if channels * first.shape[1] * first.shape[2] > LARGEST_MAP:
            return None
        y = self._tensor((channels, *first.shape[1:]))
        scales = [encode(float(self.rng.uniform(0.3, 1.2))) if self.rng.random() < 0.7 else (1, 0) for _ in parts]
        multipliers, shifts = zip(*scales, strict=True)
        return Concat(y.name, tuple(parts), y, multipliers, shifts)

    def resize(self) -> Layer | None:
        x = self._source()
        factors = (self._integer(1, 3), self._integer(1, 3))
        shape = (x.shape[0], x.shape[1] * factors[0], x.shape[2] * factors[1])
        if np.prod(shape) > LARGEST_MAP:
            return None
        y = self._tensor(shape, like=x)
        return Resize(y.name, x, y, factors)

    def pad(self) -> Layer | None:
        x = self._source()
        pads: Pads = tuple(self._integer(0, 2) for _ in range(4))  # type: ignore[assignment]
        y = self._tensor((x.shape[0], x.shape[1] + pads[0] + pads[2], x.shape[2] + pads[1] + pads[3]), like=x)
        return Pad(y.name, x, y, pads, self._integer(-128, 127))

    # Parts.

    def _input(self, index: int) -> Tensor:
        one_dimensional = self.rng.random() < 0.15
        height = 1 if one_dimensional else self._integer(1, 14)
        shape = (self._integer(1, 20), height, self._integer(1, 40 if one_dimensional else 14))
        return Tensor(f"input{index}", shape, 1.0, self._integer(-128, 127))

    def _convolution(self, x: Tensor, outputs: int, groups: int) -> Layer | None:
        window = self._window(x.shape)
        if window is None or outputs * window[4][0] * window[4][1] > LARGEST_MAP:
            return None
        kernel, strides, pads, dilations, _ = window
        return self._dense(x, outputs, kernel, pads, strides, dilations, groups)

    def _dense(
        self, x: Tensor, outputs: int, kernel: Pair, pads: Pads, strides: Pair, dilations: Pair, groups: int
    ) -> Layer:
        size = _output_size(x.shape, kernel, strides, pads, dilations)
        y = self._tensor((outputs, *size))
        weights = self.rng.integers(-127, 128, (outputs, x.shape[0] // groups, *kernel)).astype(np.int8)
        weights[self.rng.random(weights.shape) < self._pick([0.0, 0.5, 0.9])] = 0
        if self.rng.random() < 0.3:
            weights[: self._pick([outputs, 8 * (outputs // 8)]), self.rng.random(weights.shape[1]) < 0.5] = 0
        flat = weights.astype(np.float64).reshape(outputs, -1)
        spread = np.sqrt((flat**2).sum(axis=1)) * 74 + 1
        exact = -x.zero_point * flat.sum(axis=1).astype(np.int64)
        constant = Constant(exact, self.rng.uniform(-20, 20, outputs))
        signs = self.rng.choice([-1.0, 1.0], outputs, p=[0.2, 0.8])
        low, high = self._clamp()
        scale = requantize(signs * 45 / spread, constant, zero_point=y.zero_point, low=low, high=high)
        return Conv(y.name, x, y, weights, scale, strides, pads, dilations, groups)

    def _window(self, shape: Shape) -> tuple[Pair, Pair, Pads, Pair, Pair] | None:
        """Kernel, strides, pads, dilations and output size that fit a map."""
        kernel = (1, 1) if self.rng.random() < 0.2 else (self._integer(1, 4), self._integer(1, 4))
        if shape[1] == 1:
            kernel = (1, kernel[1])
        strides = self._pick([(1, 1), (1, 1), (1, 1), (2, 2), (2, 2), (2, 1), (1, 2), (3, 3), (4, 4), (3, 2)])
        dilations = self._pick([(1, 1), (1, 1), (1, 1), (2, 2), (1, 2)])
        pads: Pads = tuple(self._integer(0, k) for k in (*kernel, *kernel))  # type: ignore[assignment]
        if self.rng.random() < 0.3:
            pads = (0, 0, 0, 0)
        if shape[1] == 1:
            pads = (0, pads[1], 0, pads[3])
        size = _output_size(shape, kernel, strides, pads, dilations)
        return None if min(size) < 1 else (kernel, strides, pads, dilations, size)

    def _region(self, x: Tensor, kernel: Pair, where: tuple[int, int, int, int]) -> PoolRegion:
        count = kernel[0] * kernel[1]
        multiplier, shift = encode(float(self.rng.uniform(0.7, 1.5)) / count)
        return PoolRegion(*where, multiplier, shift, -count * x.zero_point * multiplier)

    def _pair(self) -> tuple[Tensor, Tensor] | None:
        """Two tensors of one shape, or the second [C, 1, 1]."""
        pairs = [
            (a, b) for a in self.tensors for b in self.tensors if a.shape == b.shape or b.shape == (a.shape[0], 1, 1)
        ]
        distinct = [(a, b) for a, b in pairs if a.name != b.name]
        if distinct:
            return distinct[self._integer(0, len(distinct) - 1)]
        return None if self.rng.random() < 0.8 else pairs[self._integer(0, len(pairs) - 1)]

    def _source(self) -> Tensor:
        """Mostly a recent tensor."""
        recent = self.tensors[-3:] if self.rng.random() < 0.8 else self.tensors
        return recent[self._integer(0, len(recent) - 1)]

    def _tensor(self, shape: Shape, *, like: Tensor | None = None) -> Tensor:
        zero_point = like.zero_point if like else self._integer(-128, 127)
        return Tensor(f"t{len(self.layers)}", shape, 1.0, zero_point)

    def _clamp(self) -> Pair:
        return (-128, 127) if self.rng.random() < 0.6 else (self._integer(-128, -80), self._integer(80, 127))

    def _integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def _pick(self, options):  # type: ignore[no-untyped-def]
        return options[self._integer(0, len(options) - 1)]


KINDS: dict[str, Callable[[_Builder], Layer | None]] = {
    "conv": _Builder.conv,
    "depthwise": _Builder.depthwise,
    "fully_connected": _Builder.fully_connected,
    "max_pool": _Builder.max_pool,
    "average_pool": _Builder.average_pool,
    "global_pool": _Builder.global_pool,
    "table": _Builder.table,
    "add": _Builder.add,
    "residual": _Builder.residual,
    "mul": _Builder.mul,
    "prelu": _Builder.prelu,
    "concat": _Builder.concat,
    "resize": _Builder.resize,
    "pad": _Builder.pad,
}


def _output_size(shape: Shape, kernel: Pair, strides: Pair, pads: Pads, dilations: Pair) -> Pair:
    height = (shape[1] + pads[0] + pads[2] - (kernel[0] - 1) * dilations[0] - 1) // strides[0] + 1
    width = (shape[2] + pads[1] + pads[3] - (kernel[1] - 1) * dilations[1] - 1) // strides[1] + 1
    return height, width
