"""The best weights, float or integer, of a layer that may use only some of its taps, different ones in every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.solvers import hessian as quadratic
from passes.solvers.gptq import Rate
from passes.solvers.patterns import Mask, Stack

Chooser: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]], NDArray[np.float64]]
"""(best values [n], rows [n], what a squared error costs once the taps behind have made good [n]) -> those taken."""

CHUNK_BYTES = 48 << 20
"""Of the matrices that are worked on at a time."""


def refit(weights: Stack, hessian: NDArray[np.float64], kept: Mask) -> Stack:
    """The weights of least loss that are 0 outside `kept`: w_S = (H_SS)^-1 (H w)_S for each row.

    This is where Optimal Brain Surgeon ends for that mask, in whatever order it goes.

    Args:
        weights: The target, float64 [groups, rows, taps].
        hessian: Damped H, float64 [groups, taps, taps].
        kept: bool like `weights`.
    """
    return _each_group(weights, hessian, kept, lambda group: lambda values, rows, costs: values)


def rounded(
    weights: Stack,
    hessian: NDArray[np.float64],
    kept: Mask,
    scale: NDArray[np.float64],
    limit: int,
    *,
    importance: NDArray[np.float64] | None = None,
    rate: Rate | None = None,
) -> Stack:
    """Integer codes, 0 outside `kept`: each row's survivors are rounded one by one, and the later ones make good.

    The GPTQ sweep in each row's own survivors, most active input first: unlike the sweep over all taps, survivors make
    good for what is removed behind them too, and no correction goes into a tap that will be removed.

    Args:
        weights, hessian, kept: As for `refit`.
        scale: float64 [groups, rows].
        limit: Largest magnitude of a code.
        importance: float64 [groups, rows]; matters with `rate` alone.
        rate: Lets a code that is cheaper to store win where it costs less than it saves.

    Returns:
        Integers in float64 [groups, rows, taps].

    Source: Frantar et al., GPTQ, ICLR 2023; Chen et al., The Geometry of LLM Quantization: GPTQ as Babai's Nearest
        Plane Algorithm, 2025, for the form with the Cholesky factor of H itself.
    """

    def chooser(group: int) -> Chooser:
        def choose(
            values: NDArray[np.float64], rows: NDArray[np.int64], costs: NDArray[np.float64]
        ) -> NDArray[np.float64]:
            steps = scale[group][rows]
            exact = values / steps
            codes = np.clip(np.rint(exact), -limit, limit)
            if rate is not None:
                counted = 1.0 if importance is None else importance[group][rows]
                codes, _ = rate.cheapest(exact, codes, costs * np.square(steps) * counted)
            return np.asarray(codes * steps)

        return choose

    return np.rint(_each_group(weights, hessian, kept, chooser) / scale[:, :, None])


def _each_group(weights: Stack, hessian: NDArray[np.float64], kept: Mask, chooser: Callable[[int], Chooser]) -> Stack:
    result = np.zeros_like(weights)
    for group in range(len(weights)):
        pull = weights[group] @ hessian[group]
        for rows in _chunks(kept[group].sum(axis=1)):
            taken = _solve(pull[rows], hessian[group], kept[group][rows], rows, chooser(group))
            result[group, rows] = taken
    return result


def _chunks(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Row numbers, those with like numbers of survivors together, so many that their matrices fit."""
    order = np.argsort(-counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, int(counts[order[start]]))
        step = max(1, CHUNK_BYTES // (8 * size * size))
        yield order[start : start + step]
        start += step


def _solve(
    pull: NDArray[np.float64],
    hessian: NDArray[np.float64],
    kept: NDArray[np.bool_],
    rows: NDArray[np.int64],
    choose: Chooser,
) -> NDArray[np.float64]:
    """Rows of weights [n, taps] with (H w)_S = pull_S; what `choose` changes, the taps behind it make good.

    With the taps in the order of descending H_jj, H_SS = R R^T, R upper triangular: R z = pull, and then
    w_j = choose((z_j - sum_{i<j} R_ij w_i) / R_jj).
    """
    by_activity = np.argsort(-np.diagonal(hessian), kind="stable")
    ordered = kept[:, by_activity]
    width = int(ordered.sum(axis=1).max(initial=0))
    if width == 0:
        return np.zeros_like(pull)
    # Survivors first; rows with fewer are filled up with taps that go with no other and are then dropped.
    taps = by_activity[np.argsort(~ordered, axis=1, kind="stable")[:, :width]]
    is_real = np.take_along_axis(kept, taps, axis=1)
    upper = _upper_factors(hessian, taps, is_real)
    rest = np.where(is_real, np.take_along_axis(pull, taps, axis=1), 0.0)
    values = _back_substituted(upper, rest)
    lower = np.ascontiguousarray(upper.transpose(0, 2, 1))
    taken = np.zeros_like(values)
    for j in range(width):
        pulled = np.einsum("ni,ni->n", lower[:, j, :j], taken[:, :j])
        pivots = lower[:, j, j]
        taken[:, j] = choose((values[:, j] - pulled) / pivots, rows, np.square(pivots))
    result = np.zeros_like(pull)
    np.put_along_axis(result, taps, np.where(is_real, taken, 0.0), axis=1)
    return result


def _upper_factors(
    hessian: NDArray[np.float64], taps: NDArray[np.int64], is_real: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """R of R R^T = H over the given taps of each row, upper triangular, float64 [n, width, width]."""
    some = hessian[taps[:, :, None], taps[:, None]]
    some *= is_real[:, :, None] & is_real[:, None]
    every = np.arange(some.shape[1])
    some[:, every, every] += ~is_real
    turned = some[:, ::-1, ::-1]
    try:
        lower = np.linalg.cholesky(turned)
    except np.linalg.LinAlgError:
        lower = np.stack([quadratic.cholesky(matrix) for matrix in turned])
    return np.asarray(lower[:, ::-1, ::-1])


def _back_substituted(upper: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """z of R z = right, float64 [n, width]."""
    result = right.copy()
    for j in range(right.shape[1] - 1, -1, -1):
        pulled = np.einsum("ni,ni->n", upper[:, j, j + 1 :], result[:, j + 1 :])
        result[:, j] = (result[:, j] - pulled) / upper[:, j, j]
    return result
