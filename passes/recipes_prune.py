"""Pruning and rounding of a layer as one recipe."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from passes.recipes import Coded, Problem, RecipeError
from passes.solvers import prune
from passes.solvers.gptq import mse_scales
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
        if self._is_exact(problem, kept):
            survivors = refit(problem.weights, problem.hessian, kept)
        else:
            survivors = np.where(kept, problem.weights, 0.0)
        activity = np.diagonal(problem.hessian, axis1=1, axis2=2)
        return np.stack([mse_scales(rows, self.limit, diagonal) for rows, diagonal in zip(survivors, activity)])

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        """Survivors rounded row by row; in one sweep over all rows where that would take too long."""
        kept, grid = self._kept(problem), prune.Grid(scale, self.limit)
        is_shared = not self._is_exact(problem, kept)
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
        groups, rows, taps = problem.weights.shape
        high = self.pattern.rows if isinstance(self.pattern, Blocks) else 1
        return "obs" if groups * -(-rows // high) * taps**3 <= OPERATIONS_MAX else "sweep"

    def _is_exact(self, problem: Problem, kept: Mask) -> bool:
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
