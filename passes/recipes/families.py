"""The method families: which recipes each one offers for a layer, with what they cost it and what they store."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.coding.estimate import code_bits
from passes.low_rank import Choice, Window
from passes.recipes import halves
from passes.recipes.base import AsFound, Problem, Recipe, RecipeError
from passes.recipes.coded import Codebook, Planes, Stochastic, Ternary, Vector, integer_scales
from passes.recipes.prune import PruneAndRound, PruneByRate
from passes.recipes.structured import Circulant, Shared, Toeplitz, recognised
from passes.recipes.uniform import RateDistortion, Uniform
from passes.scale_grid import STEPS_PER_OCTAVE
from passes.solvers.patterns import UNSTRUCTURED, Blocks, NofM, Pattern
from passes.storage import forms as storage
from passes.storage.structured_forms import CirculantBlocks, SharedFilters

SCALE_BITS = 3
"""A channel's scale on the grid of 2**(1/4), entropy coded."""
EXACT_SCALE_BITS = 18
"""A channel's scale that is kept as it is."""
BIAS_BITS = 8
FORM_BITS = 200
"""Nodes and names of a stored form, coded."""
SPLIT_BITS = 400
"""Nodes, names and the integer point between the two halves of a layer of low rank, coded."""
RATE_LOSSES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Loss of a whole layer, in units of the network's, at which the families with a rate are measured."""
FINENESS = 4
"""Steps between two measured ones."""
SURGEON_BITS, VECTOR_BITS, SMALL_VECTOR_BITS = 1.3, 2.2, 1.5
"""Bits a weight of the rate family, above which the surgeon and vectors do not gain on it."""
LARGE = 4096
"""Weights from which on a codebook of 128 or 256 vectors is worth its bytes."""
SURGEON_WORK = 4e10
"""Multiplications of the surgeon's trace that a search among all families pays for."""
SWEEP_WORK = 1.2e6
"""Multiplications of one sweep, below which a family that rarely wins is given its chance."""
BLOCK_ROWS = 4
"""Output channels that hardware would skip together."""
CIRCULANT_BITS, CIRCULANT_GAIN = 7.0, 10.0
"""Bits of a parameter of a circulant form, and by how much a fit may better the plain projection, at most."""
SHARED_TOLERANCES = (0.1, 0.3, 0.5)


@dataclass(frozen=True)
class LayerOption:
    """One way of coding one layer.

    Attributes:
        family: Name of the family.
        recipe: What makes it.
        loss: Predicted cost to the network.
        bits: Predicted size, scales and biases included.
        split: Method and rank of the two layers that stand for it, both by `recipe`; None for one layer.
    """

    family: str
    recipe: Recipe
    loss: float
    bits: float
    split: Choice | None = None

    @property
    def name(self) -> str:
        """Identifies it among the options of its layer."""
        return self.recipe.name if self.split is None else f"{self.split} + {self.recipe.name}"


@dataclass(frozen=True, eq=False)
class Ask:
    """What a family is to make offers for.

    Attributes:
        problem: Of the layer; the same object for all recipes, which keep what they find out about it.
        rate: Options of the rate family, from the finest; empty where it is not among those asked. Then a
            family offers its whole range of sizes, otherwise what has a chance against these.
        found: The structure that the weights have already.
        tensor: Name of the layer, for its random numbers.
        seed: Of them.
        is_wide: Whether codes beyond 8 bits may be offered.
        window: Sizes of the layer, where it may become two of lower rank.
    """

    problem: Problem
    rate: Sequence[LayerOption]
    found: Recipe | None
    tensor: str
    seed: int
    is_wide: bool
    window: Window | None = None

    @property
    def is_open(self) -> bool:
        """Whether the whole range of sizes is asked for."""
        return not self.rate

    @property
    def is_small(self) -> bool:
        """Whether a sweep or two of all groups take no time worth speaking of."""
        groups, rows, taps = self.problem.weights.shape
        return groups * taps * (rows * taps + 5000) <= SWEEP_WORK

    @property
    def has_chance(self) -> bool:
        """Whether a family that rarely wins is asked all the same."""
        return self.is_open or self.is_small

    def steps(self, most: float) -> list[float]:
        """Steps from where the rate family needs `most` bits a weight to its coarsest; of an open range, all."""
        if self.is_open:
            return _steps(self.problem)[2:]
        below = [option for option in self.rate if option.bits <= most * self.problem.weights.size]
        steps = [option.recipe.step for option in below if isinstance(option.recipe, RateDistortion)]
        return list(dict.fromkeys((steps[0], steps[(len(steps) - 1) // 2], steps[-1]))) if steps else []


Family: TypeAlias = Callable[[Ask], Iterator[LayerOption]]


def _fixed_point(ask: Ask) -> Iterator[LayerOption]:
    yield from _each("fixed-point", ask.problem, (Uniform(bits) for bits in range(2, 9)))


def _stochastic(ask: Ask) -> Iterator[LayerOption]:
    """At the size of a rounding that minds the loss it is always worse: nothing for a contest."""
    if ask.is_open:
        widths = (16, 8, 6, 4) if ask.is_wide else (8, 6, 4)
        yield from _each("stochastic", ask.problem, (Stochastic(bits, ask.seed, ask.tensor) for bits in widths))


def _prune(ask: Ask) -> Iterator[LayerOption]:
    if ask.is_open:
        yield from _pruned("prune", ask, (0.3, 0.5, 0.7, 0.8, 0.9), (UNSTRUCTURED,))
    elif _surgeon_work(ask.problem) > SURGEON_WORK:
        return
    if steps := ask.steps(SURGEON_BITS):
        for saved in (4.0, 9.0):
            yield from _curve("prune", ask.problem, [PruneByRate(step, saved=saved) for step in steps])


def _prune_n_of_m(ask: Ask) -> Iterator[LayerOption]:
    """Patterns cost more than they save where nothing but bytes counts: nothing for a contest."""
    if ask.is_open:
        yield from _pruned("prune-nm", ask, (0.0,), (NofM(2, 4), NofM(1, 4)))


def _prune_blocks(ask: Ask) -> Iterator[LayerOption]:
    if ask.is_open:
        yield from _pruned("prune-block", ask, (0.25, 0.5, 0.75), (Blocks(BLOCK_ROWS, 1),))


def _ternary(ask: Ask) -> Iterator[LayerOption]:
    if _is_planted(ask.problem, 1):
        yield from _each("ternary", ask.problem, (AsFound(Ternary()),))
    elif ask.has_chance:
        yield from _each("ternary", ask.problem, (Ternary(),))


def _binary(ask: Ask) -> Iterator[LayerOption]:
    if ask.has_chance:
        counts = (1, 2, 3, 4) if ask.is_open else (1, 2)
        yield from _each("binary", ask.problem, (Planes(count) for count in counts))


def _codebook(ask: Ask) -> Iterator[LayerOption]:
    count = _distinct(ask.problem)
    if count <= 64:
        yield from _each("codebook", ask.problem, (AsFound(Codebook(max(count, 2), zero=False)),))
    if ask.has_chance:
        sizes = (4, 8, 16, 32, 64) if ask.is_open else (8, 16)
        yield from _each("codebook", ask.problem, (Codebook(entries) for entries in sizes))


def _vector(ask: Ask) -> Iterator[LayerOption]:
    size, taps, kernel = ask.problem.weights.size, ask.problem.weights.shape[2], ask.problem.kernel
    width = kernel[-1] if kernel and kernel[-1] > 1 else 2
    is_large = size >= LARGE and width > 2
    steps = ask.steps(VECTOR_BITS if is_large else SMALL_VECTOR_BITS)
    shapes = [(width, 256 if size >= 4 * LARGE else 128)] if is_large else [(2, 64), (1, 32)]
    for dimension, entries in shapes:
        if taps % dimension == 0 and steps:
            yield from _curve("vector", ask.problem, [Vector(dimension, entries, step=step) for step in steps])
    if ask.is_open:
        open_shapes = ((1, 64), (2, 64), (2, 256), (4, 256), (8, 256), (width, 256))
        fitting = dict.fromkeys(shape for shape in open_shapes if taps % shape[0] == 0)
        yield from _each("vector", ask.problem, (Vector(*shape) for shape in fitting))


def _circulant(ask: Ask) -> Iterator[LayerOption]:
    if isinstance(ask.found, Circulant | Toeplitz):
        yield from _each("circulant", ask.problem, _narrowed(ask.found))
    forms = [Circulant(block) for block in ((2, 4, 8) if ask.is_open else (2,))]
    yield from _each("circulant", ask.problem, (form for form in forms if _is_promising(form, ask)))


def _shared(ask: Ask) -> Iterator[LayerOption]:
    if isinstance(ask.found, Shared):
        yield from _each("shared", ask.problem, _narrowed(ask.found))
    is_short = ask.problem.weights.shape[2] <= 16
    tolerances = SHARED_TOLERANCES if ask.is_open else SHARED_TOLERANCES[:1] if is_short else ()
    yield from _each("shared", ask.problem, (Shared(tolerance) for tolerance in tolerances))


def _low_rank(ask: Ask) -> Iterator[LayerOption]:
    if ask.window is None or halves.why_not(ask.window):
        return
    cut = halves.losses(ask.problem, ask.window)
    if ask.is_open:
        ranks, steps = halves.spread(cut), _steps(ask.problem)[2:]
    else:
        curve = [(o.recipe.step, o.loss, o.bits) for o in ask.rate if isinstance(o.recipe, RateDistortion)]
        ranks, steps = halves.promising(cut, ask.window, curve), _steps(ask.problem)
    for rank in ranks:
        loss, parts = halves.halves(ask.problem, ask.window, rank)
        yield from _between([_both(rank, loss, parts, RateDistortion(step)) for step in steps])


def _both(rank: int, cut: float, parts: Sequence[Problem], recipe: Recipe) -> LayerOption:
    """Two layers for one, by the same recipe."""
    measured = [_measured(LOW_RANK, recipe, part) for part in parts]
    bits = SPLIT_BITS + sum(option.bits for option in measured)
    return LayerOption(LOW_RANK, recipe, cut + sum(o.loss for o in measured), bits, halves.choice_of(rank))


def _narrowed(found: Circulant | Toeplitz | Shared) -> Iterator[Recipe]:
    """A structure in its 8 bits, and in fewer: what it saves, it saves at every width."""
    for bits in (8, 7, 6, 5, 4):
        yield AsFound(replace(found, bits=bits))


LOW_RANK = "low-rank"
FAMILIES: Mapping[str, Family] = {
    "fixed-point": _fixed_point,
    "stochastic": _stochastic,
    "prune": _prune,
    "prune-nm": _prune_n_of_m,
    "prune-block": _prune_blocks,
    "ternary": _ternary,
    "binary": _binary,
    "codebook": _codebook,
    "vector": _vector,
    "circulant": _circulant,
    "shared": _shared,
    LOW_RANK: _low_rank,
}
RATE = "entropy"
"""Entropy-coded integers with one error budget for all weights: the family that the coder makes."""
NAMES = (RATE, *FAMILIES)


def options(
    problem: Problem,
    chosen: Collection[str] = NAMES,
    *,
    tensor: str = "",
    seed: int = 0,
    window: Window | None = None,
) -> list[LayerOption]:
    """What the chosen families offer for one layer, measured on its problem.

    8 bits is always there: something must be possible. Beside the rate family the others offer what has a chance
    against it; without it, all their sizes.

    Args:
        problem: Of the layer.
        chosen: Names of families.
        tensor: Name of the layer, for random numbers of its own.
        seed: Of the random numbers.
        window: Sizes of the layer, where it may become two of lower rank; None where it may not.
    """
    found = list(_each("fixed-point", problem, (Uniform(8),)))
    rate = rate_options(problem) if RATE in chosen else []
    structure = recognised(problem) if {"circulant", "shared"} & set(chosen) else None
    ask = Ask(problem, rate, structure, tensor, seed, set(chosen) == {"stochastic"}, window)
    found += rate
    for name, family in FAMILIES.items():
        if name in chosen:
            found += family(ask)
    return list({option.name: option for option in found}.values())


def rate_options(problem: Problem) -> list[LayerOption]:
    """The rate family at some steps, measured, and at finer ones in between, by interpolation."""
    return _curve(RATE, problem, [RateDistortion(step) for step in _steps(problem)])


def _steps(problem: Problem) -> list[float]:
    return [math.sqrt(12 * loss / problem.weights.size) for loss in RATE_LOSSES]


def _curve(
    family: str, problem: Problem, recipes: Sequence[RateDistortion | PruneByRate | Vector]
) -> list[LayerOption]:
    return _between(list(_each(family, problem, recipes)))


def _between(measured: Sequence[LayerOption]) -> list[LayerOption]:
    """Measured options from the finest step to the coarsest, and interpolated ones in between."""
    result = list(measured[:1])
    for low, high in zip(measured, measured[1:]):
        for part in range(1, FINENESS):
            result.append(_blend(low, high, part / FINENESS))
        result.append(high)
    return result


def _blend(low: LayerOption, high: LayerOption, share: float) -> LayerOption:
    assert isinstance(low.recipe, RateDistortion | PruneByRate | Vector)
    assert isinstance(high.recipe, RateDistortion | PruneByRate | Vector)
    loss = _geometric(low.loss, high.loss, share)
    step = _geometric(low.recipe.step, high.recipe.step, share)
    bits = (1 - share) * low.bits + share * high.bits
    return replace(low, recipe=replace(low.recipe, step=step), loss=loss, bits=bits)


def _geometric(low: float, high: float, share: float) -> float:
    return math.exp((1 - share) * math.log(low + 1e-30) + share * math.log(high + 1e-30))


def _pruned(
    family: str, ask: Ask, sparsities: Sequence[float], patterns: Sequence[Pattern]
) -> Iterator[LayerOption]:
    for pattern in patterns:
        recipes = (PruneAndRound(share, bits, pattern) for share in sparsities for bits in (8, 4))
        yield from _each(family, ask.problem, recipes)


def _surgeon_work(problem: Problem) -> float:
    groups, rows, taps = problem.weights.shape
    return float(groups * rows) * float(taps) ** 3


def _is_planted(problem: Problem, limit: int) -> bool:
    """Whether all weights of every row are integers up to `limit` times a scale, but for float noise."""
    few = problem.weights[:1, :1]
    return integer_scales(few, limit) is not None and integer_scales(problem.weights, limit) is not None


def _distinct(problem: Problem) -> int:
    """How many numbers the layer consists of, up to 8 bits' noise."""
    largest = float(np.abs(problem.weights).max(initial=0.0))
    if not largest:
        return 1
    return len(np.unique(np.rint(problem.weights / largest * 2.0**18)))


def _is_promising(form: Circulant, ask: Ask) -> bool:
    """Whether the plain projection loses not many times what the rate family does at its size, to guess from."""
    if ask.is_open:
        return True
    bits = CIRCULANT_BITS * ask.problem.weights.size / form.block
    rivals = [option.loss for option in ask.rate if option.bits <= bits] or [ask.rate[-1].loss]
    try:
        return form.outlook(ask.problem) <= CIRCULANT_GAIN * min(rivals)
    except RecipeError:
        return False


def _each(family: str, problem: Problem, recipes: Collection[Recipe] | Iterator[Recipe]) -> Iterator[LayerOption]:
    """Those of the recipes that can represent the layer, measured."""
    for recipe in recipes:
        try:
            yield _measured(family, recipe, problem)
        except RecipeError:
            continue


def _measured(family: str, recipe: Recipe, problem: Problem) -> LayerOption:
    """At the scales that the quantizer will make of those that the recipe would like."""
    wished = recipe.scales(problem)
    scale: NDArray[np.float64] = np.where(wished > 0, wished, 1.0)
    if not isinstance(recipe, AsFound):
        scale = _coarse(scale, problem, recipe.limit)
    coded = recipe.codes(problem, scale)
    loss = problem.loss(coded.codes.astype(np.float64) * scale[:, :, None])
    live = int(coded.codes.any(axis=2).sum())
    per_scale = EXACT_SCALE_BITS if isinstance(recipe, AsFound) else SCALE_BITS
    bits = stored_bits(coded.codes, coded.storage, problem.kernel) + live * per_scale + scale.size * BIAS_BITS
    return LayerOption(family, recipe, loss, bits)


def _coarse(wished: NDArray[np.float64], problem: Problem, limit: int) -> NDArray[np.float64]:
    """The nearest powers of 2**(1/4), float64 [groups, rows]; the next one where a finer one would cut weights."""
    exact = np.log2(wished) * STEPS_PER_OCTAVE
    above = np.floor(exact) + 1
    variance = np.diagonal(problem.hessian, axis1=1, axis2=2)[:, None]

    def error(step: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.exp2(step / STEPS_PER_OCTAVE)[:, :, None]
        rounded = np.clip(np.rint(problem.weights / scale), -limit, limit) * scale
        return np.asarray((np.square(rounded - problem.weights) * variance).sum(axis=2))

    is_cut = error(above) < error(above - 1)
    return np.asarray(np.exp2(np.where(is_cut, above, np.rint(exact)) / STEPS_PER_OCTAVE))


def stored_bits(codes: NDArray[np.integer], form: object | None, kernel: tuple[int, ...]) -> float:
    """Bits of the codes, or of the arrays of the form that they are stored in, as the coder will spend them.

    Args:
        codes: Of one layer, [..., taps].
        form: A value of passes.storage.forms, or None for as they are.
        kernel: Kernel sizes behind the input channels.
    """
    match form:
        case storage.Codebook(entries, indices):
            return FORM_BITS + code_bits(entries[None]) + code_bits(_centred(_rows(indices)), kernel)
        case storage.Vector(entries, indices):
            return FORM_BITS + code_bits(entries) + code_bits(_centred(indices.reshape(1, -1)))
        case storage.Planes() as planes:
            table = planes.table()
            return FORM_BITS + code_bits(_rows(table)) + code_bits(_centred(_rows(planes.signs)))
        case CirculantBlocks(blocks, parameters):
            return FORM_BITS + code_bits(parameters.reshape(-1, blocks.block))
        case SharedFilters(filters, leader, orientation):
            turned = leader.astype(np.int64) + len(filters) * orientation.astype(np.int64)
            inner = filters.reshape(len(filters), -1)
            return FORM_BITS + code_bits(inner, kernel) + code_bits(_centred(turned.reshape(1, -1)))
    return code_bits(_rows(codes), kernel)


def _rows(array: NDArray[np.integer]) -> NDArray[np.integer]:
    return array.reshape(-1, array.shape[-1])


def _centred(indices: NDArray[np.integer]) -> NDArray[np.int64]:
    """Less the most frequent one, as the coder takes numbers without a sign."""
    values, counts = np.unique(indices, return_counts=True)
    return indices.astype(np.int64) - int(values[counts.argmax()])


def entropy_bits(codes: NDArray[np.integer]) -> float:
    """Zero-order entropy of all codes together, bits."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())
