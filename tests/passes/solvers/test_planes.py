"""Sums of binary planes."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import planes
from passes.solvers.hessian import damped, row_losses

Array = NDArray[np.float64]


def _problem(seed: int, rows: int = 6, taps: int = 24) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(100, taps)) @ rng.normal(size=(taps, taps))
    return rng.normal(size=(rows, taps)), damped(seen.T @ seen / 100)


def test_one_plane_of_a_gaussian_leaves_one_minus_two_over_pi_and_each_further_one_less() -> None:
    shares = (np.arange(40000) + 0.5) / 40000
    w = np.array([[NormalDist().inv_cdf(share) for share in shares]])
    left = [
        float(np.square(w - planes.values(*planes.greedy(w, count))).sum() / np.square(w).sum())
        for count in (1, 2, 3, 4)
    ]
    assert left[0] == pytest.approx(1 - 2 / math.pi, abs=2e-4)
    # The residual |w| - E|w| has mean magnitude m: the second plane removes m**2.
    m = float(np.abs(np.abs(w) - np.abs(w).mean()).mean())
    assert left[1] == pytest.approx(left[0] - m**2, abs=2e-4)
    assert all(after < 0.6 * before for before, after in itertools.pairwise(left))


@given(st.integers(1, 70), st.integers(0, 10**6))
def test_a_product_of_signs_is_the_length_less_twice_the_bits_that_differ(length: int, seed: int) -> None:
    x, w = np.random.default_rng(seed).integers(0, 2, (2, length))
    dot = int((2 * x - 1) @ (2 * w - 1))
    differing = bin(int("".join(map(str, x)), 2) ^ int("".join(map(str, w)), 2)).count("1")
    assert dot == length - 2 * differing


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_least_squares_is_the_minimum_over_the_coefficients(count: int) -> None:
    weights, hessian = _problem(0)
    _, bits = planes.greedy(weights, count)
    found = planes.least_squares(weights, hessian, bits, count)
    signs = planes.combinations(count)[bits]
    slope = np.einsum("rt,ts,rsn->rn", planes.values(found, bits) - weights, hessian, signs)
    np.testing.assert_allclose(slope, 0, atol=1e-5 * np.abs(hessian).max())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_errs_less_than_greedy_planes(count: int, seed: int) -> None:
    weights, hessian = _problem(seed)
    plain = row_losses(weights - planes.values(*planes.greedy(weights, count)), hessian)
    coefficients, bits = planes.fit(weights, hessian, count)
    fitted = row_losses(weights - planes.values(coefficients, bits), hessian)
    assert (fitted <= plain).all()
    assert fitted.sum() < 0.6 * plain.sum()
    assert (coefficients >= 0).all()
    assert (np.diff(coefficients, axis=1) <= 0).all()


def test_planted_planes_are_found() -> None:
    rng = np.random.default_rng(0)
    coefficients, bits = np.array([[8.0, 2.0, 1.0]]) * rng.uniform(0.5, 2, (5, 1)), rng.integers(0, 8, (5, 40))
    weights = planes.values(coefficients, bits)
    found, found_bits = planes.fit(weights, np.eye(40), 3)
    np.testing.assert_allclose(found, coefficients, rtol=1e-6)
    assert np.array_equal(found_bits, bits)


def test_integers_fit_the_limit_and_the_scale_makes_them_near() -> None:
    coefficients = np.array([[0.5, 0.25, 0.125], [math.pi, math.e, 0.1], [0.0, 0.0, 0.0]])
    scale = planes.fine_scale(coefficients, 127)
    whole = planes.integers(coefficients, scale, 127)
    assert whole[0].tolist() == [4, 2, 1]
    assert (whole.sum(axis=1) <= 127).all()
    np.testing.assert_allclose(whole * scale[:, None], coefficients, atol=0.02)
    assert planes.integers(coefficients, scale / 2, 127).sum(axis=1).max() <= 127
