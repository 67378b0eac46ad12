"""Uniform integers: what every layer gets by default, from 2 to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.recipes.base import Coded, Problem
from passes.scale_grid import STEPS_PER_OCTAVE
from passes.solvers.gptq import Rate, code_lengths, gptq, mse_scales, polish

GPTQ_TAPS_MAX = 8192
"""Weights that one output channel may have for the sweep: its matrix has the square of that."""
WIDE_BITS = 8
"""From here on the range of the weights is kept whole: clipping costs more than it gains."""
SEARCHED = (0, -1, 1, -2, 2)
"""Steps of the coarse grid from the scale of least rounding error that a search tries, in the order of preference."""
SEARCH_WORK = 5e8
"""Weights times weights of a channel, up to which a layer is rounded so often."""
SLOPE = np.log(2) / 6
"""-d(distortion) / d(bit) of a uniform quantizer, in units of step**2: step**2 / 12 falls to a quarter a bit."""


def limit_of(bits: int) -> int:
    """Largest code of a symmetric narrow range: 127 for 8 bits, 1 for 2."""
    return 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class Uniform:
    """Integers of `bits`, rounded so that the layer's output errs least.

    8 bits and more start from the nearest integer and stay within 1 of the weight; fewer are swept by GPTQ.

    Attributes:
        bits: 2 to 16.
        is_nearest: Round to the nearest integer instead.
        is_searched: Below 8 bits, whether a layer is rounded at several scales of the coarse grid, and each row keeps
            the one at which the layer's output errs least.
    """

    bits: int = 8
    is_nearest: bool = False
    is_searched: bool = False

    @property
    def name(self) -> str:
        return f"W{self.bits}" + (" nearest" if self.is_nearest else "")

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        if self.bits >= WIDE_BITS:
            return np.asarray(np.abs(problem.weights).max(axis=2, initial=0.0) / self.limit)
        diagonal = np.diagonal(problem.hessian, axis1=1, axis2=2)
        wished = np.stack([mse_scales(w, self.limit, d) for w, d in zip(problem.weights, diagonal, strict=True)])
        is_small = problem.weights.size * problem.weights.shape[2] <= SEARCH_WORK
        return self._best(problem, wished) if self.is_searched and is_small else wished

    def _best(self, problem: Problem, wished: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the coarse grid's scales around those wished for, each row's that loses least, float64 [groups, rows]."""
        middle = np.rint(np.log2(np.maximum(wished, np.finfo(np.float32).tiny)) * STEPS_PER_OCTAVE)
        best, least = wished, np.full(wished.shape, np.inf)
        for add in SEARCHED:
            scale = np.exp2((middle + add) / STEPS_PER_OCTAVE)
            delta = self.codes(problem, scale).codes * scale[:, :, None] - problem.weights
            loss = np.einsum("grt,grt->gr", delta @ problem.hessian, delta)
            best, least = np.where(loss < least, scale, best), np.minimum(loss, least)
        return best

    def nearest_scales(self, weights: NDArray[np.floating], variance: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scales that it would like for rounding to the nearest, float64 [rows]; 0 for a row of zeros.

        Args:
            weights: [rows, taps].
            variance: Of what each tap reads, float64 [groups, taps].
        """
        loudest = np.abs(weights).max(axis=1, initial=0.0).astype(np.float64)
        if self.bits >= WIDE_BITS:
            return np.asarray(loudest / self.limit)
        cost = variance + variance.mean(axis=1, keepdims=True) / 10
        best = [
            mse_scales(row[None].astype(np.float64), self.limit, cost[index * len(cost) // len(weights)])[0]
            for index, row in enumerate(weights)
        ]
        return np.where(loudest > 0, best, 0.0)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        return Coded(
            np.stack(
                [self._rounded(problem, group, s) for group, s in enumerate(scale)]
            ).astype(np.int32)
        )

    def _rounded(self, problem: Problem, group: int, scale: NDArray[np.float64]) -> NDArray[np.float64]:
        weights, hessian = problem.weights[group], problem.hessian[group]
        exact = weights / scale[:, None]
        nearest = np.clip(np.rint(exact), -self.limit, self.limit)
        if self.is_nearest or weights.shape[1] > GPTQ_TAPS_MAX:
            return nearest
        keep = weights != 0  # a weight of 0 was pruned, and stays so
        if self.bits >= WIDE_BITS:
            keep &= nearest.any(axis=1, keepdims=True)  # a row of zeros is dead
            return polish(exact, nearest, hessian, self.limit, keep=keep, reach=1.0, sweeps=8)
        swept = gptq(weights, hessian, scale, self.limit, keep=keep, walk=problem.walks()[group])
        return polish(exact, swept, hessian, self.limit, keep=keep)


@dataclass(frozen=True)
class RateDistortion:
    """Integers with one error budget for every weight of the network, rounded for the least loss + price * bits.

    The step of a channel is step / sqrt(importance * what is left of the input's variance), so that every weight's
    rounding costs the network step**2 / 12: reverse water-filling. The entropy coder turns small codes into few bits.

    Attributes:
        step: In square roots of the network's loss.
        limit: Largest magnitude of a code.

    Source: Cover and Thomas, Elements of Information Theory, section 10.3.3; Wiedemann et al., DeepCABAC, IEEE JSTSP
        2020, section III, for the rate in the rounding.
    """

    step: float
    limit: int = 127

    @property
    def name(self) -> str:
        return f"RD {self.step:.3g}"

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        loud = np.abs(problem.weights).max(axis=2, initial=0.0)
        wished = self.step / np.sqrt(steady(problem.importance) * problem.left[:, None])
        # Coarser than the largest weight means a channel of zeros: finer than the limit cannot be written.
        return np.clip(wished, loud / self.limit, np.maximum(2 * loud, np.finfo(np.float32).tiny))

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        price = SLOPE * self.step**2
        start = np.clip(np.rint(problem.weights / scale[:, :, None]), -self.limit, self.limit)
        bits = code_lengths(start, self.limit)
        importance = steady(problem.importance)
        for _ in range(2):
            rate = Rate(price, bits)
            start = np.stack(
                [self._rounded(problem, group, s, importance[group], rate) for group, s in enumerate(scale)]
            )
            bits = code_lengths(start, self.limit)
        return Coded(start.astype(np.int32))

    def _rounded(
        self,
        problem: Problem,
        group: int,
        scale: NDArray[np.float64],
        importance: NDArray[np.float64],
        rate: Rate,
    ) -> NDArray[np.float64]:
        weights, hessian, walk = problem.weights[group], problem.hessian[group], problem.walks()[group]
        keep = weights != 0
        swept = gptq(weights, hessian, scale, self.limit, importance=importance, rate=rate, keep=keep, walk=walk)
        exact = weights / scale[:, None]
        weight = importance * np.square(scale)
        return polish(exact, swept, hessian, self.limit, weight=weight, rate=rate, keep=keep)


def steady(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Importance, no channel below a thousandth of the mean: samples may have missed what it is good for."""
    mean = float(importance.mean())
    return np.maximum(importance, 1e-3 * mean if mean > 0 else 1.0)
