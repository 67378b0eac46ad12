"""What pruning removes, what the survivors become, and what the loss is, by closed forms and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.solvers import gptq, hessian, prune
from passes.solvers import obs as brain_surgeon
from passes.solvers.obs import trace
from passes.solvers.patterns import UNSTRUCTURED, Blocks, NofM, Pattern, cheapest_removed
from passes.solvers.survivors import refit, rounded

Layer = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
PATTERNS: tuple[Pattern, ...] = (UNSTRUCTURED, Blocks(4, 1), Blocks(1, 3), Blocks(3, 5), NofM(2, 4), NofM(1, 3))
BLOCKS = st.builds(Blocks, st.integers(1, 5), st.integers(1, 5))
PATTERN = BLOCKS | st.integers(1, 8).flatmap(lambda of: st.builds(NofM, st.integers(1, of), st.just(of)))


def layer(groups: int, rows: int, taps: int, seed: int) -> Layer:
    """Weights, a damped H of correlated inputs, importance."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, taps, taps)) * 0.5 + np.eye(taps)
    inputs = rng.normal(size=(groups, 3 * taps, taps)) @ mixed
    grams = inputs.transpose(0, 2, 1) @ inputs / (3 * taps)
    matrices = np.stack([hessian.damped(gram) for gram in grams])
    return rng.normal(size=(groups, rows, taps)), matrices, rng.uniform(0.1, 3.0, (groups, rows))


LAYERS = st.builds(layer, st.integers(1, 3), st.integers(1, 7), st.integers(1, 13), st.integers(0, 2**31))
SPARSITY = st.floats(0, 1)


def loss(new: NDArray[np.float64], whole: Layer) -> float:
    weights, matrices, importance = whole
    delta = new - weights
    return float(np.einsum("grt,gtu,gru,gr->", delta, matrices, delta, importance))


def test_of_two_weights_the_one_goes_that_the_formula_names_and_the_other_takes_over() -> None:
    matrix = np.array([[[2.0, 1.5], [1.5, 3.0]]])
    weights = np.array([[[1.0, 1.1]]])
    pruned = prune.obs(weights, matrix, UNSTRUCTURED, 0.5)
    determinant = 2.0 * 3.0 - 1.5**2
    # rho_1 = w_1^2 det / H_22; with w_1 gone, w_2 + w_1 H_12 / H_22 is left.
    np.testing.assert_allclose(pruned.loss, determinant / 3.0, rtol=1e-12)
    np.testing.assert_allclose(pruned.weights, [[[0.0, 1.1 + 1.0 * 1.5 / 3.0]]], rtol=1e-12)


@given(LAYERS, st.data())
def test_the_first_removal_costs_exactly_what_rho_says(whole: Layer, data: st.DataObject) -> None:
    weights, matrices, importance = whole
    found = trace(weights, matrices, UNSTRUCTURED, importance)
    group = data.draw(st.integers(0, len(weights) - 1))
    row = data.draw(st.integers(0, weights.shape[1] - 1))
    inverse = np.linalg.inv(matrices[group])
    rho = np.square(weights[group, row]) / np.diagonal(inverse) * importance[group, row]
    tap = int(found.order[group, row, 0])
    np.testing.assert_allclose(found.cost[group, row, 0], rho.min(), rtol=1e-9)
    kept = np.ones(weights.shape, np.bool_)
    kept[group, row, tap] = False
    np.testing.assert_allclose(loss(refit(weights, matrices, kept), whole), rho[tap], rtol=1e-9)


@given(LAYERS, PATTERN)
def test_the_steps_of_a_trace_add_up_to_the_loss_of_all_that_it_removes(whole: Layer, pattern: Pattern) -> None:
    weights, matrices, importance = whole
    found = trace(weights, matrices, pattern, importance)
    pruned = prune.obs(weights, matrices, pattern, 1.0, importance)
    np.testing.assert_allclose(found.cost.sum(), pruned.loss, rtol=1e-8, atol=1e-12)


@given(LAYERS, st.builds(Blocks, st.integers(2, 5), st.integers(2, 5)))
def test_the_first_block_costs_what_the_formula_of_groups_says(whole: Layer, pattern: Blocks) -> None:
    weights, matrices, importance = whole
    found = trace(weights, matrices, pattern, importance)
    some = slice(0, pattern.rows)
    inverse, costs = np.linalg.inv(matrices[0]), []
    for start in range(0, weights.shape[2], pattern.taps):
        block = weights[0, some, start : start + pattern.taps]
        middle = np.linalg.inv(inverse[start : start + pattern.taps, start : start + pattern.taps])
        costs.append(float(np.einsum("rt,tu,ru,r->", block, middle, block, importance[0, some])) / block.shape[1])
    assert found.order[0, 0, 0] == int(np.argmin(costs))
    size = min(pattern.taps, weights.shape[2] - int(found.order[0, 0, 0]) * pattern.taps)
    np.testing.assert_allclose(found.cost[0, 0, 0], min(costs) * size, rtol=1e-9)


@given(LAYERS, st.integers(0, 2**31))
def test_refitted_survivors_solve_the_normal_equations(whole: Layer, seed: int) -> None:
    weights, matrices, _ = whole
    kept = np.random.default_rng(seed).random(weights.shape) < 0.6
    fitted = refit(weights, matrices, kept)
    assert not fitted[~kept].any()
    slope = (fitted - weights) @ matrices
    np.testing.assert_allclose(np.where(kept, slope, 0.0), 0.0, atol=1e-9 * np.abs(matrices).max())


@given(LAYERS)
def test_refitting_with_nothing_removed_changes_nothing(whole: Layer) -> None:
    weights, matrices, _ = whole
    np.testing.assert_allclose(refit(weights, matrices, np.ones(weights.shape, np.bool_)), weights, atol=1e-9)


@given(LAYERS, PATTERN, SPARSITY)
def test_removed_weights_are_exactly_zero_and_the_loss_is_that_of_the_weights(
    whole: Layer, pattern: Pattern, sparsity: float
) -> None:
    weights, matrices, importance = whole
    for method in (prune.magnitude, prune.obd, prune.obs, prune.sweep):
        pruned = method(weights, matrices, pattern, sparsity, importance)
        assert not pruned.weights[~pruned.kept].any()
        np.testing.assert_allclose(pruned.loss, loss(pruned.weights, whole), rtol=1e-9, atol=1e-12)
        if isinstance(pattern, Blocks):
            assert (~pruned.kept).sum() <= sparsity * weights.size + 0.5 or method is prune.sweep


@given(LAYERS, PATTERN, SPARSITY)
def test_a_refit_loses_no_more_than_the_survivors_as_they_were(
    whole: Layer, pattern: Pattern, sparsity: float
) -> None:
    weights, matrices, importance = whole
    plain = prune.magnitude(weights, matrices, pattern, sparsity, importance)
    fitted = loss(refit(weights, matrices, plain.kept), whole)
    assert fitted <= plain.loss * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_the_surgeon_loses_less_than_sweep_damage_and_magnitude(pattern: Pattern, seed: int) -> None:
    weights, matrices, importance = layer(2, 10, 30, seed)
    surgeon = prune.obs(weights, matrices, pattern, 0.5, importance).loss
    for method in (prune.sweep, prune.obd, prune.magnitude):
        assert surgeon < method(weights, matrices, pattern, 0.5, importance).loss


@given(LAYERS, SPARSITY)
def test_with_independent_inputs_the_surgeon_prunes_by_magnitude_and_moves_nothing(
    whole: Layer, sparsity: float
) -> None:
    weights, matrices, _ = whole
    identity = np.broadcast_to(np.eye(weights.shape[2]), matrices.shape).copy()
    for pattern in (UNSTRUCTURED, NofM(2, 4), Blocks(2, 1)):
        surgeon = prune.obs(weights, identity, pattern, sparsity)
        plain = prune.magnitude(weights, identity, pattern, sparsity)
        np.testing.assert_array_equal(surgeon.kept, plain.kept)
        np.testing.assert_array_equal(surgeon.weights, plain.weights)


@given(LAYERS, BLOCKS, SPARSITY, SPARSITY)
def test_more_sparsity_removes_more_of_the_same_and_loses_no_less(
    whole: Layer, pattern: Blocks, one: float, other: float
) -> None:
    weights, matrices, importance = whole
    low, high = sorted((one, other))
    less = prune.obs(weights, matrices, pattern, low, importance)
    more = prune.obs(weights, matrices, pattern, high, importance)
    assert not (more.kept & ~less.kept).any()
    assert less.loss <= more.loss * (1 + 1e-9) + 1e-12


@given(LAYERS, BLOCKS, st.floats(0, 30))
def test_below_a_price_all_units_go_that_cost_less_and_no_other(whole: Layer, pattern: Blocks, price: float) -> None:
    weights, matrices, importance = whole
    found = trace(weights, matrices, pattern, importance)
    kept = found.kept_below(price)
    cheapest = found.kept(1.0 - float(kept.mean()))
    np.testing.assert_array_equal(kept, cheapest)
    assert not found.kept_below(np.inf).any()
    # What went has cost, for each weight, no more than the price on average.
    assert loss(refit(weights, matrices, kept), whole) <= price * (~kept).sum() * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_a_greedy_mask_is_near_the_best_of_all(seed: int) -> None:
    weights, matrices, _ = layer(1, 1, 8, seed)
    losses = []
    for removed in itertools.combinations(range(8), 4):
        kept = np.ones((1, 1, 8), np.bool_)
        kept[0, 0, list(removed)] = False
        delta = (refit(weights, matrices, kept) - weights)[0, 0]
        losses.append(delta @ matrices[0] @ delta)
    greedy = prune.obs(weights, matrices, UNSTRUCTURED, 0.5).loss
    assert min(losses) <= greedy * (1 + 1e-9)
    assert sum(each < greedy * (1 - 1e-9) for each in losses) < 7  # of 70 masks


@given(LAYERS, st.integers(1, 8).flatmap(lambda of: st.builds(NofM, st.integers(1, of), st.just(of))))
def test_of_every_m_taps_n_are_kept(whole: Layer, pattern: NofM) -> None:
    weights, matrices, importance = whole
    for method in (prune.magnitude, prune.obs, prune.sweep):
        kept = method(weights, matrices, pattern, 0.0, importance).kept
        for start in range(0, weights.shape[2], pattern.of):
            stretch = kept[:, :, start : start + pattern.of]
            assert (stretch.sum(axis=2) == min(pattern.kept, stretch.shape[2])).all()


@given(LAYERS, BLOCKS, SPARSITY)
def test_blocks_go_whole_and_as_many_as_the_share_allows(whole: Layer, pattern: Blocks, sparsity: float) -> None:
    weights, matrices, importance = whole
    for method in (prune.magnitude, prune.obs):
        kept = method(weights, matrices, pattern, sparsity, importance).kept
        for row in range(0, weights.shape[1], pattern.rows):
            for tap in range(0, weights.shape[2], pattern.taps):
                block = kept[:, row : row + pattern.rows, tap : tap + pattern.taps]
                whole_blocks = block.reshape(len(block), -1)
                assert (whole_blocks == whole_blocks[:, :1]).all()
        removed = (~kept).sum()
        assert removed <= sparsity * weights.size + 0.5
        assert removed + pattern.rows * pattern.taps > sparsity * weights.size - 0.5 or kept.sum() == 0


@pytest.mark.parametrize(("sparsity", "removed"), [(0.0, 0), (0.1, 3), (1 / 3, 10), (0.7, 21), (1.0, 30)])
def test_a_share_of_whole_weights_is_met_exactly(sparsity: float, removed: int) -> None:
    scores = np.random.default_rng(0).random((1, 3, 10))
    assert (~cheapest_removed(scores, UNSTRUCTURED, sparsity)).sum() == removed


def test_the_importance_of_a_row_keeps_its_weights() -> None:
    weights, matrices, _ = layer(1, 6, 20, seed=3)
    importance = np.ones((1, 6))
    before = prune.obs(weights, matrices, UNSTRUCTURED, 0.5, importance).kept[0, 2].sum()
    importance[0, 2] = 100.0
    assert prune.obs(weights, matrices, UNSTRUCTURED, 0.5, importance).kept[0, 2].sum() > before


def test_groups_compete_with_each_other() -> None:
    weights, matrices, _ = layer(2, 3, 9, seed=4)
    weights[1] *= 1e-3
    kept = prune.obs(weights, matrices, UNSTRUCTURED, 0.5).kept
    assert kept[0].all()
    assert not kept[1].any()


@pytest.mark.parametrize("wide", [1, 3])
def test_a_nearly_singular_matrix_costs_no_digits(wide: int) -> None:
    """The inverse of 60 nearly equal inputs spans eleven digits: what each removal costs must still add up."""
    rng = np.random.default_rng(5)
    common = rng.normal(size=(400, 1))
    inputs = common + 1e-5 * rng.normal(size=(400, 60))
    matrix = (inputs.T @ inputs / 400)[None]
    weights = rng.normal(size=(1, 2, 60))
    found = trace(weights, matrix, Blocks(1, wide))
    everything = float(np.einsum("grt,gtu,gru->", weights, matrix, weights))
    np.testing.assert_allclose(found.cost.sum(), everything, rtol=1e-5)
    assert (found.cost >= 0).all()


def test_digits_are_recovered_by_inverting_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, matrices, importance = layer(2, 5, 40, seed=6)
    plain = trace(weights, matrices, UNSTRUCTURED, importance)
    monkeypatch.setattr(brain_surgeon, "DIGITS", 0.9)
    anew = trace(weights, matrices, UNSTRUCTURED, importance)
    np.testing.assert_array_equal(plain.order, anew.order)
    np.testing.assert_allclose(plain.cost, anew.cost, rtol=1e-8)


def test_the_trace_is_the_same_however_its_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, matrices, importance = layer(2, 7, 40, seed=7)
    plain = trace(weights, matrices, Blocks(2, 1), importance)
    monkeypatch.setattr(brain_surgeon, "STEPS", 3)
    monkeypatch.setattr(brain_surgeon, "CHUNK_BYTES", 1)
    cut = trace(weights, matrices, Blocks(2, 1), importance)
    np.testing.assert_array_equal(plain.order, cut.order)
    np.testing.assert_allclose(plain.cost, cut.cost, rtol=1e-9)


@given(LAYERS, PATTERN, SPARSITY, st.sampled_from([1, 3, 7, 127]))
def test_codes_are_integers_within_the_limit_and_zero_where_pruned(
    whole: Layer, pattern: Pattern, sparsity: float, limit: int
) -> None:
    weights, matrices, importance = whole
    grid = grid_of(weights, limit)
    kept = prune.obs(weights, matrices, pattern, sparsity, importance).kept
    for outcome in (
        prune.quantized(weights, matrices, kept, grid, importance),
        prune.quantized(weights, matrices, kept, grid, importance, is_shared=True),
        prune.sweep(weights, matrices, pattern, sparsity, importance, grid),
    ):
        codes = outcome.weights / grid.scale[:, :, None]
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
        assert np.abs(np.rint(codes)).max(initial=0) <= limit
        assert not outcome.weights[~outcome.kept].any()
        np.testing.assert_allclose(outcome.loss, loss(outcome.weights, whole), rtol=1e-9, atol=1e-12)


@given(LAYERS, st.sampled_from([1, 3, 7, 127]))
def test_with_independent_inputs_survivors_round_to_the_nearest(whole: Layer, limit: int) -> None:
    weights, matrices, _ = whole
    identity = np.broadcast_to(np.eye(weights.shape[2]), matrices.shape).copy()
    grid = grid_of(weights, limit)
    kept = prune.magnitude(weights, identity, UNSTRUCTURED, 0.5).kept
    nearest = np.clip(np.rint(weights / grid.scale[:, :, None]), -limit, limit)
    np.testing.assert_array_equal(rounded(weights, identity, kept, grid.scale, limit), np.where(kept, nearest, 0.0))


@given(LAYERS, st.sampled_from([1, 3, 7]))
def test_with_nothing_removed_rows_round_as_in_the_sweep_over_all_taps(whole: Layer, limit: int) -> None:
    """Two ways of writing GPTQ: the inverse's factor and errors, and the factor of H itself."""
    weights, matrices, _ = whole
    grid, kept = grid_of(weights, limit), np.ones(weights.shape, np.bool_)
    codes = rounded(weights, matrices, kept, grid.scale, limit)
    for group in range(len(weights)):
        expected = gptq.gptq(weights[group], matrices[group], grid.scale[group], limit)
        np.testing.assert_array_equal(codes[group], expected)


@pytest.mark.parametrize("seed", range(6))
def test_survivors_that_make_good_for_all_removed_err_less_than_the_sweep(seed: int) -> None:
    weights, matrices, importance = layer(1, 12, 60, seed)
    grid = grid_of(weights, 7)
    kept = prune.obs(weights, matrices, UNSTRUCTURED, 0.5, importance).kept
    whole, scale = (weights, matrices, importance), grid.scale[:, :, None]
    own = loss(rounded(weights, matrices, kept, grid.scale, 7) * scale, whole)
    walked = prune.sweep(weights, matrices, UNSTRUCTURED, 0.5, importance, grid).loss
    shared = gptq.gptq(weights[0], matrices[0], grid.scale[0], 7, keep=kept[0]) * scale[0]
    assert own < walked
    assert own < loss(shared[None], whole)
    assert prune.quantized(weights, matrices, kept, grid, importance).loss <= own * (1 + 1e-9)


@pytest.mark.parametrize(("pattern", "taps"), [(UNSTRUCTURED, 300), (NofM(2, 4), 300), (Blocks(4, 3), 300)], ids=str)
def test_the_sweep_over_many_taps_loses_less_than_damage_at_the_same_share(pattern: Pattern, taps: int) -> None:
    weights, matrices, importance = layer(1, 16, taps, seed=9)
    swept = prune.sweep(weights, matrices, pattern, 0.5, importance)
    damaged = prune.obd(weights, matrices, pattern, swept.sparsity, importance)
    assert swept.sparsity == pytest.approx(0.5, abs=0.01)
    assert swept.loss < damaged.loss


@pytest.mark.parametrize("call", [lambda: Blocks(0, 1), lambda: NofM(0, 4), lambda: NofM(5, 4)])
def test_impossible_patterns_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, np.nan])
def test_shares_outside_0_to_1_are_refused(sparsity: float) -> None:
    weights, matrices, _ = layer(1, 2, 4, seed=0)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        prune.magnitude(weights, matrices, UNSTRUCTURED, sparsity)


def grid_of(weights: NDArray[np.float64], limit: int) -> prune.Grid:
    return prune.Grid(np.stack([gptq.mse_scales(rows, limit) for rows in weights]), limit)
