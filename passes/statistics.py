"""What sample inputs say about every activation: range, histogram and channel means, gathered one sample at a time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
"""Input arrays by name, [N, ...] each: one row is one sample."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

BINS = 2048
CANDIDATES = 100
CLIP_WEIGHT = 8
"""Rounding errors of a sum's terms cancel, clipping errors all have one sign and add up: they weigh more."""
COUNTED, COUNTED_IN_ALL = 1 << 16, 1 << 22
"""Of more values in one sample and in all samples, so many are counted, evenly spaced: they tell as much."""
WORKERS = 2
"""Samples that run at the same time, each on one thread: the results come in order and are the same."""
Row: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Values of one sample by name, [1, ...] each."""
_SMALLEST_EXPONENT = -149  # float32 has nothing below 2**-149


class StatisticsError(ValueError):
    """An activation that cannot be measured."""


@dataclass
class Histogram:
    """Counts of a float tensor's values, in bins of a power-of-two width that are aligned at 0.

    The width depends on the smallest and largest value alone and bins merge exactly, so the result does not depend on
    the order or the grouping of the samples.

    Attributes:
        minimum, maximum: Of the values seen; 0 before the first.
        zeros: How many values are exactly 0 (they cost nothing when quantized).
        exponent: A bin is 2**exponent wide.
        first: Index of the first bin: it begins at first * 2**exponent.
        counts: int64 [up to BINS].
    """

    minimum: float = 0.0
    maximum: float = 0.0
    zeros: int = 0
    exponent: int = _SMALLEST_EXPONENT
    first: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    is_empty: bool = True

    def add(self, values: NDArray[np.float32], stride: int = 1) -> None:
        """Count every element of `values`, or every `stride`-th; the range is that of all."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise StatisticsError("has a value that is NaN or infinite")
        self._include(low, high)
        seen = values.ravel()[::stride]
        bins = np.floor(seen.astype(np.float64) * 2.0**-self.exponent).astype(np.int64) - self.first
        self.counts += np.bincount(bins, minlength=self.counts.size)
        self.zeros += int(seen.size - np.count_nonzero(seen))

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`, as if its values had been seen here."""
        if other.is_empty:
            return
        self._include(other.minimum, other.maximum)
        bins = (np.arange(other.counts.size) + other.first) >> (self.exponent - other.exponent)
        self.counts += np.bincount(bins - self.first, other.counts, self.counts.size).astype(np.int64)
        self.zeros += other.zeros

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of every bin, float64 [bins]."""
        return np.asarray((np.arange(self.counts.size) + self.first + 0.5) * 2.0**self.exponent, np.float64)

    def _include(self, low: float, high: float) -> None:
        """Widen the bins until they hold 0, everything so far, and [low, high]."""
        self.minimum = low if self.is_empty else min(self.minimum, low)
        self.maximum = high if self.is_empty else max(self.maximum, high)
        self.is_empty = False
        bottom, top = min(self.minimum, 0.0), max(self.maximum, 0.0)
        exponent = _exponent_for(bottom, top)
        first = math.floor(bottom * 2.0**-exponent)
        counts = np.zeros(math.floor(top * 2.0**-exponent) - first + 1, np.int64)
        bins = (np.arange(self.counts.size) + self.first) >> (exponent - self.exponent)
        np.add.at(counts, bins[self.counts > 0] - first, self.counts[self.counts > 0])
        self.exponent, self.first, self.counts = exponent, first, counts


def _stride(size: int, samples: int) -> int:
    """Odd: in step with no power of two, which rows and channels most often are."""
    enough = max(COUNTED, COUNTED_IN_ALL // samples)
    return 1 if size <= enough else size // enough | 1


def _exponent_for(bottom: float, top: float) -> int:
    """The smallest power-of-two width with which at most BINS bins cover [bottom, top]."""
    if top == bottom:
        return _SMALLEST_EXPONENT
    exponent = max(math.ceil(math.log2((top - bottom) / BINS)) - 1, _SMALLEST_EXPONENT)
    while math.floor(top * 2.0**-exponent) - math.floor(bottom * 2.0**-exponent) >= BINS:
        exponent += 1
    return exponent


@dataclass(frozen=True)
class Statistics:
    """What the samples showed.

    Attributes:
        histograms: Of the values asked for.
        means: Mean of every channel (axis 1) over samples and positions, float64 [C], of the values asked for.
        peaks: Largest |value| of every channel, float64 [C], of the values asked for.
        samples: How many samples were run.
    """

    histograms: dict[str, Histogram]
    means: dict[str, NDArray[np.float64]]
    peaks: dict[str, NDArray[np.float64]]
    samples: int


def minmax_range(histogram: Histogram) -> tuple[float, float]:
    """The smallest and largest value, widened to hold 0."""
    return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range that leaves out (100 - percentile) / 2 percent of the values at either end, widened to hold 0."""
    bottom, top = minmax_range(histogram)
    tail = histogram.total * (100.0 - percentile) / 200.0
    cumulative = np.cumsum(histogram.counts)
    low = int(np.searchsorted(cumulative, tail, "right"))
    high = int(np.searchsorted(cumulative, histogram.total - tail, "left"))
    width = 2.0**histogram.exponent
    return max(bottom, min((histogram.first + low) * width, 0.0)), min(
        top, max((histogram.first + high + 1) * width, 0.0)
    )


def mse_range(histogram: Histogram, *, levels: int = 256) -> tuple[float, float]:
    """The range whose quantization has the least weighted mean squared error, of 100 x 100 candidates.

    error(low, high) = n_inside * step**2 / 12 + CLIP_WEIGHT * sum over values outside of (value - bound)**2, where
    exact zeros cost nothing and step = (high - low) / (levels - 1). Candidates are the fractions 1 %, 2 % ... 100 % of
    either bound.

    Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1.
    """
    bottom, top = minmax_range(histogram)
    fractions = np.arange(1, CANDIDATES + 1) / CANDIDATES
    lows, highs = bottom * fractions, top * fractions
    cut_low, outside_low = _clipping(-histogram.centres[::-1], histogram.counts[::-1], -lows)
    cut_high, outside_high = _clipping(histogram.centres, histogram.counts, highs)
    inside = histogram.total - histogram.zeros - outside_low[:, None] - outside_high[None, :]
    step = (highs[None, :] - lows[:, None]) / (levels - 1)
    error = CLIP_WEIGHT * (cut_low[:, None] + cut_high[None, :]) + np.maximum(inside, 0) * step**2 / 12
    error = error[::-1, ::-1]  # of equal candidates the widest is first
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[CANDIDATES - 1 - row]), float(highs[CANDIDATES - 1 - column])


def _clipping(
    centres: NDArray[np.float64], counts: NDArray[np.int64], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared error and number of the values above each of `bounds`, all bounds at least 0 and ascending."""
    if not bounds.any():
        return np.zeros_like(bounds), np.zeros_like(bounds)
    weights = np.where(centres > 0, counts, 0).astype(np.float64)
    powers = [np.append(np.cumsum((weights * centres**p)[::-1])[::-1], 0.0) for p in range(3)]
    at = np.searchsorted(centres, bounds, "right")
    number, total, square = (power[at] for power in powers)
    return np.maximum(square - 2 * bounds * total + bounds**2 * number, 0.0), number


def collect(
    model: ir.Model,
    samples: Arrays,
    *,
    histograms: Iterable[str] = (),
    means: Iterable[str] = (),
    peaks: Iterable[str] = (),
    shown: Iterable[str] = (),
    show: Callable[[int, Row], None] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run `model` on every sample and gather what is asked of the named float values (graph inputs too).

    Args:
        model: Any model that onnxruntime runs; intact afterwards.
        samples: Inputs by name, [N, ...].
        histograms, means, peaks: Names of the values of which each is wanted.
        shown: Names of further values that `show` is to see.
        show: Called with the number of each sample and its values.
        progress: Told ("calibrate", done, total).

    Raises:
        StatisticsError: an activation is NaN or infinite; the message names it.
    """
    total = count(samples)
    found = Statistics({name: Histogram() for name in histograms}, {}, {}, total)
    summed, highest = list(means), list(peaks)
    names = dict.fromkeys([*found.histograms, *summed, *highest, *shown])
    for done, values in enumerate(run(model, samples, names), 1):
        if show:
            show(done - 1, values)
        for name, histogram in found.histograms.items():
            try:
                histogram.add(values[name], _stride(values[name].size, total))
            except StatisticsError as error:
                raise StatisticsError(f"value '{name}' {error} in sample {done - 1}") from None
        for name in summed:
            found.means[name] = found.means.get(name, 0.0) + channel_mean(values[name]) / total
        for name in highest:
            found.peaks[name] = np.maximum(found.peaks.get(name, 0.0), np.abs(_by_channel(values[name])).max(axis=1))
        if progress:
            progress("calibrate", done, total)
    return found


def channel_mean(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over all axes but axis 1, float64 [C]."""
    return _by_channel(values).mean(axis=1)


def _by_channel(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 [C, everything else]; one channel where there is no axis 1."""
    if values.ndim < 2:
        return values.reshape(1, -1).astype(np.float64)
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float64)


def count(samples: Arrays) -> int:
    """Number of samples: the rows of the inputs, which are equally many."""
    rows = {array.shape[0] for array in samples.values()}
    if len(rows) != 1:
        raise StatisticsError(f"every input needs the same number of samples, not {sorted(rows)}")
    return rows.pop()


def spread(samples: Arrays, limit: int) -> dict[str, NDArray[np.generic]]:
    """At most `limit` samples, evenly spaced over all of them."""
    rows = spread_rows(count(samples), limit)
    return {name: array[rows] for name, array in samples.items()}


def spread_rows(total: int, limit: int) -> NDArray[np.int64]:
    """Numbers of at most `limit` of `total` samples, evenly spaced, int64 [up to limit]."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64))


def run(
    model: ir.Model, samples: Arrays, names: Iterable[str], workers: int = WORKERS
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The named values of `model`, sample after sample, each [1, ...]. A graph input is a name like any other."""
    wanted = list(names)
    inputs = [value.name for value in model.graph.inputs]
    computed = [name for name in wanted if name not in inputs]
    active = session(with_outputs(model, computed)) if computed else None

    def row(index: int) -> dict[str, NDArray[np.float32]]:
        feed = {name: np.ascontiguousarray(array[index : index + 1]) for name, array in samples.items()}
        outputs = active.run(computed, feed) if active else []
        fed = {name: feed[name].astype(np.float32) for name in wanted if name in inputs}
        return {**fed, **dict(zip(computed, outputs, strict=True))}

    yield from in_order(row, count(samples), workers)


Made = TypeVar("Made")


def in_order(make: Callable[[int], Made], count: int, workers: int = WORKERS) -> Iterator[Made]:
    """make(0), make(1) ... make(count - 1), so many of them at work ahead of the reader."""
    pool = ThreadPoolExecutor(workers)
    try:
        ahead: deque[Future[Made]] = deque()
        for index in range(count):
            ahead.append(pool.submit(make, index))
            if len(ahead) == workers:  # more would hold more samples' values in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of `model` whose outputs are the named values alone."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    if missing := [name for name in names if name not in values]:
        raise StatisticsError(f"the model computes no value '{missing[0]}'")
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    for value in copy.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    return copy


def session(model: ir.Model | bytes) -> ort.InferenceSession:
    """An onnxruntime session that computes what the file says: one thread, Q/DQ not rewritten to other arithmetic."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # By default a MatMul of dequantized weights becomes MatMulNBits, which quantizes the activations in silence.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    # And a float bias beside quantized weights is rounded to their accumulator's steps.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    data = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def sqnr(
    float_model: ir.Model, quantized_model: ir.Model, samples: Arrays, *, progress: Progress | None = None
) -> dict[str, float]:
    """Signal to quantization noise of every int8 point, in dB: 10 log10(sum x**2 / sum (x - x_quantized)**2).

    Both models run end to end, so the noise of a point includes what came before it. Infinite where there is none.
    An equalized point (its channels carry factors) is compared after the best factor for each channel.
    """
    pairs = quantized_points(quantized_model)
    sums = dict.fromkeys(pairs, _Noise())
    total = count(samples)
    runs = zip(run(float_model, samples, pairs, 1), run(quantized_model, samples, pairs.values(), 1), strict=True)
    for done, (exact, quantized) in enumerate(runs, 1):
        for name, dequantized in pairs.items():
            sums[name] = sums[name].add(_by_channel(exact[name]), _by_channel(quantized[dequantized]))
        if progress:
            progress("compare", done, total)
    equalized = {
        node.metadata_props["edgec.point"] for node in quantized_model.graph if "edgec.equalized" in node.metadata_props
    }
    return {name: noise.decibel(by_channel=name in equalized) for name, noise in sums.items()}


@dataclass(frozen=True)
class _Noise:
    """Per channel, the sums from which signal and noise follow."""

    signal: NDArray[np.float64] | float = 0.0
    noise: NDArray[np.float64] | float = 0.0
    product: NDArray[np.float64] | float = 0.0
    square: NDArray[np.float64] | float = 0.0

    def add(self, exact: NDArray[np.float64], quantized: NDArray[np.float64]) -> _Noise:
        return _Noise(
            self.signal + np.square(exact).sum(axis=1),
            self.noise + np.square(exact - quantized).sum(axis=1),
            self.product + (exact * quantized).sum(axis=1),
            self.square + np.square(quantized).sum(axis=1),
        )

    def decibel(self, *, by_channel: bool) -> float:
        """10 log10(signal / noise); `by_channel` after the best factor for each channel, as equalization leaves it."""
        signal, noise = float(np.sum(self.signal)), float(np.sum(self.noise))
        if by_channel:
            explained = np.square(self.product) / np.where(np.asarray(self.square) > 0, self.square, 1.0)
            noise = float(np.sum(np.maximum(self.signal - explained, 0.0)))
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal else -math.inf


def quantized_points(model: ir.Model) -> dict[str, str]:
    """Name of every int8 point (its float value in the source) to the name of its dequantized value."""
    found = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and "edgec.point" in node.metadata_props:
            readers = node.outputs[0].consumers()
            found[node.metadata_props["edgec.point"]] = str(readers[0].outputs[0].name)
    return found
