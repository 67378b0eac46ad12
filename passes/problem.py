"""The rounding problem of one layer: from what it reads and from what its errors cost the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.gram import NOISE, Moments
from passes.layer import Layer
from passes.recipes import Problem

SHRINKAGE = 0.1
"""Share of the mean variance that is added to every input's: samples are not the world."""


@dataclass(frozen=True, eq=False)
class Importance:
    """What errors in the output channels of one layer cost.

    With J the gradient at each position, split into its mean over positions and the rest: errors that differ from
    position to position meet the rest, errors that all positions share meet the sum.

    Attributes:
        scattered: E[sum over positions of (J - mean J)^2], float64 [C_out].
        shared: E[(sum over positions of J)^2], float64 [C_out].
    """

    scattered: NDArray[np.float64]
    shared: NDArray[np.float64]

    @staticmethod
    def even(channels: int) -> Importance:
        """Every channel alike, errors independent."""
        return Importance(np.ones(channels), np.zeros(channels))


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


def problem_of(layer: Layer, weights: NDArray[np.generic], moments: Moments, importance: Importance) -> Problem:
    """The rounding problem of one layer."""
    ratio, rows = weighing(moments, importance)
    hessian = moments.hessian(SHRINKAGE, ratio)
    return Problem(layer.matrix(weights), hessian, rows.reshape(layer.groups, layer.rows), layer.kernel)
