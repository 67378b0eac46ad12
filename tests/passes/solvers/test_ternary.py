"""Ternary weights: the optimum, and what the compensation gains over it."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.solvers import ternary
from passes.solvers.hessian import damped, row_losses

EVERY = np.array(list(itertools.product([-1.0, 0.0, 1.0], repeat=8)))


@given(st.integers(0, 10**6), st.booleans())
def test_the_optimum_is_that_of_brute_force_over_all_signs(seed: int, is_weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    w, h = rng.standard_t(3, 8), rng.uniform(0.05, 4, 8) if is_weighted else np.ones(8)
    power = (h * EVERY**2).sum(axis=1)
    moment = EVERY @ (h * w)
    least = float((h * w**2).sum() - (moment**2 / np.maximum(power, 1e-300)).max())
    (a,), (t,) = ternary.optimal(w[None], h)
    assert float((h * np.square(w - a * t)).sum()) == pytest.approx(least, rel=1e-9, abs=1e-12)


def test_ternary_leaves_nineteen_percent_of_a_gaussians_energy() -> None:
    # With threshold c = a / 2 and a = phi(c) / Q(c): the rest is 1 - 2 phi(c)**2 / Q(c), least at c = 0.6120.
    shares = (np.arange(40000) + 0.5) / 40000
    w = np.array([[NormalDist().inv_cdf(share) for share in shares]])
    a, t = ternary.optimal(w)
    c = 0.6120
    expected = 1 - 2 * NormalDist().pdf(c) ** 2 / NormalDist().cdf(-c)
    assert expected == pytest.approx(0.190, abs=5e-4)
    assert np.square(w - a[:, None] * t).sum() / np.square(w).sum() == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("seed", range(5))
def test_compensation_errs_less_than_the_optimum_of_the_weights_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(200, 32)) @ rng.normal(size=(32, 32))
    w, hessian = rng.normal(size=(10, 32)), damped(seen.T @ seen / 200)
    a, t = ternary.optimal(w, np.diagonal(hessian))
    b, u = ternary.compensated(w, hessian)
    plain, better = row_losses(w - a[:, None] * t, hessian), row_losses(w - b[:, None] * u, hessian)
    assert (better <= plain).all()
    assert better.sum() < 0.7 * plain.sum()
    assert set(np.unique(u)) <= {-1.0, 0.0, 1.0}
    # The scale is the least-squares one: no other does better.
    for factor in (0.999, 1.001):
        assert (row_losses(w - factor * b[:, None] * u, hessian) >= better).all()


def test_a_row_of_zeros_has_no_scale_and_a_planted_row_is_found_exactly() -> None:
    w = np.array([[0.0, 0.0, 0.0, 0.0], [0.25, -0.25, 0.0, 0.25]])
    for a, t in (ternary.optimal(w), ternary.compensated(w, np.eye(4))):
        assert a.tolist() == [0.0, 0.25]
        assert np.array_equal(a[:, None] * t, w)
