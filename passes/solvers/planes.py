"""Sums of binary planes: w ~ a_1 b_1 + ... + a_n b_n with b_i in {-1, 1}, one set of coefficients for each row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passes.solvers.codebook import Indices, assign, polish
from passes.solvers.hessian import Matrix, Vector, row_losses

_RIDGE = 1e-9
PLAIN_ROUNDS = 8
ROUNDS = 4
NEAR = 1e-12
"""Share of a row's energy below which coefficients count as integers: float noise squared."""


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
    """Coefficients and signs with a small loss under H: by turns least squares and new signs.

    The signs are those nearest to the weights at first, then those of the GPTQ sweep.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H.
        count: Of the planes, 1 to 4.

    Returns:
        As `greedy`; coefficients descending and not negative, the best found of each row.

    Source: Xu et al., Alternating Multi-bit Quantization, ICLR 2018, for the turns.
    """
    even = np.abs(weights).max(axis=1, keepdims=True) * 2.0 ** np.arange(count)[::-1] / (2**count - 1)
    starts = [_alternated(weights, hessian, start) for start in (greedy(weights, count)[0], even)]
    left, right = (row_losses(weights - values(*start), hessian) for start in starts)
    is_even, best = right < left, np.minimum(left, right)
    coefficients, bits = (np.where(is_even[:, None], b, a) for a, b in zip(*starts, strict=True))
    tried = coefficients
    for _ in range(ROUNDS):
        tried_bits = assign(weights, hessian, tried @ combinations(count).T)
        tried = least_squares(weights, hessian, tried_bits, count)
        losses = row_losses(weights - values(tried, tried_bits), hessian)
        is_better = losses < best
        coefficients = np.where(is_better[:, None], tried, coefficients)
        bits = np.where(is_better[:, None], tried_bits, bits)
        best = np.where(is_better, losses, best)
    return _ordered(coefficients, bits)


def at_scale(weights: Matrix, hessian: Matrix, scale: Vector, count: int, limit: int) -> tuple[Indices, Indices]:
    """Coefficients that are whole multiples of `scale`, and signs for these.

    The signs of `fit` are improved one by one, or swept anew: whichever is better for a row.

    Args:
        weights, hessian, count: As of `fit`.
        scale: float64 [rows].
        limit: Largest sum of a row's coefficients.

    Returns:
        int64 [rows, count] and int64 [rows, taps].
    """
    coefficients, bits = fit(weights, hessian, count)
    whole = integers(coefficients, scale, limit)
    levels = whole @ combinations(count).T * scale[:, None]
    kept, swept = polish(weights, bits, hessian, levels), assign(weights, hessian, levels)
    left, right = (row_losses(np.take_along_axis(levels, each, 1) - weights, hessian) for each in (kept, swept))
    return whole, np.where((right < left)[:, None], swept, kept)


def _alternated(weights: Matrix, hessian: Matrix, start: Matrix) -> tuple[Matrix, Indices]:
    """By turns the signs nearest to the weights and the least squares under diag H; at last under H."""
    count, alone, coefficients = start.shape[1], np.diag(np.diagonal(hessian)), start
    for _ in range(PLAIN_ROUNDS):
        levels = coefficients @ combinations(count).T
        bits = np.abs(weights[:, :, None] - levels[:, None, :]).argmin(axis=2)
        coefficients = least_squares(weights, alone, bits, count)
    return least_squares(weights, hessian, bits, count), bits


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

    Of the scales sum(a) / m, m up to `limit`, the coarsest without error; or else, of those in the upper half, which
    bear being moved, the one with the least. 1 for a row of zeros.
    """
    total, energy = coefficients.sum(axis=1), np.square(coefficients).sum(axis=1)
    best, scale = np.full(len(total), np.inf), np.ones(len(total))
    for divisor in range(1, limit + 1):
        step = np.where(total > 0, total / divisor, 1.0)
        left = coefficients - integers(coefficients, step, limit) * step[:, None]
        error = np.square(left).sum(axis=1)
        is_sound = (error <= NEAR * energy) | (2 * divisor >= limit)
        is_better = is_sound & (error < best) & (best > NEAR * energy)
        scale, best = np.where(is_better, step, scale), np.where(is_better, error, best)
    return scale
