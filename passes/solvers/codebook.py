"""Codebooks of numbers: the optimal one by dynamic programming, and the best use of a given one under H."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from passes.solvers.gptq import sweep
from passes.solvers.hessian import Matrix, Vector, Walk

Indices = NDArray[np.int64]
Stack = NDArray[np.float64]
"""float64 [groups, ...]: one matrix for each group of a convolution."""

BINS = 2048
"""More distinct values than this are put into bins first, each at the mean of its values."""
LLOYD_ROUNDS = 50
POLISH_SWEEPS = 8
REFIT_ROUNDS = 20
REFIT_SHARE = 1e-6
"""Of the pull on the entries, squared, below which no integer entry moves any more."""
REFIT_WORK = 1 << 32
"""Multiplications that a refit may take."""


def kmeans(values: Vector, weights: Vector, count: int, *, zero: bool = False) -> Vector:
    """The centres with the least sum of weights * (values - nearest centre)**2.

    Exact up to BINS distinct values; beyond that exact on the bins, then improved on the values by Lloyd's rounds.

    Args:
        values: float64 [n], any order.
        weights: float64 [n], at least 0.
        count: Of the centres, at least 1.
        zero: Whether one of them must be 0.

    Returns:
        Ascending float64 [up to count]; fewer where there are fewer distinct values.

    Source: Wang and Song, Ckmeans.1d.dp, R Journal 2011: the recursion, here by divide and conquer on its monotone
        minimizers; Han et al., Deep Compression, ICLR 2016, section 3, for sharing weights so.
    """
    points, mass, is_binned = _merged(values, weights)
    centres = _optimal(points, mass, count, zero=zero)
    return lloyd(values, weights, centres, zero=zero) if is_binned else centres


def linear_centres(values: Vector, count: int, *, zero: bool = False) -> Vector:
    """`count` centres evenly spaced over the range of `values`, the smallest magnitude replaced by 0 for `zero`.

    Source: Han et al., Deep Compression, ICLR 2016, section 3.2.
    """
    centres = np.linspace(values.min(), values.max(), count)
    if zero:
        centres[np.abs(centres).argmin()] = 0.0
    return np.unique(centres)


def lloyd(values: Vector, weights: Vector, centres: Vector, *, zero: bool = False) -> Vector:
    """Better centres by turns of assigning to the nearest and moving to the mean; a centre of 0 stays for `zero`."""
    order = np.argsort(values, kind="stable")
    points = values[order]
    sums = [np.concatenate([[0.0], np.cumsum(weights[order] * points**p)]) for p in range(2)]
    for _ in range(LLOYD_ROUNDS):
        edges = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [len(points)]])
        mass, moment = (np.diff(total[bounds]) for total in sums)
        moved = np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), centres)
        if zero:
            moved[centres == 0] = 0.0
        if np.array_equal(moved, centres):
            break
        centres = np.sort(moved)
    return np.unique(centres)


def nearest(values: NDArray[np.float64], levels: Vector) -> Indices:
    """Index of the nearest of ascending `levels`, in the shape of `values`."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values)


def distortion(values: Vector, weights: Vector, centres: Vector) -> float:
    """Sum of weights * (values - nearest centre)**2."""
    return float(weights @ np.square(values - centres[nearest(values, centres)]))


def _merged(values: Vector, weights: Vector) -> tuple[Vector, Vector, bool]:
    """Distinct values that carry weight, ascending, and their weights; in bins where they are too many."""
    if not weights.any():
        weights = np.ones_like(weights)
    points, inverse = np.unique(values[weights > 0], return_inverse=True)
    mass = np.bincount(inverse, weights[weights > 0]).astype(np.float64)
    if len(points) <= BINS:
        return points, mass, False
    low, high = points[0], points[-1]
    bins = np.minimum(((points - low) / (high - low) * BINS).astype(np.int64), BINS - 1)
    total = np.bincount(bins, mass, BINS).astype(np.float64)
    middle = np.bincount(bins, mass * points, BINS)
    return middle[total > 0] / total[total > 0], total[total > 0], True


def _optimal(points: Vector, mass: Vector, count: int, *, zero: bool) -> Vector:
    """The dynamic program over the number of centres and of points, in two layers: 0 not used yet, and used.

    plain[i] is the least cost of the first i points with k free centres; with 0 among the k, used[i].
    """
    n, count = len(points), min(count, len(points) + zero)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(mass * points**p)]) for p in range(3)])
    plain = np.full(n + 1, np.inf)
    plain[0] = 0.0
    used = np.full(n + 1, np.inf)
    steps = []
    for k in range(1, count + 1):
        through, zero_from = _zero_extended(plain, sums[2])
        plain, plain_from = _extended(plain, sums, k - 1)
        used_from = zero_from
        if zero and k > 1:
            used, used_from = _extended(used, sums, k - 2)
        is_zero = through < used
        steps.append((plain_from, np.where(is_zero, zero_from, used_from), is_zero))
        used = np.where(is_zero, through, used)
    return _centres(steps, sums, zero=zero)


def _centres(steps: list[tuple[Indices, Indices, NDArray[np.bool_]]], sums: Matrix, *, zero: bool) -> Vector:
    """The centres that the program's choices lead to, from the last point back."""
    found, end, is_used = [], sums.shape[1] - 1, zero
    for plain_from, used_from, is_zero in reversed(steps):
        start = int((used_from if is_used else plain_from)[end])
        if is_used and is_zero[end]:
            found.append(0.0)
            is_used = False
        else:
            mass, moment = sums[0, end] - sums[0, start], sums[1, end] - sums[1, start]
            found.append(float(moment / mass) if mass > 0 else 0.0)
        end = start
    return np.unique(found)


def _zero_extended(before: Vector, squares: Vector) -> tuple[Vector, Indices]:
    """Least over j <= i of before[j] + cost of giving points j..i to 0, and that j."""
    relative = before - squares
    best = np.minimum.accumulate(relative)
    is_new = np.concatenate([[True], relative[1:] < best[:-1]])
    return best + squares, np.maximum.accumulate(np.where(is_new, np.arange(len(before)), 0))


def _extended(before: Vector, sums: Matrix, first: int) -> tuple[Vector, Indices]:
    """Least over first <= j < i of before[j] + cost of one centre for points j..i, and that j.

    The best j never falls as i grows, so halving: all midpoints of one depth at once, each between its neighbours' j.
    """
    n = len(before) - 1
    result, source = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
    for ends, lows, highs in _depths(first + 1, n, source, first):
        lengths = np.minimum(highs, ends - 1) - lows + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        segment = np.repeat(np.arange(len(ends)), lengths)
        j = np.arange(lengths.sum()) - starts[segment] + lows[segment]
        mass, moment, square = sums[:, ends[segment]] - sums[:, j]
        # A mass that is lost in the sums' last digit costs nothing.
        cost = before[j] + np.where(mass > 0, np.maximum(square - moment**2 / np.where(mass > 0, mass, 1.0), 0.0), 0.0)
        least = np.minimum.reduceat(cost, starts)
        hits = np.flatnonzero(cost == least[segment])
        is_first = np.diff(segment[hits], prepend=-1) > 0
        result[ends], source[ends] = least, j[hits[is_first]]
    return result, source


def _depths(low: int, high: int, source: Indices, first: int) -> Iterator[tuple[Indices, Indices, Indices]]:
    """Midpoints of low..high by depth, with the range of j that the midpoints above (in `source` by then) leave."""
    left, right = np.array([low]), np.array([high])
    while len(left := left[(keep := left <= right)]):
        right = right[keep]
        middle = (left + right) // 2
        lows = np.where(left == low, first, source[np.maximum(left - 1, 0)])
        highs = np.where(right == high, high - 1, source[np.minimum(right + 1, high)])
        yield middle, lows, highs
        left, right = np.stack([left, middle + 1], 1).ravel(), np.stack([middle - 1, right], 1).ravel()


def assign(weights: Matrix, hessian: Matrix, levels: Matrix, walk: Walk | None = None) -> Indices:
    """Which level each weight takes, by the GPTQ sweep and a descent that never makes the loss larger.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H.
        levels: float64 [rows, k], or [1, k] where all rows share them.
        walk: Along H, where it is known.

    Returns:
        int64 [rows, taps].
    """
    chosen = np.empty(weights.shape, np.int64)

    def column(values: Vector, tap: int, cost: float) -> Vector:
        chosen[:, tap] = np.abs(values[:, None] - levels).argmin(axis=1)
        return _looked_up(levels, chosen[:, tap])

    sweep(weights, hessian, column, walk)
    return polish(weights, chosen, hessian, levels)


def polish(weights: Matrix, indices: Indices, hessian: Matrix, levels: Matrix) -> Indices:
    """Indices whose loss is no larger than that of `indices`, one weight at a time; arguments as of `assign`."""
    chosen, variance = indices.copy(), np.diagonal(hessian)
    slope = (
        np.take_along_axis(np.broadcast_to(levels, (len(weights), levels.shape[1])), chosen, 1) - weights
    ) @ hessian
    for _ in range(POLISH_SWEEPS):
        has_moved = False
        for tap in range(weights.shape[1]):
            old = _looked_up(levels, chosen[:, tap])
            best = old - slope[:, tap] / variance[tap]
            index = np.abs(best[:, None] - levels).argmin(axis=1)
            new = _looked_up(levels, index)
            # Strictly nearer, beyond rounding: then the descent ends.
            gain = np.square(old - best) - np.square(new - best)
            is_better = gain > 1e-12 * np.square(new - old)
            if is_better.any():
                has_moved = True
                chosen[is_better, tap] = index[is_better]
                slope += np.where(is_better, new - old, 0.0)[:, None] * hessian[tap]
        if not has_moved:
            break
    return chosen


def _looked_up(levels: Matrix, index: Indices) -> Vector:
    return levels[0, index] if len(levels) == 1 else levels[np.arange(len(index)), index]


def refit(
    entries: Matrix, indices: Indices, target: Stack, hessian: Stack, weight: Stack, *, zero: bool = False
) -> Matrix:
    """Entries of a shared codebook whose loss, with the indices as they are, is smaller: conjugate gradients.

    Args:
        entries: To start from, float64 [k, d].
        indices: int64 [groups, rows, taps / d].
        target: float64 [groups, rows, taps].
        hessian: float64 [groups, taps, taps].
        weight: Of each row's loss, float64 [groups, rows].
        zero: Whether an entry of zeros stays.

    Returns:
        float64 [k, d].
    """
    groups, rows, taps = target.shape
    is_free = np.ones((len(entries), 1)) if not zero else (entries != 0).any(axis=1, keepdims=True).astype(np.float64)

    def pulled(change: Stack) -> Matrix:
        """What a change of the weights pulls at each entry, float64 [k, d]."""
        force = ((change * weight[:, :, None]) @ hessian).reshape(-1, entries.shape[1])
        flat = indices.ravel()
        return np.stack([np.bincount(flat, column, len(entries)) for column in force.T], axis=1) * is_free

    def spread(values: Matrix) -> Stack:
        return values[indices].reshape(groups, rows, taps)

    found = entries.copy()
    residual = pulled(target - spread(found))
    direction, energy = residual.copy(), float((residual**2).sum())
    smallest = REFIT_SHARE * energy
    for _ in range(min(REFIT_ROUNDS, max(1, REFIT_WORK // max(groups * rows * taps**2, 1)))):
        curved = pulled(spread(direction))
        curvature = float((direction * curved).sum())
        if energy <= smallest or curvature <= 0:
            break
        step = energy / curvature
        found, residual = found + step * direction, residual - step * curved
        before, energy = energy, float((residual**2).sum())
        direction = residual + energy / before * direction
    return found
