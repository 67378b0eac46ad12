"""Pruning of one layer's weights: which to remove, and what the others become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.solvers import gptq
from passes.solvers import hessian as quadratic
from passes.solvers.obs import trace
from passes.solvers.patterns import Mask, NofM, Pattern, Stack, cheapest_removed
from passes.solvers.survivors import refit, rounded


@dataclass(frozen=True, eq=False)
class Pruned:
    """What became of a layer.

    Attributes:
        weights: float64 [groups, rows, taps], exactly 0 where not kept.
        kept: bool like weights.
        loss: Sum over rows of importance * delta H delta^T.
    """

    weights: Stack
    kept: Mask
    loss: float

    @property
    def sparsity(self) -> float:
        """Share of the weights that are removed."""
        return 1.0 - float(self.kept.mean()) if self.kept.size else 0.0


@dataclass(frozen=True, eq=False)
class Grid:
    """Integers that survivors are rounded to: scale * code.

    Attributes:
        scale: float64 [groups, rows].
        limit: Largest magnitude of a code.
    """

    scale: NDArray[np.float64]
    limit: int

    def nearest(self, values: NDArray[np.float64], group: int) -> NDArray[np.float64]:
        """Of one group, float64 [rows, ...]."""
        scale = self.scale[group].reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(np.clip(np.rint(values / scale), -self.limit, self.limit) * scale)


def magnitude(
    weights: Stack,
    hessian: NDArray[np.float64],
    pattern: Pattern,
    sparsity: float,
    importance: NDArray[np.float64] | None = None,
) -> Pruned:
    """The smallest weights go and the others stay as they are.

    Args:
        weights: float64 [groups, rows, taps].
        hessian: H, float64 [groups, taps, taps]; says the loss alone.
        pattern: What goes together.
        sparsity: Share to remove, 0..1; without meaning for NofM.
        importance: float64 [groups, rows]; None counts all rows alike.

    Source: Han et al., Learning both Weights and Connections, NeurIPS 2015, section 3, without the retraining.
    """
    kept = cheapest_removed(np.square(weights), pattern, sparsity)
    return _outcome(np.where(kept, weights, 0.0), kept, weights, hessian, importance)


def obd(
    weights: Stack,
    hessian: NDArray[np.float64],
    pattern: Pattern,
    sparsity: float,
    importance: NDArray[np.float64] | None = None,
) -> Pruned:
    """Those go that cost least alone, w_j^2 H_jj, and the others stay as they are. Arguments as for `magnitude`.

    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1989, section 2.2; the loss here is twice that.
    """
    kept = cheapest_removed(_alone(weights, hessian, importance), pattern, sparsity)
    return _outcome(np.where(kept, weights, 0.0), kept, weights, hessian, importance)


def obs(
    weights: Stack,
    hessian: NDArray[np.float64],
    pattern: Pattern,
    sparsity: float,
    importance: NDArray[np.float64] | None = None,
) -> Pruned:
    """Each time the one goes that costs least once the others have made good, and they do.

    Arguments as for `magnitude`, with a damped H. Takes (row blocks) * taps^3 operations.

    Source: see `passes.solvers.obs.trace`.
    """
    kept = trace(weights, hessian, pattern, importance).kept(sparsity)
    return _outcome(refit(weights, hessian, kept), kept, weights, hessian, importance)


def sweep(
    weights: Stack,
    hessian: NDArray[np.float64],
    pattern: Pattern,
    sparsity: float,
    importance: NDArray[np.float64] | None = None,
    grid: Grid | None = None,
) -> Pruned:
    """One walk over the taps, which removes in every stretch of them what then costs least and rounds the rest.

    The score of a weight is (w_j / U_jj)^2, and what goes or is rounded the taps behind it make good. Every stretch of
    about 128 taps loses the same share. Takes taps^3 + rows * taps^2 operations: for layers too large for `obs`.

    Arguments as for `obs`; with a `grid` the survivors are on it.

    Source: Frantar and Alistarh, SparseGPT, ICML 2023, algorithm 1.
    """
    result, kept = np.empty_like(weights), np.empty(weights.shape, np.bool_)
    counted = np.ones(weights.shape[:2]) if importance is None else importance
    for group in range(len(weights)):
        upper = quadratic.inverse_factor(hessian[group])
        walk = _Walk(weights[group].copy(), upper, counted[group], pattern, sparsity, grid, group)
        result[group], kept[group] = walk.run()
    return _outcome(result, kept, weights, hessian, importance)


def quantized(
    weights: Stack,
    hessian: NDArray[np.float64],
    kept: Mask,
    grid: Grid,
    importance: NDArray[np.float64] | None = None,
    *,
    is_shared: bool = False,
    rate: gptq.Rate | None = None,
) -> Pruned:
    """The survivors of a mask on the grid, rounded one after the other and then polished one at a time.

    Args:
        weights, hessian, importance: As for `obs`.
        kept: bool like `weights`.
        grid: Where the survivors are to lie.
        is_shared: Round all rows in one sweep over all taps, which takes rows * taps^2 operations; otherwise each in
            its own survivors, which errs less and takes rows * taps^3.
        rate: Lets a code that is cheaper to store win where it costs less than it saves.
    """
    counted = np.ones(weights.shape[:2]) if importance is None else importance
    if is_shared:
        codes = _shared_codes(weights, hessian, kept, grid, counted, rate)
    else:
        codes = rounded(weights, hessian, kept, grid.scale, grid.limit, importance=counted, rate=rate)
    for group, scale in enumerate(grid.scale):
        exact, cost = weights[group] / scale[:, None], counted[group] * np.square(scale)
        codes[group] = gptq.polish(
            exact, codes[group], hessian[group], grid.limit, weight=cost, rate=rate, keep=kept[group]
        )
    return _outcome(codes * grid.scale[:, :, None], kept, weights, hessian, importance)


def _shared_codes(
    weights: Stack,
    hessian: NDArray[np.float64],
    kept: Mask,
    grid: Grid,
    importance: NDArray[np.float64],
    rate: gptq.Rate | None,
) -> Stack:
    layers = zip(weights, hessian, grid.scale, importance, kept)
    return np.stack([gptq.gptq(w, h, s, grid.limit, importance=g, rate=rate, keep=k) for w, h, s, g, k in layers])


def _alone(weights: Stack, hessian: NDArray[np.float64], importance: NDArray[np.float64] | None) -> Stack:
    costs = np.square(weights) * np.diagonal(hessian, axis1=1, axis2=2)[:, None]
    return costs if importance is None else costs * importance[:, :, None]


def _outcome(
    new: Stack,
    kept: Mask,
    weights: Stack,
    hessian: NDArray[np.float64],
    importance: NDArray[np.float64] | None,
) -> Pruned:
    every = range(len(weights))
    counted = [None if importance is None else importance[g] for g in every]
    loss = sum(quadratic.loss(new[g] - weights[g], hessian[g], counted[g]) for g in every)
    return Pruned(new, kept, float(loss))


@dataclass(frozen=True, eq=False)
class _Walk:
    """A SparseGPT sweep over one group; `work` [rows, taps] is used up."""

    work: NDArray[np.float64]
    upper: NDArray[np.float64]
    importance: NDArray[np.float64]
    pattern: Pattern
    sparsity: float
    grid: Grid | None
    group: int

    def run(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Weights and mask, [rows, taps]."""
        kept = np.ones(self.work.shape, np.bool_)
        taps = self.work.shape[1]
        wide = self.pattern.of if isinstance(self.pattern, NofM) else self.pattern.taps
        stretch = max(gptq.BLOCK // wide, 1) * wide
        for start in range(0, taps, stretch):
            end = min(start + stretch, taps)
            # N:M is chosen stretch by stretch with what is known by then; the others compete over the whole block.
            step = wide if isinstance(self.pattern, NofM) else stretch
            errors = np.zeros((len(self.work), end - start))
            for first in range(start, end, step):
                last = min(first + step, end)
                kept[:, first:last] = self._mask(first, last)
                self._columns(kept, start, first, last, end, errors)
            self.work[:, end:] -= errors @ self.upper[start:end, end:]
        return self.work, kept

    def _mask(self, first: int, last: int) -> NDArray[np.bool_]:
        pivots = np.diagonal(self.upper)[first:last]
        scores = np.square(self.work[:, first:last] / pivots) * self.importance[:, None]
        return cheapest_removed(scores[None], self.pattern, self.sparsity)[0]

    def _columns(
        self, kept: NDArray[np.bool_], start: int, first: int, last: int, end: int, errors: NDArray[np.float64]
    ) -> None:
        for j in range(first, last):
            column = self.work[:, j].copy()
            chosen = column if self.grid is None else self.grid.nearest(column, self.group)
            chosen = np.where(kept[:, j], chosen, 0.0)
            error = (column - chosen) / self.upper[j, j]
            self.work[:, j] = chosen
            self.work[:, j + 1 : end] -= error[:, None] * self.upper[j, j + 1 : end]
            errors[:, j - start] = error
