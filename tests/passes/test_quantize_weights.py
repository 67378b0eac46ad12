"""Weight scales that the machine takes: on its grid, with sums that fit, and cheap to store where asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes import scale_grid
from passes.quantize_weights import (
    accumulator_fits,
    accumulator_range,
    bias_codes,
    dead_channels,
    fitted,
    nearest_codes,
    weight_scale,
)
from passes.scales import Scale

SCALES = st.builds(lambda s: float(np.float32(s)), st.floats(1e-3, 1.0))
SOURCES = st.builds(Scale, SCALES, st.integers(-128, 127))
LIMITS = st.sampled_from([1, 7, 127, 32767])


def rows(seed: int, channels: int = 4, taps: int = 20) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(channels, taps))


def fit(
    weights: NDArray[np.float64], source: Scale, target: Scale, limit: int = 127, **how: object
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scales and codes with the largest weight at the limit."""
    wished, bias = np.abs(weights).max(axis=1) / limit, np.zeros(len(weights))
    settings_of = {"acc_bits": 24, **how}
    return fitted(wished, nearest_codes(weights, limit), bias, source, target, **settings_of)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.integers(0, 10**6), SOURCES, SOURCES, LIMITS, st.booleans())
def test_every_scale_is_on_the_machines_grid(
    seed: int, source: Scale, target: Scale, limit: int, is_coarse: bool
) -> None:
    scale, codes = fit(rows(seed), source, target, limit, is_coarse=is_coarse, acc_bits=40)
    factors = source.scale * scale.astype(np.float64) / target.scale
    multipliers = np.ldexp(np.frexp(factors)[0], 16)
    np.testing.assert_allclose(multipliers, np.rint(multipliers), rtol=1e-6)
    assert (np.rint(multipliers).astype(int) % 2 == 1).all()
    np.testing.assert_array_equal(codes, nearest_codes(rows(seed), limit)(scale.astype(np.float64)))


@settings(max_examples=60)
@given(st.integers(0, 10**6), SOURCES, SOURCES, st.sampled_from([7, 127]))
def test_coarse_scales_are_those_that_a_small_integer_stands_for(
    seed: int, source: Scale, target: Scale, limit: int
) -> None:
    weights = rows(seed)
    scale, _ = fit(weights, source, target, limit, is_coarse=True)
    for got, wish in zip(scale, np.abs(weights).max(axis=1) / limit, strict=True):
        step = scale_grid.step_of(float(got), source.scale, target.scale)
        assert step is not None
        assert scale_grid.weight_scale(step, source.scale, target.scale) == got
        if wish * source.scale / target.scale > 2.0**-30:  # finer ones are held up by the machine's largest shift
            assert abs(np.log2(float(got) / wish)) <= 1 / 8 + 2.0**-14


@settings(max_examples=40)
@given(st.integers(0, 10**6), SOURCES, SOURCES)
def test_fine_scales_are_the_wished_ones_but_for_the_grid(seed: int, source: Scale, target: Scale) -> None:
    weights = rows(seed)
    scale, _ = fit(weights, source, target)
    ratio = scale / (np.abs(weights).max(axis=1) / 127)
    held = np.abs(weights).max(axis=1) / 127 * source.scale / target.scale < 2.0**-31
    assert ((ratio >= 1 - 1e-6) & ((ratio <= 1 + 2.0**-14) | held)).all()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(12, 26), st.booleans())
def test_sums_fit_the_accumulator_and_no_scale_is_raised_in_vain(seed: int, acc_bits: int, is_coarse: bool) -> None:
    weights, source, target = rows(seed, 5, 400), Scale(0.02, -128), Scale(0.05, 3)
    scale, codes = fit(weights, source, target, is_coarse=is_coarse, acc_bits=acc_bits)
    assert accumulator_fits(codes, acc_bits).all()
    free, unbound = fit(weights, source, target, is_coarse=is_coarse, acc_bits=48)
    fits = accumulator_fits(unbound, acc_bits)
    np.testing.assert_array_equal(scale[fits], free[fits])
    assert (scale[~fits] > free[~fits]).all()


def test_sixteen_bit_activations_have_an_accumulator_of_their_own() -> None:
    wide = Scale(0.001, 0, 16)
    scale, codes = fit(rows(0, 3, 5000), wide, wide, acc_bits=18)
    assert not accumulator_fits(codes, 18).any()
    np.testing.assert_allclose(scale, np.abs(rows(0, 3, 5000)).max(axis=1) / 127, rtol=2.0**-14)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 300))
def test_the_range_of_a_sum_is_what_the_worst_inputs_give(seed: int, taps: int) -> None:
    codes = np.random.default_rng(seed).integers(-127, 128, (3, taps))
    low, high = accumulator_range(codes)
    worst = np.where(codes > 0, 127, -128)
    np.testing.assert_array_equal(high, (codes * worst).sum(axis=1))
    np.testing.assert_array_equal(low, (codes * (-1 - worst)).sum(axis=1))


@settings(max_examples=40)
@given(st.floats(1e-6, 1e3), SOURCES, SOURCES)
def test_both_ways_of_making_a_scale_agree(wish: float, source: Scale, target: Scale) -> None:
    """What is fitted here, a decoder makes from the step alone."""
    step, scales = scale_grid.nearest_step(wish), (source.scale, target.scale)
    wished = scale_grid.wished_scale(step)
    if wished * (source.scale / target.scale) >= 2**16 - 1:
        for refused in (lambda: weight_scale(wished, source, target), lambda: scale_grid.weight_scale(step, *scales)):
            with pytest.raises(ValueError, match="too (fine|coarse)"):
                refused()
        return
    assert weight_scale(wished, source, target) == float(scale_grid.weight_scale(step, *scales))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1.0))
def test_biases_are_rounded_half_to_even_within_half_a_step(bias: float, scale: float) -> None:
    step = np.array([scale], np.float32)
    unit = 0.5 * float(step[0])
    code = int(bias_codes(np.array([bias]), Scale(0.5, 0), step)[0])
    assert abs(code * unit - bias) <= unit / 2 * (1 + 1e-9) or abs(code) == 2**30


def test_a_channel_is_dead_where_no_input_moves_the_output() -> None:
    source, target = Scale(0.01, 0), Scale(1.0, 0)
    # All inputs together move the output by sum|w| * 2.55.
    limit = 2.0**-8 / 2.55
    weights = np.array([[limit * 0.99, 0.0], [limit * 0.51, -limit * 0.5], [0.0, 0.0]])
    assert dead_channels(weights, source, target).tolist() == [True, False, True]


def test_an_output_too_fine_is_refused() -> None:
    with pytest.raises(ValueError, match="too fine for weights"):
        weight_scale(1.0, Scale(1.0, 0), Scale(1e-5, 0))


def test_a_coarse_scale_is_not_below_the_least() -> None:
    source, target = Scale(0.02, -128), Scale(0.05, 3)
    wished = np.geomspace(0.001, 0.1, 100)
    codes = nearest_codes(wished[:, None] * 127)
    how = {"acc_bits": 24, "is_coarse": True}
    nearest, _ = fitted(wished, codes, np.zeros(100), source, target, **how)  # type: ignore[arg-type]
    above, _ = fitted(wished, codes, np.zeros(100), source, target, least=wished, **how)  # type: ignore[arg-type]
    assert (nearest < wished).any()
    assert (above >= wished).all()
    assert (above <= wished * 2**0.25 * (1 + 2.0**-14)).all()
    np.testing.assert_array_equal(above[nearest >= wished], nearest[nearest >= wished])
