"""Codebooks of short vectors: product quantization of a layer along its taps."""

from __future__ import annotations

import numpy as np

from passes.solvers.codebook import Indices, Stack
from passes.solvers.hessian import Matrix, Vector, Walk

POINTS_MAX = 1 << 15
"""Sub-vectors that the clustering looks at; evenly spaced where there are more."""
LLOYD_ROUNDS = 25
BLOCK = 128
"""Taps after which those outside of the stretch are brought up to date."""
_CHUNK = 1 << 13


def metric(hessian: Stack, dimension: int) -> tuple[Matrix, Vector]:
    """The mean of the blocks on the diagonal of H, and how much each block weighs beside it.

    Args:
        hessian: float64 [groups, taps, taps], taps a multiple of `dimension`.
        dimension: d.

    Returns:
        float64 [d, d] and float64 [groups, taps / d], of mean 1.
    """
    groups, taps, _ = hessian.shape
    blocks = taps // dimension
    view = hessian.reshape(groups, blocks, dimension, blocks, dimension)
    diagonal = view[:, np.arange(blocks), :, np.arange(blocks)].transpose(1, 0, 2, 3)
    trace = np.trace(diagonal, axis1=2, axis2=3)
    return diagonal.mean(axis=(0, 1)), trace / trace.mean()


def kmeans(points: Matrix, weights: Vector, count: int, seed: int) -> Matrix:
    """Centres with a small sum of weights * |points - nearest centre|**2: k-means++, then Lloyd's rounds.

    Exact where there are at most `count` distinct points.

    Args:
        points: float64 [n, d].
        weights: float64 [n], at least 0.
        count: Of the centres.
        seed: Of the random start.

    Returns:
        float64 [up to count, d].

    Source: Arthur and Vassilvitskii, k-means++, SODA 2007; Jegou et al., Product Quantization for Nearest Neighbor
        Search, PAMI 2011.
    """
    distinct, inverse = np.unique(points, axis=0, return_inverse=True)
    mass = np.bincount(inverse.ravel(), weights, len(distinct)).astype(np.float64)
    if len(distinct) <= count:
        return distinct
    if len(distinct) > POINTS_MAX:
        some = np.linspace(0, len(distinct) - 1, POINTS_MAX).round().astype(np.int64)
        distinct, mass = distinct[some], mass[some]
    centres = _spread_out(distinct, mass, count, np.random.default_rng(seed))
    for _ in range(LLOYD_ROUNDS):
        chosen = nearest(distinct, centres)
        total = np.bincount(chosen, mass, len(centres))
        moments = np.stack([np.bincount(chosen, mass * column, len(centres)) for column in distinct.T], axis=1)
        moved = np.where(total[:, None] > 0, moments / np.where(total > 0, total, 1.0)[:, None], centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def lattice(points: Matrix, step: float, count: int, seed: int) -> Matrix:
    """Centres for entropy coding, where even ones are best: cells of a grid, those with the most points.

    Half of them are such cells, the others cluster the points outside; where the points lie in at most `count` cells,
    all are cells.

    Args:
        points: float64 [n, d].
        step: Of the grid.
        count: Of the centres.
        seed: Of the clustering.

    Returns:
        float64 [up to count, d].

    Source: Gish and Pierce, Asymptotically Efficient Quantizing, IEEE Trans. Information Theory 1968: at high rates the
        even quantizer is the best one before an entropy coder.
    """
    cells, where, counts = np.unique(np.rint(points / step), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    top = order if len(cells) <= count else order[: count // 2]
    outside = points[~np.isin(where.ravel(), top)]
    if not len(outside):
        return cells[top] * step
    return np.concatenate([cells[top] * step, kmeans(outside, np.ones(len(outside)), count - len(top), seed)])


def _spread_out(points: Matrix, mass: Vector, count: int, rng: np.random.Generator) -> Matrix:
    """The k-means++ start: each centre is drawn with the probability of its cost so far."""
    chosen = [_drawn(mass, rng)]
    cost = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < count:
        chosen.append(_drawn(mass * cost if (mass * cost).any() else cost, rng))
        cost = np.minimum(cost, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]


def _drawn(odds: Vector, rng: np.random.Generator) -> int:
    total = np.cumsum(odds)
    return int(min(np.searchsorted(total, rng.random() * total[-1], "right"), len(odds) - 1))


def nearest(points: Matrix, centres: Matrix, extra: Matrix | None = None) -> Indices:
    """Index of the nearest centre of each point, the first of equals, int64 [n].

    Args:
        points: float64 [n, d].
        centres: float64 [k, d].
        extra: Added to the squared distances, float64 [n, k].
    """
    norms, found = np.square(centres).sum(axis=1), np.empty(len(points), np.int64)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        costs = norms - 2 * points[part] @ centres.T
        found[part] = (costs if extra is None else costs + extra[part]).argmin(axis=1)
    return found


def assign(
    weights: Matrix, hessian: Matrix, entries: Matrix, extra: Matrix | None = None, walk: Walk | None = None
) -> Indices:
    """Which entry each sub-vector takes: block after block, the blocks behind make good for what one errs.

    Block b costs |(w_b - c) U_bb^-1|**2 after that, with H^-1 = U^T U; the most active block is first.

    Args:
        weights: float64 [rows, taps].
        hessian: Damped H.
        entries: float64 [k, d], d a divisor of taps.
        extra: What each entry costs beside its error, float64 [rows, k].
        walk: Along H in blocks of d, where it is known.

    Returns:
        int64 [rows, taps / d].

    Source: van Baalen et al., GPTVQ, 2024, section 3.2: the GPTQ sweep with a codebook of vectors.
    """
    dimension = entries.shape[1]
    walk = walk or Walk.along(hessian, dimension)
    upper, work = walk.upper, weights[:, walk.order]
    chosen = np.empty((len(weights), weights.shape[1] // dimension), np.int64)
    blocks = walk.order[::dimension] // dimension
    wide = max(BLOCK // dimension, 1)
    for start in range(0, len(blocks), wide):
        some = blocks[start : start + wide]
        first, last = start * dimension, (start + len(some)) * dimension
        errors = np.empty((len(work), last - first))
        for place, block in enumerate(some):
            here = slice(first + place * dimension, first + (place + 1) * dimension)
            whiten = np.linalg.inv(upper[here, here])
            values, levels = work[:, here] @ whiten, entries @ whiten
            chosen[:, block] = nearest(values, levels, extra)
            error = values - levels[chosen[:, block]]
            work[:, here.stop : last] -= error @ upper[here, here.stop : last]
            errors[:, place * dimension : (place + 1) * dimension] = error
        work[:, last:] -= errors @ upper[first:last, last:]
    return chosen


def polish(
    weights: Matrix, indices: Indices, hessian: Matrix, entries: Matrix, extra: Matrix | None = None, sweeps: int = 3
) -> Indices:
    """Indices whose loss, and extra, is no larger than that of `indices`, one sub-vector at a time; as of `assign`."""
    result, dimension = indices.copy(), entries.shape[1]
    slope = (entries[result].reshape(weights.shape) - weights) @ hessian
    rows, chosen, wide = np.arange(len(weights)), result.copy(), max(BLOCK // dimension, 1)
    for _ in range(sweeps):
        has_moved = np.zeros(len(rows), np.bool_)
        for start in range(0, chosen.shape[1], wide):
            some = slice(start, min(start + wide, chosen.shape[1]))
            taps = slice(some.start * dimension, some.stop * dimension)
            before = chosen[:, some].copy()
            _descended(chosen[:, some], slope[:, taps], hessian[taps, taps], entries, extra)
            is_moved = (chosen[:, some] != before).any(axis=1)
            has_moved |= is_moved
            step = (entries[chosen[is_moved, some]] - entries[before[is_moved]]).reshape(-1, taps.stop - taps.start)
            # What lies outside of the stretch is brought up to date at its end, all at once.
            slope[is_moved, : taps.start] += step @ hessian[taps, : taps.start]
            slope[is_moved, taps.stop :] += step @ hessian[taps, taps.stop :]
        result[rows] = chosen
        if not has_moved.any():
            break
        # Rows do not know of each other: one in which nothing moved is done.
        chosen, slope, rows = chosen[has_moved], slope[has_moved], rows[has_moved]
        extra = None if extra is None else extra[has_moved]
    return result


def _descended(chosen: Indices, slope: Matrix, hessian: Matrix, entries: Matrix, extra: Matrix | None) -> None:
    """One walk over some sub-vectors; `chosen` and `slope` are brought up to date."""
    dimension, at = entries.shape[1], np.arange(len(chosen))
    for block in range(chosen.shape[1]):
        here = slice(block * dimension, (block + 1) * dimension)
        curvature = hessian[here, here]
        old = entries[chosen[:, block]]
        # loss(c) - loss(old) = 2 slope (c - old) + (c - old) H (c - old)
        pull = slope[:, here] - old @ curvature
        costs = 2 * pull @ entries.T + ((entries @ curvature) * entries).sum(axis=1)
        if extra is not None:
            costs += extra
        best = costs.argmin(axis=1)
        before = costs[at, chosen[:, block]]
        is_better = costs[at, best] < before - 1e-12 * np.abs(before)
        if is_better.any():
            slope[is_better] += (entries[best[is_better]] - old[is_better]) @ hessian[here]
            chosen[is_better, block] = best[is_better]
