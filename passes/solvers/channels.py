"""Which channels a set of layers can best do without, and the weights with which they make good for the loss.

Layers that read x with weights W and covariance C lose the least squares error of what they computed,

    loss(S) = min over V of sum over rows r of importance[r] * (w_r - v_r) C (w_r - v_r)^T,  v_r = 0 outside S

when they may read the taps S alone; a bias takes up the mean. All layers that read a channel lose it together. Of a
damped C the minimum is V_S = W C_:S (C_SS)^-1, and without one more set of taps P the loss grows by exactly
tr(W_P ([C_SS^-1]_PP)^-1 W_P^T): the optimal brain surgeon for groups of weights, every row at once.

Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1 (the
    objective and the least squares step); Hassibi, Stork and Wolff, Optimal Brain Surgeon, 1993, and Frantar and
    Alistarh, Optimal Brain Compression, NeurIPS 2022, section 4 (the elimination).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Matrix, Vector, inverse, row_losses

RIDGE = 1e-3
"""Share of each tap's variance that is added to it; it holds refitted weights near the old ones."""
_TINY = 1e-9
_SHRINK = 0.75
"""What is left of the taps when the inverse is computed anew: smaller, and without the errors of its updates."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the channels of a group.

    Attributes:
        weights: float64 [rows, taps].
        covariance: C, float64 [taps, taps].
        importance: What a squared unit of error in an output channel costs, float64 [rows].
        taps: For each channel of the group the taps that read it, int64; the others always stay.
    """

    weights: Matrix
    covariance: Matrix
    importance: Vector
    taps: tuple[NDArray[np.int64], ...]


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which channels go.

    Attributes:
        order: Channels, first to go first.
        losses: float64 [len(order) + 1]; losses[n] is the damped loss without the first n.
    """

    order: tuple[int, ...]
    losses: Vector


def ridged(covariance: Matrix, share: float = RIDGE) -> Matrix:
    """C + share * diag(C), and enough more of the identity to be invertible.

    Unlike hessian.damped it holds each weight in proportion to what it does: an input that never varies costs nothing.
    """
    diagonal = np.diagonal(covariance)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    return covariance + np.diag(share * diagonal + (_TINY * mean if mean > 0 else 1.0))


def refit(weights: Matrix, covariance: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """The weights on the taps `kept` with which the outputs change least; the others are 0.

    The undamped loss is never above that of setting the others to 0.

    Args:
        weights: float64 [rows, taps].
        covariance: C, damped (see `ridged`), float64 [taps, taps].
        kept: bool [taps].
    """
    result = np.where(kept, weights, 0.0)
    if kept.any() and not kept.all():
        added = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, ~kept)] @ weights[:, ~kept].T)
        result[:, kept] += added.T
    return result


def follow(weights: Matrix, covariance: Matrix, cross: Matrix, ridge: float = RIDGE) -> Matrix:
    """The weights that come nearest to wanted responses and, by the ridge, to the present ones.

    Args:
        weights: W, float64 [rows, taps].
        covariance: C of what is read, float64 [taps, taps].
        cross: E[(y - E y)(x - E x)^T] of the wanted responses y, float64 [rows, taps].
        ridge: As in `ridged`.
    """
    damped = ridged(covariance, ridge)
    return np.asarray(np.linalg.solve(damped, (cross + weights @ (damped - covariance)).T).T)


def loss(readers: Sequence[Reader], removed: Sequence[int], ridge: float = RIDGE) -> float:
    """What removing channels costs all readers together after each was refitted, by their undamped covariance."""
    total = 0.0
    for reader in readers:
        kept = np.ones(reader.weights.shape[1], np.bool_)
        for channel in removed:
            kept[reader.taps[channel]] = False
        fitted = refit(reader.weights, ridged(reader.covariance, ridge), kept)
        total += float(row_losses(fitted - reader.weights, reader.covariance) @ reader.importance)
    return max(total, 0.0)


def eliminate(readers: Sequence[Reader], count: int, ridge: float = RIDGE) -> Elimination:
    """Remove one channel after the other, each time the one without which the loss grows least.

    Equal losses go by the smaller index. The choice is greedy: it is the best set for one channel, and no more than a
    good one for several.

    Args:
        readers: At least the size of the group is the same in all.
        count: How many channels the group has; one stays.
        ridge: Share of the mean variance by which each covariance is damped.
    """
    sweeps = [_Sweep(reader, ridge) for reader in readers]
    alive = np.ones(count, np.bool_)
    order: list[int] = []
    losses = [0.0]
    while alive.sum() > 1:
        growth = np.zeros(count)
        for sweep in sweeps:
            growth += sweep.growth(alive)
        best = int(np.argmin(np.where(alive, growth, np.inf)))
        alive[best] = False
        order.append(best)
        losses.append(losses[-1] + max(float(growth[best]), 0.0))
        for sweep in sweeps:
            sweep.remove(best)
    return Elimination(tuple(order), np.asarray(losses))


def by_magnitude(readers: Sequence[Reader], count: int) -> tuple[int, ...]:
    """All channels but one, those first whose weights have the smallest sum of squares; equal ones by index.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, on the readers' side.
    """
    energy = np.zeros(count)
    for reader in readers:
        for channel, taps in enumerate(reader.taps):
            energy[channel] += float(np.square(reader.weights[:, taps]).sum())
    return tuple(int(c) for c in np.argsort(energy, kind="stable")[:-1])


class _Sweep:
    """One reader while channels are taken from it: its weights, and the inverse of the covariance that is left."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        self._covariance = ridged(reader.covariance, ridge)
        self._importance = reader.importance
        self._taps = [taps.copy() for taps in reader.taps]
        self._weights = reader.weights.copy()
        self._alive = np.ones(len(self._covariance), np.bool_)
        self._inverse = inverse(self._covariance) if self._alive.size else self._covariance

    def growth(self, alive: NDArray[np.bool_]) -> Vector:
        """By how much the loss grows without each channel, float64 [channels]; 0 for those that are gone."""
        result = np.zeros(len(self._taps))
        weighted = self._weights * np.sqrt(self._importance)[:, None]
        sizes: dict[int, list[int]] = {}
        for channel in np.flatnonzero(alive).tolist():
            sizes.setdefault(self._taps[channel].size, []).append(channel)
        for size, channels in sizes.items():
            if size == 0:
                continue
            taps = np.stack([self._taps[channel] for channel in channels])
            blocks = self._inverse[taps[:, :, None], taps[:, None, :]]
            own = weighted[:, taps].transpose(1, 2, 0)
            result[channels] = np.einsum("ntr,ntr->n", own, np.linalg.solve(blocks, own))
        return result

    def remove(self, channel: int) -> None:
        """Take `channel` away and let the other taps make good for it."""
        taps = self._taps[channel]
        if taps.size == 0:
            return
        solved = np.linalg.solve(self._inverse[np.ix_(taps, taps)], self._inverse[taps])
        self._weights -= self._weights[:, taps] @ solved
        self._inverse -= self._inverse[:, taps] @ solved
        self._alive[taps] = False
        self._taps[channel] = taps[:0]
        if self._alive.sum() <= _SHRINK * self._alive.size:
            self._compact()

    def _compact(self) -> None:
        kept = np.flatnonzero(self._alive)
        moved = np.cumsum(self._alive) - 1
        self._taps = [moved[taps] for taps in self._taps]
        self._weights = self._weights[:, kept]
        self._covariance = self._covariance[np.ix_(kept, kept)]
        self._alive = np.ones(kept.size, np.bool_)
        self._inverse = inverse(self._covariance) if kept.size else self._covariance
