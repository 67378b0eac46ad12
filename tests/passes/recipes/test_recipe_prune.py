"""Pruned and rounded layers: which codes come out, at what loss, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.recipes import prune as recipes_prune
from passes.recipes.base import Problem, Recipe, RecipeError
from passes.recipes.prune import METHODS, Method, PruneAndRound, PruneByRate
from passes.recipes.uniform import SLOPE, RateDistortion
from passes.solvers import hessian
from passes.solvers.gptq import mse_scales
from passes.solvers.patterns import UNSTRUCTURED, Blocks, NofM, Pattern


def problem(groups: int, rows: int, taps: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, taps, taps)) * 0.5 + np.eye(taps)
    inputs = rng.normal(size=(groups, 3 * taps, taps)) @ mixed
    grams = inputs.transpose(0, 2, 1) @ inputs / (3 * taps)
    matrices = np.stack([hessian.damped(gram) for gram in grams])
    return Problem(rng.normal(size=(groups, rows, taps)), matrices, rng.uniform(0.1, 3.0, (groups, rows)))


def loss_of(recipe: Recipe, layer: Problem) -> float:
    scale = recipe.scales(layer)
    return layer.loss(scale[:, :, None] * recipe.codes(layer, scale).codes)


SHAPES = st.sampled_from([(1, 6, 24), (16, 1, 9), (2, 3, 10)])


@given(SHAPES, st.floats(0, 1), st.sampled_from(recipes_prune.BITS), st.sampled_from(METHODS), st.integers(0, 99))
def test_a_share_of_the_codes_is_zero_and_none_exceeds_the_limit(
    shape: tuple[int, int, int], sparsity: float, bits: int, method: Method, seed: int
) -> None:
    layer, recipe = problem(*shape, seed), PruneAndRound(sparsity, bits, method=method)
    scale = recipe.scales(layer)
    assert scale.shape == shape[:2]
    assert (scale > 0).all()
    codes = recipe.codes(layer, scale).codes
    assert codes.dtype == np.int32
    assert np.abs(codes).max() <= recipe.limit == 2 ** (bits - 1) - 1
    assert (codes == 0).sum() >= np.floor(sparsity * codes.size) - (method == "sweep") * shape[0]


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(4, 8), Blocks(4, 1), Blocks(2, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_codes_follow_the_pattern(pattern: Pattern, method: Method) -> None:
    layer, recipe = problem(1, 8, 24, seed=1), PruneAndRound(0.5, 4, pattern, method)
    codes = recipe.codes(layer, recipe.scales(layer)).codes[0]
    if isinstance(pattern, NofM):
        assert ((codes.reshape(8, -1, pattern.of) != 0).sum(axis=2) <= pattern.kept).all()
        return
    tiles = codes.reshape(8 // pattern.rows, pattern.rows, 24 // pattern.taps, pattern.taps)
    assert (tiles == 0).all(axis=(1, 3)).mean() >= 0.5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 8, 32), (16, 1, 9)], ids=str)
def test_the_surgeon_errs_less_than_zeros_and_nearest_integers(shape: tuple[int, int, int], seed: int) -> None:
    layer, recipe = problem(*shape, seed), PruneAndRound(0.5, 4)
    threshold = np.median(np.abs(layer.weights))
    thinned = np.where(np.abs(layer.weights) > threshold, layer.weights, 0.0)
    scale = np.stack([mse_scales(rows, recipe.limit) for rows in thinned])[:, :, None]
    nearest = np.clip(np.rint(thinned / scale), -recipe.limit, recipe.limit) * scale
    assert loss_of(recipe, layer) < 0.5 * layer.loss(nearest)


def test_the_loss_grows_with_sparsity_and_falls_with_bits() -> None:
    layer = problem(1, 16, 40, seed=2)
    by_sparsity = [loss_of(PruneAndRound(share, 8), layer) for share in (0.2, 0.4, 0.6, 0.8)]
    by_bits = [loss_of(PruneAndRound(0.5, bits), layer) for bits in (2, 3, 4, 5, 6)]
    assert by_sparsity == sorted(by_sparsity)
    assert by_bits == sorted(by_bits, reverse=True)


def test_scales_that_the_quantizer_moved_are_followed() -> None:
    layer, recipe = problem(1, 6, 20, seed=3), PruneAndRound(0.5, 6)
    scale = recipe.scales(layer)
    moved = scale * np.linspace(1.0, 1.2, 6)
    own = layer.loss(scale[:, :, None] * recipe.codes(layer, scale).codes)
    then = layer.loss(moved[:, :, None] * recipe.codes(layer, moved).codes)
    before = layer.loss(moved[:, :, None] * recipe.codes(layer, scale).codes)
    assert then < 0.5 * before
    assert then < 2 * own


def test_large_layers_take_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = problem(1, 8, 24, seed=4)
    exact, swept = loss_of(PruneAndRound(0.5, 4), layer), loss_of(PruneAndRound(0.5, 4, method="sweep"), layer)
    monkeypatch.setattr(recipes_prune, "OPERATIONS_MAX", 1.0)
    found = loss_of(PruneAndRound(0.5, 4), layer)
    assert exact < swept
    assert found > exact


def test_one_trace_serves_every_sparsity_of_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[NDArray[np.float64]] = []
    whole = recipes_prune.trace

    def counting(weights: NDArray[np.float64], *others: object) -> object:
        calls.append(weights)
        return whole(weights, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(recipes_prune, "trace", counting)
    layer, other = problem(1, 4, 12, seed=5), problem(1, 4, 12, seed=6)
    for share in (0.3, 0.5, 0.7):
        loss_of(PruneAndRound(share, 4), layer)
    assert len(calls) == 1
    loss_of(PruneAndRound(0.5, 4), other)
    assert len(calls) == 2


def bits_and_loss(recipe: Recipe, layer: Problem) -> tuple[float, float]:
    """Of the codes by their own entropy, in total."""
    scale = recipe.scales(layer)
    codes = recipe.codes(layer, scale).codes
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum()), layer.loss(scale[:, :, None] * codes)


@pytest.mark.parametrize("seed", range(4))
def test_below_one_bit_a_weight_the_surgeon_first_costs_less_than_rounding_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(576, 24)) @ rng.normal(size=(24, 96))
    inputs = np.maximum(common + 0.3 * rng.normal(size=common.shape), 0)
    matrix = hessian.damped(inputs.T @ inputs / len(inputs))
    layer = Problem(rng.standard_t(4, size=(1, 24, 96)), matrix[None], np.ones((1, 24)))
    step = float(np.sqrt(2 * layer.loss(np.zeros_like(layer.weights)) / layer.weights.size))
    costs = []
    for recipe in (PruneByRate(step), RateDistortion(step)):
        bits, lost = bits_and_loss(recipe, layer)
        assert bits < layer.weights.size
        costs.append(lost + SLOPE * step**2 * bits)
    assert costs[0] < 0.98 * costs[1]


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Blocks(4, 1), NofM(2, 4)], ids=str)
def test_pruning_by_rate_follows_the_pattern_and_the_limit(pattern: Pattern) -> None:
    layer = problem(2, 8, 24, seed=9)
    step = float(np.sqrt(0.1 * layer.loss(np.zeros_like(layer.weights)) / layer.weights.size))
    recipe = PruneByRate(step, limit=7, pattern=pattern)
    codes = recipe.codes(layer, recipe.scales(layer)).codes
    assert np.abs(codes).max() <= 7
    assert codes.any()
    if isinstance(pattern, NofM):
        assert ((codes.reshape(2, 8, -1, 4) != 0).sum(axis=3) <= 2).all()
    if pattern == Blocks(4, 1):
        free = PruneByRate(step, limit=7)
        others = free.codes(layer, free.scales(layer)).codes
        assert zero_blocks(codes) > 1.5 * zero_blocks(others)


def zero_blocks(codes: NDArray[np.int32]) -> float:
    """Share of the blocks of 4 rows that are 0, of codes [2, 8, 24]."""
    return float((codes.reshape(2, 2, 4, 24) == 0).all(axis=2).mean())


def test_the_price_decides_how_much_goes() -> None:
    layer = problem(1, 16, 40, seed=10)
    zeros = []
    for step in (0.01, 0.1, 0.5, 2.0):
        recipe = PruneByRate(step)
        zeros.append((recipe.codes(layer, recipe.scales(layer)).codes == 0).mean())
    assert zeros == sorted(zeros)
    assert zeros[-1] > zeros[0] + 0.3


def test_a_layer_too_large_for_the_surgeon_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, recipe = problem(1, 4, 12, seed=11), PruneByRate(0.1)
    monkeypatch.setattr(recipes_prune, "OPERATIONS_MAX", 1.0)
    with pytest.raises(RecipeError, match="4 channels of 12 weights are too many"):
        recipe.codes(layer, recipe.scales(layer))


def test_dead_inputs_and_rows_of_zeros_are_no_trouble() -> None:
    rng = np.random.default_rng(7)
    inputs = rng.normal(size=(50, 12))
    inputs[:, 3] = 0
    weights = rng.normal(size=(1, 5, 12))
    weights[0, 2] = 0
    layer = Problem(weights, hessian.damped(inputs.T @ inputs / 50)[None], np.ones((1, 5)))
    for sparsity in (0.0, 0.5, 1.0):
        recipe = PruneAndRound(sparsity, 4)
        codes = recipe.codes(layer, recipe.scales(layer)).codes
        assert not codes[0, 2].any()
        assert codes.any() == (sparsity < 1)


def test_a_pattern_wider_than_the_channels_is_refused() -> None:
    recipe = PruneAndRound(pattern=NofM(8, 16))
    with pytest.raises(RecipeError, match="9 weights each, fewer than the 16 of 8:16"):
        recipe.scales(problem(4, 1, 9, seed=8))


@pytest.mark.parametrize(("sparsity", "bits"), [(1.5, 8), (-0.1, 8), (float("nan"), 8), (0.5, 1), (0.5, 9)])
def test_impossible_settings_are_refused(sparsity: float, bits: int) -> None:
    with pytest.raises(ValueError):
        PruneAndRound(sparsity, bits)


def test_names_tell_all_settings() -> None:
    names = [
        PruneAndRound(share, bits, pattern, method).name
        for share in (0.5, 0.625)
        for bits in (3, 8)
        for pattern in (UNSTRUCTURED, Blocks(8, 1))
        for method in METHODS
    ]
    assert len(set(names)) == len(names)
    assert PruneAndRound(0.5, 3).name == "50 % unstructured + W3"
    assert PruneAndRound(bits=4, pattern=NofM(2, 4), method="obs").name == "2:4 by obs + W4"
