"""A layer as two of lower rank, both coded: what that costs, and which ranks have a chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from passes import low_rank
from passes.low_rank import EXACT, Choice, Method, Window
from passes.problem import Importance
from passes.recipes.base import Problem

PROMISING = 0.97
"""A rank is measured where the estimate of its bytes is below this share of the whole layer's."""
RANKS_MEASURED = 3
RANKS_OPEN = 6
"""Ranks that are measured in a contest, and where low rank is all that is asked for."""


def why_not(window: Window) -> str | None:
    """Why a layer of these sizes is not offered as two."""
    if window.groups > 1:
        return "it has groups"
    return None if most(window) else "every rank has as many weights as the layer"


def most(window: Window) -> int:
    """The largest rank with fewer weights than the layer and no more multiplications; 0 where there is none."""
    ranks = range(1, min(window.rows, window.channels * math.prod(window.kernel)) + 1)
    return max((rank for rank in ranks if _pays(window, rank)), default=0)


def _pays(window: Window, rank: int) -> bool:
    weights, macs = low_rank.cost(window, choice_of(rank))
    return weights < window.weights and macs <= window.macs


def choice_of(rank: int) -> Choice:
    """Singular values: the one split whose second part reads what has a Gram matrix in closed form."""
    return Choice(Method.SVD, (rank,))


def losses(problem: Problem, window: Window) -> NDArray[np.float64]:
    """What each rank from 0 to `most` costs before anything is rounded, float64."""
    return low_rank.svd_losses(problem, window)[: most(window) + 1]


def promising(
    cut: NDArray[np.float64], window: Window, curve: Sequence[tuple[float, float, float]]
) -> list[int]:
    """The ranks that may need the fewest bytes at some loss, fewer than the whole layer at that loss.

    A rounding error costs step^2 / 12 in every weight, so a loss L that is spent on `cut` and on rounding n' instead
    of n weights leaves the step sqrt((L - cut) / L * n / n'), and the bits of a weight follow from the step as in the
    whole layer.

    Args:
        cut: As `losses` says.
        window: Sizes of the layer.
        curve: (step, loss, bits) of the whole layer, from the finest.
    """
    steps, whole, bits = np.array(curve, np.float64).T
    per_weight = bits / window.weights
    best, winner = np.full(len(whole), PROMISING), np.zeros(len(whole), np.int64)
    for rank in _candidates(cut):
        count = low_rank.cost(window, choice_of(rank))[0]
        left = np.maximum(whole - cut[rank], 0) / np.maximum(whole, 1e-30)
        finer = np.maximum(steps * np.sqrt(left * window.weights / count), np.finfo(float).tiny)
        share = np.where(left > 0, count * np.interp(np.log(finer), np.log(steps), per_weight) / bits, np.inf)
        winner, best = np.where(share < best, rank, winner), np.minimum(share, best)
    ranks, wins = np.unique(winner[winner > 0], return_counts=True)
    return sorted(ranks[np.argsort(-wins, kind="stable")][:RANKS_MEASURED].tolist())


def spread(cut: NDArray[np.float64]) -> list[int]:
    """Some ranks from the smallest to the largest that pays."""
    return sorted({int(rank) for rank in np.linspace(1, len(cut) - 1, RANKS_OPEN)} | set(_own(cut)))


def _candidates(cut: NDArray[np.float64]) -> list[int]:
    step = max(1, (len(cut) - 1) // 16)
    return sorted({*range(step, len(cut), step), *_own(cut)})


def _own(cut: NDArray[np.float64]) -> list[int]:
    """The rank that the weights have but for float noise."""
    is_exact = cut <= EXACT * cut[0]
    return [max(int(is_exact.argmax()), 1)] if is_exact.any() else []


def halves(problem: Problem, window: Window, rank: int) -> tuple[float, tuple[Problem, Problem]]:
    """What the rank costs, and the rounding problems of the two layers.

    With W ~ A B: rows of B err with the importance of all that A makes of them, and A reads B x, whose second moment is
    B H B^T.
    """
    (found,) = low_rank.factors(problem, window, choice_of(rank))
    first, last = (tensor.reshape(len(tensor), -1) for tensor in found.tensors)
    hessian = problem.hessian[0]
    importance = (np.square(last).T @ problem.importance[0])[None]
    before = Problem(first[None], problem.hessian, importance, problem.kernel)
    after = Problem(last[None], (first @ hessian @ first.T)[None], problem.importance)
    return problem.loss((last @ first)[None]), (before, after)


def importance_before(weights: NDArray[np.generic], importance: Importance) -> Importance:
    """What errors in the input of a linear layer cost, from what those in its output do.

    Args:
        weights: float [C_out, C_in] or [C_out, C_in, 1, ...].
        importance: Of the output channels.
    """
    squared = np.square(weights.reshape(len(weights), -1).astype(np.float64))
    return Importance(squared.T @ importance.scattered, squared.T @ importance.shared)
