"""Laws of the low-rank factors: Eckart-Young in the norm of H, nested losses, and a polish that never harms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import low_rank
from passes.solvers.hessian import loss

Tensor = NDArray[np.float64]


def layer(rows: int, channels: int, positions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a correlated H and importances."""
    rng, taps = np.random.default_rng(seed), channels * positions
    mixed = rng.normal(size=(taps, taps)) * np.geomspace(0.05, 2, taps)
    hessian = mixed @ mixed.T / taps
    hessian += 0.01 * np.trace(hessian) / taps * np.eye(taps)
    return rng.normal(size=(rows, taps)), hessian, rng.uniform(0.1, 4.0, rows)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 12), channels=st.integers(1, 6), positions=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_the_loss_of_svd_is_the_sum_of_the_dropped_squares_and_that_of_its_factors(
    rows: int, channels: int, positions: int, seed: int
) -> None:
    weights, hessian, importance = layer(rows, channels, positions, seed)
    svd = low_rank.Svd(weights, hessian, importance, (positions,))
    root = np.linalg.cholesky(hessian)
    squares = np.linalg.svd(np.sqrt(importance)[:, None] * weights @ root, compute_uv=False) ** 2
    for rank in range(1, min(weights.shape) + 1):
        expected = squares[rank:].sum()
        measured = loss(svd.factors(rank).product() - weights, hessian, importance)
        np.testing.assert_allclose(svd.losses[rank], expected, rtol=1e-7, atol=1e-10 * squares.sum())
        np.testing.assert_allclose(measured, expected, rtol=1e-7, atol=1e-10 * squares.sum())


@settings(max_examples=40)
@given(rows=st.integers(2, 10), taps=st.integers(2, 10), seed=st.integers(0, 99), data=st.data())
def test_no_factors_of_that_rank_are_better_than_svd(rows: int, taps: int, seed: int, data: st.DataObject) -> None:
    weights, hessian, importance = layer(rows, taps, 1, seed)
    rank = data.draw(st.integers(1, min(rows, taps)))
    best = low_rank.Svd(weights, hessian, importance, ()).losses[rank]
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    plain = left[:, :rank] * values[:rank] @ right[:rank]
    basis = np.random.default_rng(seed).normal(size=(rank, taps))
    fitted = weights @ hessian @ basis.T @ np.linalg.pinv(basis @ hessian @ basis.T) @ basis
    for other in (plain, fitted):
        assert loss(other - weights, hessian, importance) >= best * (1 - 1e-9)


def test_svd_is_strictly_better_than_plain_svd_where_inputs_are_correlated() -> None:
    weights, hessian, importance = layer(16, 12, 1)
    left, values, right = np.linalg.svd(weights, full_matrices=False)
    plain = loss(left[:, :4] * values[:4] @ right[:4] - weights, hessian, importance)
    assert low_rank.Svd(weights, hessian, importance, ()).losses[4] < 0.8 * plain


def test_channels_between_the_factors_of_svd_have_mean_square_one() -> None:
    for rows in (5, 20):
        weights, hessian, importance = layer(rows, 4, 3)
        first = low_rank.Svd(weights, hessian, importance, (3,)).factors(4).tensors[0].reshape(4, -1)
        np.testing.assert_allclose(np.diagonal(first @ hessian @ first.T), 1.0, rtol=1e-6)


def test_full_rank_gives_the_weights_back() -> None:
    weights, hessian, importance = layer(7, 5, 6)
    parts = weights, hessian, importance
    for factors in (
        low_rank.Svd(*parts, (2, 3)).factors(7),
        low_rank.Spatial(*parts, (2, 3), 10).factors(10),
        low_rank.Tucker(*parts, (2, 3), 5).factors(5, 7),
        low_rank.cp(*parts, (2, 3), 60, rounds=500, tolerance=0.0),
    ):
        np.testing.assert_allclose(factors.product(), weights, atol=1e-4)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_spatial_and_tucker_know_the_loss_of_every_rank(kernel: tuple[int, int]) -> None:
    parts = layer(9, 6, kernel[0] * kernel[1])
    spatial, tucker = low_rank.Spatial(*parts, kernel, 12), low_rank.Tucker(*parts, kernel, 6)
    weights, hessian, importance = parts
    for rank in (1, 3, 12):
        measured = loss(spatial.factors(rank).product() - weights, hessian, importance)
        assert spatial.losses[rank] == pytest.approx(measured, rel=1e-6)
    for inputs, outputs in ((1, 1), (3, 5), (6, 4), (2, 9)):
        measured = loss(tucker.factors(inputs, outputs).product() - weights, hessian, importance)
        assert tucker.losses(inputs)[outputs] == pytest.approx(measured, rel=1e-6)
    assert (np.diff(spatial.losses) <= 0).all()


def test_a_smaller_rank_of_a_larger_fit_is_the_fit_of_that_rank() -> None:
    parts = layer(9, 6, 9)
    small, large = (low_rank.Spatial(*parts, (3, 3), most) for most in (4, 12))
    np.testing.assert_allclose(small.losses, large.losses[:5], rtol=1e-9)
    np.testing.assert_allclose(small.factors(4).product(), large.factors(4).product(), rtol=1e-6, atol=1e-9)


@settings(max_examples=15)
@given(seed=st.integers(0, 50), sweeps=st.integers(0, 2), steps=st.integers(1, 6))
def test_polish_never_makes_the_loss_larger(seed: int, sweeps: int, steps: int) -> None:
    weights, hessian, importance = parts = layer(8, 5, 6, seed)
    for factors in (
        low_rank.Svd(*parts, (2, 3)).factors(3),
        low_rank.Spatial(*parts, (2, 3), 3).factors(3),
        low_rank.Tucker(*parts, (2, 3), 3).factors(3, 4),
        low_rank.cp(*parts, (2, 3), 4),
    ):
        before = loss(factors.product() - weights, hessian, importance)
        better = low_rank.polish(factors, *parts, sweeps=sweeps, steps=steps)
        assert loss(better.product() - weights, hessian, importance) <= before * (1 + 1e-9)


def test_polish_makes_a_spatial_split_much_better() -> None:
    weights, hessian, importance = parts = layer(16, 12, 9)
    spatial = low_rank.Spatial(*parts, (3, 3), 8)
    better = low_rank.polish(spatial.factors(8), *parts)
    assert loss(better.product() - weights, hessian, importance) < 0.8 * spatial.losses[8]


def test_cp_finds_a_sum_of_few_components() -> None:
    rng = np.random.default_rng(3)
    _, hessian, importance = layer(10, 6, 9)
    planted = np.einsum("or,cr,kr->ock", rng.normal(size=(10, 3)), rng.normal(size=(6, 3)), rng.normal(size=(9, 3)))
    weights = planted.reshape(10, -1)
    found = low_rank.cp(weights, hessian, importance, (3, 3), 3, rounds=500, tolerance=1e-9)
    assert found.size == 3 * (10 + 6 + 9)
    np.testing.assert_allclose(found.product(), weights, atol=1e-3 * np.abs(weights).max())


def test_cp_stops_before_components_outgrow_the_weights() -> None:
    """A tensor that rank 2 approximates ever better as two components grow and cancel each other."""
    a, b = np.random.default_rng(1).normal(size=(2, 2))
    terms = [np.einsum("o,c,k->ock", *each) for each in ((a, a, b), (a, b, a), (b, a, a))]
    weights = np.sum(terms, axis=0).reshape(2, 4)
    capped, free = (
        low_rank.cp(weights, np.eye(4), np.ones(2), (2,), 2, rounds=300, tolerance=0.0, norm_max=norm_max)
        for norm_max in (1.2, np.inf)
    )
    largest = 1.2 * float(np.linalg.norm(weights))
    assert _component_sizes(capped).max() <= largest * (1 + 1e-9)
    assert _component_sizes(free).max() > largest


def _component_sizes(found: low_rank.Factors) -> Tensor:
    return np.prod([np.linalg.norm(t, axis=axis) for t, axis in zip(found.tensors, (1, 1, 0))], axis=0)


def test_zero_weights_and_zero_importance_have_finite_factors() -> None:
    weights, hessian, importance = layer(6, 4, 4)
    for some, counts in ((0 * weights, importance), (weights, 0 * importance), (weights, np.r_[0.0, importance[1:]])):
        parts = some, hessian, counts
        for factors in (
            low_rank.Svd(*parts, (2, 2)).factors(2),
            low_rank.Spatial(*parts, (2, 2), 2).factors(2),
            low_rank.Tucker(*parts, (2, 2), 2).factors(2, 2),
            low_rank.cp(*parts, (2, 2), 2),
        ):
            assert all(np.isfinite(tensor).all() for tensor in low_rank.polish(factors, *parts).tensors)
