"""Rounding of a layer's weights, one input after the other: what one column errs, the columns behind it make good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Matrix, Vector, Walk

Column: TypeAlias = Callable[[Vector, int, float], Vector]
"""(values [rows], tap, what a squared error of this tap costs once the taps behind it have made good) -> new values."""

BLOCK = 128
SWEEPS_MAX = 16
WHOLE, POLISH_BLOCK = 1 << 14, 64
"""Layers of more weights are polished in blocks of so many columns."""
_FRACTIONS = np.linspace(1.0, 0.35, 40)


def sweep(weights: Matrix, hessian: Matrix, column: Column, walk: Walk | None = None) -> Matrix:
    """Replace the columns of `weights` one by one, most active input first, and compensate in the others.

    q_j = column(w_j); e = (w_j - q_j) / U_jj; w_k -= e U_jk for all k behind j, in blocks of 128 columns.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H, float64 [taps, taps].
        column: Rounds, prunes, or both.
        walk: Along H, where it is known.

    Returns:
        float64 [rows, taps], made of what `column` returned.

    Source: Frantar et al., GPTQ, ICLR 2023, algorithm 1, with the order of descending H_jj.
    """
    walk = walk or Walk.along(hessian)
    order, upper = walk.order, walk.upper
    work, result = weights[:, order].copy(), np.empty_like(weights)
    taps = work.shape[1]
    for start in range(0, taps, BLOCK):
        end = min(start + BLOCK, taps)
        errors = np.empty((len(work), end - start))
        for j in range(start, end):
            pivot = float(upper[j, j])
            chosen = column(work[:, j], int(order[j]), pivot**-2)
            result[:, order[j]] = chosen
            errors[:, j - start] = (work[:, j] - chosen) / pivot
            work[:, j + 1 : end] -= errors[:, j - start, None] * upper[j, j + 1 : end]
        work[:, end:] -= errors @ upper[start:end, end:]
    return result


def mse_scales(weights: Matrix, limit: int, hessian_diagonal: Vector | None = None) -> Vector:
    """The scale of each row with the least squared rounding error, of 40 between 100 % and 35 % of max|w| / limit.

    Args:
        weights: float64 [rows, taps].
        limit: Largest magnitude of a code.
        hessian_diagonal: Weight of each tap's error, float64 [taps]; None counts all alike.

    Returns:
        float64 [rows]; 1 for a row of zeros.

    Source: Choukroun et al., Low-bit Quantization of Neural Networks
        for Efficient Inference, ICCV Workshops 2019, section 3.
    """
    peak = np.abs(weights).max(axis=1, initial=0.0)
    full = np.where(peak > 0, peak, limit) / limit
    best, scale = np.full(len(weights), np.inf), full.copy()
    for fraction in _FRACTIONS:
        tried = full * fraction
        rounded = np.clip(np.rint(weights / tried[:, None]), -limit, limit) * tried[:, None]
        squares = np.square(rounded - weights)
        error = squares.sum(axis=1) if hessian_diagonal is None else squares @ hessian_diagonal
        scale = np.where(error < best, tried, scale)
        best = np.minimum(error, best)
    return scale


@dataclass(frozen=True, eq=False)
class Rate:
    """What codes cost to store, in units of the loss.

    Attributes:
        price: Loss that one bit is worth.
        bits: Of every code from -limit to limit, float64 [2 * limit + 1].
    """

    price: float
    bits: Vector

    def cost(self, codes: NDArray[np.float64]) -> NDArray[np.float64]:
        """price * bits of integers in -limit..limit."""
        return self._prices[codes.astype(np.intp) + len(self.bits) // 2]

    @cached_property
    def _prices(self) -> Vector:
        return self.price * self.bits

    @cached_property
    def _nearer_prices(self) -> Vector:
        """Of the code next to each one on the way to 0."""
        limit = len(self.bits) // 2
        codes = np.arange(-limit, limit + 1)
        return self._prices[codes - np.sign(codes) + limit]

    def cheapest(
        self, exact: NDArray[np.float64], nearest: NDArray[np.float64], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the nearest integer, the next one towards 0 and 0: the one with the least weighted error plus rate.

        Args:
            exact: What is to be rounded, any shape.
            nearest: The nearest integers in -limit..limit.
            weight: Of a squared error.

        Returns:
            The integers, and their weighted error plus rate.
        """
        limit = len(self.bits) // 2
        place = nearest.astype(np.intp) + limit
        cost = weight * np.square(exact - nearest) + self._prices[place]
        nearer = nearest - np.sign(nearest)
        other = weight * np.square(exact - nearer) + self._nearer_prices[place]
        chosen, cost = np.where(other < cost, nearer, nearest), np.minimum(cost, other)
        other = weight * np.square(exact) + self._prices[limit]
        return np.where(other < cost, 0.0, chosen), np.minimum(cost, other)


def code_lengths(codes: NDArray[np.float64], limit: int) -> Vector:
    """Bits of every code from -limit to limit by the codes' own frequencies, smoothed; symmetric in the sign."""
    counts = np.bincount(np.abs(codes).astype(np.int64).ravel(), minlength=limit + 1).astype(np.float64)
    counts[1:] = counts[1:] / 2
    # The tail of few samples is made geometric: a code that was not seen yet can still be written.
    smooth = counts + 0.5 * 0.5 ** np.minimum(np.arange(limit + 1), 1000)
    both = np.concatenate([smooth[:0:-1], smooth])
    return np.asarray(-np.log2(both / both.sum()))


def gptq(
    weights: Matrix,
    hessian: Matrix,
    scale: Vector,
    limit: int,
    *,
    importance: Vector | None = None,
    rate: Rate | None = None,
    keep: NDArray[np.bool_] | None = None,
    walk: Walk | None = None,
) -> Matrix:
    """Integer codes of `weights` by the GPTQ sweep, float64 [rows, taps].

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H.
        scale: float64 [rows].
        limit: Largest magnitude of a code.
        importance: What a row's loss counts, float64 [rows]; matters with `rate` alone.
        rate: Lets a code that is cheaper to store win where it costs less than it saves.
        keep: bool [rows, taps]; codes elsewhere are 0, and compensated.
        walk: Along H, where it is known.
    """

    def column(values: Vector, tap: int, cost: float) -> Vector:
        exact = values / scale
        chosen = np.clip(np.rint(exact), -limit, limit)
        if rate is not None:
            weight = cost * np.square(scale) * (1.0 if importance is None else importance)
            chosen, _ = rate.cheapest(exact, chosen, weight)
        if keep is not None:
            chosen = np.where(keep[:, tap], chosen, 0.0)
        return chosen * scale

    return np.rint(sweep(weights, hessian, column, walk) / scale[:, None])


def polish(
    exact: Matrix,
    codes: Matrix,
    hessian: Matrix,
    limit: int,
    *,
    weight: Vector | None = None,
    rate: Rate | None = None,
    keep: NDArray[np.bool_] | None = None,
    reach: float = np.inf,
    sweeps: int = SWEEPS_MAX,
) -> Matrix:
    """Codes whose loss (q - w) H (q - w)^T, plus rate, is no larger than that of `codes`: one weight at a time.

    Args:
        exact: w in units of the row's scale, float64 [rows, taps].
        codes: q to start from, integers in float64 [rows, taps].
        hessian: H, float64 [taps, taps].
        limit: Largest magnitude of a code.
        weight: importance * scale**2 of every row, float64 [rows]: needed with `rate`.
        rate: As in `gptq`.
        keep: bool [rows, taps]: codes elsewhere stay.
        reach: Every code stays within this of `exact`.
        sweeps: At most.

    Source: Nagel et al., Up or Down?, ICML 2020, section 3: the same objective, by coordinate descent.
    """
    variance = np.maximum(np.diagonal(hessian), np.finfo(np.float64).tiny)
    low = np.maximum(np.ceil(exact - reach), -limit) if np.isfinite(reach) else np.full_like(exact, -limit)
    high = np.minimum(np.floor(exact + reach), limit) if np.isfinite(reach) else np.full_like(exact, limit)
    free = (low <= high) if keep is None else (low <= high) & keep
    slope = np.ascontiguousarray(((codes - exact) @ hessian).T)
    # Tap by tap, so everything lies tap by tap: [taps, rows].
    q, low, high, free = (np.array(each.T, order="C") for each in (codes, low, high, free))
    each = np.ones(len(codes)) if weight is None else weight
    result, rows = q.copy(), np.arange(len(codes))
    # The slopes of a large layer outside of the block are brought up to date at its end, all at once.
    width = len(q) if q.size <= WHOLE else POLISH_BLOCK
    for number in range(sweeps):
        has_moved = np.zeros(len(rows), np.bool_)
        for start in range(0, len(q), width):
            here = slice(start, min(start + width, len(q)))
            parts = (q[here], slope[here], variance[here], low[here], high[here], free[here])
            moved = _descended(*parts, hessian[here, here], each, rate, is_first=number == 0)
            if width < len(q) and moved.any():
                slope[:start] += hessian[:start, here] @ moved
                slope[here.stop :] += hessian[here.stop :, here] @ moved
            has_moved |= moved.any(axis=0)
        result[:, rows] = q
        if not has_moved.any():
            break
        # Rows do not know of each other: one in which nothing moved is done.
        q, slope, low, high, free = (np.ascontiguousarray(some[:, has_moved]) for some in (q, slope, low, high, free))
        each, rows = each[has_moved], rows[has_moved]
    return np.ascontiguousarray(result.T)


def _descended(
    q: Matrix,
    slope: Matrix,
    variance: Vector,
    low: Matrix,
    high: Matrix,
    free: NDArray[np.bool_],
    hessian: Matrix,
    each: Vector,
    rate: Rate | None,
    *,
    is_first: bool,
) -> Matrix:
    """One walk over some taps, [taps, rows] each: `q` and `slope` are brought up to date; returns the change of `q`.

    Most taps have moves to make in the first sweep; in later ones, those are visited that have one before it.
    """
    before = q.copy()
    taps = np.arange(len(q))
    if not is_first:
        steps = _steps(q, slope, variance[:, None], low, high, free, each, rate)
        taps = np.flatnonzero(steps.any(axis=1))
    for tap in taps:
        step = _steps(q[tap], slope[tap], variance[tap], low[tap], high[tap], free[tap], each, rate)
        if step.any():
            q[tap] += step
            slope += hessian[tap, :, None] * step
    return q - before


def _steps(
    q: NDArray[np.float64],
    slope: NDArray[np.float64],
    variance: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    free: NDArray[np.bool_],
    each: Vector,
    rate: Rate | None,
) -> NDArray[np.float64]:
    """How far each code goes if it alone may: only where it costs truly less, so that the descent ends."""
    best = q - slope / variance
    new = np.minimum(np.maximum(np.rint(best), low), high)
    if rate is not None:
        weight = each * variance
        new, after = rate.cheapest(best, new, weight)
        before = weight * np.square(q - best) + rate.cost(q)
        free = free & (after < before - 1e-12 * np.abs(before))
    return np.where(free, new - q, 0.0)
