"""Uniform integers: bits, steps and importance against loss and size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.recipes.base import Problem
from passes.recipes.families import entropy_bits
from passes.recipes.uniform import RateDistortion, Uniform, limit_of, steady
from passes.scale_grid import STEPS_PER_OCTAVE
from passes.solvers.hessian import damped


def problem(seed: int = 0, groups: int = 2, rows: int = 8, taps: int = 24, **given_: NDArray[np.float64]) -> Problem:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, taps, taps)) / 2 + np.eye(taps)
    x = mixed @ rng.normal(size=(groups, taps, 4 * taps))
    hessian = np.stack([damped(each @ each.T / x.shape[2]) for each in x])
    parts = {"weights": rng.normal(size=(groups, rows, taps)), "importance": np.ones((groups, rows)), **given_}
    return Problem(parts["weights"], hessian, parts["importance"])


def coded(recipe: Uniform | RateDistortion, about: Problem) -> tuple[NDArray[np.int32], float]:
    """Codes at the wished scales, and what they lose."""
    scale = recipe.scales(about)
    codes = recipe.codes(about, scale).codes
    assert (scale > 0).all()
    assert codes.dtype == np.int32
    assert np.abs(codes).max() <= recipe.limit
    return codes, about.loss(codes * scale[:, :, None])


def test_limits_and_names() -> None:
    assert [limit_of(bits) for bits in (2, 3, 4, 8, 16)] == [1, 3, 7, 127, 32767]
    assert (Uniform(4).name, Uniform(8, is_nearest=True).name, RateDistortion(0.25).name) == (
        *("W4", "W8 nearest"),
        "RD 0.25",
    )


def test_every_bit_more_loses_less() -> None:
    losses = [coded(Uniform(bits), problem())[1] for bits in (2, 3, 4, 5, 6, 7, 8, 12, 16)]
    assert losses == sorted(losses, reverse=True)
    # Far from clipping, a bit is worth 6 dB.
    assert losses[6] / losses[7] == pytest.approx(4.0**4, rel=0.3)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 16])
def test_no_worse_than_the_nearest_integer(bits: int) -> None:
    for seed in range(10):
        about = problem(seed)
        _, loss = coded(Uniform(bits), about)
        _, plain = coded(Uniform(bits, is_nearest=True), about)
        assert loss < plain


@pytest.mark.parametrize("bits", [8, 16])
def test_wide_integers_keep_the_whole_range_and_stay_beside_the_weights(bits: int) -> None:
    about = problem()
    scale = Uniform(bits).scales(about)
    codes = Uniform(bits).codes(about, scale).codes
    np.testing.assert_allclose(scale * limit_of(bits), np.abs(about.weights).max(axis=2), rtol=1e-12)
    assert np.abs(codes - about.weights / scale[:, :, None]).max() <= 1


@pytest.mark.parametrize("recipe", [Uniform(3), Uniform(8), RateDistortion(0.3)], ids=lambda r: r.name)
def test_what_was_pruned_stays_zero(recipe: Uniform | RateDistortion) -> None:
    weights = np.random.default_rng(0).normal(size=(2, 8, 24))
    weights[:, :, ::2] = 0
    codes, _ = coded(recipe, problem(weights=weights))
    assert not codes[:, :, ::2].any()
    assert codes.any()


def test_a_coarser_step_is_smaller_and_loses_more() -> None:
    steps = [0.03, 0.1, 0.3, 1.0, 3.0]
    made = [coded(RateDistortion(step), problem()) for step in steps]
    bits, losses = [entropy_bits(codes) for codes, _ in made], [loss for _, loss in made]
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[-1] < bits[0] / 4


def test_a_fine_step_costs_what_it_says() -> None:
    """Every weight's rounding costs step^2 / 12, whatever its row's importance and the correlations of its inputs."""
    importance = np.random.default_rng(1).uniform(0.1, 10, (2, 32))
    for step in (0.1, 0.2, 0.4):
        about = problem(rows=32, importance=importance)
        _, loss = coded(RateDistortion(step), about)
        assert loss == pytest.approx(about.weights.size * step**2 / 12, rel=0.15)


def test_importance_moves_bits_to_where_they_matter() -> None:
    even, uneven = np.ones((2, 8)), np.ones((2, 8))
    uneven[:, :4] = 50
    fair, _ = coded(RateDistortion(0.5), problem(importance=even))
    moved, _ = coded(RateDistortion(0.5), problem(importance=uneven))
    assert entropy_bits(moved[:, :4]) > 1.5 * entropy_bits(fair[:, :4])
    assert entropy_bits(moved[:, 4:]) == pytest.approx(entropy_bits(fair[:, 4:]), rel=0.1)


def test_rate_distortion_beats_fixed_bits_at_the_same_size() -> None:
    """With rows of different importance, one budget for all errors is better than one number of bits for all."""
    importance = np.geomspace(0.01, 100, 16).reshape(2, 8)
    for bits in (3, 4):
        about = problem(importance=importance)
        codes, loss = coded(Uniform(bits), about)
        size = entropy_bits(codes)
        fitting = [coded(RateDistortion(step), about) for step in np.geomspace(0.05, 5, 40)]
        best = min(found_loss for found, found_loss in fitting if entropy_bits(found) <= size)
        assert best < 0.5 * loss


def test_a_step_coarser_than_a_row_makes_it_zero_and_finer_than_the_limit_is_cut() -> None:
    about = problem()
    zero, _ = coded(RateDistortion(1e3), about)
    assert not zero.any()
    scale = RateDistortion(1e-9, limit=127).scales(about)
    np.testing.assert_allclose(scale * 127, np.abs(about.weights).max(axis=2), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4, 8]), st.floats(0.01, 3))
def test_rows_of_zeros_have_codes_of_zero(seed: int, bits: int, step: float) -> None:
    weights = np.random.default_rng(seed).normal(size=(1, 4, 9))
    weights[0, 2] = 0
    about = problem(seed, 1, 4, 9, weights=weights)
    for recipe in (Uniform(bits), RateDistortion(step)):
        codes = recipe.codes(about, np.maximum(recipe.scales(about), 1e-12)).codes
        assert not codes[0, 2].any()


def test_left_variance_is_the_whole_of_independent_inputs_and_less_of_others() -> None:
    def left(hessian: np.ndarray) -> float:
        return float(Problem(np.ones((1, 1, len(hessian))), hessian[None], np.ones((1, 1))).left[0])

    assert left(np.diag([1.0, 4.0, 16.0])) == pytest.approx(7.0)
    pair = np.array([[1.0, 0.9], [0.9, 1.0]])  # the second makes good for the first, and nothing for the second
    assert left(pair) == pytest.approx((1 - 0.81 + 1) / 2)


def test_no_channel_counts_less_than_a_thousandth() -> None:
    np.testing.assert_allclose(steady(np.array([[0.0, 1.0, 2.0]])), [[1e-3, 1.0, 2.0]])
    assert steady(np.zeros((1, 3))).tolist() == [[1.0, 1.0, 1.0]]


def test_a_problem_with_other_weights_goes_along_the_same_walk_and_one_with_another_matrix_does_not() -> None:
    about = problem(0, 2, 4, 9)
    walks = about.walks()
    assert replace(about, weights=2 * about.weights).walks() is walks
    other = replace(about, hessian=2 * about.hessian)
    np.testing.assert_allclose(other.left, 2 * about.left)
    assert about.walks() is not other.walks()


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_scales_that_were_searched_are_of_the_coarse_grid_and_lose_less_on_it(bits: int) -> None:
    about, plain, searched = problem(), Uniform(bits), Uniform(bits, is_searched=True)
    steps = np.log2(searched.scales(about)) * STEPS_PER_OCTAVE
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    nearest = np.exp2(np.rint(np.log2(plain.scales(about)) * STEPS_PER_OCTAVE) / STEPS_PER_OCTAVE)

    def loss(scale: NDArray[np.float64]) -> float:
        return about.loss(plain.codes(about, scale).codes * scale[:, :, None])

    assert loss(searched.scales(about)) < loss(nearest)
    assert searched.name == plain.name


def test_eight_bits_are_not_searched() -> None:
    about = problem()
    np.testing.assert_array_equal(Uniform(8, is_searched=True).scales(about), Uniform(8).scales(about))
