"""Weights that repeat: block-circulant and Toeplitz matrices, and filters shared up to sign, turn and scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.recipes.base import Coded, Problem, Recipe, RecipeError
from passes.recipes.uniform import limit_of
from passes.solvers import circulant, symmetry
from passes.solvers.circulant import Blocks
from passes.solvers.tied import Rows, rounded
from passes.storage.structured_forms import CirculantBlocks, SharedFilters

PARAMETERS_MAX = 4096
"""Of a block row: its normal equations have the square of that."""
ROUNDS = 3
"""How often the scale of each row and what the rows share are fitted to each other."""


@dataclass(frozen=True)
class Circulant:
    """Square blocks whose codes are constant along the diagonals, one matrix for each kernel position.

    Attributes:
        block: Rows of a block: 2, 4, 8 or more. A block beyond both sides of the matrix is of no use.
        bits: Of the codes, 2 to 8.
        is_tied: Wish for one scale in each block row, instead of a fitted one in each row: where the weights are truly
            circulant, and where the grid of scales is so coarse that it would tear fitted ones apart.
    """

    block: int = 4
    bits: int = 8
    is_tied: bool = False

    @property
    def name(self) -> str:
        return f"circulant {self.block}{' tied' if self.is_tied else ''} + W{self.bits}"

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        return _circulant_scales(problem, self._blocks(problem), self.limit, 0 if self.is_tied else ROUNDS)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        return _circulant_codes(problem, self._blocks(problem), scale, self.limit)

    def outlook(self, problem: Problem) -> float:
        """The loss of the plain projection: no more work than the loss itself, and never below what the fit loses.

        Raises:
            RecipeError: As `scales`.
        """
        return _projection_loss(problem, self._blocks(problem))

    def _blocks(self, problem: Problem) -> Blocks:
        rows, channels, positions = _sizes(problem)
        if min(rows, channels) < 2 or self.block > max(rows, channels):
            raise RecipeError(f"a matrix of {rows} x {channels} has no circulant blocks of {self.block}")
        return _affordable(Blocks(rows, channels, positions, self.block))


@dataclass(frozen=True)
class Toeplitz:
    """Codes that are constant along all diagonals, one matrix for each kernel position.

    Attributes:
        bits: Of the codes, 2 to 8.
        is_tied: As in Circulant.
    """

    bits: int = 8
    is_tied: bool = False

    @property
    def name(self) -> str:
        return f"Toeplitz{' tied' if self.is_tied else ''} + W{self.bits}"

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        return _circulant_scales(problem, self._blocks(problem), self.limit, 0 if self.is_tied else ROUNDS)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        return _circulant_codes(problem, self._blocks(problem), scale, self.limit)

    def outlook(self, problem: Problem) -> float:
        """As `Circulant.outlook`."""
        return _projection_loss(problem, self._blocks(problem))

    def _blocks(self, problem: Problem) -> Blocks:
        rows, channels, positions = _sizes(problem)
        if min(rows, channels) < 2:
            raise RecipeError(f"a matrix of {rows} x {channels} has no diagonals to share")
        return _affordable(circulant.toeplitz(rows, channels, positions))


@dataclass(frozen=True)
class Shared:
    """Filters that are others negated, turned, mirrored or scaled; what is shared is fitted to all that share it.

    Attributes:
        tolerance: Largest error of a filter, relative to its size, both in the norm of H.
        bits: Of the codes, 2 to 8.
        found: Who shares with whom, where that is known: the weights that it is later asked to represent may make good
            for earlier layers' errors, and show the copies no longer.
    """

    tolerance: float = 0.2
    bits: int = 8
    found: symmetry.Sharing | None = None

    @property
    def name(self) -> str:
        how = f"{self.tolerance:g}" if self.found is None else f"{len(self.found.leaders)} of {len(self.found.leader)}"
        return f"shared filters {how} + W{self.bits}"

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        def one(rows: Rows) -> NDArray[np.float64]:
            return _scales_of(rows, self.limit, ROUNDS)

        return self._by_leader(problem, one)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        found = self._sharing(problem)
        parts = [
            symmetry.rows_of(*_arrays(problem), problem.kernel, found, leader) for leader in range(len(found.leaders))
        ]
        scales = [scale.reshape(-1)[members] for members, _ in parts]
        shared = rounded([rows for _, rows in parts], scales, self.limit)
        filters = np.stack(shared).astype(np.int8).reshape(len(shared), -1, *problem.kernel)
        shape = problem.weights.shape[:2]
        storage = SharedFilters(
            filters, found.leader.astype(np.uint16).reshape(shape), found.orientation.reshape(shape)
        )
        return Coded(storage.codes(), storage)

    def _sharing(self, problem: Problem) -> symmetry.Sharing:
        if self.found is not None:
            if len(self.found.leader) != problem.weights.shape[0] * problem.weights.shape[1]:
                raise RecipeError(f"it has not the {len(self.found.leader)} filters that were looked at")
            return self.found
        found = symmetry.sharing(problem.weights, problem.hessian, problem.kernel, self.tolerance)
        if len(found.leaders) == len(found.leader):
            raise RecipeError(f"no two of its {len(found.leader)} filters are alike up to {self.tolerance:g}")
        return found

    def _by_leader(
        self, problem: Problem, solve: Callable[[Rows], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        found = self._sharing(problem)
        result = np.ones(problem.weights.shape[:2])
        for leader in range(len(found.leaders)):
            members, rows = symmetry.rows_of(*_arrays(problem), problem.kernel, found, leader)
            result.reshape(-1)[members] = solve(rows)
        return result


def recognised(problem: Problem, bits: int = 8) -> Recipe | None:
    """The recipe for a structure that the weights have already, up to float32 noise; the smallest where two fit.

    Args:
        problem: Of the layer.
        bits: Of the codes.

    Returns:
        Circulant, Toeplitz or Shared; None where the weights are like none of them.
    """
    found: list[tuple[int, Recipe]] = []
    rows, channels, positions = _sizes(problem)
    forms = {circulant.recognised(weights, positions) for weights in problem.weights}
    if len(forms) == 1 and (blocks := forms.pop()) is not None:
        is_toeplitz = blocks == circulant.toeplitz(rows, channels, positions)
        recipe: Recipe = Toeplitz(bits, is_tied=True) if is_toeplitz else Circulant(blocks.block, bits, is_tied=True)
        found.append((len(problem.weights) * blocks.parameters, recipe))
    sharing = symmetry.sharing(problem.weights, problem.hessian, problem.kernel)
    if len(sharing.leaders) < len(sharing.leader):
        found.append((len(sharing.leaders) * problem.weights.shape[2], Shared(symmetry.NOISE, bits, sharing)))
    return min(found, key=lambda each: each[0])[1] if found else None


def _sizes(problem: Problem) -> tuple[int, int, int]:
    """Rows and channels of a group, and kernel positions."""
    _, rows, taps = problem.weights.shape
    positions = math.prod(problem.kernel)
    return rows, taps // positions, positions


def _arrays(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    return problem.weights, problem.hessian, problem.importance


def _scales_of(rows: Rows, limit: int, rounds: int) -> NDArray[np.float64]:
    """Scales that use the whole range of the codes for what the rows share."""
    parameters, factors = rows.fitted(rounds)
    largest = float(np.abs(parameters).max(initial=0.0))
    return factors * (largest if largest > 0 else 1.0) / limit


def _affordable(blocks: Blocks) -> Blocks:
    if blocks.row_parameters > PARAMETERS_MAX:
        raise RecipeError(f"its block rows have {blocks.row_parameters} parameters, more than {PARAMETERS_MAX}")
    return blocks


def _projection_loss(problem: Problem, blocks: Blocks) -> float:
    return problem.loss(np.stack([blocks.expand(circulant.projected(each, blocks)) for each in problem.weights]))


def _circulant_scales(problem: Problem, blocks: Blocks, limit: int, rounds: int) -> NDArray[np.float64]:
    result = np.empty(problem.weights.shape[:2])
    for group, arrays in enumerate(zip(*_arrays(problem), strict=True)):
        for block_row in range(blocks.down):
            rows = circulant.rows_of(*arrays, blocks, block_row)
            result[group, blocks.members(block_row)] = _scales_of(rows, limit, rounds)
    return result


def _circulant_codes(problem: Problem, blocks: Blocks, scale: NDArray[np.float64], limit: int) -> Coded:
    parameters = np.zeros((len(problem.weights), blocks.down, blocks.row_parameters), np.int8)
    for group, arrays in enumerate(zip(*_arrays(problem), strict=True)):
        rows = [circulant.rows_of(*arrays, blocks, block_row) for block_row in range(blocks.down)]
        scales = [scale[group, blocks.members(block_row)] for block_row in range(blocks.down)]
        parameters[group] = rounded(rows, scales, limit)
    storage = CirculantBlocks(blocks, parameters)
    return Coded(storage.codes(), storage)
