"""Layers whose weights take few values: ternary, binary planes, codebooks of numbers and of vectors; and 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from passes.recipes.base import Coded, Problem, RecipeError
from passes.recipes.uniform import GPTQ_TAPS_MAX, SLOPE, limit_of, steady
from passes.solvers import codebook, planes, stochastic, ternary, vector
from passes.solvers.codebook import Indices
from passes.solvers.hessian import Matrix
from passes.storage import forms as storage

Stack = NDArray[np.float64]
"""float64 [groups, ...]."""

ROUNDS = 3
"""Turns of fitting the shared entries and choosing among them."""
RATE_ROUNDS, RATE_GAIN = 8, 2e-3
"""With a price of bits: at most so many turns, and what one must gain for another."""
NOISE = 2.0**-18
"""Relative error of what was computed in float32: weights so close to integers were integers."""


@dataclass(frozen=True)
class Ternary:
    """{-a, 0, a} in every row, compensated under H; stored as -1, 0 and 1."""

    @property
    def name(self) -> str:
        return "ternary"

    @property
    def limit(self) -> int:
        return 127

    def scales(self, problem: Problem) -> Stack:
        _check_taps(problem)
        found = _by_group(problem, lambda weights, hessian: ternary.compensated(weights, hessian)[0])
        return np.where(found > 0, found, 1.0)

    def codes(self, problem: Problem, scale: Stack) -> Coded:
        """A scale far from a, raised for the sake of the bias perhaps, gets the multiple that is nearest to a."""
        _check_taps(problem)
        groups = list(zip(problem.weights, problem.hessian, strict=True))
        wished, starts = (np.stack(each) for each in zip(*(ternary.compensated(*g) for g in groups), strict=True))
        steps = np.minimum(np.maximum(np.rint(wished / scale), 1), self.limit)
        signs = np.stack(
            [ternary.at_scale(*g, s, start) for g, s, start in zip(groups, steps * scale, starts, strict=True)]
        )
        codes = (signs * steps[:, :, None]).astype(np.int32)
        return Coded(codes, _narrow(codes))


@dataclass(frozen=True)
class Planes:
    """A sum of binary planes with coefficients of each row, w ~ a_1 b_1 + ... + a_n b_n.

    Attributes:
        count: n, 1 to 4.
    """

    count: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 4:
            raise ValueError(f"the number of binary planes is 1 to 4, not {self.count}")

    @property
    def name(self) -> str:
        return f"planes {self.count}"

    @property
    def limit(self) -> int:
        return 127

    def scales(self, problem: Problem) -> Stack:
        _check_taps(problem)
        return _by_group(problem, lambda w, h: planes.fine_scale(planes.fit(w, h, self.count)[0], self.limit))

    def codes(self, problem: Problem, scale: Stack) -> Coded:
        _check_taps(problem)
        solved = [
            planes.at_scale(w, h, s, self.count, self.limit)
            for w, h, s in zip(problem.weights, problem.hessian, scale, strict=True)
        ]
        whole, bits = (np.stack(parts) for parts in zip(*solved, strict=True))
        stored = storage.Planes(whole.astype(np.int8), bits.astype(np.uint8))
        return Coded(stored.codes(), stored)


@dataclass(frozen=True)
class Codebook:
    """Every weight is one of a few numbers that the layer shares, times the scale of its row.

    A layer that consists of so few numbers already, with scales of its rows or without, is found and kept.

    Attributes:
        entries: How many numbers, 2 to 256.
        bits: Of each number, 2 to 8.
        zero: Whether one of them is 0.
    """

    entries: int = 16
    bits: int = 8
    zero: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.entries <= storage.INDICES_MAX:
            raise ValueError(f"a codebook has 2 to {storage.INDICES_MAX} entries, not {self.entries}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"the entries of a codebook have 2 to 8 bits, not {self.bits}")

    @property
    def name(self) -> str:
        return f"codebook {self.entries}" + ("" if self.bits == 8 else f" W{self.bits}")

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> Stack:
        _check_taps(problem)
        if (found := self._planted(problem.weights)) is not None:
            return found
        rows = _row_sizes(problem)
        centres = self._centres(problem, rows)
        return rows * float(np.abs(centres).max() or self.limit) / self.limit

    def codes(self, problem: Problem, scale: Stack) -> Coded:
        _check_taps(problem)
        exact, weight = problem.weights / scale[:, :, None], problem.importance * np.square(scale)
        kept = self._whole(self._centres(problem, scale))
        best = self._chosen(problem, exact, kept)
        least = problem.loss(kept[best] * scale[:, :, None])
        for _ in range(ROUNDS):
            moved = codebook.refit(kept[:, None], best, exact, problem.hessian, weight, zero=self.zero)
            levels = self._whole(moved[:, 0])
            indices = self._chosen(problem, exact, levels)
            cost = problem.loss(levels[indices] * scale[:, :, None])
            if not cost < least:
                break
            kept, best, least = levels, indices, cost
        return _coded(kept[:, None], best)

    def _centres(self, problem: Problem, rows: Stack) -> NDArray[np.float64]:
        """The optimal codebook of the weights over `rows`, float64 [up to entries]."""
        diagonal = np.diagonal(problem.hessian, axis1=1, axis2=2)
        weight = diagonal[:, None, :] * (problem.importance * np.square(rows))[:, :, None]
        exact = problem.weights / rows[:, :, None]
        return codebook.kmeans(exact.ravel(), weight.ravel(), self.entries, zero=self.zero)

    def _whole(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.unique(np.clip(np.rint(levels), -self.limit, self.limit)) + 0.0

    def _chosen(self, problem: Problem, exact: Stack, levels: NDArray[np.float64]) -> Indices:
        layer = zip(exact, problem.hessian, problem.walks(), strict=True)
        return np.stack([codebook.assign(w, h, levels[None], walk) for w, h, walk in layer])

    def _planted(self, weights: Stack) -> Stack | None:
        """Scales at which the weights are few integers, or few real numbers; None where they are many."""
        scale = integer_scales(weights, self.limit)
        if scale is not None:
            found = np.unique(np.rint(weights / scale[:, :, None]))
            if len(found) + (self.zero and 0.0 not in found) <= self.entries:
                return scale
        loudest = float(np.abs(weights).max(initial=0.0))
        if loudest and len(np.unique(np.rint(weights / (loudest * NOISE)))) <= self.entries:
            return np.full(weights.shape[:2], loudest / self.limit)
        return None


@dataclass(frozen=True)
class Vector:
    """Every run of weights along the taps is one of a few vectors that the layer shares, times the scale of its row.

    Attributes:
        dimension: Length of a run; it must divide the taps. 1 makes a codebook of numbers.
        entries: How many vectors, 2 to 256.
        bits: Of each number in them, 2 to 8.
        step: As of RateDistortion, for the least loss + price * bits of the coded indices and entries; 0 asks for the
            least loss.
        seed: Of the clustering's start.

    Source: Chou, Lookabaugh and Gray, Entropy-Constrained Vector Quantization, IEEE TASSP 1989, for `step`.
    """

    dimension: int = 4
    entries: int = 256
    bits: int = 8
    step: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.entries <= storage.INDICES_MAX:
            raise ValueError(f"a codebook has 2 to {storage.INDICES_MAX} entries, not {self.entries}")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"the entries of a codebook have 2 to 8 bits, not {self.bits}")
        if self.dimension < 1:
            raise ValueError(f"the vectors of a codebook have 1 or more numbers, not {self.dimension}")

    @property
    def name(self) -> str:
        bits, step = f" W{self.bits}" if self.bits != 8 else "", f" RD {self.step:.3g}" if self.step else ""
        return f"vector {self.dimension}x{self.entries}{bits}{step}"

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> Stack:
        self._check(problem)
        rows = self._rows(problem)
        centres = self._centres(problem, rows)
        return rows * float(np.abs(centres).max() or self.limit) / self.limit

    def codes(self, problem: Problem, scale: Stack) -> Coded:
        self._check(problem)
        weight = steady(problem.importance) * np.square(scale)
        target = replace(problem, weights=problem.weights / scale[:, :, None], importance=weight)
        entries = self._whole(self._centres(problem, scale))
        indices = self._chosen(target, entries, np.zeros(len(entries)))
        best, least = (entries, indices), self._cost(target, entries, indices)
        for _ in range(RATE_ROUNDS if self.step else ROUNDS):
            prices = SLOPE * self.step**2 * self._lengths(indices, len(entries))
            moved = codebook.refit(entries, indices, target.weights, target.hessian, weight)
            entries = np.clip(np.rint(moved), -self.limit, self.limit) + 0.0
            indices = self._chosen(target, entries, prices)
            cost = self._cost(target, entries, indices)
            before = least
            if cost < least:
                best, least = (entries, indices), cost
            if least >= (1 - RATE_GAIN if self.step else 1) * before:
                break
        return _coded(*best)

    def _cost(self, target: Problem, entries: Matrix, indices: Indices) -> float:
        bits = self._lengths(indices, len(entries))[indices].sum() if self.step else 0.0
        return target.loss(entries[indices].reshape(target.weights.shape)) + SLOPE * self.step**2 * float(bits)

    def _lengths(self, indices: Indices, count: int) -> NDArray[np.float64]:
        """Bits of every index by its frequency, with its share of the entry itself; dear where it is not used."""
        counts = np.maximum(np.bincount(indices.ravel(), minlength=count), 0.5)
        return np.asarray(np.log2(indices.size / counts) + self.bits * self.dimension / counts)

    def _check(self, problem: Problem) -> None:
        _check_taps(problem)
        if problem.weights.shape[2] % self.dimension:
            raise RecipeError(f"{problem.weights.shape[2]} taps are no multiple of {self.dimension}")

    def _rows(self, problem: Problem) -> Stack:
        """Units of the rows: their sizes, or the steps that RateDistortion gives them."""
        if not self.step:
            return _row_sizes(problem)
        return self.step / np.sqrt(steady(problem.importance) * problem.left[:, None])

    def _centres(self, problem: Problem, rows: Stack) -> Matrix:
        """A codebook of the sub-vectors over `rows`, float64 [up to entries, dimension]."""
        points = (problem.weights / rows[:, :, None]).reshape(-1, self.dimension)
        if self.step:
            return vector.lattice(points, float((self._rows(problem) / rows).mean()), self.entries, self.seed)
        mean, share = vector.metric(problem.hessian, self.dimension)
        lower = np.linalg.cholesky(mean)
        weight = share[:, None, :] * (problem.importance * np.square(rows))[:, :, None]
        centres = vector.kmeans(points @ lower, weight.ravel(), self.entries, self.seed)
        return np.asarray(np.linalg.solve(lower.T, centres.T).T)

    def _whole(self, entries: Matrix) -> Matrix:
        return np.unique(np.clip(np.rint(entries), -self.limit, self.limit) + 0.0, axis=0)

    def _chosen(self, target: Problem, entries: Matrix, prices: NDArray[np.float64]) -> Indices:
        found = []
        layer = zip(target.weights, target.hessian, target.importance, target.walks(self.dimension), strict=True)
        for weights, hessian, weight, walk in layer:
            extra = prices / weight[:, None] if prices.any() else None
            swept = vector.assign(weights, hessian, entries, extra, walk)
            found.append(vector.polish(weights, swept, hessian, entries, extra))
        return np.stack(found)


@dataclass(frozen=True)
class Stochastic:
    """Integers of `bits`, rounded up with the probability of what is lost: right in the mean, whatever H.

    Attributes:
        bits: 2 to 16.
        seed: Of the random numbers.
        tensor: Whose they are: layers of one network should have different ones.
    """

    bits: int = 16
    seed: int = 0
    tensor: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"stochastic rounding is to 2 to 16 bits, not {self.bits}")

    @property
    def name(self) -> str:
        return f"W{self.bits} stochastic"

    @property
    def limit(self) -> int:
        return limit_of(self.bits)

    def scales(self, problem: Problem) -> Stack:
        peak = np.abs(problem.weights).max(axis=2, initial=0.0)
        return np.where(peak > 0, peak / self.limit, 1.0)

    def codes(self, problem: Problem, scale: Stack) -> Coded:
        found = stochastic.rounded(problem.weights / scale[:, :, None], self.seed, self.tensor)
        return Coded(np.clip(found, -self.limit, self.limit).astype(np.int32))


def integer_scales(weights: Stack, limit: int) -> Stack | None:
    """The coarsest scale of each row at which all its weights are integers up to `limit`, but for float noise.

    Args:
        weights: float64 [groups, rows, taps].
        limit: Largest magnitude.

    Returns:
        float64 [groups, rows], 1 for a row of zeros; None where a row is not of that kind.
    """
    peak = np.abs(weights).max(axis=2, initial=0.0)
    scale = np.where(peak > 0, 0.0, 1.0)
    for divisor in range(1, limit + 1):
        if (scale > 0).all():
            break
        exact = weights * (divisor / np.where(peak > 0, peak, 1.0))[:, :, None]
        is_whole = (np.abs(exact - np.rint(exact)) <= NOISE * divisor).all(axis=2)
        scale = np.where(is_whole & (scale == 0), peak / divisor, scale)
    return scale if (scale > 0).all() else None


def _by_group(problem: Problem, solve: Callable[[Matrix, Matrix], NDArray[np.float64]]) -> Stack:
    return np.stack([solve(w, h) for w, h in zip(problem.weights, problem.hessian, strict=True)])


def _check_taps(problem: Problem) -> None:
    if (taps := problem.weights.shape[2]) > GPTQ_TAPS_MAX:
        raise RecipeError(f"its channels have {taps} weights each; the sweep takes {GPTQ_TAPS_MAX}")


def _row_sizes(problem: Problem) -> Stack:
    """Root mean square of each row, by what its taps read; 1 for a row of zeros."""
    diagonal = np.diagonal(problem.hessian, axis1=1, axis2=2)
    energy = np.einsum("grt,gt->gr", np.square(problem.weights), diagonal) / diagonal.sum(axis=1)[:, None]
    return np.where(energy > 0, np.sqrt(energy), 1.0)


def _coded(entries: Matrix, indices: Indices) -> Coded:
    """Codes of a codebook of numbers or vectors, float64 [k, d], without the entries that nothing uses."""
    used, packed, counts = np.unique(indices, return_inverse=True, return_counts=True)
    if entries.shape[1] > 1:
        used, packed = _arranged(used, packed, counts)
    whole, small = entries[used].astype(np.int8), packed.reshape(indices.shape).astype(np.uint8)
    stored: storage.Storage = (
        storage.Codebook(whole[:, 0], small) if entries.shape[1] == 1 else storage.Vector(whole, small)
    )
    return Coded(stored.codes(), stored)


def _arranged(used: Indices, packed: Indices, counts: NDArray[np.intp]) -> tuple[Indices, Indices]:
    """Vectors in an order in which frequent ones have numbers near the most frequent one's.

    Numbers have an order by themselves, vectors have none; the coder takes indices less the most frequent one, and
    small differences cost it little.
    """
    by_count = np.argsort(-counts, kind="stable")
    order = np.concatenate([by_count[2::2][::-1], by_count[:1], by_count[1::2]])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return used[order], place[packed]


def _narrow(codes: NDArray[np.int32]) -> storage.Narrow | None:
    is_small = codes.min(initial=0) >= -8 and codes.max(initial=0) <= 7
    return storage.Narrow(codes.astype(np.int8)) if is_small else None
