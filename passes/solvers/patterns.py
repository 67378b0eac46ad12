"""Which weights may become zero together: single weights, n of every m taps, or blocks of rows x taps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Stack: TypeAlias = NDArray[np.float64]
"""Weights or scores of a layer, float64 [groups, rows, taps]."""
Mask: TypeAlias = NDArray[np.bool_]
"""True where a weight is kept, bool [groups, rows, taps]."""


@dataclass(frozen=True)
class Blocks:
    """Aligned blocks of `rows` output channels x `taps` taps; 1 x 1 is unstructured.

    The blocks at the end are smaller where the layer is no multiple of the shape.
    """

    rows: int = 1
    taps: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1 or self.taps < 1:
            raise ValueError(f"a block needs at least one row and one tap, not {self.rows} x {self.taps}")

    def __str__(self) -> str:
        return "unstructured" if self == UNSTRUCTURED else f"{self.rows}x{self.taps} blocks"


@dataclass(frozen=True)
class NofM:
    """At most `kept` weights of every `of` consecutive taps of a row, aligned to the row's start."""

    kept: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.kept <= self.of:
            raise ValueError(f"{self.kept} of {self.of} weights cannot be kept")

    def removed(self, taps: int) -> NDArray[np.int64]:
        """How many weights go from each stretch of a row of `taps`, int64 [ceil(taps / of)]."""
        sizes = np.minimum(self.of, taps - np.arange(0, taps, self.of))
        return np.maximum(sizes - self.kept, 0).astype(np.int64)

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


Pattern: TypeAlias = Blocks | NofM
UNSTRUCTURED = Blocks()


def cheapest_removed(scores: Stack, pattern: Pattern, sparsity: float) -> Mask:
    """The mask that removes the units with the lowest scores.

    Args:
        scores: What the removal of each weight alone costs, float64 [groups, rows, taps]; a block costs their sum, and
            blocks compete by their cost per weight.
        pattern: NofM decides by itself how many go.
        sparsity: Share of the layer's weights to remove, 0..1: never more than that, and as near as the blocks allow.
    """
    if isinstance(pattern, NofM):
        return _n_of_m(scores, pattern)
    costs = block_sums(scores, pattern)
    sizes = block_sums(np.ones_like(scores), pattern)
    removed = affordable(costs / sizes, sizes, sparsity)
    return spread(~removed, pattern, scores.shape)


def affordable(costs: NDArray[np.float64], sizes: NDArray[np.float64], sparsity: float) -> NDArray[np.bool_]:
    """The units to remove: the cheapest ones, equals in the order in which they stand, until the share is reached.

    Args:
        costs: Of every unit, for each of its weights.
        sizes: Weights of every unit, the same shape.
        sparsity: Share of the sum of sizes, 0..1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"a sparsity is a share between 0 and 1, not {sparsity}")
    order = np.argsort(costs, axis=None, kind="stable")
    total = np.cumsum(sizes.ravel()[order])
    # Half a weight of slack: the share of a whole number of weights must not fail by a rounding error.
    count = int(np.searchsorted(total, sparsity * float(sizes.sum()) + 0.5, side="right"))
    removed = np.zeros(costs.size, np.bool_)
    removed[order[:count]] = True
    return removed.reshape(costs.shape)


def block_sums(values: Stack, pattern: Blocks) -> Stack:
    """Sum of the values in each block, float64 [groups, row blocks, tap blocks]."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[1], pattern.rows), axis=1)
    return np.asarray(np.add.reduceat(rows, np.arange(0, values.shape[2], pattern.taps), axis=2))


def spread(blocks: Mask, pattern: Blocks, shape: tuple[int, ...]) -> Mask:
    """A mask of blocks [groups, row blocks, tap blocks] as one of weights of `shape`."""
    whole = np.repeat(np.repeat(blocks, pattern.rows, axis=1), pattern.taps, axis=2)
    return whole[:, : shape[1], : shape[2]]


def _n_of_m(scores: Stack, pattern: NofM) -> Mask:
    groups, rows, taps = scores.shape
    quota = pattern.removed(taps)
    padded = np.full((groups, rows, len(quota) * pattern.of), np.inf)
    padded[:, :, :taps] = scores
    stretches = padded.reshape(groups, rows, len(quota), pattern.of)
    rank = np.argsort(np.argsort(stretches, axis=3, kind="stable"), axis=3, kind="stable")
    kept = rank >= quota[:, None]
    return np.asarray(kept.reshape(padded.shape)[:, :, :taps])
