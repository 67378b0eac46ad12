"""The optimal codebook of numbers, and its use under H."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import codebook
from passes.solvers.codebook import (
    BINS,
    assign,
    distortion,
    kmeans,
    linear_centres,
    lloyd,
    nearest,
    polish,
    refit,
)
from passes.solvers.hessian import damped, loss

Array = NDArray[np.float64]


def _spd(taps: int, seed: int) -> Array:
    seen = np.random.default_rng(seed).normal(size=(2 * taps, taps)) @ np.diag(np.linspace(0.2, 2, taps))
    return damped(seen.T @ seen / len(seen))


def _segment_cost(values: Array, weights: Array, *, centre: float | None) -> float:
    middle = weights @ values / weights.sum() if centre is None else centre
    return float(weights @ np.square(values - middle))


def _brute_force(values: Array, weights: Array, count: int, zero: bool) -> float:
    """Every way to cut the sorted values into at most `count` runs, one of them (empty perhaps) at 0 for `zero`."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    n, best = len(values), np.inf
    for runs in range(1, count + 1):
        for cuts in itertools.combinations_with_replacement(range(n + 1), runs - 1):
            bounds = [0, *cuts, n]
            parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
            for at_zero in range(len(parts)) if zero else [-1]:
                cost = sum(
                    _segment_cost(values[part], weights[part], centre=0.0 if i == at_zero else None)
                    for i, part in enumerate(parts)
                    if part.stop > part.start
                )
                best = min(best, cost)
    return best


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=7),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_dynamic_program_finds_the_optimum_of_brute_force(
    numbers: list[int], count: int, zero: bool, seed: int
) -> None:
    values = np.array(numbers) / 8
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(values))
    centres = kmeans(values, weights, count, zero=zero)
    assert len(centres) <= count
    assert (np.diff(centres) > 0).all()
    assert not zero or 0.0 in centres
    expected = _brute_force(values, weights, count, zero)
    assert distortion(values, weights, centres) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("count", [2, 5, 16, 40])
def test_the_optimum_is_no_worse_than_lloyds_rounds_from_a_linear_start(count: int, zero: bool) -> None:
    rng = np.random.default_rng(count)
    values, weights = rng.standard_t(3, 1500), rng.uniform(0, 2, 1500)
    start = linear_centres(values, count, zero=zero)
    local = lloyd(values, weights, start, zero=zero)
    best = distortion(values, weights, kmeans(values, weights, count, zero=zero))
    assert best <= distortion(values, weights, local) * (1 + 1e-12)
    assert distortion(values, weights, local) <= distortion(values, weights, start)


def test_bins_lose_next_to_nothing() -> None:
    shares = (np.arange(10 * BINS) + 0.5) / (10 * BINS)
    values = np.array([NormalDist().inv_cdf(share) for share in shares])
    weights = np.ones(len(values))
    # Max, Quantizing for Minimum Distortion, 1960, table I: four levels for N(0, 1) leave 0.1175 of the energy.
    assert distortion(values, weights, kmeans(values, weights, 4)) / (values @ values) == pytest.approx(
        0.1175, rel=1e-3
    )


def test_points_without_weight_do_not_matter_and_as_many_centres_as_points_are_exact() -> None:
    values, weights = np.array([1.0, 5.0, -3.0, 1.0]), np.array([1.0, 0.0, 2.0, 1.0])
    assert kmeans(values, weights, 2).tolist() == [-3.0, 1.0]
    assert kmeans(values, weights, 9).tolist() == [-3.0, 1.0]
    assert kmeans(values, weights, 9, zero=True).tolist() == [-3.0, 0.0, 1.0]
    assert kmeans(values, weights, 1, zero=True).tolist() == [0.0]
    assert kmeans(values, np.zeros(4), 3).tolist() == [-3.0, 1.0, 5.0]


def test_with_uncorrelated_inputs_every_weight_takes_the_nearest_level() -> None:
    rng = np.random.default_rng(0)
    weights, levels = rng.normal(size=(6, 30)), np.sort(rng.normal(size=9))
    assert np.array_equal(assign(weights, np.eye(30), levels[None]), nearest(weights, levels))


@pytest.mark.parametrize("seed", range(5))
def test_the_sweep_errs_less_than_the_nearest_levels_and_the_descent_never_errs_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, hessian, levels = rng.normal(size=(8, 40)), _spd(40, seed), np.array([[-1.5, -0.5, 0.0, 0.6, 1.4]])
    plain = nearest(weights, levels[0])

    def cost(indices: NDArray[np.int64]) -> float:
        return loss(levels[0][indices] - weights, hessian)

    assert cost(polish(weights, plain, hessian, levels)) <= cost(plain)
    assert cost(assign(weights, hessian, levels)) < cost(plain)


def test_rows_have_levels_of_their_own() -> None:
    weights = np.array([[0.9, -1.1], [9.0, -11.0]])
    assert assign(weights, np.eye(2), np.array([[-1.0, 1.0], [-10.0, 10.0]])).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("dimension", [1, 2])
def test_the_refit_is_the_least_squares_solution(dimension: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "REFIT_SHARE", 1e-20)
    rng = np.random.default_rng(1)
    target, hessian = rng.normal(size=(2, 5, 6)), np.stack([_spd(6, 2), _spd(6, 3)])
    weight, entries = rng.uniform(0.5, 2, (2, 5)), rng.normal(size=(3, dimension))
    indices = rng.integers(0, 3, (2, 5, 6 // dimension))
    found = refit(entries, indices, target, hessian, weight)
    # Row by row: target ~ design @ entries under H, by the normal equations.
    normal, right = np.zeros((3 * dimension, 3 * dimension)), np.zeros(3 * dimension)
    for group, row in np.ndindex(2, 5):
        design = np.kron(np.eye(3)[indices[group, row]], np.eye(dimension))
        normal += weight[group, row] * design.T @ hessian[group] @ design
        right += weight[group, row] * design.T @ hessian[group] @ target[group, row]
    np.testing.assert_allclose(found.ravel(), np.linalg.solve(normal, right), rtol=1e-8)


def test_the_refit_ends_where_no_integer_entry_would_move() -> None:
    rng = np.random.default_rng(1)
    target, hessian = rng.normal(size=(1, 5, 6)), _spd(6, 2)[None]
    weight, indices = rng.uniform(0.5, 2, (1, 5)), rng.integers(0, 3, (1, 5, 6))
    found = refit(rng.normal(size=(3, 1)), indices, target, hessian, weight)
    again = refit(found, indices, target, hessian, weight)
    np.testing.assert_allclose(found, again, atol=0.5 * np.abs(found).max() / 127)


def test_the_refit_leaves_a_reserved_zero_alone() -> None:
    rng = np.random.default_rng(1)
    indices, weight = rng.integers(0, 3, (1, 5, 8)), np.ones((1, 5))
    found = refit(
        np.array([[-1.0], [0.0], [1.0]]), indices, rng.normal(size=(1, 5, 8)), _spd(8, 0)[None], weight, zero=True
    )
    assert found[1, 0] == 0
    assert found[0, 0] != -1
