"""Recipes whose layers take few values: what was planted is found, and every code is where the storage says it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from passes.recipes.base import Coded, Problem, Recipe, RecipeError
from passes.recipes.coded import Codebook, Planes, Stochastic, Ternary, Vector, integer_scales
from passes.recipes.uniform import Uniform
from passes.solvers.hessian import damped
from passes.storage import forms as storage

Array = NDArray[np.float64]

EVERY: list[Recipe] = [
    Ternary(),
    *(Planes(count) for count in (1, 2, 3, 4)),
    *(Codebook(entries) for entries in (2, 4, 16, 40)),
    Codebook(8, bits=4, zero=False),
    Vector(2, 16),
    Vector(4, 32),
    Vector(3, 8, bits=5),
    Vector(1, 32, step=0.05),
    Vector(2, 64, step=0.1),
    Stochastic(),
    Stochastic(bits=8),
]


def _hessian(groups: int, taps: int, seed: int) -> Array:
    seen = np.random.default_rng(seed).normal(size=(groups, 3 * taps, taps)) @ np.diag(np.linspace(0.3, 2, taps))
    seen[:, :, 1:] += 0.5 * seen[:, :, :-1]
    return np.stack([damped(each.T @ each / (3 * taps)) for each in seen])


def _problem(weights: Array, seed: int = 0) -> Problem:
    groups, rows, taps = weights.shape
    importance = np.random.default_rng(seed).uniform(0.5, 2, (groups, rows))
    return Problem(weights, _hessian(groups, taps, seed), importance)


def _random(groups: int = 1, rows: int = 24, taps: int = 36, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    return _problem(rng.standard_t(4, (groups, rows, taps)) * rng.uniform(0.01, 0.1, (groups, rows, 1)), seed)


def _loss(recipe: Recipe, problem: Problem) -> float:
    scale = recipe.scales(problem)
    return problem.loss(recipe.codes(problem, scale).codes * scale[:, :, None])


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("groups", [1, 3])
def test_codes_are_integers_within_the_limit_and_the_stored_form_stands_for_them(recipe: Recipe, groups: int) -> None:
    problem = _random(groups, rows=12)
    scale = recipe.scales(problem)
    assert scale.shape == (groups, 12)
    assert (scale > 0).all()
    moved = scale * np.random.default_rng(1).uniform(1, 1.09, scale.shape)
    for given in (scale, moved, 50 * scale):
        coded = recipe.codes(problem, given)
        assert coded.codes.dtype == np.int32
        assert coded.codes.shape == problem.weights.shape
        assert np.abs(coded.codes).max() <= recipe.limit
        if coded.storage is not None:
            assert np.array_equal(coded.storage.codes(), coded.codes)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in EVERY if "stochastic" not in recipe.name and "RD" not in recipe.name],
    ids=lambda recipe: recipe.name,
)
def test_a_moved_scale_costs_little(recipe: Recipe) -> None:
    """The machine's grid moves scales by up to 3 %, a container's by up to 9 %: other codes make good for that."""
    problem = _random()
    scale = recipe.scales(problem)
    wished = problem.loss(recipe.codes(problem, scale).codes * scale[:, :, None])
    moved = scale * np.random.default_rng(1).uniform(1, 1.03, scale.shape)
    assert problem.loss(recipe.codes(problem, moved).codes * moved[:, :, None]) <= 1.1 * wished


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_the_same_problem_has_the_same_codes(recipe: Recipe) -> None:
    first, second = (recipe.codes(_random(), recipe.scales(_random())) for _ in range(2))
    assert np.array_equal(first.codes, second.codes)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_rows_of_zeros_and_a_layer_of_zeros_have_codes(recipe: Recipe) -> None:
    weights = _random().weights
    weights[0, :5] = 0
    for problem in (_problem(weights), _problem(np.zeros((1, 4, 12)))):
        scale = recipe.scales(problem)
        assert (scale > 0).all()
        assert np.isfinite(scale).all()
        assert np.isfinite(problem.loss(recipe.codes(problem, scale).codes * scale[:, :, None]))


def test_more_entries_and_planes_err_less() -> None:
    problem = _random()
    for family in (
        [Codebook(k) for k in (4, 8, 16, 32)],
        [Vector(2, k) for k in (16, 64, 256)],
        [Planes(n) for n in (1, 2, 3, 4)],
    ):
        losses = [_loss(recipe, problem) for recipe in family]
        assert all(after < 0.7 * before for before, after in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_four_and_eight_shared_numbers_err_less_than_as_many_even_ones(seed: int) -> None:
    problem = _random(seed=seed)
    assert _loss(Codebook(4), problem) < _loss(Uniform(2), problem)
    assert _loss(Codebook(8), problem) < _loss(Uniform(3), problem)


def test_a_planted_ternary_layer_is_found_and_its_weights_come_back() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 2, (2, 10, 27)) * rng.uniform(0.01, 1, (2, 10, 1))
    problem = _problem(weights.astype(np.float32).astype(np.float64))
    scale = Ternary().scales(problem)
    coded = Ternary().codes(problem, scale)
    np.testing.assert_allclose(coded.codes * scale[:, :, None], problem.weights, rtol=1e-6)
    assert isinstance(coded.storage, storage.Narrow)


@pytest.mark.parametrize("zero", [True, False])
def test_a_planted_layer_of_sixteen_integers_is_found_and_its_weights_come_back(zero: bool) -> None:
    rng = np.random.default_rng(0)
    entries = np.array([-127, -90, -61, -44, -30, -19, -11, -5, 0, 4, 10, 20, 33, 50, 77, 120])
    weights = rng.choice(entries, (2, 10, 27)) * rng.uniform(0.01, 1, (2, 10, 1))
    problem = _problem(weights.astype(np.float32).astype(np.float64))
    scale = Codebook(16, zero=zero).scales(problem)
    moved = scale * (1 + rng.uniform(0, 2.0**-15, scale.shape))
    for given, tolerance in ((scale, 1e-6), (moved, 1e-4)):
        coded = Codebook(16, zero=zero).codes(problem, given)
        np.testing.assert_allclose(coded.codes * given[:, :, None], problem.weights, rtol=tolerance, atol=1e-9)
        assert isinstance(coded.storage, storage.Codebook)
        assert len(coded.storage.entries) <= 16


def test_a_planted_layer_of_sixteen_real_numbers_has_one_code_for_each() -> None:
    rng = np.random.default_rng(0)
    planted = (np.arange(16) - 7 + rng.uniform(-0.3, 0.3, 16) * (np.arange(16) != 7)) * 0.1
    which = rng.integers(0, 16, (1, 40, 36))
    problem = _problem(planted[which].astype(np.float32).astype(np.float64))
    scale = Codebook(16).scales(problem)
    codes = Codebook(16).codes(problem, scale).codes
    for number in range(16):
        assert len(np.unique(codes[which == number])) == 1
    assert np.abs(codes * scale[:, :, None] - problem.weights).max() <= scale.max() / 2 * (1 + 1e-6)


def test_planted_vectors_and_planes_come_back() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-127, 128, (16, 4)).astype(np.float64)
    vectors[0, 0] = 127
    weights = vectors[rng.integers(0, 16, (1, 30, 9))].reshape(1, 30, 36) * 0.25
    problem = _problem(weights)
    coded = Vector(4, 16).codes(problem, np.full((1, 30), 0.25))
    assert np.array_equal(coded.codes * 0.25, weights)
    coefficients, bits = np.array([40, 17, 6]), rng.integers(0, 8, (1, 30, 36))
    signs = 2 * (bits[..., None] >> np.arange(3) & 1) - 1
    weights = (signs @ coefficients) * 0.125
    problem = _problem(weights)
    scale = Planes(3).scales(problem)
    planes = Planes(3).codes(problem, scale)
    np.testing.assert_allclose(planes.codes * scale[:, :, None], weights, rtol=1e-6)


def _bits(coded: Coded) -> float:
    """Entropy of the codes or indices, and the codebook."""
    stored = coded.storage
    indices = stored.indices if isinstance(stored, storage.Codebook | storage.Vector) else coded.codes
    _, counts = np.unique(indices, return_counts=True)
    book = 8 * stored.entries.size if isinstance(stored, storage.Codebook | storage.Vector) else 0
    return float(-(counts * np.log2(counts / indices.size)).sum()) + book


def test_a_price_on_bits_saves_bits_and_a_higher_one_saves_more() -> None:
    problem = _random(rows=64, taps=64)
    found = []
    for step in (0.03, 0.08, 0.2):
        recipe = Vector(2, 128, step=step)
        scale = recipe.scales(problem)
        coded = recipe.codes(problem, scale)
        found.append((_bits(coded), problem.loss(coded.codes * scale[:, :, None])))
    bits, losses = zip(*found, strict=True)
    assert bits[0] > 1.3 * bits[1] > 1.3**2 * bits[2]
    assert losses[0] < losses[1] < losses[2]


def test_correlated_neighbours_are_cheaper_as_vectors_than_one_by_one() -> None:
    """For pairs that are nearly equal the second weight is nearly free: the same loss in far fewer bits."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(size=(1, 64, 32, 1)) + 0.05 * rng.normal(size=(1, 64, 32, 2))
    problem = Problem(pairs.reshape(1, 64, 64), _hessian(1, 64, 0), np.ones((1, 64)))
    found = {}
    for dimension, step in ((1, 0.5), (2, 0.5)):
        recipe = Vector(dimension, 64, step=step)
        scale = recipe.scales(problem)
        coded = recipe.codes(problem, scale)
        found[dimension] = (_bits(coded), problem.loss(coded.codes * scale[:, :, None]))
    assert found[2][0] < 0.8 * found[1][0]
    assert found[2][1] < 1.05 * found[1][1]


def test_vectors_need_taps_that_they_divide() -> None:
    with pytest.raises(RecipeError, match="27 taps are no multiple of 4"):
        Vector(4).scales(_random(taps=27))


def test_impossible_settings_are_refused() -> None:
    for build in (
        lambda: Planes(5),
        lambda: Codebook(1),
        lambda: Codebook(300),
        lambda: Codebook(16, bits=9),
        lambda: Vector(0),
        lambda: Vector(4, 257),
        lambda: Vector(4, 16, bits=1),
        lambda: Stochastic(17),
    ):
        with pytest.raises(ValueError, match=r"not \d+"):
            build()


def test_the_coarsest_integers_of_a_row_are_found() -> None:
    weights = np.array([[[0.5, -1.0, 1.5], [0.0, 0.0, 0.0], [0.1, 0.1, -0.1]]])
    found = integer_scales(weights, 127)
    assert found is not None
    np.testing.assert_allclose(found, [[0.5, 1.0, 0.1]])
    assert integer_scales(np.array([[[1.0, np.pi]]]), 127) is None


def test_stochastic_rounding_is_right_in_the_mean_and_other_tensors_get_other_numbers() -> None:
    problem = _random()
    scale = Stochastic(bits=8).scales(problem)
    exact = problem.weights / scale[:, :, None]
    every = [Stochastic(bits=8, seed=seed, tensor="w").codes(problem, scale).codes for seed in range(400)]
    assert np.abs(np.mean(every, axis=0) - exact).max() < 5 * 0.5 / np.sqrt(400)
    assert not np.array_equal(every[0], Stochastic(bits=8, seed=0, tensor="v").codes(problem, scale).codes)
