"""Weights that are equal by construction: the least squares of a few parameters behind many weights.

Row i of the weights is w_i ~ a_i * sign_i * p[ids_i]: every tap reads one parameter, no two taps of a row the same one,
and the row has a factor of its own. Then sum_i g_i d_i H d_i^T is a quadratic of p, and of every a_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.solvers.gptq import gptq, polish
from passes.solvers.hessian import Matrix, Vector

Ids: TypeAlias = NDArray[np.int64]

FACTOR_MIN = 2.0**-20
"""Of a row relative to the largest: a scale cannot be 0 or negative."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of weights that share parameters.

    Attributes:
        ids: Parameter of every tap, int64 [rows, taps]; distinct within a row.
        signs: -1 or 1, float64 [rows].
        weights: The target, float64 [rows, taps].
        hessian: H of each row, float64 [rows or 1, taps, taps].
        importance: float64 [rows].
        size: Number of parameters.
        start: Parameters that fit one row, float64 [size], where the rows are known to be its multiples.
    """

    ids: Ids
    signs: Vector
    weights: Matrix
    hessian: NDArray[np.float64]
    importance: Vector
    size: int
    start: Vector | None = None

    def normal(self, factors: Vector) -> tuple[Matrix, Vector]:
        """(N, r): the loss at fixed factors is p N p - 2 p r + constant. float64 [size, size] and [size].

        A parameter that no row reads has a 1 on the diagonal, so that N is positive definite and the solution 0.
        """
        matrix, right = np.zeros((self.size, self.size)), np.zeros(self.size)
        pulls = self._pulled(self.weights)
        for row, ids in enumerate(self.ids):
            weight = self.importance[row] * factors[row] ** 2
            matrix[np.ix_(ids, ids)] += weight * self.hessian[row % len(self.hessian)]
            right[ids] += self.importance[row] * factors[row] * self.signs[row] * pulls[row]
        unread = np.diagonal(matrix) == 0
        matrix[unread, unread] = 1.0
        return matrix, right

    def best(self, factors: Vector) -> Vector:
        """The parameters of least loss at these factors, float64 [size]."""
        matrix, right = self.normal(factors)
        return np.asarray(np.linalg.solve(matrix, right))

    def best_factors(self, parameters: Vector) -> Vector:
        """The factors of least loss at these parameters, none below FACTOR_MIN of the largest, float64 [rows]."""
        shapes = self.signs[:, None] * parameters[self.ids]
        pulls = self._pulled(shapes)
        square, along = (pulls * shapes).sum(axis=1), (pulls * self.weights).sum(axis=1)
        factors = np.where(square > 0, along / np.where(square > 0, square, 1.0), 0.0)
        largest = float(factors.max(initial=0.0))
        return np.maximum(factors, FACTOR_MIN * largest) if largest > 0 else np.ones(len(factors))

    def expanded(self, parameters: Vector, factors: Vector) -> Matrix:
        """The weights that they stand for, float64 [rows, taps]."""
        return np.asarray((factors * self.signs)[:, None] * parameters[self.ids])

    def fitted(self, rounds: int) -> tuple[Vector, Vector]:
        """Parameters and factors, fitted in turn `rounds` times; factors are 1 at first, or those that fit `start`."""
        factors = np.ones(len(self.ids)) if self.start is None else self.best_factors(self.start)
        parameters = self.best(factors)
        for _ in range(rounds):
            factors = self.best_factors(parameters)
            parameters = self.best(factors)
        return parameters, factors

    def rounded(self, scale: Vector, limit: int) -> NDArray[np.int32]:
        """Integer parameters at these factors, int32 [size]: GPTQ in the space of the parameters, then polish."""
        largest = float(scale.max())
        matrix, right = self.normal(scale / largest)
        exact = np.asarray(np.linalg.solve(matrix, right) / largest, np.float64)[None]
        swept = gptq(exact, matrix, np.ones(1), limit)
        return np.asarray(polish(exact, swept, matrix, limit)[0].astype(np.int32))

    def _pulled(self, rows: Matrix) -> Matrix:
        """Every row times its H."""
        if len(self.hessian) == 1:
            return rows @ self.hessian[0]
        return np.asarray(np.einsum("rt,rtu->ru", rows, self.hessian))
