"""The rounding problem: its loss is what errors cost, whether positions share them or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from passes.gram import Gatherer, Moments
from passes.layer import Layer
from passes.problem import CORRELATION_SHRINKAGE, SHRINKAGE, Importance, problem_of, turned, weighing
from tests.support.canonical import normal

LAYER = Layer("Conv", (4, 2, 3, 3), 2, (1, 1), (1, 1, 1, 1), (1, 1))


def moments(layer: Layer = LAYER, count: int = 200) -> Moments:
    gatherer = Gatherer(layer)
    for seed in range(count):
        # An offset of its own in every sample: positions hang together.
        gatherer.add(normal(1, 4, 6, 6, seed=seed) + normal(1, 4, 1, 1, seed=1000 + seed))
    return gatherer.moments()


def importance() -> Importance:
    scattered, shared = np.square(normal(2, 4), dtype=np.float64)
    return Importance(scattered, shared)


def together(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric mean of each and the average."""
    return np.sqrt(rows * rows.mean())


def test_even_importance_is_the_plain_loss() -> None:
    weights, found = normal(*LAYER.shape), moments()
    problem = problem_of(LAYER, weights, found, Importance.even(4))
    delta = normal(2, 2, 18, seed=5, scale=0.1)
    plain = np.einsum("grt,gtu,gru->", delta, found.covariance, delta)
    shrunk = sum(
        SHRINKAGE * np.trace(c) / 18 * np.square(d, dtype=float).sum() for c, d in zip(found.covariance, delta)
    )
    assert problem.loss(problem.weights + delta) == pytest.approx(plain + shrunk, rel=1e-9)
    assert problem.kernel == (3, 3)
    np.testing.assert_array_equal(problem.weights, LAYER.matrix(weights))


def test_the_loss_is_quadratic_and_zero_at_the_weights() -> None:
    problem = problem_of(LAYER, normal(*LAYER.shape), moments(), importance())
    delta = normal(2, 2, 18, seed=5)
    assert problem.loss(problem.weights) == 0
    assert problem.loss(problem.weights + 3 * delta) == pytest.approx(9 * problem.loss(problem.weights + delta))


def test_of_one_position_all_that_differs_is_shared() -> None:
    """A Gemm scatters nothing: its importance is the shared one, and the covariance counts once."""
    dense, found = Layer("Gemm", (4, 7)), Gatherer(Layer("Gemm", (4, 7)))
    for seed in range(50):
        found.add(normal(1, 7, seed=seed))
    shared = np.array([1.0, 2.0, 3.0, 4.0])
    ratio, rows = weighing(found.moments(), Importance(np.zeros(4), shared))
    assert ratio == 0
    np.testing.assert_allclose(rows, together(shared), rtol=1e-12)
    problem = problem_of(dense, normal(4, 7), found.moments(), Importance(np.zeros(4), shared))
    np.testing.assert_array_equal(problem.importance, rows[None])


def test_the_loss_is_the_sum_of_scattered_and_shared_errors() -> None:
    """Exactly so where every channel has the ratio of the layer."""
    found, scattered = moments(), np.array([1.0, 2.0, 0.5, 4.0])
    shared = 7.0 * scattered
    problem = problem_of(LAYER, normal(*LAYER.shape), found, Importance(scattered, shared))
    delta = normal(2, 2, 18, seed=5)
    both = found.covariance + 7.0 * found.shared_covariance
    rows = np.einsum("grt,gtu,gru->gr", delta, both, delta)
    added = np.square(delta, dtype=float).sum(axis=2) * SHRINKAGE * np.trace(both, axis1=1, axis2=2)[:, None] / 18
    expected = ((rows + added) * together(scattered).reshape(2, 2)).sum()
    assert problem.loss(problem.weights + delta) == pytest.approx(expected, rel=1e-9)


def test_a_row_counts_as_much_as_both_its_costs_say_on_the_average_input() -> None:
    found = moments()
    importance = Importance(np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, 10.0, 1.0, 1.0]))
    ratio, rows = weighing(found, importance)
    assert ratio == pytest.approx(13 / 4)
    own, common = (
        np.trace(each, axis1=1, axis2=2).mean() for each in (found.covariance, found.shared_covariance)
    )
    both = (own + importance.shared * common) / (own + ratio * common)
    np.testing.assert_allclose(rows, together(both), rtol=1e-12)
    assert rows[1] > rows[0]


def test_a_channel_that_seems_to_cost_nothing_counts_a_little() -> None:
    _, rows = weighing(moments(), Importance(np.array([0.0, 1.0, 2.0, 1.0]), np.zeros(4)))
    np.testing.assert_allclose(rows, together(np.array([1e-3, 1.0, 2.0, 1.0])), rtol=1e-3)


def test_scale_of_importance_is_scale_of_the_loss() -> None:
    found, weights = moments(), normal(*LAYER.shape)
    tenfold = Importance(10 * importance().scattered, 10 * importance().shared)
    one, ten = (problem_of(LAYER, weights, found, each) for each in (importance(), tenfold))
    np.testing.assert_allclose(ten.importance, 10 * one.importance, rtol=1e-12)
    np.testing.assert_array_equal(ten.hessian, one.hessian)


def correlated(channels: int, seed: int) -> NDArray[np.float64]:
    mixed = normal(channels, channels + 2, seed=seed).astype(np.float64)
    covariance = mixed @ mixed.T
    size = np.sqrt(np.diagonal(covariance))
    return np.asarray(covariance / np.outer(size, size))


def test_in_turned_rows_every_error_costs_for_itself() -> None:
    """tr(G D H D^T) of each group, G the importance with the correlation between its rows."""
    between = correlated(4, seed=3)
    plain = importance()
    problem = problem_of(LAYER, normal(*LAYER.shape), moments(), plain)
    found = turned(problem, Importance(plain.scattered, plain.shared, between))
    delta = normal(2, 2, 18, seed=5).astype(np.float64)
    cost = 0.0
    for group in range(2):
        own = slice(2 * group, 2 * group + 2)
        drawn = (1 - CORRELATION_SHRINKAGE) * between[own, own] + CORRELATION_SHRINKAGE * np.eye(2)
        scale = np.sqrt(problem.importance[group])
        metric = drawn * np.outer(scale, scale)
        cost += np.trace(metric @ delta[group] @ problem.hessian[group] @ delta[group].T)
    forward = np.linalg.inv(found.back)
    np.testing.assert_allclose(found.back @ found.problem.weights, problem.weights, atol=1e-9)
    assert found.problem.loss(found.problem.weights + forward @ delta) == pytest.approx(cost, rel=1e-9)


def test_rows_without_a_correlation_are_only_scaled() -> None:
    problem = problem_of(LAYER, normal(*LAYER.shape), moments(), importance())
    found = turned(problem, importance())
    delta = normal(2, 2, 18, seed=5)
    inner = np.linalg.solve(found.back, delta)
    assert found.problem.loss(found.problem.weights + inner) == pytest.approx(
        problem.loss(problem.weights + delta), rel=1e-9
    )


def test_importance_of_some_rows_keeps_what_is_between_them() -> None:
    between = correlated(4, seed=3)
    few = Importance(np.arange(4.0), np.arange(4.0) + 5, between).of((1, 3))
    assert few.scattered.tolist() == [1, 3]
    assert few.shared.tolist() == [6, 8]
    assert few.correlation is not None
    np.testing.assert_array_equal(few.correlation, between[np.ix_([1, 3], [1, 3])])
