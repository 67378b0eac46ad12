"""Channels are chosen by what the least squares fit without them loses, and the fit is the best one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.solvers.channels import Reader, by_magnitude, eliminate, loss, refit, ridged
from passes.solvers.hessian import row_losses

SEEDS = st.integers(0, 2**32 - 1)


def reader(rng: np.random.Generator, channels: int, block: int, rows: int = 3, others: int = 0) -> Reader:
    """Correlated inputs, shuffled taps, `others` of which belong to no channel."""
    taps = channels * block + others
    mixed = rng.normal(size=(2 * taps, taps)) @ rng.normal(size=(taps, taps))
    order = rng.permutation(taps)
    owned = tuple(np.sort(order[c * block : (c + 1) * block]) for c in range(channels))
    return Reader(rng.normal(size=(rows, taps)), mixed.T @ mixed / len(mixed), rng.uniform(0.1, 2, rows), owned)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(0, 3))
def test_the_refit_is_a_minimum(seed: int, rows: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    problem = reader(rng, channels + 2, 2, rows)
    kept = np.ones(problem.weights.shape[1], np.bool_)
    kept[problem.taps[0]] = False
    fitted = refit(problem.weights, problem.covariance, kept)
    assert not fitted[:, ~kept].any()
    # The gradient along every tap that stays is 0.
    slope = (fitted - problem.weights) @ problem.covariance
    assert np.abs(slope[:, kept]).max() <= 1e-7 * np.abs(problem.weights @ problem.covariance).max()


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1))
def test_the_refit_never_costs_more_than_zeros(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    problem = reader(rng, 4, 2, others=1)
    kept = rng.random(problem.weights.shape[1]) < 0.6
    fitted = refit(problem.weights, ridged(problem.covariance, ridge), kept)
    zeros = row_losses(np.where(kept, 0.0, -problem.weights), problem.covariance)
    losses = row_losses(fitted - problem.weights, problem.covariance)
    assert (losses <= zeros * (1 + 1e-9) + 1e-12).all()


def test_uncorrelated_inputs_need_no_refit() -> None:
    rng = np.random.default_rng(0)
    weights, kept = rng.normal(size=(3, 5)), np.asarray([True, False, True, True, False])
    fitted = refit(weights, np.diag(rng.uniform(1, 2, 5)), kept)
    np.testing.assert_array_equal(fitted, np.where(kept, weights, 0.0))


def test_two_weights_in_closed_form() -> None:
    """Without x1, the best weight on x0 is w0 + w1 c01 / c00, and the loss is w1^2 (c11 - c01^2 / c00)."""
    covariance = np.asarray([[2.0, 1.0], [1.0, 3.0]])
    problem = Reader(np.asarray([[5.0, 4.0]]), covariance, np.ones(1), (np.asarray([0]), np.asarray([1])))
    np.testing.assert_allclose(refit(problem.weights, covariance, np.asarray([True, False])), [[7.0, 0.0]])
    assert loss([problem], [1], ridge=0.0) == pytest.approx(16 * 2.5, rel=1e-8)
    assert eliminate([problem], 2, ridge=0.0).losses[1] == pytest.approx(min(16 * 2.5, 25 * (2 - 1 / 3)), rel=1e-8)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 12), st.integers(1, 3), st.integers(0, 4))
def test_the_elimination_keeps_count_of_the_least_squares_loss(seed: int, channels: int, block: int, more: int) -> None:
    """Its running sum, over updates and shrinking inverses, is the loss of a refit from scratch."""
    rng = np.random.default_rng(seed)
    readers = [reader(rng, channels, block), reader(rng, channels, 1, rows=2, others=more)]
    path = eliminate(readers, channels, ridge=0.0)
    assert len(path.order) == channels - 1
    assert len(set(path.order)) == channels - 1
    exact = [loss(readers, path.order[:n], ridge=0.0) for n in range(channels)]
    np.testing.assert_allclose(path.losses, exact, rtol=1e-4, atol=1e-7 * max(exact))
    assert (np.diff(exact) >= -1e-7 * max(exact)).all()


def test_one_channel_is_the_best_one_and_more_are_rarely_far_from_the_best() -> None:
    best = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        readers = [reader(rng, 6, 2), reader(rng, 6, 1)]
        path = eliminate(readers, 6, ridge=0.0)
        for count in (1, 3):
            every = [loss(readers, chosen, ridge=0.0) for chosen in itertools.combinations(range(6), count)]
            found = loss(readers, path.order[:count], ridge=0.0)
            assert found >= min(every)
            assert count > 1 or found == min(every)
            best += count == 3 and found == min(every)
    assert best >= 30


def test_channels_that_are_sums_of_others_cost_nothing() -> None:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(50, 4))
    inputs = np.concatenate([inputs, inputs @ rng.normal(size=(4, 2))], axis=1)
    taps = tuple(np.asarray([c]) for c in range(6))
    problem = Reader(rng.normal(size=(3, 6)), inputs.T @ inputs / 50, np.ones(3), taps)
    path = eliminate([problem], 6, ridge=1e-9)
    whole = float(row_losses(problem.weights, problem.covariance).sum())
    assert loss([problem], path.order[:2], ridge=1e-9) < 1e-6 * whole
    assert loss([problem], path.order[:3], ridge=1e-9) > 1e-3 * whole


def test_a_channel_that_never_varies_goes_first() -> None:
    rng = np.random.default_rng(4)
    problem = reader(rng, 5, 1)
    tap = problem.taps[2]
    problem.covariance[tap] = problem.covariance[:, tap] = 0.0
    problem.weights[:, tap] = 9.0
    assert eliminate([problem], 5).order[0] == 2
    assert loss([problem], [2]) == 0.0
    assert 2 not in by_magnitude([problem], 5)


def test_importance_decides_between_readers() -> None:
    """Channel 0 matters to the first reader, channel 1 to the second."""
    taps = (np.asarray([0]), np.asarray([1]))
    weights = [np.asarray([[3.0, 1.0]]), np.asarray([[1.0, 3.0]])]
    for heavy, gone in ((0, 1), (1, 0)):
        readers = [
            Reader(w, np.eye(2), np.asarray([10.0 if index == heavy else 1.0]), taps) for index, w in enumerate(weights)
        ]
        assert eliminate(readers, 2).order == (gone,)


def test_channels_that_nobody_reads_go_first_in_order() -> None:
    rng = np.random.default_rng(5)
    problem = reader(rng, 5, 2)
    taps = tuple(each if c in (0, 3) else each[:0] for c, each in enumerate(problem.taps))
    path = eliminate([Reader(problem.weights, problem.covariance, problem.importance, taps)], 5)
    assert path.order[:3] == (1, 2, 4)
    assert path.losses[3] == 0.0
    assert eliminate([], 3).order == (0, 1)


def test_magnitude_orders_by_energy() -> None:
    taps = tuple(np.asarray([c]) for c in range(4))
    problem = Reader(np.asarray([[3.0, -1.0, 2.0, 1.0]]), np.eye(4), np.ones(1), taps)
    assert by_magnitude([problem], 4) == (1, 3, 2)
    assert eliminate([problem], 4).order == (1, 3, 2)


def test_nothing_that_varies_is_no_error() -> None:
    problem = Reader(np.ones((2, 3)), np.zeros((3, 3)), np.ones(2), tuple(np.asarray([c]) for c in range(3)))
    assert eliminate([problem], 3).order == (0, 1)
    assert loss([problem], [0, 1]) == 0.0
