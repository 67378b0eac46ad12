"""Ranges, histograms and means are those of the values, whatever the order in which these come."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import statistics
from passes.quantize import quantize
from passes.statistics import BINS, Histogram, StatisticsError
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import node

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


def histogram(*batches: object) -> Histogram:
    result = Histogram()
    for batch in batches:
        result.add(np.asarray(batch, np.float32))
    return result


def contents(found: Histogram) -> dict[int, int]:
    return {found.first + int(i): int(found.counts[i]) for i in np.flatnonzero(found.counts)}


@given(FLOATS, FLOATS)
def test_counts_do_not_depend_on_the_order(a: list[float], b: list[float]) -> None:
    one, other, merged = histogram(a, b), histogram(b, a), histogram(a)
    merged.merge(histogram(b))
    for found in (other, merged, histogram(a + b)):
        assert (found.exponent, found.zeros, found.minimum, found.maximum) == (
            one.exponent, one.zeros, one.minimum, one.maximum,
        )
        assert contents(found) == contents(one)


@given(FLOATS)
def test_every_value_is_in_its_bin(values: list[float]) -> None:
    found = histogram(values)
    assert found.total == len(values)
    assert found.counts.size <= BINS
    width = 2.0**found.exponent
    expected: dict[int, int] = {}
    for value in np.asarray(values, np.float32).astype(float):
        expected[math.floor(value / width)] = expected.get(math.floor(value / width), 0) + 1
    assert contents(found) == expected


def test_bins_are_fine() -> None:
    found = histogram(np.linspace(-1, 3, 1000))
    assert found.counts.size > BINS / 2 - 2


def test_zeros_are_counted() -> None:
    assert histogram([0.0, -0.0, 1.0], [0.0]).zeros == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(StatisticsError, match="NaN or infinite"):
        histogram([0.0, bad])


def test_ranges_hold_zero() -> None:
    assert statistics.minmax_range(histogram([2.0, 5.0])) == (0.0, 5.0)
    assert statistics.minmax_range(histogram([-5.0, -2.0])) == (-5.0, 0.0)


def test_the_percentile_leaves_out_the_ends() -> None:
    values = np.arange(-1000, 1001, dtype=np.float32)
    low, high = statistics.percentile_range(histogram(values), 90.0)
    assert (low, high) == (pytest.approx(-900, abs=2), pytest.approx(900, abs=2))
    assert statistics.percentile_range(histogram(values), 100.0) == (-1000, 1000)


def test_the_best_range_keeps_uniform_values() -> None:
    assert statistics.mse_range(histogram(np.linspace(-2, 2, 100_000))) == (-2.0, 2.0)


def test_the_best_range_gives_up_a_lone_outlier() -> None:
    values = np.append(np.random.default_rng(0).normal(size=1_000_000), 30.0)
    low, high = statistics.mse_range(histogram(values))
    assert -5.5 < low < -3
    assert 3 < high < 29


def test_the_best_range_is_the_least_weighted_error() -> None:
    """The closed form of the candidates agrees with quantizing every value."""
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    found = statistics.mse_range(histogram(values))

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        rounding = np.square(np.rint(values / step) * step - values)[(values >= low) & (values <= high)].sum()
        clipping = np.square(values - np.clip(values, low, high)).sum()
        return float(rounding + statistics.CLIP_WEIGHT * clipping)

    bottom, top = float(values.min()), float(values.max())
    best = min(error(bottom * a / 10, top * b / 10) for a in range(3, 11) for b in range(3, 11))
    assert error(*found) < best * 1.05


def test_channel_means_and_peaks() -> None:
    loaded = canonical([node("Neg", ["x"], ["y"])], {"x": [1, 3, 2, 2]}, ["y"])
    x = normal(5, 3, 2, 2)
    found = statistics.collect(loaded, {"x": x}, histograms=["x", "y"], means=["y"], peaks=["y"])
    np.testing.assert_allclose(found.means["y"], -x.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_array_equal(found.peaks["y"], np.abs(x).max(axis=(0, 2, 3)))
    assert (found.histograms["y"].minimum, found.histograms["x"].maximum) == (-x.max(), x.max())
    assert found.samples == 5


def test_a_bad_activation_is_named_with_its_sample() -> None:
    loaded = canonical([node("Log", ["x"], ["y"])], {"x": [1, 2]}, ["y"])
    samples = np.array([[1, 1], [1, -1]], np.float32)
    with pytest.raises(StatisticsError, match="value 'y' has a value that is NaN or infinite in sample 1"):
        statistics.collect(loaded, {"x": samples}, histograms=["y"])


def test_unequal_inputs_are_refused() -> None:
    with pytest.raises(StatisticsError, match="same number of samples"):
        statistics.count({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))})


def test_samples_are_spread_evenly() -> None:
    samples = {"x": np.arange(100)}
    assert statistics.spread(samples, 3)["x"].tolist() == [0, 50, 99]
    assert statistics.spread(samples, 200)["x"].tolist() == list(range(100))


def test_an_unknown_value_is_named() -> None:
    loaded = canonical([node("Neg", ["x"], ["y"])], {"x": [1, 2]}, ["y"])
    with pytest.raises(StatisticsError, match="computes no value 'z'"):
        statistics.collect(loaded, {"x": np.zeros((1, 2), np.float32)}, histograms=["z"])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 100), st.integers(0, 5))
def test_sqnr_of_uniform_values_is_that_of_8_bits(scale: float, seed: int) -> None:
    """Uniform over 256 steps: signal step**2 * 256**2 / 12 over noise step**2 / 12 is 48.2 dB."""
    loaded = canonical([node("Sigmoid", ["x"], ["y"])], {"x": [1, 4000]}, ["y"])
    x = np.random.default_rng(seed).uniform(-scale, scale, (2, 4000)).astype(np.float32)
    quantized, _ = quantize(loaded, every_node(loaded), {"x": x})
    assert statistics.sqnr(loaded, quantized, {"x": x})["x"] == pytest.approx(20 * math.log10(256), abs=0.3)


def test_sqnr_of_exact_values_is_infinite() -> None:
    loaded = canonical([node("Neg", ["x"], ["y"])], {"x": [1, 3]}, ["y"])
    x = np.array([[0, 127, 255]], np.float32)
    quantized, _ = quantize(loaded, every_node(loaded), {"x": x})
    assert statistics.sqnr(loaded, quantized, {"x": x})["x"] == math.inf
