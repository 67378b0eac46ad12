"""The quadratic loss of a layer's weights, and the factors of its matrix that the sweeps need.

With x what one output position reads and H = E[x x^T], a change D of the weights changes the output by
E||D x||^2 = trace(D H D^T): a loss that is exact, convex, and separate for each output channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to all of it: samples are not the world."""
_RETRIES = 8
_WHOLE = 48
"""Taps of a triangular matrix that is inverted as it is: below, Python takes longer than the sums."""


def loss(delta: Matrix, hessian: Matrix, importance: Vector | None = None) -> float:
    """Sum over rows r of importance[r] * delta[r] H delta[r]^T.

    Args:
        delta: Change of the weights, float64 [rows, taps].
        hessian: H, float64 [taps, taps].
        importance: float64 [rows]; None counts every row once.
    """
    return float(row_losses(delta, hessian) @ (np.ones(len(delta)) if importance is None else importance))


def row_losses(delta: Matrix, hessian: Matrix) -> Vector:
    """delta[r] H delta[r]^T of every row, float64 [rows]."""
    return np.asarray(np.einsum("rt,rt->r", delta @ hessian, delta))


def damped(hessian: Matrix, share: float = DAMPING) -> Matrix:
    """H + share * mean(diag H) * I; a dead input (H_jj = 0, or less by rounding) gets the mean,
    or what is largest where all are dead.

    Source: Frantar et al., GPTQ, ICLR 2023, section 3.3.
    """
    diagonal = np.diagonal(hessian)
    mean = float(np.maximum(diagonal, 0.0).mean()) if diagonal.size else 0.0
    size = mean or float(np.abs(hessian).max(initial=0.0)) or 1.0
    added = np.where(diagonal > 0, share * mean, max(share, 1.0) * size)
    return hessian + np.diag(added)


def inverse(hessian: Matrix) -> Matrix:
    """H^-1 of a damped H, symmetric; damps further where it is still not positive definite."""
    half = _upper_inverse(cholesky(hessian).T)
    return half @ half.T


def inverse_factor(hessian: Matrix) -> Matrix:
    """The upper triangular U with H^-1 = U^T U, which the GPTQ and SparseGPT sweeps walk along.

    Column j's error, spread over the columns behind it by U[j, j:] / U[j, j], is the best that they can make good. With
    the taps turned round, the Cholesky factor of H itself is an upper one, R R^T = H, and U is its inverse.

    Source: Frantar et al., GPTQ, ICLR 2023, section 3.3, step 3; Chen et al., The Geometry of LLM Quantization: GPTQ as
        Babai's Nearest Plane Algorithm, 2025, for the factor of H.
    """
    return _upper_inverse(cholesky(hessian[::-1, ::-1])[::-1, ::-1])


def _upper_inverse(upper: Matrix) -> Matrix:
    """Inverse of an upper triangular matrix: that of its halves, [[A, B], [0, D]]^-1 = [[A', -A' B D'], [0, D']]."""
    result = np.zeros(upper.shape)
    _invert(upper, result)
    return result


def _invert(upper: Matrix, result: Matrix) -> None:
    size = len(upper)
    if size <= _WHOLE:
        result[:] = np.triu(np.linalg.inv(upper))
        return
    half = size // 2
    first, last = slice(half), slice(half, size)
    _invert(upper[first, first], result[first, first])
    _invert(upper[last, last], result[last, last])
    result[first, last] = -(result[first, first] @ upper[first, last]) @ result[last, last]


@dataclass(frozen=True, eq=False)
class Walk:
    """The order in which a sweep takes the taps, and what those behind each of them can make good.

    Attributes:
        order: Taps from the most active input on, int64 [taps].
        upper: U with H^-1 = U^T U in this order, float64 [taps, taps].
    """

    order: NDArray[np.intp]
    upper: Matrix

    @staticmethod
    def along(hessian: Matrix, dimension: int = 1) -> Walk:
        """The walk along a damped H, in blocks of so many taps, the most active block first."""
        blocks = np.arange(len(hessian)).reshape(-1, dimension)
        order = blocks[np.argsort(-np.diagonal(hessian)[blocks].sum(axis=1), kind="stable")].ravel()
        return Walk(order, inverse_factor(hessian[np.ix_(order, order)]))

    @property
    def pivots(self) -> Vector:
        """What a squared error of each tap costs in the sweep, in its order: 1 / U_jj^2, float64 [taps]."""
        return np.asarray(np.diagonal(self.upper) ** -2.0)


def cholesky(matrix: Matrix) -> Matrix:
    """The lower triangular L of L L^T = matrix, damped as far as that takes.

    Raises:
        ValueError: No damping helps.
    """
    share = 0.0
    for _ in range(_RETRIES):
        try:
            return np.asarray(np.linalg.cholesky(damped(matrix, share) if share else matrix), np.float64)
        except np.linalg.LinAlgError:
            share = 10 * share if share else DAMPING
    raise ValueError("the matrix is not positive definite, however much it is damped")
