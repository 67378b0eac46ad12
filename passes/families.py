"""The method families: which recipes each one offers for a layer, with what they cost it and what they store."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.recipes import Problem, Recipe, RecipeError
from passes.recipes_coded import Codebook, Planes, Ternary, Vector
from passes.recipes_prune import PruneAndRound
from passes.recipes_structured import Circulant, Shared, recognised
from passes.recipes_uniform import RateDistortion, Uniform

Family: TypeAlias = Callable[[Problem], Iterator[Recipe]]

SCALE_BITS = 3
"""A channel's scale on the grid of 2**(1/4), entropy coded."""
BIAS_BITS = 8
RATE_LOSSES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Loss of a whole layer, in units of the network's, at which the rate family is measured."""
FINENESS = 4
"""Steps between two measured ones."""


@dataclass(frozen=True)
class LayerOption:
    """One way of coding one layer.

    Attributes:
        family: Name of the family.
        recipe: What makes it.
        loss: Predicted cost to the network.
        bits: Predicted size, scales and biases included.
    """

    family: str
    recipe: Recipe
    loss: float
    bits: float


def _fixed_point(problem: Problem) -> Iterator[Recipe]:
    for bits in range(2, 9):
        yield Uniform(bits)


def _prune(problem: Problem) -> Iterator[Recipe]:
    yield PruneAndRound(0.5, 4)
    yield PruneAndRound(0.7, 4)


def _binary(problem: Problem) -> Iterator[Recipe]:
    for planes in (1, 2, 3):
        yield Planes(planes)


def _ternary(problem: Problem) -> Iterator[Recipe]:
    yield Ternary()


def _codebook(problem: Problem) -> Iterator[Recipe]:
    yield Codebook(8)
    yield Codebook(16)


def _vector(problem: Problem) -> Iterator[Recipe]:
    for dimension, entries in ((2, 64), (4, 256)):
        if problem.weights.shape[2] % dimension == 0:
            yield Vector(dimension, entries)


def _circulant(problem: Problem) -> Iterator[Recipe]:
    if (found := recognised(problem)) is not None and not isinstance(found, Shared):
        yield found
    yield Circulant(2)


def _shared(problem: Problem) -> Iterator[Recipe]:
    if isinstance(found := recognised(problem), Shared):
        yield found
    yield Shared(0.1)


FAMILIES: Mapping[str, Family] = {
    "fixed-point": _fixed_point,
    "prune": _prune,
    "ternary": _ternary,
    "binary": _binary,
    "codebook": _codebook,
    "vector": _vector,
    "circulant": _circulant,
    "shared": _shared,
}
RATE = "entropy"
"""Entropy-coded integers with one error budget for all weights: the family that the coder makes."""
NAMES = (RATE, *FAMILIES)


def options(problem: Problem, chosen: Collection[str] = NAMES) -> list[LayerOption]:
    """What the chosen families offer for one layer, measured on its problem.

    8 bits is always there: something must be possible.
    """
    found = [_measured("fixed-point", Uniform(8), problem)]
    for name, family in FAMILIES.items():
        if name not in chosen:
            continue
        for recipe in family(problem):
            try:
                found.append(_measured(name, recipe, problem))
            except RecipeError:
                continue
    if RATE in chosen:
        found += rate_options(problem)
    return list({option.recipe.name: option for option in found}.values())


def rate_options(problem: Problem) -> list[LayerOption]:
    """The rate family at some steps, measured, and at finer ones in between, by interpolation."""
    weights = problem.weights.size
    steps = [math.sqrt(12 * loss / weights) for loss in RATE_LOSSES]
    measured = [_measured(RATE, RateDistortion(step), problem) for step in steps]
    result = [measured[0]]
    for index in range(1, len(steps)):
        for part in range(1, FINENESS + 1):
            share = part / FINENESS
            step = math.exp((1 - share) * math.log(steps[index - 1]) + share * math.log(steps[index]))
            low, high = measured[index - 1], measured[index]
            loss = math.exp((1 - share) * math.log(low.loss + 1e-30) + share * math.log(high.loss + 1e-30))
            bits = (1 - share) * low.bits + share * high.bits
            result.append(LayerOption(RATE, RateDistortion(step), loss, bits))
    return result


def _measured(family: str, recipe: Recipe, problem: Problem) -> LayerOption:
    scale = recipe.scales(problem)
    coded = recipe.codes(problem, scale)
    loss = problem.loss(coded.codes * scale[:, :, None])
    bits = entropy_bits(coded.codes) if coded.storage is None else _stored_bits(coded.storage)
    live = int(coded.codes.any(axis=2).sum())
    return LayerOption(family, recipe, loss, bits + live * SCALE_BITS + problem.weights.shape[1] * BIAS_BITS)


def _stored_bits(storage: object) -> float:
    """Entropy of every array of a stored form."""
    assert is_dataclass(storage)
    arrays = [getattr(storage, each.name) for each in fields(storage)]
    return sum(entropy_bits(array) for array in arrays if isinstance(array, np.ndarray))


def entropy_bits(codes: NDArray[np.integer]) -> float:
    """Zero-order entropy of all codes together, bits."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())
