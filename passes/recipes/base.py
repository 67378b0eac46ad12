"""What a way of representing one layer's weights is: the contract between the solvers and the quantizer.

A recipe turns the float weights of one layer into integer codes, real = scale * code with one scale for each output
channel. It is asked twice: for the scales that it would like, which the quantizer then moves onto the grid of the
integer machine, and for the codes at the scales that came of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Walk


class RecipeError(ValueError):
    """A layer that a recipe cannot represent; the message says why."""


@dataclass(frozen=True, eq=False)
class Problem:
    """The weights of one layer, and what an error in them costs.

    Attributes:
        weights: The target, float64 [groups, rows, taps]: rows are the output channels of one group, taps what a
            channel reads: input channels of the group, then kernel positions. A Gemm has one group.
        hessian: H of each group, damped, float64 [groups, taps, taps]; of centred inputs where the bias takes up the
            mean.
        importance: What a squared unit of error in an output channel costs the network, float64 [groups, rows].
        kernel: Kernel sizes behind the input channels, () for a Gemm; taps = channels * prod(kernel).
    """

    weights: NDArray[np.float64]
    hessian: NDArray[np.float64]
    importance: NDArray[np.float64]
    kernel: tuple[int, ...] = ()
    _walks: dict[int, tuple[NDArray[np.float64], tuple[Walk, ...]]] = field(default_factory=dict, repr=False)
    """What was found for which H: a copy with other weights shares it."""

    def walks(self, dimension: int = 1) -> tuple[Walk, ...]:
        """Along H of each group, in blocks of so many taps: whatever is swept for this layer, goes along the same."""
        hessian, found = self._walks.get(dimension, (None, ()))
        if hessian is not self.hessian:
            found = tuple(Walk.along(each, dimension) for each in self.hessian)
            self._walks[dimension] = self.hessian, found
        return found

    @property
    def left(self) -> NDArray[np.float64]:
        """What an error of 1 in one weight costs once the sweep has made good for it, on average, float64 [groups].

        Rounding errors of scale^2 / 12 each so cost a row taps * left * scale^2 / 12.
        """
        return np.array([float(np.mean(walk.pivots)) for walk in self.walks()])

    def loss(self, weights: NDArray[np.float64]) -> float:
        """Cost of using `weights` instead, float64 [groups, rows, taps]."""
        delta = weights - self.weights
        rows = np.einsum("grt,grt->gr", delta @ self.hessian, delta)
        return float((rows * self.importance).sum())


@dataclass(frozen=True, eq=False)
class Coded:
    """The integers of one layer.

    Attributes:
        codes: int32 [groups, rows, taps].
        storage: How the codes are best stored: a value of passes.storage.forms, or None for as they are.
    """

    codes: NDArray[np.int32]
    storage: object | None = None


class Recipe(Protocol):
    """A way of representing weights. Implementations are frozen dataclasses; `name` identifies all settings."""

    @property
    def name(self) -> str:
        """Short, for reports, for instance "W4" or "N:M 2:4 + W8"."""

    @property
    def limit(self) -> int:
        """Largest magnitude of a code: 127 for 8 bits."""

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        """The scales that it would like, float64 [groups, rows], positive.

        Raises:
            RecipeError: The layer is not of the form that it represents.
        """

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        """Codes at these scales, float64 [groups, rows].

        Raises:
            RecipeError: As above.
        """


@dataclass(frozen=True)
class AsFound:
    """A recipe for weights that are of its form already: they aim at nothing but themselves.

    Scales on a coarse grid, or weights that make good for what other layers changed, would tear the form apart; so the
    quantizer keeps both as they are.

    Attributes:
        recipe: Whose form it is.
    """

    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.recipe.name}, as found"

    @property
    def limit(self) -> int:
        return self.recipe.limit

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        return self.recipe.scales(problem)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        return self.recipe.codes(problem, scale)
