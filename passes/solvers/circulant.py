"""Block-circulant and Toeplitz matrices: recognised where they are, fitted where they are not.

In a block of b rows and b columns the weight at (i, j) is p[(i - j) mod b]; blocks at the border are cut off. One block
of b = rows + columns - 1 has no two diagonals alike: that is a Toeplitz matrix, square or not. A Conv has such a matrix
for every kernel position. Source: Cheng et al., ICCV 2015, section 3; Ding et al., CirCNN, MICRO 2017, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Matrix, Vector
from passes.solvers.tied import Ids, Rows

_Number = TypeVar("_Number", bound=np.generic)

NOISE = 2.0**-20
"""Spread of equal weights relative to the largest of the layer: what float32 training or export leaves."""


@dataclass(frozen=True)
class Blocks:
    """The form of a block-circulant layer.

    Attributes:
        rows: Of the matrix.
        channels: Its columns.
        positions: Kernel positions, each with a matrix of its own.
        block: b.
    """

    rows: int
    channels: int
    positions: int
    block: int

    def __post_init__(self) -> None:
        if self.block < 2:
            raise ValueError(f"a block has at least 2 rows, not {self.block}")

    @property
    def down(self) -> int:
        """Block rows."""
        return -(-self.rows // self.block)

    @property
    def across(self) -> int:
        """Block columns."""
        return -(-self.channels // self.block)

    @property
    def parameters(self) -> int:
        """Numbers that it is made of, those of a block's invisible diagonals included."""
        return self.down * self.across * self.positions * self.block

    @property
    def row_parameters(self) -> int:
        """Of one block row."""
        return self.across * self.positions * self.block

    def ids(self) -> Ids:
        """Parameter of every weight within its block row, int64 [rows, channels * positions]."""
        i, j = np.arange(self.rows)[:, None, None], np.arange(self.channels)[:, None]
        position = np.arange(self.positions)
        found = ((j // self.block) * self.positions + position) * self.block + (i - j) % self.block
        return np.asarray(found.reshape(self.rows, -1))

    def seen(self) -> NDArray[np.bool_]:
        """Whether any weight is that parameter, bool [down, row_parameters]: borders cut some off."""
        result = np.zeros((self.down, self.row_parameters), bool)
        result[np.arange(self.rows)[:, None] // self.block, self.ids()] = True
        return result

    def members(self, block_row: int) -> slice:
        """The rows of a block row."""
        return slice(block_row * self.block, min((block_row + 1) * self.block, self.rows))

    def expand(self, parameters: NDArray[_Number]) -> NDArray[_Number]:
        """[down, row_parameters] to the weights [rows, taps]."""
        return np.take_along_axis(parameters[np.arange(self.rows) // self.block], self.ids(), axis=1)


def toeplitz(rows: int, channels: int, positions: int = 1) -> Blocks:
    """Any Toeplitz matrix of this size, for every kernel position."""
    return Blocks(rows, channels, positions, rows + channels - 1)


def projected(weights: Matrix, blocks: Blocks) -> Matrix:
    """The parameters of the nearest matrix of that form, float64 [down, row_parameters]: means of equal weights.

    Args:
        weights: float64 [rows, channels * positions].
        blocks: The form.
    """
    total, count = np.zeros((2, blocks.down, blocks.row_parameters))
    where = np.arange(blocks.rows)[:, None] // blocks.block
    np.add.at(total, (where, blocks.ids()), weights)
    np.add.at(count, (where, blocks.ids()), 1.0)
    return np.asarray(total / np.maximum(count, 1.0))


def recognised(weights: Matrix, positions: int = 1, noise: float = NOISE) -> Blocks | None:
    """The form with the fewest parameters that the weights have, up to noise * max|w|; None where there is none.

    Blocks of 2, 4, 8, ..., the divisors of both sides, one block of either side, and Toeplitz.

    Args:
        weights: float64 [rows, channels * positions].
        positions: Kernel positions.
        noise: Largest deviation from the mean of the weights that are to be equal.
    """
    largest = float(np.abs(weights).max(initial=0.0))
    if largest == 0:
        return None
    for blocks in candidates(len(weights), weights.shape[1] // positions, positions):
        if np.abs(blocks.expand(projected(weights, blocks)) - weights).max() <= noise * largest:
            return blocks
    return None


def candidates(rows: int, channels: int, positions: int) -> list[Blocks]:
    """The forms that `recognised` tries, those with the fewest parameters first; all have fewer than weights."""
    common = math.gcd(rows, channels)
    sizes = {b for b in range(2, common + 1) if common % b == 0}
    sizes |= {1 << n for n in range(1, max(rows, channels).bit_length()) if 1 << n <= max(rows, channels)}
    sizes |= {rows, channels, rows + channels - 1}
    found = [Blocks(rows, channels, positions, b) for b in sizes if b > 1]
    smaller = [b for b in found if b.parameters < rows * channels * positions]
    return sorted(smaller, key=lambda b: (b.parameters, b.block))


def rows_of(weights: Matrix, hessian: Matrix, importance: Vector, blocks: Blocks, block_row: int) -> Rows:
    """The least-squares problem of one block row.

    Args:
        weights: float64 [rows, channels * positions].
        hessian: H, float64 [taps, taps].
        importance: float64 [rows].
        blocks: The form.
        block_row: Which.
    """
    some = blocks.members(block_row)
    ids = blocks.ids()[some]
    return Rows(ids, np.ones(len(ids)), weights[some], hessian[None], importance[some], blocks.row_parameters)


def fitted(
    weights: Matrix, hessian: Matrix, importance: Vector, blocks: Blocks, rounds: int = 0
) -> tuple[Matrix, Vector]:
    """Parameters of least loss, float64 [down, row_parameters], and a factor of every row, float64 [rows].

    Args:
        weights: float64 [rows, channels * positions].
        hessian: H, positive definite, float64 [taps, taps].
        importance: float64 [rows].
        blocks: The form.
        rounds: How often the rows' factors are fitted; with 0 they are 1, and the result is the projection.
    """
    found = [rows_of(weights, hessian, importance, blocks, each).fitted(rounds) for each in range(blocks.down)]
    return np.stack([parameters for parameters, _ in found]), np.concatenate([factors for _, factors in found])
