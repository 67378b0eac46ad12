"""What the families offer for one layer."""

from __future__ import annotations

import numpy as np
import pytest

from passes.coding.symbols import encode
from passes.low_rank import Window
from passes.recipes.base import AsFound, Problem
from passes.recipes.coded import Codebook, Ternary, Vector
from passes.recipes.families import FINENESS, NAMES, RATE, _each, options, rate_options, stored_bits
from passes.recipes.structured import Circulant
from passes.recipes.uniform import RateDistortion, Uniform

ALONE = [name for name in NAMES if name != RATE]


def problem(weights: np.ndarray, kernel: tuple[int, ...] = ()) -> Problem:
    rng = np.random.default_rng(3)
    groups, rows, taps = weights.shape
    inputs = rng.normal(size=(groups, taps, 4 * taps)) @ np.diag(rng.uniform(0.5, 2, 4 * taps))
    hessian = inputs @ inputs.transpose(0, 2, 1) / (4 * taps) + 0.1 * np.eye(taps)
    return Problem(weights, hessian, rng.uniform(1e-3, 1e-2, (groups, rows)), kernel)


def random(groups: int = 1, rows: int = 24, taps: int = 36, kernel: tuple[int, ...] = (3, 3)) -> Problem:
    return problem(np.random.default_rng(0).normal(size=(groups, rows, taps)), kernel)


@pytest.mark.parametrize("family", NAMES)
def test_a_family_alone_offers_a_range_of_sizes_and_eight_bits(family: str) -> None:
    layer = random(groups=12, rows=1, taps=9) if family == "shared" else random()
    found = options(layer, [family], tensor="a", window=Window(1, 24, 4, (3, 3), (8, 8), (8, 8)))
    assert "W8" in {option.recipe.name for option in found}
    own = [option for option in found if option.family == family]
    if family == "shared":  # random filters are hardly alike: what there is, is measured
        return
    assert len(own) >= (1 if family in ("ternary",) else 2)
    assert all(np.isfinite(option.loss) and option.loss >= 0 and option.bits > 0 for option in found)
    if family not in ("ternary", "circulant", "prune-nm"):
        sizes = [option.bits for option in own]
        assert max(sizes) >= 1.25 * min(sizes)


def test_names_say_all_so_that_no_option_hides_another() -> None:
    found = options(random(), window=Window(1, 24, 4, (3, 3), (8, 8), (8, 8)))
    assert len({option.name for option in found}) == len(found)


def test_beside_the_rate_family_the_hopeless_are_not_asked() -> None:
    families = {option.family for option in options(random())}
    assert RATE in families
    assert not families & {"stochastic", "prune-nm", "prune-block", "circulant"}


def test_sixteen_bits_are_offered_to_those_who_ask_for_stochastic_rounding_alone() -> None:
    def widest(*families: str) -> int:
        return max(option.recipe.limit for option in options(random(), families))

    assert widest("stochastic") == 2**15 - 1
    assert widest("stochastic", "fixed-point") == 127


def test_layers_draw_random_numbers_of_their_own() -> None:
    own = {
        name: next(o for o in options(random(), ["stochastic"], tensor=name) if o.recipe.name == "W4 stochastic")
        for name in ("a", "b")
    }
    assert own["a"].loss != own["b"].loss


@pytest.mark.parametrize("kind", ["ternary", "codebook", "circulant"])
def test_planted_forms_are_offered_as_found_and_beat_all_of_that_loss(kind: str) -> None:
    rng = np.random.default_rng(1)
    match kind:
        case "ternary":
            weights = rng.choice([-1.0, 0, 1], (1, 32, 64)) * rng.uniform(0.5, 1, (1, 32, 1))
            expected: type = Ternary
        case "codebook":
            weights = rng.choice(rng.normal(size=16), (1, 32, 64))
            expected = Codebook
        case _:
            i, j = np.arange(32)[:, None], np.arange(64)
            weights = rng.normal(size=(1, 2, 32))[0][j // 32, (i - j) % 32][None]
            expected = Circulant
    found = options(problem(weights))
    planted = [o for o in found if isinstance(o.recipe, AsFound) and isinstance(o.recipe.recipe, expected)]
    assert len(planted) == (5 if kind == "circulant" else 1)  # a structure is offered at every width
    assert [o.bits for o in planted] == sorted((o.bits for o in planted), reverse=True)
    assert [o.loss for o in planted] == sorted(o.loss for o in planted)
    others = [o for o in found if o.family not in (planted[0].family, "codebook")]
    rivals = [o for o in others if o.bits <= planted[0].bits]
    assert all(rival.loss > 10 * planted[0].loss for rival in rivals)


def test_interpolated_options_are_what_measuring_them_gives() -> None:
    layer = random(rows=32, taps=72)
    measured = {option.recipe: option for option in rate_options(layer)[::FINENESS]}
    for option in rate_options(layer):
        (exact,) = _each(RATE, layer, [option.recipe])
        assert exact.loss == pytest.approx(option.loss, rel=1e-9 if option.recipe in measured else 0.5)
        assert exact.bits == pytest.approx(option.bits, rel=1e-9 if option.recipe in measured else 0.15, abs=100)


@pytest.mark.parametrize(
    "recipe",
    [Uniform(4), RateDistortion(0.02), Codebook(16), Vector(3, 64)],
    ids=lambda recipe: recipe.name,
)
def test_the_size_of_a_stored_form_is_what_the_coder_spends(recipe: Uniform | Codebook) -> None:
    layer = random(rows=48, taps=72)
    coded = recipe.codes(layer, recipe.scales(layer))
    match recipe:
        case Codebook():
            indices = coded.storage.indices.astype(np.int64)[0]  # type: ignore[union-attr]
            arrays = [(indices, (3, 3)), (coded.storage.entries[None], ())]  # type: ignore[union-attr]
        case Vector():
            arrays = [(coded.storage.indices.reshape(1, -1).astype(np.int64), ()), (coded.storage.entries, ())]  # type: ignore[union-attr]
        case _:
            arrays = [(coded.codes[0], (3, 3))]
    spent = 0
    for values, kernel in arrays:
        whole = values.astype(np.int64)
        if values is arrays[0][0] and coded.storage is not None:
            numbers, counts = np.unique(whole, return_counts=True)
            whole = whole - numbers[counts.argmax()]
        spent += 8 * len(encode(whole, kernel))
    assert stored_bits(coded.codes, coded.storage, layer.kernel) == pytest.approx(spent, rel=0.1, abs=300)
