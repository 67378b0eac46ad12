"""Weights that are equal by construction: the least squares of a few parameters behind many weights.

Row i of the weights is w_i ~ a_i * sign_i * p[ids_i]: every tap reads one parameter, no two taps of a row the same one,
and the row has a factor of its own. Then sum_i g_i d_i H d_i^T is a quadratic of p, and of every a_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    def _pulled(self, rows: Matrix) -> Matrix:
        """Every row times its H."""
        if len(self.hessian) == 1:
            return rows @ self.hessian[0]
        return np.asarray(np.einsum("rt,rtu->ru", rows, self.hessian))


def rounded(problems: Sequence[Rows], scales: Sequence[Vector], limit: int) -> list[NDArray[np.int32]]:
    """Integer parameters of every problem, where the factors are its scales, int32 [size].

    Each aims at its own least squares. GPTQ and polish then round those whose rows read their parameters alike in one
    sweep, in the metric in which these rows count alike.

    Args:
        problems: Any.
        scales: Positive, float64 [rows] for each problem.
        limit: Largest magnitude of a code.
    """
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for index, problem in enumerate(problems):
        alike.setdefault((problem.ids.tobytes(), problem.hessian.tobytes()), []).append(index)
    result: list[NDArray[np.int32]] = [np.empty(0, np.int32)] * len(problems)
    for indices in alike.values():
        exact = np.stack([_exact_codes(problems[index], scales[index]) for index in indices])
        some = problems[indices[0]]
        matrix, _ = replace(some, importance=np.ones(len(some.ids))).normal(np.ones(len(some.ids)))
        swept = gptq(exact, matrix, np.ones(len(exact)), limit)
        for index, codes in zip(indices, polish(exact, swept, matrix, limit), strict=True):
            result[index] = codes.astype(np.int32)
    return result


def _exact_codes(problem: Rows, scale: Vector) -> Vector:
    largest = float(scale.max())
    return problem.best(scale / largest) / largest
