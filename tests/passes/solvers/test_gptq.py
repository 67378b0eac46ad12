"""The sweep and the polish of rounding: no worse than the nearest integer, and close to the best of all codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers.gptq import BLOCK, Rate, code_lengths, gptq, mse_scales, polish, sweep
from passes.solvers.hessian import damped, inverse, loss, row_losses

Matrix = NDArray[np.float64]


def correlated(rng: np.random.Generator, taps: int, share: float = 0.01) -> Matrix:
    """E[x x^T] of few inputs that hang together, damped."""
    x = rng.normal(size=(taps, max(taps // 2, 1))) @ rng.normal(size=(max(taps // 2, 1), 4 * taps))
    x += 0.3 * rng.normal(size=x.shape)
    return damped(x @ x.T / x.shape[1], share)


def problem(seed: int, rows: int, taps: int, limit: int) -> tuple[Matrix, Matrix, Matrix]:
    """Weights, H and the scale of each row."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, taps))
    return weights, correlated(rng, taps), np.abs(weights).max(axis=1) / limit


def nearest(weights: Matrix, scale: Matrix, limit: int) -> Matrix:
    return np.clip(np.rint(weights / scale[:, None]), -limit, limit)


def costs(weights: Matrix, codes: Matrix, scale: Matrix, hessian: Matrix) -> Matrix:
    return row_losses(codes * scale[:, None] - weights, hessian)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.sampled_from([1, 3, 7, 127]))
def test_inputs_that_are_independent_and_alike_make_it_plain_rounding(
    seed: int, rows: int, taps: int, limit: int
) -> None:
    weights, _, scale = problem(seed, rows, taps, limit)
    np.testing.assert_array_equal(gptq(weights, np.eye(taps), scale, limit), nearest(weights, scale, limit))


@pytest.mark.parametrize("taps", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_blocks_are_one_sweep(taps: int) -> None:
    """The same as one column after the other, each error spread over all that are left."""
    weights, hessian, scale = problem(taps, 3, taps, 7)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    work, left, expected = weights.copy(), list(order), np.empty_like(weights)
    for tap in order:
        below = inverse(hessian[np.ix_(left, left)])
        expected[:, tap] = np.clip(np.rint(work[:, tap] / scale), -7, 7)
        error = (work[:, tap] - expected[:, tap] * scale) / below[0, 0]
        work[:, left] -= error[:, None] * below[0]
        left.remove(tap)
        if taps > BLOCK + 1 and len(left) < taps - BLOCK - 8:
            break
    done = [tap for tap in order if tap not in left]
    np.testing.assert_array_equal(gptq(weights, hessian, scale, 7)[:, done], expected[:, done])


@pytest.mark.parametrize("limit", [1, 3, 7, 127])
def test_nearly_always_better_than_the_nearest_integer(limit: int) -> None:
    better, ratios = 0, []
    for seed in range(100):
        weights, hessian, scale = problem(seed, 4, 24, limit)
        before, after = (
            costs(weights, codes, scale, hessian).sum()
            for codes in (nearest(weights, scale, limit), gptq(weights, hessian, scale, limit))
        )
        better += after <= before
        ratios.append(after / before)
    assert better >= 95
    assert np.median(ratios) < 0.7


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 16), st.sampled_from([1, 3, 7, 127]))
def test_polish_never_makes_a_row_worse_and_no_single_step_is_left(
    seed: int, rows: int, taps: int, limit: int
) -> None:
    weights, hessian, scale = problem(seed, rows, taps, limit)
    exact = weights / scale[:, None]
    for start in (nearest(weights, scale, limit), gptq(weights, hessian, scale, limit)):
        found = polish(exact, start, hessian, limit, sweeps=1000)
        before, after = (row_losses(codes - exact, hessian) for codes in (start, found))
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
        assert (np.abs(found) <= limit).all()
        for tap, step in itertools.product(range(taps), (-1, 1)):
            moved = found.copy()
            moved[:, tap] = np.clip(moved[:, tap] + step, -limit, limit)
            assert (row_losses(moved - exact, hessian) >= after - 1e-9 * (1 + after)).all()


def test_polish_at_two_bits_is_the_best_of_all_codes_or_nearly() -> None:
    """All 3**d codes of a row, d up to 8."""
    found_best, ratios = 0, []
    for seed in range(60):
        taps = 2 + seed % 7
        weights, hessian, scale = problem(seed, 1, taps, 1)
        exact = weights / scale[:, None]
        everything = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=taps)))
        least = float(row_losses(everything - exact, hessian).min())
        got = float(row_losses(polish(exact, gptq(weights, hessian, scale, 1), hessian, 1) - exact, hessian)[0])
        assert got >= least - 1e-9
        found_best += got <= least + 1e-9
        ratios.append(got / least)
    assert found_best >= 36
    assert np.mean(ratios) < 1.25


def test_a_pair_of_inputs_that_nearly_agree_is_rounded_as_one() -> None:
    """Two weights of 0.5 on the same input are 1 together: rounding both to even gives 0."""
    weights, hessian = np.array([[0.5, 0.5]]), damped(np.ones((2, 2)), 0.001)
    codes = gptq(weights, hessian, np.ones(1), 7)
    assert codes.sum() == 1
    assert polish(weights, np.zeros((1, 2)), hessian, 7).sum() == 1


def test_reach_keeps_codes_beside_the_weights() -> None:
    weights, hessian, scale = problem(0, 8, 64, 127)
    exact = weights / scale[:, None]
    found = polish(exact, np.rint(exact), hessian, 127, reach=1.0)
    assert (np.abs(found - exact) <= 1).all()
    assert (found != np.rint(exact)).any()
    before, after = (row_losses(codes - exact, hessian) for codes in (np.rint(exact), found))
    assert (after < before).all()


@pytest.mark.parametrize("has_rate", [False, True])
def test_what_is_not_kept_is_zero_and_the_rest_makes_good(has_rate: bool) -> None:
    weights, hessian, scale = problem(3, 6, 32, 7)
    keep = np.random.default_rng(0).random(weights.shape) < 0.6
    rate = Rate(1e-3, code_lengths(nearest(weights, scale, 7), 7)) if has_rate else None
    swept = gptq(weights, hessian, scale, 7, keep=keep, rate=rate)
    assert not swept[~keep].any()
    plain = np.where(keep, nearest(weights, scale, 7), 0)
    assert costs(weights, swept, scale, hessian).sum() < 0.7 * costs(weights, plain, scale, hessian).sum()
    polished = polish(weights / scale[:, None], swept, hessian, 7, keep=keep, weight=np.square(scale), rate=rate)
    assert not polished[~keep].any()


def test_more_rate_means_fewer_bits_and_more_loss() -> None:
    weights, hessian, scale = problem(4, 16, 48, 15)
    exact, importance = weights / scale[:, None], np.ones(16)
    bits, losses = [], []
    for price in (0.0, 0.5, 5.0, 20.0):
        rate = Rate(price, code_lengths(nearest(weights, scale, 15), 15))
        codes = gptq(weights, hessian, scale, 15, importance=importance, rate=rate)
        codes = polish(exact, codes, hessian, 15, weight=np.square(scale), rate=rate)
        _, counts = np.unique(codes, return_counts=True)
        bits.append(float(-(counts * np.log2(counts / counts.sum())).sum()))
        losses.append(float(costs(weights, codes, scale, hessian).sum()))
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[-1] < 0.7 * bits[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-5, 1.0))
def test_polish_with_a_rate_never_raises_loss_plus_rate(seed: int, price: float) -> None:
    weights, hessian, scale = problem(seed, 3, 12, 7)
    exact, weight = weights / scale[:, None], np.square(scale)
    start = gptq(weights, hessian, scale, 7)
    rate = Rate(price, code_lengths(start, 7))

    def total(codes: Matrix) -> Matrix:
        return weight * row_losses(codes - exact, hessian) + rate.cost(codes).sum(axis=1)

    found = polish(exact, start, hessian, 7, weight=weight, rate=rate)
    assert (total(found) <= total(start) * (1 + 1e-9) + 1e-12).all()


def test_rows_that_matter_less_give_up_more_bits() -> None:
    weights, hessian, _ = problem(5, 1, 64, 15)
    pair, scale = np.repeat(weights, 2, axis=0), np.full(2, np.abs(weights).max() / 15)
    rate = Rate(0.02, code_lengths(nearest(pair, scale, 15), 15))
    codes = gptq(pair, hessian, scale, 15, importance=np.array([10.0, 0.1]), rate=rate)
    assert np.count_nonzero(codes[1]) < np.count_nonzero(codes[0])


@given(st.lists(st.integers(-7, 7), min_size=1, max_size=200), st.sampled_from([7, 127, 32767]))
def test_code_lengths_are_those_of_a_code(codes: list[int], limit: int) -> None:
    bits = code_lengths(np.array(codes, np.float64), limit)
    assert np.exp2(-bits).sum() == pytest.approx(1)
    np.testing.assert_array_equal(bits, bits[::-1])
    assert np.isfinite(bits).all()


def test_the_cheapest_code_is_the_least_of_three() -> None:
    exact, nearest_codes = np.array([2.4, -2.4, 0.3, 5.6]), np.array([2.0, -2.0, 0.0, 6.0])
    free = Rate(0.0, np.arange(15.0))
    np.testing.assert_array_equal(free.cheapest(exact, nearest_codes, np.ones(4))[0], nearest_codes)
    dear = Rate(1e9, np.abs(np.arange(-7.0, 8.0)))
    np.testing.assert_array_equal(dear.cheapest(exact, nearest_codes, np.ones(4))[0], np.zeros(4))
    step = Rate(1.0, np.array([9, 9, 9, 9, 9, 2, 1, 0, 1, 2, 9, 9, 9, 9, 9.0]))  # codes beyond 2 are dear
    assert step.cheapest(np.array([3.1]), np.array([3.0]), np.ones(1))[0].tolist() == [2.0]


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 30), st.sampled_from([1, 3, 7]))
def test_scales_of_least_squares_are_no_worse_than_the_whole_range(
    seed: int, rows: int, taps: int, limit: int
) -> None:
    weights, hessian, full = problem(seed, rows, taps, limit)
    diagonal = np.diagonal(hessian)
    scale = mse_scales(weights, limit, diagonal)
    assert ((scale > 0.3499 * full) & (scale <= full)).all()
    errors = [np.square(nearest(weights, s, limit) * s[:, None] - weights) @ diagonal for s in (scale, full)]
    assert (errors[0] <= errors[1]).all()


def test_an_outlier_is_clipped_for_the_sake_of_the_others() -> None:
    weights = np.append(np.random.default_rng(0).normal(size=400), 6.0)[None]
    assert mse_scales(weights, 1)[0] < 0.5 * 6.0


def test_a_row_of_zeros_has_a_scale_and_codes_of_zero() -> None:
    weights = np.zeros((2, 5))
    assert mse_scales(weights, 7).tolist() == [1.0, 1.0]
    assert not gptq(weights, correlated(np.random.default_rng(0), 5), np.ones(2), 7).any()


def test_a_sweep_that_changes_nothing_returns_the_weights() -> None:
    weights, hessian, _ = problem(6, 3, 200, 7)
    np.testing.assert_array_equal(sweep(weights, hessian, lambda values, tap, cost: values), weights)


def test_the_cost_that_a_column_is_told_is_what_its_error_costs() -> None:
    """An error of 1 in one tap, the taps behind it free to make good, costs what the sweep says."""
    _, hessian, _ = problem(7, 1, 6, 7)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    told: dict[int, float] = {}

    def column(values: Matrix, tap: int, cost: float) -> Matrix:
        told[tap] = cost
        return values

    sweep(np.zeros((1, 6)), hessian, column)
    for index, tap in enumerate(order):
        behind = order[index + 1 :]
        delta = np.zeros((1, 6))
        delta[0, tap] = 1
        if behind.size:
            delta[0, behind] = -np.linalg.solve(hessian[np.ix_(behind, behind)], hessian[behind, tap])
        assert told[int(tap)] == pytest.approx(loss(delta, hessian), rel=1e-9)
