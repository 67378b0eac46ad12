"""Ternary weights {-a, 0, a}, one a for each row."""

from __future__ import annotations

import numpy as np

from passes.solvers.codebook import assign, polish
from passes.solvers.hessian import Matrix, Vector, row_losses

ROUNDS = 3


def optimal(weights: Matrix, importance: Matrix | Vector | None = None) -> tuple[Vector, Matrix]:
    """The a and signs t with the least sum of h * (w - a t)**2 in every row, exactly.

    For any a, w takes t != 0 where |w| > a / 2: so the largest |w| do, and of each number k of them the best a
    removes (sum h |w|)**2 / sum h of the energy.

    Args:
        weights: float64 [rows, taps].
        importance: h > 0, float64 [rows, taps] or [taps]; None counts all alike.

    Returns:
        a, float64 [rows], 0 for a row of zeros; t, float64 [rows, taps], of -1, 0 and 1.

    Source: Li and Liu, Ternary Weight Networks, 2016, equation 5, solved exactly instead of by its threshold 0.7 E|w|.
    """
    h = np.broadcast_to(1.0 if importance is None else importance, weights.shape)
    order = np.argsort(-np.abs(weights), axis=1, kind="stable")
    size, mass = (np.take_along_axis(each, order, axis=1) for each in (np.abs(weights), h))
    moment, total = np.cumsum(mass * size, axis=1), np.cumsum(mass, axis=1)
    best = (moment**2 / total).argmax(axis=1)
    at = np.arange(len(weights))
    is_used = np.zeros(weights.shape, bool)
    np.put_along_axis(is_used, order, np.arange(weights.shape[1]) <= best[:, None], axis=1)
    return moment[at, best] / total[at, best], np.sign(weights) * is_used


def compensated(weights: Matrix, hessian: Matrix) -> tuple[Vector, Matrix]:
    """The a and signs t with a small loss (w - a t) H (w - a t)^T in every row: swept, refitted, swept again.

    Starts from `optimal` under diag H, and keeps the best of each row.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H, float64 [taps, taps].

    Returns:
        As `optimal`.
    """
    start, signs = optimal(weights, np.diagonal(hessian))
    scale = refitted(weights, hessian, signs, start)
    best = row_losses(weights - scale[:, None] * signs, hessian)
    tried = scale
    for _ in range(ROUNDS):
        moved = at_scale(weights, hessian, tried, signs)
        tried = refitted(weights, hessian, moved, tried)
        losses = row_losses(weights - tried[:, None] * moved, hessian)
        is_better = losses < best
        scale, signs = np.where(is_better, tried, scale), np.where(is_better[:, None], moved, signs)
        best = np.where(is_better, losses, best)
    return scale, signs


def at_scale(weights: Matrix, hessian: Matrix, scale: Vector, start: Matrix | None = None) -> Matrix:
    """Signs t for given a, float64 [rows, taps]: by the GPTQ sweep, or from those of `start`; then by a descent.

    With `start`, float64 [rows, taps], every row has whichever is better.
    """
    levels = scale[:, None] * np.array([-1.0, 0.0, 1.0])
    swept = np.asarray(assign(weights, hessian, levels) - 1.0, np.float64)
    if start is None:
        return swept
    kept = polish(weights, start.astype(np.int64) + 1, hessian, levels) - 1.0
    left, right = (row_losses(scale[:, None] * each - weights, hessian) for each in (kept, swept))
    return np.asarray(np.where((right < left)[:, None], swept, kept), np.float64)


def refitted(weights: Matrix, hessian: Matrix, signs: Matrix, scale: Vector) -> Vector:
    """The a > 0 with the least loss for given signs, t H w / t H t; `scale` where there is none."""
    pulled = signs @ hessian
    power = np.einsum("rt,rt->r", pulled, signs)
    moment = np.einsum("rt,rt->r", pulled, weights)
    is_known = (power > 0) & (moment > 0)
    return np.where(is_known, moment / np.where(is_known, power, 1.0), scale)
