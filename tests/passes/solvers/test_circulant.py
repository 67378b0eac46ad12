"""Laws of circulant projection: what is circulant is found, and the projection is the nearest such matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import circulant
from passes.solvers.circulant import Blocks, toeplitz
from passes.solvers.hessian import loss

Tensor = NDArray[np.float64]

FORMS = st.builds(Blocks, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(2, 12))


def layer(blocks: Blocks, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random weights, a correlated H and importances."""
    rng, taps = np.random.default_rng(seed), blocks.channels * blocks.positions
    mixed = rng.normal(size=(taps, taps)) * np.geomspace(0.1, 2, taps)
    hessian = mixed @ mixed.T / taps + 0.05 * np.eye(taps)
    return rng.normal(size=(blocks.rows, taps)), hessian, rng.uniform(0.2, 3.0, blocks.rows)


def planted(blocks: Blocks, seed: int = 0) -> Tensor:
    return blocks.expand(np.random.default_rng(seed).normal(size=(blocks.down, blocks.row_parameters)))


@given(blocks=FORMS)
def test_weights_are_equal_exactly_along_the_diagonals_of_a_block(blocks: Blocks) -> None:
    weights = planted(blocks).reshape(blocks.rows, blocks.channels, blocks.positions)
    for i in range(blocks.rows):
        for j in range(blocks.channels):
            a, b = i - i % blocks.block, j - j % blocks.block
            for k in range(b, min(b + blocks.block, blocks.channels)):
                for h in range(a, min(a + blocks.block, blocks.rows)):
                    same = (i - j) % blocks.block == (h - k) % blocks.block
                    assert np.array_equal(weights[i, j], weights[h, k]) == same


def test_a_square_block_is_the_circulant_of_its_first_column() -> None:
    first = np.arange(4.0)
    expected = np.array([np.roll(first, n) for n in range(4)]).T
    np.testing.assert_array_equal(Blocks(4, 4, 1, 4).expand(first[None]), expected)


def test_a_circulant_product_is_a_product_of_spectra() -> None:
    rng = np.random.default_rng(0)
    first, x = rng.normal(size=(2, 16))
    product = np.fft.ifft(np.fft.fft(first) * np.fft.fft(x)).real
    np.testing.assert_allclose(Blocks(16, 16, 1, 16).expand(first[None]) @ x, product, atol=1e-12)


@given(blocks=FORMS, seed=st.integers(0, 99))
def test_projection_is_idempotent_and_orthogonal(blocks: Blocks, seed: int) -> None:
    weights, _, _ = layer(blocks, seed)
    nearest = blocks.expand(circulant.projected(weights, blocks))
    again = blocks.expand(circulant.projected(nearest, blocks))
    np.testing.assert_allclose(again, nearest, rtol=1e-12, atol=1e-12)
    other = planted(blocks, seed + 1)
    assert np.sum((weights - nearest) * other) == pytest.approx(0, abs=1e-9)


@settings(max_examples=40)
@given(blocks=FORMS, seed=st.integers(0, 99))
def test_the_fit_under_h_is_idempotent_and_orthogonal_in_its_norm(blocks: Blocks, seed: int) -> None:
    weights, hessian, importance = layer(blocks, seed)
    parameters, factors = circulant.fitted(weights, hessian, importance, blocks)
    assert (factors == 1).all()
    nearest = blocks.expand(parameters)
    again, _ = circulant.fitted(nearest, hessian, importance, blocks)
    np.testing.assert_allclose(blocks.expand(again), nearest, atol=1e-9)
    other = planted(blocks, seed + 1)
    slope = np.sum(importance[:, None] * (weights - nearest) @ hessian * other)
    assert slope == pytest.approx(0, abs=1e-7)
    plain = blocks.expand(circulant.projected(weights, blocks))
    noise = 1e-12 * loss(weights, hessian, importance)
    assert loss(nearest - weights, hessian, importance) <= loss(plain - weights, hessian, importance) + noise


@given(blocks=FORMS)
def test_with_h_of_one_and_even_importance_the_fit_is_the_projection(blocks: Blocks) -> None:
    weights, hessian, importance = layer(blocks)
    fitted, _ = circulant.fitted(weights, np.eye(len(hessian)), np.full_like(importance, 2.0), blocks)
    np.testing.assert_allclose(blocks.expand(fitted), blocks.expand(circulant.projected(weights, blocks)), atol=1e-9)


def test_factors_of_rows_only_help() -> None:
    blocks = Blocks(12, 8, 2, 4)
    weights, hessian, importance = layer(blocks)
    losses = []
    for rounds in range(4):
        parameters, factors = circulant.fitted(weights, hessian, importance, blocks, rounds)
        assert (factors > 0).all()
        losses.append(loss(factors[:, None] * blocks.expand(parameters) - weights, hessian, importance))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_a_circulant_with_scaled_rows_is_fitted_exactly() -> None:
    blocks = Blocks(8, 8, 1, 8)
    _, hessian, importance = layer(blocks)
    scales = np.random.default_rng(1).uniform(0.5, 2, 8)
    weights = scales[:, None] * planted(blocks)
    parameters, factors = circulant.fitted(weights, hessian, importance, blocks, rounds=60)
    error = loss(factors[:, None] * blocks.expand(parameters) - weights, hessian, importance)
    assert error < 1e-6 * loss(weights, hessian, importance)


@pytest.mark.parametrize(
    "blocks",
    [Blocks(12, 8, 1, 2), Blocks(12, 8, 9, 4), Blocks(16, 24, 1, 8), Blocks(10, 10, 1, 10), Blocks(9, 15, 4, 3)]
    + [Blocks(13, 10, 1, 4), Blocks(20, 7, 1, 20), Blocks(7, 20, 1, 20), toeplitz(12, 8, 3), toeplitz(8, 8)],
    ids=lambda b: f"{b.rows}x{b.channels}x{b.positions}b{b.block}",
)
def test_planted_structures_are_recognised_through_float32_noise(blocks: Blocks) -> None:
    weights = planted(blocks) * (1 + 1e-7 * np.random.default_rng(1).normal(size=(blocks.rows, 1)))
    assert circulant.recognised(weights.astype(np.float32).astype(np.float64), blocks.positions) == blocks


def test_a_circulant_is_recognised_as_such_and_not_as_the_toeplitz_that_it_also_is() -> None:
    assert circulant.recognised(planted(Blocks(8, 8, 1, 8))) == Blocks(8, 8, 1, 8)


def test_random_weights_and_noise_beyond_the_tolerance_are_not_recognised() -> None:
    blocks = Blocks(12, 8, 1, 4)
    weights = planted(blocks)
    assert circulant.recognised(np.random.default_rng(5).normal(size=(12, 8))) is None
    weights[3, 5] += 1e-4
    assert circulant.recognised(weights) is None
    assert circulant.recognised(weights, noise=1e-3) == blocks
    assert circulant.recognised(0 * weights) is None


def test_parameters_count_what_is_stored() -> None:
    assert Blocks(16, 24, 9, 8).parameters == 16 * 24 * 9 // 8
    assert toeplitz(12, 8, 3).parameters == 19 * 3
    with pytest.raises(ValueError, match="at least 2 rows"):
        Blocks(4, 4, 1, 1)
