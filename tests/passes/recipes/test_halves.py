"""A layer as two of lower rank, both coded."""

from __future__ import annotations

import numpy as np
import pytest

from passes.low_rank import Window
from passes.problem import Importance
from passes.recipes import halves
from passes.recipes.base import Problem
from passes.recipes.families import options
from passes.recipes.uniform import RateDistortion

ROWS, CHANNELS, KERNEL = 16, 6, (3, 3)
TAPS = CHANNELS * 9
WINDOW = Window(1, ROWS, CHANNELS, KERNEL, (8, 8), (8, 8))


def layer(rank: int = ROWS) -> Problem:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(ROWS, rank)) @ rng.normal(size=(rank, TAPS)) / np.sqrt(rank)
    inputs = rng.normal(size=(TAPS, 200)) * rng.uniform(0.5, 2, (TAPS, 1))
    hessian = inputs @ inputs.T / 200 + 0.1 * np.eye(TAPS)
    return Problem(weights[None], hessian[None], rng.uniform(1e-4, 1e-3, (1, ROWS)), KERNEL)


def test_the_second_half_reads_what_the_first_makes_of_the_input() -> None:
    problem, rng = layer(), np.random.default_rng(0)
    cut, (first, second) = halves.halves(problem, WINDOW, 5)
    assert cut == pytest.approx(halves.losses(problem, WINDOW)[5], rel=1e-9)
    root = np.linalg.cholesky(problem.hessian[0])
    x = root @ rng.normal(size=(TAPS, 4))
    made = first.weights[0] @ x
    change = np.zeros((1, *second.weights.shape[1:]))
    change[0, 3, 2] = 0.01
    assert second.loss(second.weights + change) == pytest.approx(
        1e-4 * second.hessian[0, 2, 2] * second.importance[0, 3], rel=1e-9
    )
    expected = first.weights[0] @ problem.hessian[0] @ first.weights[0].T
    np.testing.assert_allclose(second.hessian[0], expected, rtol=1e-12)
    assert made.shape == (5, 4)


def test_an_error_in_the_first_half_costs_what_it_costs_the_whole_layer() -> None:
    """For one row of the first half, whose error no other row's can meet, the costs are the same."""
    problem = layer()
    _, (first, second) = halves.halves(problem, WINDOW, 5)
    rng = np.random.default_rng(4)
    change = np.zeros_like(first.weights)
    change[0, 1] = 0.01 * rng.normal(size=TAPS)
    exact = second.weights[0] @ first.weights[0]
    whole = Problem(exact[None], problem.hessian, problem.importance, KERNEL)
    moved = second.weights[0] @ (first.weights + change)[0]
    assert first.loss(first.weights + change) == pytest.approx(whole.loss(moved[None]), rel=1e-9)


def test_importance_goes_back_through_a_linear_layer() -> None:
    weights = np.array([[1.0, 2.0], [0.0, 3.0], [4.0, 0.0]])
    found = halves.importance_before(weights, Importance(np.array([1.0, 10.0, 100.0]), np.ones(3)))
    assert found.scattered.tolist() == [1601.0, 94.0]
    assert found.shared.tolist() == [17.0, 13.0]


def test_no_rank_has_more_weights_or_multiplications_than_the_layer() -> None:
    assert halves.most(WINDOW) == 12  # 12 * (54 + 16) = 840 of 864
    assert halves.most(Window(1, 4, 1, (3, 3), (8, 8), (8, 8))) == 2
    assert halves.why_not(Window(1, 1, 9, (), (), ())) == "every rank has as many weights as the layer"
    assert halves.why_not(Window(8, 1, 1, (3, 3), (8, 8), (8, 8))) == "it has groups"


@pytest.mark.parametrize("rank", [2, 3])
def test_a_hidden_rank_is_offered_and_beats_the_whole_layer(rank: int) -> None:
    found = options(layer(rank), window=WINDOW)
    own = [o for o in found if o.split is not None and o.split.rank == (rank,)]
    assert own
    whole = [o for o in found if isinstance(o.recipe, RateDistortion) and o.split is None]
    for option in own:
        assert not [o for o in whole if o.bits <= option.bits and o.loss <= option.loss]


def test_a_layer_of_full_rank_stays_whole_where_little_is_lost() -> None:
    rng = np.random.default_rng(1)
    weights = np.linalg.qr(rng.normal(size=(TAPS, ROWS)))[0].T[None]
    problem = Problem(weights, np.eye(TAPS)[None], np.full((1, ROWS), 1e-3), KERNEL)
    energy = problem.loss(0 * weights)
    found = [option for option in options(problem, window=WINDOW) if option.loss < energy / 4]
    best = {min(found, key=lambda o: o.bits + price * o.loss / energy).split for price in (1e3, 1e4, 1e5)}
    assert best == {None}


def test_a_layer_that_must_stay_whole_is_not_offered_as_two() -> None:
    assert all(option.split is None for option in options(layer(2)))
