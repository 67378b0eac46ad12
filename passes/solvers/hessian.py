"""The quadratic loss of a layer's weights, and the factors of its matrix that the sweeps need.

With x what one output position reads and H = E[x x^T], a change D of the weights changes the output by
E||D x||^2 = trace(D H D^T): a loss that is exact, convex, and separate for each output channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to all of it: samples are not the world."""
_RETRIES = 8


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
    """H + share * mean(diag H) * I; a dead input (H_jj = 0, or less by rounding) gets the mean, or 1 if all are dead.

    Source: Frantar et al., GPTQ, ICLR 2023, section 3.3.
    """
    diagonal = np.diagonal(hessian)
    mean = float(np.maximum(diagonal, 0.0).mean()) if diagonal.size else 0.0
    added = np.where(diagonal > 0, share * mean, max(share, 1.0) * mean if mean > 0 else 1.0)
    return hessian + np.diag(added)


def inverse(hessian: Matrix) -> Matrix:
    """H^-1 of a damped H, symmetric; damps further where it is still not positive definite."""
    lower = cholesky(hessian)
    half = np.linalg.solve(lower, np.eye(len(lower)))
    return half.T @ half


def inverse_factor(hessian: Matrix) -> Matrix:
    """The upper triangular U with H^-1 = U^T U, which the GPTQ and SparseGPT sweeps walk along.

    Column j's error, spread over the columns behind it by U[j, j:] / U[j, j], is the best that they can make good.

    Source: Frantar et al., GPTQ, ICLR 2023, section 3.3, step 3.
    """
    return np.ascontiguousarray(cholesky(inverse(hessian)).T)


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
