"""Optimal Brain Surgeon: weights are removed one after the other, and what is left makes good for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.solvers import hessian as quadratic
from passes.solvers.patterns import Blocks, Mask, NofM, Pattern, Stack, affordable, spread

STEPS = 48
"""Eliminations that are gathered before the inverse itself is brought up to date, as one product of matrices."""
CHUNK_BYTES = 48 << 20
"""Of the inverses that are worked on at a time."""
DIGITS = 1e-8
"""A diagonal that shrinks below this share of itself has lost too many digits: the matrix is inverted anew."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The order in which the units of each row block go, down to the last one.

    Attributes:
        order: Tap blocks, int64 [groups, row blocks, steps].
        cost: What each step adds to the loss, float64 [groups, row blocks, steps].
        pattern: What a unit is.
        shape: Of the weights: groups, rows, taps.
    """

    order: NDArray[np.int64]
    cost: NDArray[np.float64]
    pattern: Pattern
    shape: tuple[int, int, int]

    def kept(self, sparsity: float) -> Mask:
        """The mask at a share of removed weights: row blocks compete by the cost per weight of their next step.

        What is removed at one sparsity is removed at every higher one too. NofM removes all of its trace.

        Source: Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022, section 4, "global step".
        """
        if isinstance(self.pattern, NofM):
            return self._all_gone()
        sizes = self._sizes(self.pattern)
        return self._spread(affordable(self._price(sizes), sizes, sparsity), self.pattern)

    def kept_below(self, price: float) -> Mask:
        """The mask without every unit whose step costs no more than `price` for each of its weights.

        With the price of the bits that a zero saves, this is the optimum of loss + price of the code. NofM removes all
        of its trace.
        """
        if isinstance(self.pattern, NofM):
            return self._all_gone()
        return self._spread(self._price(self._sizes(self.pattern)) <= price, self.pattern)

    def _all_gone(self) -> Mask:
        kept = np.ones(self.shape, np.bool_)
        np.put_along_axis(kept, self.order, False, axis=2)
        return kept

    def _price(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cost per weight of each step; a step that is cheaper than one before it comes with that one."""
        return np.asarray(np.maximum.accumulate(self.cost / sizes, axis=2))

    def _spread(self, removed: NDArray[np.bool_], pattern: Blocks) -> Mask:
        blocks = np.ones(self.order.shape, np.bool_)
        np.put_along_axis(blocks, self.order, ~removed, axis=2)
        return spread(blocks, pattern, self.shape)

    def _sizes(self, pattern: Blocks) -> NDArray[np.float64]:
        """Weights of the unit that goes in each step, float64 like `cost`."""
        _, rows, taps = self.shape
        high = np.minimum(pattern.rows, rows - np.arange(0, rows, pattern.rows))
        wide = np.minimum(pattern.taps, taps - np.arange(0, taps, pattern.taps))
        return np.asarray(high[None, :, None] * wide[self.order], np.float64)


def trace(
    weights: Stack, hessian: NDArray[np.float64], pattern: Pattern, importance: NDArray[np.float64] | None = None
) -> Trace:
    """Remove unit after unit of every row block, always the one that costs least once the others have made good.

    rho_P = w_P ([H^-1]_PP)^-1 w_P^T, summed over the rows of the block with their importance;
    w <- w - w_P ([H^-1]_PP)^-1 [H^-1]_P:,  H^-1 <- H^-1 - [H^-1]_:P ([H^-1]_PP)^-1 [H^-1]_P:.
    The loss is delta H delta^T, twice that of the papers.

    Args:
        weights: float64 [groups, rows, taps].
        hessian: Damped H, float64 [groups, taps, taps].
        pattern: Units; all of them go, or as many as NofM takes.
        importance: float64 [groups, rows]; None counts all rows alike.

    Source: Hassibi and Stork, NeurIPS 1992, section 2; Frantar and Alistarh, Optimal Brain Compression,
        NeurIPS 2022, algorithms 1 and 2. The steps gather as in a left-looking pivoted Cholesky factorization.
    """
    groups, rows, taps = weights.shape
    block = pattern if isinstance(pattern, Blocks) else Blocks()
    high, wide = -(-rows // block.rows), -(-taps // block.taps)
    counted = np.ones((groups, rows)) if importance is None else importance
    # Units at the end are filled up with weights that are zero and disturb nothing.
    padded = np.zeros((groups, high * block.rows, wide * block.taps))
    padded[:, :rows, :taps] = weights * np.sqrt(counted)[:, :, None]
    stacked = padded.reshape(groups * high, block.rows, -1)
    matrices = _padded(hessian, wide * block.taps)
    owner = np.repeat(np.arange(groups), high)
    sizes = np.minimum(block.taps, taps - np.arange(0, taps, block.taps)).astype(np.float64)
    quota = pattern if isinstance(pattern, NofM) else None
    inverses = np.stack([quadratic.inverse(matrix) for matrix in matrices])
    parts = []
    for some in _chunks(len(stacked), stacked.shape[2]):
        row_blocks = _RowBlocks(stacked[some], matrices, inverses, owner[some], sizes, quota)
        parts.append(row_blocks.eliminate())
    order = np.concatenate([part[0] for part in parts]).reshape(groups, high, -1)
    cost = np.concatenate([part[1] for part in parts]).reshape(groups, high, -1)
    return Trace(order, cost, pattern, (groups, rows, taps))


def _padded(hessian: NDArray[np.float64], taps: int) -> NDArray[np.float64]:
    """H with inputs added that go with no other."""
    old = hessian.shape[1]
    if old == taps:
        return hessian
    matrices = np.zeros((len(hessian), taps, taps))
    matrices[:, :old, :old] = hessian
    matrices[:, np.arange(old, taps), np.arange(old, taps)] = 1.0
    return matrices


def _chunks(count: int, taps: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // (8 * taps * taps))
    for start in range(0, count, step):
        yield slice(start, start + step)


class _RowBlocks:
    """A few row blocks, eliminated in step; each has an inverse of its own, of the taps that are left.

    With A units of b taps left: `_inverse` [n, A b, A b] is as of the last update, `_half` [n, k, A b] holds the steps
    since, so that the inverse of now is _inverse - _half^T _half; `_diagonal` [n, A, b, b] is of now.
    """

    def __init__(
        self,
        weights: Stack,
        hessians: NDArray[np.float64],
        inverses: NDArray[np.float64],
        owner: NDArray[np.int64],
        sizes: NDArray[np.float64],
        quota: NofM | None,
    ) -> None:
        self._width = weights.shape[2] // len(sizes)
        self._weights, self._hessians, self._owner, self._sizes = weights.copy(), hessians, owner, sizes
        self._inverse = inverses[owner]
        self._each = np.arange(len(weights))
        self._units = np.tile(np.arange(len(sizes)), (len(weights), 1))
        self._quota = quota
        taps = weights.shape[2]
        self._left = np.tile(quota.removed(taps), (len(weights), 1)) if quota else None
        self._steps = int(quota.removed(taps).sum()) if quota else len(sizes)
        self._reference = self._start()

    def eliminate(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Units and costs in the order of their removal, [n, steps] each."""
        order = np.empty((len(self._weights), self._steps), np.int64)
        cost = np.empty(order.shape)
        for step in range(self._steps):
            order[:, step], cost[:, step] = self._remove_cheapest()
            is_due = self._used == self._half.shape[1] or self._has_lost_digits()
            if is_due and step + 1 < self._steps:
                self._update()
        return order, cost

    def _start(self) -> NDArray[np.float64]:
        """Nothing removed since the last update; returns the diagonal of the inverse [n, A, b]."""
        count, units, width = *self._units.shape, self._width
        blocked = self._inverse.reshape(count, units, width, units, width)
        every = np.arange(units)
        self._diagonal = np.ascontiguousarray(blocked[:, every, :, every].transpose(1, 0, 2, 3))
        self._half = np.empty((count, min(STEPS, max(units, 1)) * width, units * width))
        self._used = 0
        self._is_left = np.ones((count, units), np.bool_)
        return self._spread_of_now().copy()

    def _spread_of_now(self) -> NDArray[np.float64]:
        return np.diagonal(self._diagonal, axis1=2, axis2=3)

    def _has_lost_digits(self) -> bool:
        return bool((self._is_left[:, :, None] & (self._spread_of_now() < DIGITS * self._reference)).any())

    def _remove_cheapest(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        scores = np.where(self._is_open(), self._saliency(), np.inf)
        chosen = (scores / self._sizes[self._units]).argmin(axis=1)
        each, used, width = self._each, self._used, self._width
        taps = chosen[:, None] * width + np.arange(width)
        column = self._inverse[each[:, None], taps]
        earlier = self._half[:, :used]
        if used:
            column -= np.take_along_axis(earlier, taps[:, None], axis=2).transpose(0, 2, 1) @ earlier
        root = _inverse_root(self._diagonal[each, chosen])
        half = root @ column
        self._half[:, used : used + width] = half
        self._used += width
        removed = np.take_along_axis(self._weights, taps[:, None], axis=2) @ root.transpose(0, 2, 1)
        self._weights -= removed @ half
        np.put_along_axis(self._weights, taps[:, None], 0.0, axis=2)
        by_unit = half.reshape(len(half), width, -1, width)
        self._diagonal -= np.einsum("nkai,nkaj->naij", by_unit, by_unit)
        self._is_left[each, chosen] = False
        units = self._units[each, chosen]
        if self._quota is not None and self._left is not None:
            self._left[each, units // self._quota.of] -= 1
        return units, scores[each, chosen]

    def _is_open(self) -> NDArray[np.bool_]:
        if self._quota is None or self._left is None:
            return self._is_left
        return self._is_left & (self._left[self._each[:, None], self._units // self._quota.of] > 0)

    def _saliency(self) -> NDArray[np.float64]:
        """rho of every unit that is left, [n, A]; of the others, anything."""
        count, rows, _ = self._weights.shape
        by_unit = self._weights.reshape(count, rows, -1, self._width)
        if self._width == 1:
            diagonal = np.where(self._is_left, self._diagonal[:, :, 0, 0], 1.0)
            return np.asarray(np.einsum("nra,nra->na", by_unit[..., 0], by_unit[..., 0]) / diagonal)
        blocks = np.where(self._is_left[:, :, None, None], self._diagonal, np.eye(self._width))
        columns = by_unit.transpose(0, 2, 3, 1)
        return np.asarray(np.einsum("nabr,nabr->na", columns, np.linalg.solve(blocks, columns)))

    def _update(self) -> None:
        """Bring the inverse up to date, and leave behind the taps that are gone."""
        count, width = len(self._weights), self._width
        lost = self._has_lost_digits()
        kept = np.nonzero(self._is_left)[1].reshape(count, -1)
        reference = self._reference[self._each[:, None], kept]
        taps = (kept[:, :, None] * width + np.arange(width)).reshape(count, -1)
        self._units = self._units[self._each[:, None], kept]
        if lost:
            whole = (self._units[:, :, None] * width + np.arange(width)).reshape(count, -1)
            self._inverse = np.stack(
                [quadratic.inverse(self._hessians[g][np.ix_(t, t)]) for g, t in zip(self._owner, whole)]
            )
        else:
            left = np.empty((count, taps.shape[1], taps.shape[1]))
            for number, own in enumerate(taps):
                half = self._half[number, : self._used].take(own, axis=1)
                np.subtract(self._inverse[number].take(own, axis=0).take(own, axis=1), half.T @ half, out=left[number])
            self._inverse = left
        self._weights = np.take_along_axis(self._weights, taps[:, None], axis=2)
        fresh = self._start()
        self._reference = fresh if lost else reference


def _inverse_root(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """L^-1 of every block L L^T, float64 [n, b, b]."""
    if blocks.shape[1] == 1:
        return np.asarray(1 / np.sqrt(blocks))
    return np.asarray(np.linalg.inv(np.linalg.cholesky(blocks)))
