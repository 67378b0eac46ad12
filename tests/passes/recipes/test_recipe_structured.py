"""Recipes for weights that repeat: the codes have the structure, the planted layers come back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.recipes.base import Problem, Recipe, RecipeError
from passes.recipes.structured import Circulant, Shared, Toeplitz, recognised
from passes.recipes.uniform import Uniform
from passes.solvers.circulant import Blocks, fitted, toeplitz
from passes.solvers.symmetry import oriented
from passes.storage.structured_forms import CirculantBlocks, SharedFilters

Tensor = NDArray[np.float64]


def problem(weights: Tensor, kernel: tuple[int, ...] = (), seed: int = 0) -> Problem:
    groups, rows, taps = weights.shape
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, taps, 2 * taps)) * np.geomspace(0.2, 2, taps)[:, None]
    hessian = mixed @ mixed.transpose(0, 2, 1) / taps + 0.05 * np.eye(taps)
    return Problem(weights, hessian, rng.uniform(0.2, 3, (groups, rows)), kernel)


def random(groups: int, rows: int, channels: int, kernel: tuple[int, ...] = (), seed: int = 0) -> Problem:
    taps = channels * int(np.prod(kernel))
    return problem(np.random.default_rng(seed).normal(size=(groups, rows, taps)), kernel, seed)


def planted(blocks: Blocks, groups: int = 1, kernel: tuple[int, ...] = ()) -> Problem:
    parameters = np.random.default_rng(1).normal(size=(groups, blocks.down, blocks.row_parameters))
    return problem(np.stack([blocks.expand(p) for p in parameters]).astype(np.float32).astype(np.float64), kernel)


def turned(groups: int, rows: int, kernel: tuple[int, int] = (3, 3)) -> Problem:
    """Rows of 3 filters in all turns, signs and sizes."""
    rng = np.random.default_rng(2)
    originals = rng.normal(size=(3, 2, *kernel))
    filters = [
        oriented(originals[n % 3], int(rng.integers(0, 16))).reshape(-1) * rng.uniform(0.5, 2)
        for n in range(groups * rows)
    ]
    return problem(np.array(filters, np.float32).astype(np.float64).reshape(groups, rows, -1), kernel)


def coded(recipe: Recipe, about: Problem) -> tuple[Tensor, object]:
    """Real weights and storage, at scales moved as the machine's grid does: by 2**-15, each in its own way."""
    wished = recipe.scales(about)
    assert (wished > 0).all()
    scale = wished * np.random.default_rng(4).uniform(1, 1 + 2.0**-15, wished.shape)
    result = recipe.codes(about, scale)
    assert result.codes.dtype == np.int32
    assert np.abs(result.codes).max() <= recipe.limit
    return result.codes * scale[:, :, None], result.storage


@settings(max_examples=25)
@given(
    groups=st.integers(1, 2),
    rows=st.integers(2, 9),
    channels=st.integers(2, 6),
    block=st.integers(2, 6),
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_codes_of_any_layer_have_the_structure(
    groups: int, rows: int, channels: int, block: int, bits: int, seed: int
) -> None:
    about = random(groups, rows, channels, (2,), seed)
    for recipe in (Circulant(min(block, max(rows, channels)), bits), Toeplitz(bits)):
        scale = recipe.scales(about)
        result = recipe.codes(about, scale)
        assert isinstance(result.storage, CirculantBlocks)
        np.testing.assert_array_equal(result.storage.codes(), result.codes)
        assert about.loss(result.codes * scale[:, :, None]) <= about.loss(0 * about.weights)


@pytest.mark.parametrize(
    ("recipe", "about"),
    [
        (Circulant(4, is_tied=True), planted(Blocks(12, 8, 1, 4))),
        (Circulant(8, is_tied=True), planted(Blocks(16, 16, 9, 8), kernel=(3, 3))),
        (Circulant(2, is_tied=True), planted(Blocks(6, 4, 3, 2), groups=3, kernel=(3,))),
        (Circulant(10, is_tied=True), planted(Blocks(10, 10, 1, 10))),
        (Toeplitz(is_tied=True), planted(toeplitz(10, 6))),
        (Toeplitz(is_tied=True), planted(toeplitz(6, 6, 4), kernel=(2, 2))),
        (Shared(2.0**-20), turned(1, 12)),
        (Shared(2.0**-20), turned(12, 1)),
        (Shared(2.0**-20), turned(1, 12, (2, 2))),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "x".join(map(str, value.weights.shape)),
)
def test_planted_structures_are_found_and_as_good_as_plain_integers(recipe: Recipe, about: Problem) -> None:
    found = recognised(about)
    assert found is not None
    assert type(found) is type(recipe)
    if not isinstance(found, Shared):
        assert found == recipe
    real, storage = coded(found, about)
    np.testing.assert_array_equal(real, coded(recipe, about)[0])
    assert storage is not None
    plain = Uniform(8)
    scale = plain.scales(about)
    # The structure is free: rounding is all that errs, and fewer codes have less room to make good for each other.
    assert about.loss(real) < 6 * about.loss(plain.codes(about, scale).codes * scale[:, :, None])
    np.testing.assert_allclose(real, about.weights, atol=0.05 * np.abs(about.weights).max())


def test_equal_codes_of_planted_filters_are_turned_copies() -> None:
    _, storage = coded(Shared(2.0**-20), turned(2, 9))
    assert isinstance(storage, SharedFilters)
    assert storage.filters.shape == (3, 2, 3, 3)
    assert len(np.unique(storage.leader)) == 3


def test_copies_that_were_found_stay_shared_when_the_target_moves_a_little() -> None:
    about = turned(1, 12)
    found = recognised(about)
    assert found is not None
    assert found.name == "shared filters 3 of 12 + W8"
    moved = replace(about, weights=about.weights + 1e-3 * np.random.default_rng(0).normal(size=about.weights.shape))
    with pytest.raises(RecipeError, match="no two of its 12 filters"):
        Shared(2.0**-20).scales(moved)
    _, storage = coded(found, moved)
    assert isinstance(storage, SharedFilters)
    assert len(storage.filters) == 3
    with pytest.raises(RecipeError, match="it has not the 12 filters that were looked at"):
        found.scales(random(1, 8, 2, (3, 3)))


def test_a_random_layer_is_recognised_as_nothing() -> None:
    assert recognised(random(1, 8, 6, (3, 3))) is None
    assert recognised(random(8, 1, 1, (3, 3))) is None


def test_rounding_knows_the_loss_better_than_rounding_to_the_nearest() -> None:
    about = random(1, 16, 8, (3,))
    recipe = Circulant(4, bits=4)
    scale = recipe.scales(about)
    result = recipe.codes(about, scale)
    assert isinstance(result.storage, CirculantBlocks)
    blocks = result.storage.blocks
    nearest = np.zeros((blocks.down, blocks.row_parameters))
    np.add.at(nearest, (np.arange(16)[:, None] // 4, blocks.ids()), about.weights[0] / scale[0][:, None] / 4)
    plain = np.clip(np.rint(blocks.expand(nearest)), -7, 7) * scale[0][:, None]
    assert about.loss(result.codes * scale[:, :, None]) < about.loss(plain[None])


def test_smaller_blocks_lose_less() -> None:
    about = random(1, 16, 16)
    losses = []
    for block in (2, 4, 8, 16):
        recipe = Circulant(block)
        scale = recipe.scales(about)
        losses.append(about.loss(recipe.codes(about, scale).codes * scale[:, :, None]))
    assert losses == sorted(losses)


def test_tied_rows_wish_for_one_scale_and_lose_little_on_a_coarse_grid() -> None:
    about = random(2, 8, 8)
    losses = []
    for is_tied in (False, True):
        recipe = Circulant(4, is_tied=is_tied)
        wished = recipe.scales(about)
        tied = (wished.reshape(2, 2, 4) == wished.reshape(2, 2, 4)[:, :, :1]).all()
        assert tied == is_tied
        coarse = 2 ** (np.rint(4 * np.log2(wished)) / 4)
        losses.append([about.loss(recipe.codes(about, s).codes * s[:, :, None]) for s in (wished, coarse)])
    (free, free_coarse), (one, one_coarse) = losses
    assert free < one
    assert one_coarse - one < free_coarse - free


@settings(max_examples=20)
@given(rows=st.integers(2, 9), channels=st.integers(2, 6), seed=st.integers(0, 99))
def test_the_outlook_is_never_better_than_the_fit(rows: int, channels: int, seed: int) -> None:
    about = random(1, rows, channels, (2,), seed)
    for recipe, blocks in (
        (Circulant(2), Blocks(rows, channels, 2, 2)),
        (Toeplitz(), toeplitz(rows, channels, 2)),
    ):
        parameters, _ = fitted(about.weights[0], about.hessian[0], about.importance[0], blocks)
        energy = about.loss(0 * about.weights)
        assert recipe.outlook(about) >= about.loss(blocks.expand(parameters)[None]) - 1e-9 * energy


def test_a_layer_too_large_to_solve_for_is_refused_with_the_reason() -> None:
    wide = Problem(np.ones((1, 2, 5000)), np.ones((1, 1, 1)), np.ones((1, 2)))
    with pytest.raises(RecipeError, match="its block rows have 5000 parameters, more than 4096"):
        Circulant(2).scales(wide)


def test_a_row_of_zeros_among_others_does_no_harm() -> None:
    about = planted(Blocks(8, 8, 1, 4))
    about.weights[0, 2] = 0
    recipe = Circulant(4)
    scale = recipe.scales(about)
    scale[0, 2] = 1e-9
    real = recipe.codes(about, scale).codes * scale[:, :, None]
    np.testing.assert_allclose(real, about.weights, atol=0.05)


@pytest.mark.parametrize(
    ("recipe", "about", "message"),
    [
        (Circulant(16), random(1, 8, 6), "a matrix of 8 x 6 has no circulant blocks of 16"),
        (Circulant(2), random(8, 1, 1, (3, 3)), "a matrix of 1 x 1 has no circulant blocks of 2"),
        (Toeplitz(), random(8, 1, 1, (3, 3)), "a matrix of 1 x 1 has no diagonals to share"),
        (Shared(0.01), random(1, 8, 6), "no two of its 8 filters are alike up to 0.01"),
    ],
)
def test_layers_of_another_form_are_refused_with_the_reason(recipe: Recipe, about: Problem, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.scales(about)


def test_names_tell_all_settings() -> None:
    recipes: list[Recipe] = [Circulant(4), Circulant(8), Circulant(4, 4), Circulant(4, is_tied=True)]
    recipes += [Toeplitz(), Toeplitz(4), Toeplitz(is_tied=True), Shared(), Shared(0.1)]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    assert Circulant(4, 5).limit == 15
