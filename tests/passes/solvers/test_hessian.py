"""The matrix of a layer's loss: damped until it can be inverted, whatever rounding left of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from passes.solvers.hessian import Walk, cholesky, damped, inverse, inverse_factor


@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from([1e-12, 1e-6, 1.0]))
def test_what_rounding_made_indefinite_is_inverted_all_the_same(size: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(size, 2)) * 10.0 ** rng.integers(-9, 1, size=(size, 1))
    off = rng.normal(size=(size, size)) * noise * float(np.square(rows).max())
    matrix = rows @ rows.T + off + off.T
    lower = cholesky(matrix)
    assert (np.diagonal(lower) > 0).all()
    assert np.isfinite(inverse(matrix)).all()


def test_inputs_that_rounding_left_below_zero_do_not_stay_there() -> None:
    """What a constant input leaves of E[x x^T] - E[x] E[x]^T: blocks of noise of either sign."""
    block = np.full((4, 4), -1.5e-8)
    matrix = np.zeros((12, 12))
    matrix[:4, :4], matrix[4:8, 4:8] = block, 1.0e-7 * np.eye(4)
    cholesky(matrix)


def test_damping_of_a_sound_matrix_is_a_share_of_its_mean() -> None:
    matrix = np.diag([1.0, 3.0, 0.0])
    np.testing.assert_allclose(np.diagonal(damped(matrix, 0.03)), [1.04, 3.04, 4 / 3])
    np.testing.assert_array_equal(damped(np.zeros((2, 2))), np.eye(2))


@given(st.integers(1, 130), st.integers(0, 99))
def test_the_factor_of_the_inverse_is_upper_and_gives_the_inverse(size: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(size, 2 * size))
    matrix = damped(rows @ rows.T)
    upper = inverse_factor(matrix)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T @ upper @ matrix, np.eye(size), atol=1e-9)
    np.testing.assert_allclose(inverse(matrix) @ matrix, np.eye(size), atol=1e-9)


def test_a_walk_begins_with_the_most_active_block() -> None:
    matrix = np.diag([1.0, 5.0, 4.0, 4.0, 0.5, 9.0])
    assert Walk.along(matrix).order.tolist() == [5, 1, 2, 3, 0, 4]
    walk = Walk.along(matrix, 2)
    assert walk.order.tolist() == [4, 5, 2, 3, 0, 1]
    np.testing.assert_allclose(walk.pivots, np.diagonal(matrix)[walk.order])
