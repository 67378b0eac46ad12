"""Pruning and rounding of a layer as one recipe."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from passes.recipes.base import Coded, Problem, RecipeError
from passes.recipes.uniform import SLOPE, RateDistortion
from passes.solvers import prune
from passes.solvers.gptq import Rate, code_lengths, mse_scales
from passes.solvers.obs import Trace, trace
from passes.solvers.patterns import UNSTRUCTURED, Blocks, Mask, NofM, Pattern
from passes.solvers.survivors import refit

Method: TypeAlias = Literal["magnitude", "obd", "obs", "sweep", "auto"]
"""How the weights that go are chosen; the survivors make good for them in every case."""
METHODS: tuple[Method, ...] = get_args(Method)

OPERATIONS_MAX = 2e11
"""Of an exact algorithm on one layer, about 20 s; "auto" takes the sweep for larger ones."""
BITS = (*range(2, 9), 16)


@dataclass(frozen=True)
class PruneAndRound:
    """Remove a share of a layer's weights and round the survivors, with what each step errs made good by the next.

    Attributes:
        sparsity: Share of the layer's weights to remove, 0..1; an N:M pattern decides by itself.
        bits: Of the codes: 2..8 or 16.
        pattern: What goes together.
        method: "auto" is obs, or sweep where that takes too long.
    """

    sparsity: float = 0.5
    bits: int = 8
    pattern: Pattern = UNSTRUCTURED
    method: Method = "auto"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"weights have 2 to 8 or 16 bits, not {self.bits}")
        if not 0 <= self.sparsity <= 1:
            raise ValueError(f"a sparsity is a share between 0 and 1, not {self.sparsity}")

    @property
    def name(self) -> str:
        what = str(self.pattern) if isinstance(self.pattern, NofM) else f"{100 * self.sparsity:g} % {self.pattern}"
        method = "" if self.method == "auto" else f" by {self.method}"
        return f"{what}{method} + W{self.bits}"

    @property
    def limit(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        """Least squared rounding error of the survivors, as they are after they have made good for the others."""
        kept = self._kept(problem)
        if _is_exact(kept):
            survivors = refit(problem.weights, problem.hessian, kept)
        else:
            survivors = np.where(kept, problem.weights, 0.0)
        activity = np.diagonal(problem.hessian, axis1=1, axis2=2)
        return np.stack([mse_scales(rows, self.limit, diagonal) for rows, diagonal in zip(survivors, activity)])

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        """Survivors rounded row by row; in one sweep over all rows where that would take too long."""
        kept, grid = self._kept(problem), prune.Grid(scale, self.limit)
        is_shared = not _is_exact(kept)
        pruned = prune.quantized(problem.weights, problem.hessian, kept, grid, problem.importance, is_shared=is_shared)
        return Coded(np.rint(pruned.weights / scale[:, :, None]).astype(np.int32))

    def _kept(self, problem: Problem) -> Mask:
        taps = problem.weights.shape[2]
        if isinstance(self.pattern, NofM) and taps < self.pattern.of:
            raise RecipeError(
                f"its channels have {taps} weights each, fewer than the {self.pattern.of} of {self.pattern}"
            )
        layer = (problem.weights, problem.hessian, self.pattern, self.sparsity, problem.importance)
        match self._method(problem):
            case "magnitude":
                return prune.magnitude(*layer).kept
            case "obd":
                return prune.obd(*layer).kept
            case "obs":
                return _trace_of(problem, self.pattern).kept(self.sparsity)
            case _:
                return prune.sweep(*layer).kept

    def _method(self, problem: Problem) -> Method:
        if self.method != "auto":
            return self.method
        return "obs" if _operations(problem, self.pattern) <= OPERATIONS_MAX else "sweep"


@dataclass(frozen=True)
class PruneByRate:
    """Integers of least loss + price * bits, of which those are 0 from the start whose removal costs least.

    As RateDistortion, which rounds one tap after the other and so can only turn small weights to 0. Here the Optimal
    Brain Surgeon goes first, with all of the layer in view, and removes what costs less than the bits that it saves.
    It gains below about 1.5 bits a weight; with finer steps few weights go, and both are alike.

    Attributes:
        step: In square roots of the network's loss, as of RateDistortion.
        limit: Largest magnitude of a code.
        saved: Bits that a weight is taken to need more than a 0.
        pattern: What goes together.
    """

    step: float
    limit: int = 127
    saved: float = 4.0
    pattern: Pattern = UNSTRUCTURED

    @property
    def name(self) -> str:
        pattern = "" if self.pattern == UNSTRUCTURED else f", {self.pattern}"
        saved = "" if self.saved == 4.0 else f", {self.saved:g} bits"
        return f"OBS + RD {self.step:.3g}{saved}{pattern}" + ("" if self.limit == 127 else f" to {self.limit}")

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        """Those of RateDistortion."""
        return RateDistortion(self.step, self.limit).scales(problem)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        """Survivors rounded with the rate, at the code lengths of the nearest integers and then of those found.

        Raises:
            RecipeError: The surgeon would take too long.
        """
        if _operations(problem, self.pattern) > OPERATIONS_MAX:
            _, rows, taps = problem.weights.shape
            raise RecipeError(f"{rows} channels of {taps} weights are too many for the surgeon")
        price, grid = SLOPE * self.step**2, prune.Grid(scale, self.limit)
        kept = _trace_of(problem, self.pattern).kept_below(self.saved * price)
        layer, is_shared = (problem.weights, problem.hessian, kept, grid, problem.importance), not _is_exact(kept)
        start = np.clip(np.rint(problem.weights / scale[:, :, None]), -self.limit, self.limit)
        codes = np.where(kept, start, 0.0)
        for _ in range(2):
            rate = Rate(price, code_lengths(codes, self.limit))
            pruned = prune.quantized(*layer, is_shared=is_shared, rate=rate)
            codes = np.rint(pruned.weights / scale[:, :, None])
        return Coded(codes.astype(np.int32))


def _operations(problem: Problem, pattern: Pattern) -> float:
    """Of the surgeon's trace, roughly."""
    groups, rows, taps = problem.weights.shape
    high = pattern.rows if isinstance(pattern, Blocks) else 1
    return float(groups * -(-rows // high)) * float(taps) ** 3


def _is_exact(kept: Mask) -> bool:
    """Whether every row is to have a factorization of its own, and can."""
    if kept.all():
        return False
    counts = kept.sum(axis=2, dtype=np.float64)
    return float((counts**3).sum()) <= OPERATIONS_MAX


_TRACES: weakref.WeakKeyDictionary[Problem, dict[Pattern, Trace]] = weakref.WeakKeyDictionary()


def _trace_of(problem: Problem, pattern: Pattern) -> Trace:
    """The trace serves every sparsity and width of one layer, so it is kept for as long as the problem is."""
    known = _TRACES.setdefault(problem, {})
    if pattern not in known:
        known[pattern] = trace(problem.weights, problem.hessian, pattern, problem.importance)
    return known[pattern]
