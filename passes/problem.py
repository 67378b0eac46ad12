"""The rounding problem of one layer: from what it reads and from what its errors cost the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from passes.gram import NOISE, Moments
from passes.layer import Layer
from passes.recipes.base import Problem

SHRINKAGE = 0.1
"""Share of the mean variance that is added to every input's: samples are not the world."""
CORRELATION_SHRINKAGE = 0.1
"""How far correlations between output channels are drawn to 0, for the same reason."""
_ROW_MIN = 1e-12
MANY = 16
"""So many positions for each tap leave hardly anything to chance."""
OPTIMISM_MAX = 4.0


@dataclass(frozen=True, eq=False)
class Importance:
    """What errors in the output channels of one layer cost.

    With J the gradient at each position, split into its mean over positions and the rest: errors that differ from
    position to position meet the rest, errors that all positions share meet the sum.

    Attributes:
        scattered: E[sum over positions of (J - mean J)^2], float64 [C_out].
        shared: E[(sum over positions of J)^2], float64 [C_out].
        correlation: Of J between output channels, float64 [C_out, C_out], 1 on its diagonal; None where it is not
            known: errors of different channels then neither cancel nor add up.
    """

    scattered: NDArray[np.float64]
    shared: NDArray[np.float64]
    correlation: NDArray[np.float64] | None = None

    @staticmethod
    def even(channels: int) -> Importance:
        """Every channel alike, errors independent."""
        return Importance(np.ones(channels), np.zeros(channels))

    def of(self, rows: Sequence[int]) -> Importance:
        """Of some of the output channels."""
        kept = list(rows)
        between = None if self.correlation is None else self.correlation[np.ix_(kept, kept)]
        return Importance(self.scattered[kept], self.shared[kept], between)


def weighing(moments: Moments, importance: Importance) -> tuple[float, NDArray[np.float64]]:
    """How much the shared covariance counts beside the covariance, and how much each output channel, float64 [C_out].

    The cost of a change D of row r is scattered[r] D C D^T + shared[r] D S D^T, with C the covariance of what is read
    and S that of its mean over positions. All rows take the layer's one ratio of the two, and keep their own size.
    """
    scattered, shared = float(importance.scattered.sum()), float(importance.shared.sum())
    if scattered <= 1e-6 * shared:  # one position: all that differs is shared
        return 0.0, _drawn_together(importance.shared)
    ratio = shared / scattered
    both = (moments.covariance, moments.shared_covariance)
    own, common = (max(float(np.trace(each, axis1=1, axis2=2).mean()), 0.0) for each in both)
    if own <= NOISE * float(np.trace(moments.square, axis1=1, axis2=2).mean()):  # it reads constants
        return 0.0, _drawn_together(importance.scattered)
    rows = (importance.scattered * own + importance.shared * common) / max(own + ratio * common, 1e-30)
    return ratio, _drawn_together(rows)


def _drawn_together(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The geometric mean of a channel's importance and the layer's average: few samples say little of one channel."""
    mean = float(rows.mean())
    return np.sqrt(np.maximum(rows, 1e-3 * mean) * mean)


def optimism(moments: Moments) -> float:
    """How much more weights that were fitted to n positions lose on others: (n + p) / (n - p) with p what they fit.

    p = tr(C (C + damping)^-1) is the number of inputs that the damping leaves to be fitted.

    Source: Akaike, Fitting Autoregressive Models for Prediction, 1969, for the ratio.
    """
    count, taps = moments.count, moments.mean.shape[1]
    if count >= MANY * taps:
        return 1.0
    pairs = zip(moments.hessian(SHRINKAGE), moments.covariance, strict=True)
    free = float(np.mean([np.trace(np.linalg.solve(hessian, covariance)) for hessian, covariance in pairs]))
    return min((count + free) / max(count - free, 1e-30), OPTIMISM_MAX) if free < count else OPTIMISM_MAX


def problem_of(
    layer: Layer,
    weights: NDArray[np.generic],
    moments: Moments,
    importance: Importance,
    *,
    is_fitted: bool = True,
) -> Problem:
    """The rounding problem of one layer.

    Args:
        layer, weights, moments, importance: Of the layer.
        is_fitted: Whether weights will be chosen by it: then they lose more on other samples than it says of its own.
    """
    ratio, rows = weighing(moments, importance)
    hessian = moments.hessian(SHRINKAGE, ratio)
    rows = rows * optimism(moments) if is_fitted else rows
    return Problem(layer.matrix(weights), hessian, rows.reshape(layer.groups, layer.rows), layer.kernel)


@dataclass(frozen=True, eq=False)
class Turned:
    """A problem whose rows are combinations of the layer's: errors of the new rows cost each for itself.

    Attributes:
        problem: With importance 1.
        back: From its rows to those of the layer, float64 [groups, rows, rows].
    """

    problem: Problem
    back: NDArray[np.float64]


def turned(problem: Problem, importance: Importance) -> Turned:
    """The problem in rows of which errors are not correlated: with G = A R A the cost of a change D is tr(G D H D^T).

    A^2 is the importance of the rows and R their correlation, drawn to the identity by CORRELATION_SHRINKAGE.

    Source: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, ICML 2015,
        section 3, for G as the output factor.
    """
    groups, rows, _ = problem.weights.shape
    scale = np.sqrt(np.maximum(problem.importance, _ROW_MIN * problem.importance.max(initial=1e-30)))
    forward, back = np.empty((2, groups, rows, rows))
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        between = np.eye(rows) if importance.correlation is None else importance.correlation[own, own]
        drawn = (1 - CORRELATION_SHRINKAGE) * between + CORRELATION_SHRINKAGE * np.eye(rows)
        values, vectors = np.linalg.eigh((drawn + drawn.T) / 2)
        root = np.sqrt(np.maximum(values, CORRELATION_SHRINKAGE / 2))
        forward[group] = (vectors * root) @ vectors.T * scale[group]
        back[group] = (vectors / root) @ vectors.T / scale[group][:, None]
    weights = np.matmul(forward, problem.weights)
    return Turned(replace(problem, weights=weights, importance=np.ones_like(problem.importance)), back)
