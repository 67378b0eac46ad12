"""Sums of binary planes: w ~ a_1 b_1 + ... + a_n b_n with b_i in {-1, 1}, one set of coefficients for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passes.solvers.codebook import Indices, assign
from passes.solvers.hessian import Matrix, Vector, row_losses

ROUNDS = 4
NEAR = 1e-5
"""Share of a row's energy that rounding the coefficients may cost: a hundredth of what four planes leave."""
_RIDGE = 1e-9


def combinations(count: int) -> NDArray[np.float64]:
    """Signs of every combination of planes, float64 [2**count, count]: bit i of the row's number is plane i."""
    bits = np.arange(1 << count)[:, None] >> np.arange(count) & 1
    return 2 * bits.astype(np.float64) - 1


def greedy(weights: Matrix, count: int) -> tuple[Matrix, Indices]:
    """Plane after plane takes the signs of what is left, and the mean magnitude of it as its coefficient.

    Args:
        weights: float64 [rows, taps].
        count: Of the planes.

    Returns:
        Coefficients, float64 [rows, count], and signs as bits, int64 [rows, taps].

    Source: Rastegari et al., XNOR-Net, ECCV 2016, section 3.1, applied to its own residual (Guo et al., Network
        Sketching, CVPR 2017, algorithm 1).
    """
    left, bits = weights.copy(), np.zeros(weights.shape, np.int64)
    coefficients = np.empty((len(weights), count))
    for plane in range(count):
        signs = np.where(left >= 0, 1.0, -1.0)
        coefficients[:, plane] = np.abs(left).mean(axis=1)
        bits |= (signs > 0).astype(np.int64) << plane
        left -= coefficients[:, plane, None] * signs
    return coefficients, bits


def least_squares(weights: Matrix, hessian: Matrix, bits: Indices, count: int) -> Matrix:
    """The coefficients with the least loss for given signs, float64 [rows, count]; negative ones are possible."""
    signs = combinations(count)[bits]  # [rows, taps, count]
    pulled = np.einsum("st,rtn->rsn", hessian, signs, optimize=True)
    normal = np.einsum("rsm,rsn->rmn", signs, pulled, optimize=True)
    right = np.einsum("rs,rsn->rn", weights, pulled, optimize=True)
    # Two equal planes share their coefficient: a little ridge decides how.
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(count)
    return np.asarray(np.linalg.solve(normal + ridge, right[:, :, None])[:, :, 0])


def fit(weights: Matrix, hessian: Matrix, count: int) -> tuple[Matrix, Indices]:
    """Coefficients and signs with a small loss under H: greedy, then by turns least squares and the GPTQ sweep.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H.
        count: Of the planes, 1 to 4.

    Returns:
        As `greedy`; coefficients descending and not negative, the best found of each row.
    """
    greedy_coefficients, bits = greedy(weights, count)
    coefficients = least_squares(weights, hessian, bits, count)
    best = row_losses(weights - values(coefficients, bits), hessian)
    tried, tried_bits = coefficients, bits
    for _ in range(ROUNDS):
        tried_bits = assign(weights, hessian, tried @ combinations(count).T)
        tried = least_squares(weights, hessian, tried_bits, count)
        losses = row_losses(weights - values(tried, tried_bits), hessian)
        is_better = losses < best
        coefficients = np.where(is_better[:, None], tried, coefficients)
        bits = np.where(is_better[:, None], tried_bits, bits)
        best = np.where(is_better, losses, best)
    return _ordered(coefficients, bits)


def values(coefficients: Matrix, bits: Indices) -> Matrix:
    """The weights that they stand for, float64 [rows, taps]."""
    table = coefficients @ combinations(coefficients.shape[1]).T
    return np.take_along_axis(table, bits, axis=1)


def _ordered(coefficients: Matrix, bits: Indices) -> tuple[Matrix, Indices]:
    """The same weights with coefficients that descend from row to row and are not negative."""
    order = np.argsort(-np.abs(coefficients), axis=1, kind="stable")
    moved = np.zeros_like(bits)
    for place in range(coefficients.shape[1]):
        plane = order[:, place, None]
        is_flipped = np.take_along_axis(coefficients, plane, axis=1) < 0
        moved |= ((bits >> plane & 1) ^ is_flipped) << place
    return np.abs(np.take_along_axis(coefficients, order, axis=1)), moved


def integers(coefficients: Matrix, scale: Vector, limit: int) -> Indices:
    """Whole multiples of `scale` near the coefficients, each row's sum at most `limit`, int64 [rows, count]."""
    whole = np.rint(coefficients / scale[:, None]).astype(np.int64)
    for row in np.flatnonzero(whole.sum(axis=1) > limit):
        whole[row] = np.floor(coefficients[row] * limit / coefficients[row].sum())
    return whole


def fine_scale(coefficients: Matrix, limit: int) -> Vector:
    """The scale of each row at which its coefficients are nearest to integers whose sum is at most `limit`.

    Of the scales sum(a) / m, m up to `limit`, the coarsest whose error is within NEAR of the row's energy,
    or else the one with the least error. 1 for a row of zeros.
    """
    total, energy = coefficients.sum(axis=1), np.square(coefficients).sum(axis=1)
    best, scale = np.full(len(total), np.inf), np.ones(len(total))
    for divisor in range(1, limit + 1):
        step = np.where(total > 0, total / divisor, 1.0)
        left = coefficients - integers(coefficients, step, limit) * step[:, None]
        error = np.square(left).sum(axis=1)
        is_better = (error < best) & (best > NEAR * energy)
        scale, best = np.where(is_better, step, scale), np.where(is_better, error, best)
    return scale
