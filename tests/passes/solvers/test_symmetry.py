"""Filters that are others turned are found, and what they share is fitted to all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import symmetry
from passes.solvers.symmetry import NEGATED, orientations, oriented, rows_of, sharing, tap_ids

Tensor = NDArray[np.float64]


def hessians(groups: int, taps: int, seed: int = 0) -> Tensor:
    mixed = np.random.default_rng(seed).normal(size=(groups, taps, 2 * taps))
    return mixed @ mixed.transpose(0, 2, 1) / taps + 0.1 * np.eye(taps)


def test_a_square_kernel_has_eight_turns_all_different() -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 3, 3))
    turned = [oriented(kernel, o) for o in orientations((3, 3))]
    assert len(turned) == 8
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(turned, 2))
    quarter = np.rot90(kernel, axes=(1, 2))
    wanted = [np.rot90(kernel, n, axes=(1, 2)) for n in range(4)] + [
        np.rot90(np.flip(kernel, 2), n, axes=(1, 2)) for n in range(4)
    ]
    assert all(any(np.array_equal(w, t) for t in turned) for w in (*wanted, quarter))


@pytest.mark.parametrize(
    ("kernel", "count"), [((3, 3), 8), ((3, 5), 4), ((5,), 2), ((), 1), ((1, 1), 1), ((3, 1), 4), ((2, 2, 2), 1)]
)
def test_turns_depend_on_the_form_of_the_kernel(kernel: tuple[int, ...], count: int) -> None:
    assert len(orientations(kernel)) == count


@given(orientation=st.integers(0, 15), seed=st.integers(0, 20))
def test_tap_ids_are_what_turning_does(orientation: int, seed: int) -> None:
    filters = np.random.default_rng(seed).normal(size=(4, 3, 3))
    turned = filters.reshape(-1)[tap_ids(4, (3, 3), orientation)] * (-1 if orientation & NEGATED else 1)
    np.testing.assert_array_equal(turned, oriented(filters, orientation).reshape(-1))


@given(
    leaders=st.integers(1, 4), rows=st.integers(1, 5), groups=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_planted_turns_signs_and_scales_are_found(leaders: int, rows: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    originals = rng.normal(size=(leaders, 3, 3, 3))
    which = rng.integers(0, leaders, groups * rows)
    turns, scales = rng.integers(0, 16, groups * rows), rng.uniform(0.1, 10, groups * rows)
    filters = [s * oriented(originals[w], int(t)) for w, t, s in zip(which, turns, scales)]
    weights = np.array(filters).astype(np.float32).astype(np.float64).reshape(groups, rows, 27)
    hessian = hessians(groups, 27)
    found = sharing(weights, hessian, (3, 3))
    assert len(found.leaders) == len(set(which.tolist()))
    for leader in range(len(found.leaders)):
        members, problem = rows_of(weights, hessian, np.ones((groups, rows)), (3, 3), found, leader)
        parameters, factors = problem.fitted(rounds=0)
        expected = weights.reshape(-1, 27)[members]
        np.testing.assert_allclose(problem.expanded(parameters, factors), expected, atol=1e-5 * np.abs(expected).max())


def test_copies_are_found_where_h_sees_next_to_nothing_of_them() -> None:
    base = np.random.default_rng(0).normal(size=(1, 3, 3))
    weights = np.array([base, -0.3 * base]).astype(np.float32).astype(np.float64).reshape(1, 2, 9)
    # H with one huge direction, to which both filters are orthogonal but for the last float32 bits.
    direction = np.ones(9) - np.ones(9) @ weights[0, 0] / (weights[0, 0] @ weights[0, 0]) * weights[0, 0]
    hessian = (1e14 * np.outer(direction, direction) + 1e-3 * np.eye(9))[None]
    assert len(sharing(weights, hessian, (3, 3)).leaders) == 1


def test_random_filters_share_nothing() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 6, 18))
    found = sharing(weights, hessians(2, 18), (3, 3))
    assert found.leaders.tolist() == list(range(12))
    assert not found.orientation.any()
    assert not found.error.any()


def test_filters_within_the_tolerance_share_and_the_error_says_how_much_they_miss() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=18)
    other = -3 * (base + 0.05 * rng.normal(size=18))
    weights, hessian = np.array([[base, other, rng.normal(size=18)]]), hessians(1, 18)
    found = sharing(weights, hessian, (3, 3), tolerance=0.2)
    assert found.leaders.tolist() == [0, 2]
    assert found.leader.tolist() == [0, 0, 1]
    assert found.orientation.tolist() == [0, NEGATED, 0]
    h = hessian[0]
    factor = other @ h @ base / (base @ h @ base)
    missed = other - factor * base
    assert found.error[1] == pytest.approx(missed @ h @ missed / (other @ h @ other))
    assert len(sharing(weights, hessian, (3, 3), tolerance=0.01).leaders) == 3


def test_every_filter_follows_the_nearest_leader_within_the_tolerance() -> None:
    weights = np.random.default_rng(2).normal(size=(1, 30, 4))
    hessian = hessians(1, 4)
    found = sharing(weights, hessian, (), tolerance=0.6)
    error, _ = symmetry._errors(weights, hessian, ())
    assert len(found.leaders) < 20
    for row in set(range(30)) - set(found.leaders.tolist()):
        assert found.error[row] == error[row, found.leaders].min() <= 0.36


def test_filters_of_zeros_share_one_and_nothing_else() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 5, 9))
    weights[0, [1, 3]] = 0
    found = sharing(weights, hessians(1, 9), (3, 3), tolerance=0.5)
    assert found.leader[1] == found.leader[3]
    assert (found.leader == found.leader[1]).sum() == 2


def test_the_shared_filter_is_the_best_for_all_its_members() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 3, 3))
    rows = [oriented(base, o) + 0.1 * rng.normal(size=(2, 3, 3)) for o in (0, 3, 9)]
    weights, hessian = np.array(rows).reshape(1, 3, 18), hessians(1, 18)
    found = sharing(weights, hessian, (3, 3), tolerance=0.5)
    assert len(found.leaders) == 1
    _, problem = rows_of(weights, hessian, np.array([[1.0, 2.0, 0.5]]), (3, 3), found, 0)
    factors = np.array([1.0, 1.3, 0.7])
    best = problem.best(factors)

    def cost(parameters: Tensor) -> float:
        delta = problem.expanded(parameters, factors) - problem.weights
        return float(np.einsum("r,rt,tu,ru->", problem.importance, delta, hessian[0], delta))

    for _ in range(20):
        assert cost(best + 1e-3 * rng.normal(size=18)) > cost(best)
