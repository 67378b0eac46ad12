"""Filters that are others negated, turned, mirrored or scaled: found, and replaced by the one that they share.

Sources: negation as in Shang et al., CReLU, ICML 2016; rotations as in Dieleman et al., ICML 2016; several biases on
one filter as in Li et al., Multi-Bias Non-linear Activation, ICML 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Vector
from passes.solvers.tied import Ids, Rows

TRANSPOSED, FIRST_FLIPPED, LAST_FLIPPED, NEGATED = 1, 2, 4, 8
"""Bits of an orientation, in the order in which they are applied: the kernel's axes swapped, then mirrored."""
NOISE = 2.0**-20
"""Relative error below which two filters are the same up to float32 noise."""


def orientations(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """What a kernel of this form can be turned into, signs aside: 8 for a square, 4 for a rectangle, 2 for a line."""
    match [size for size in kernel if size > 1]:
        case []:
            return (0,)
        case [height, width] if len(kernel) == 2 and height == width:
            return tuple(range(8))
        case _ if len(kernel) == 2:
            return (0, FIRST_FLIPPED, LAST_FLIPPED, FIRST_FLIPPED | LAST_FLIPPED)
        case _ if len(kernel) == 1:
            return (0, LAST_FLIPPED)
    return (0,)


def oriented(filters: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Filters [..., *kernel] turned, and negated where the orientation says so."""
    if orientation & TRANSPOSED:
        filters = np.swapaxes(filters, -1, -2)
    if orientation & FIRST_FLIPPED:
        filters = np.flip(filters, -2)
    if orientation & LAST_FLIPPED:
        filters = np.flip(filters, -1)
    return np.negative(filters) if orientation & NEGATED else filters


def tap_ids(channels: int, kernel: tuple[int, ...], orientation: int) -> Ids:
    """The tap of the shared filter that each tap of the turned one reads, int64 [channels * prod(kernel)]."""
    taps = np.arange(channels * math.prod(kernel), dtype=np.int64).reshape(channels, *kernel)
    return np.asarray(oriented(taps, orientation & ~NEGATED).reshape(-1), np.int64)


@dataclass(frozen=True, eq=False)
class Sharing:
    """Which filters stand for others.

    Attributes:
        leaders: Numbers of the filters that the others are made of, ascending, int64 [leaders].
        leader: Position in `leaders` of every filter's own, int64 [filters].
        orientation: What the leader becomes, uint8 [filters]; 0 for a leader.
        error: Share of the filter's energy, in the norm of H, that its leader misses, float64 [filters].
    """

    leaders: Ids
    leader: Ids
    orientation: NDArray[np.uint8]
    error: Vector


def sharing(
    weights: NDArray[np.float64], hessian: NDArray[np.float64], kernel: tuple[int, ...], tolerance: float = NOISE
) -> Sharing:
    """Leaders such that every filter is one of them, turned and scaled, up to the tolerance.

    Greedy: the filter that stands for most others comes first, the earlier one where two do equally well.

    Args:
        weights: Filters of all groups, float64 [groups, rows, taps].
        hessian: H of each group, float64 [groups, taps, taps].
        kernel: Kernel sizes; taps = channels * prod(kernel).
        tolerance: Largest error of a filter relative to its size, both in the norm of H: sqrt(1 - cosine**2). Copies
            up to NOISE in the plain norm share in any case.
    """
    error, orientation = _errors(weights, hessian, kernel)
    is_close = error <= tolerance**2
    np.fill_diagonal(is_close, True)
    count = len(error)
    leader = np.full(count, -1, np.int64)
    while (open_rows := leader < 0).any():
        covered = (is_close & open_rows[:, None]).sum(axis=0) * open_rows
        best = int(covered.argmax())
        members = is_close[:, best] & open_rows
        leader[members] = best
    _to_nearest(leader, error, is_close)
    leaders = np.unique(leader)
    chosen = orientation[np.arange(count), leader]
    chosen[leaders] = 0
    missed = error[np.arange(count), leader]
    missed[leaders] = 0.0
    return Sharing(leaders, np.searchsorted(leaders, leader), chosen, missed)


def _to_nearest(leader: Ids, error: NDArray[np.float64], is_close: NDArray[np.bool_]) -> None:
    """Let every follower follow the leader that is nearest to it."""
    leaders = np.unique(leader)
    for row in range(len(leader)):
        if row not in leaders:
            leader[row] = leaders[np.where(is_close[row, leaders], error[row, leaders], np.inf).argmin()]


def _errors(
    weights: NDArray[np.float64], hessian: NDArray[np.float64], kernel: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Share of filter r's energy that the best turn of filter l misses, [r, l], and that turn.

    Filters of zeros stand for each other, and for nothing else.
    """
    groups, rows, taps = weights.shape
    filters = weights.reshape(groups * rows, taps)
    best = np.full((len(filters), len(filters)), np.inf)
    turn = np.zeros(best.shape, np.uint8)
    for orientation in orientations(kernel):
        turned = filters[:, tap_ids(taps // math.prod(kernel), kernel, orientation)]
        cosines = np.concatenate([_cosines(w, h, turned) for w, h in zip(weights, hessian, strict=True)])
        error = np.maximum(1.0 - cosines**2, 0.0)
        # Copies are copies whatever H is: where its directions differ much in size, it magnifies float32 noise.
        plain = _cosines(filters, np.eye(taps), turned)
        is_copy = 1.0 - plain**2 <= NOISE**2
        cosines, error = np.where(is_copy, plain, cosines), np.where(is_copy, 0.0, error)
        # Turns that do equally well: the simplest is kept, whatever the last bit says.
        is_better = error < best - 1e-12
        turn[is_better] = orientation | np.where(cosines < 0, NEGATED, 0)[is_better]
        best[is_better] = error[is_better]
    return best, turn


def _cosines(
    weights: NDArray[np.float64], hessian: NDArray[np.float64], turned: NDArray[np.float64]
) -> NDArray[np.float64]:
    pulled = weights @ hessian
    own = (pulled * weights).sum(axis=1)
    theirs = ((turned @ hessian) * turned).sum(axis=1)
    size = np.sqrt(np.outer(own, theirs))
    both_zero = np.logical_and.outer(own == 0, theirs == 0)
    return np.where(size > 0, pulled @ turned.T / np.where(size > 0, size, 1.0), both_zero.astype(np.float64))


def rows_of(
    weights: NDArray[np.float64],
    hessian: NDArray[np.float64],
    importance: NDArray[np.float64],
    kernel: tuple[int, ...],
    found: Sharing,
    leader: int,
) -> tuple[Ids, Rows]:
    """The filters of one leader, and the least-squares problem of the filter that they share.

    Args:
        weights: float64 [groups, rows, taps].
        hessian: H of each group, float64 [groups, taps, taps].
        importance: float64 [groups, rows].
        kernel: Kernel sizes.
        found: Who shares.
        leader: Position in found.leaders.
    """
    _, rows, taps = weights.shape
    members = np.flatnonzero(found.leader == leader)
    turns = found.orientation[members]
    ids = np.stack([tap_ids(taps // math.prod(kernel), kernel, int(turn)) for turn in turns])
    signs = np.where(turns & NEGATED, -1.0, 1.0)
    group = members // rows
    own = hessian[group[:1]] if (group == group[0]).all() else hessian[group]
    filters = weights.reshape(-1, taps)
    start = filters[found.leaders[leader]]
    return members, Rows(ids, signs, filters[members], own, importance.reshape(-1)[members], taps, start)
