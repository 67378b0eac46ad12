"""Codebooks of vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from passes.solvers import vector
from passes.solvers.gptq import sweep
from passes.solvers.hessian import damped, loss

Array = NDArray[np.float64]


def _problem(seed: int, rows: int = 24, taps: int = 32) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(200, taps)) @ rng.normal(size=(taps, taps))
    return rng.normal(size=(rows, taps)), damped(seen.T @ seen / 200)


def test_as_many_entries_as_distinct_vectors_are_exact() -> None:
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(12, 4))
    weights = planted[rng.integers(0, 12, (20, 8))].reshape(20, 32)
    entries = vector.kmeans(weights.reshape(-1, 4), np.ones(160), 12, 0)
    _, hessian = _problem(1)
    assert np.array_equal(entries[vector.assign(weights, hessian, entries)].reshape(20, 32), weights)


def test_clustering_finds_separate_clusters_and_its_result_is_a_fixed_point() -> None:
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points, weights = np.repeat(middles, 50, axis=0) + rng.normal(size=(200, 2)), rng.uniform(0.5, 2, 200)
    centres = vector.kmeans(points, weights, 4, 3)
    assert {tuple(np.rint(centre / 10)) for centre in centres} == {(0, 0), (1, 0), (0, 1), (1, 1)}
    chosen = vector.nearest(points, centres)
    for index, centre in enumerate(centres):
        members = chosen == index
        np.testing.assert_allclose(centre, np.average(points[members], axis=0, weights=weights[members]))


def test_the_seed_alone_decides_the_clustering() -> None:
    points = np.random.default_rng(0).normal(size=(500, 4))
    first = vector.kmeans(points, np.ones(500), 16, 1)
    assert np.array_equal(first, vector.kmeans(points, np.ones(500), 16, 1))
    assert not np.array_equal(first, vector.kmeans(points, np.ones(500), 16, 2))


def test_the_metric_is_the_mean_of_the_blocks_on_the_diagonal() -> None:
    hessian = np.stack([_problem(0, taps=6)[1], _problem(1, taps=6)[1]])
    mean, share = vector.metric(hessian, 2)
    blocks = [h[at : at + 2, at : at + 2] for h in hessian for at in (0, 2, 4)]
    np.testing.assert_allclose(mean, np.mean(blocks, axis=0))
    np.testing.assert_allclose(share.ravel(), [np.trace(b) / np.mean([np.trace(c) for c in blocks]) for b in blocks])


def test_one_dimension_is_the_sweep_with_a_codebook_of_numbers() -> None:
    weights, hessian = _problem(2)
    entries = np.linspace(-2, 2, 7)[:, None]

    def column(values: Array, tap: int, cost: float) -> Array:
        return entries[np.abs(values[:, None] - entries.T).argmin(axis=1), 0]

    assert np.array_equal(entries[vector.assign(weights, hessian, entries)][:, :, 0], sweep(weights, hessian, column))


@pytest.mark.parametrize("dimension", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_compensation_errs_less_than_the_nearest_entries_and_the_descent_never_errs_more(
    dimension: int, seed: int
) -> None:
    weights, hessian = _problem(seed)
    points = weights.reshape(-1, dimension)
    entries = vector.kmeans(points, np.ones(len(points)), 16, seed)
    plain = vector.nearest(points, entries).reshape(len(weights), -1)

    def cost(indices: NDArray[np.int64]) -> float:
        return loss(entries[indices].reshape(weights.shape) - weights, hessian)

    swept = vector.assign(weights, hessian, entries)
    assert cost(swept) < cost(plain)
    assert cost(vector.polish(weights, plain, hessian, entries)) <= cost(plain)
    assert cost(vector.polish(weights, swept, hessian, entries)) <= cost(swept)


def test_a_lattice_takes_the_full_cells_and_clusters_the_rest() -> None:
    points = np.concatenate([np.zeros((50, 2)), np.ones((40, 2)), [[10.0, 10.2], [10.6, 10.0], [-7.0, 3.0]]])
    found = vector.lattice(points, 1.0, 4, 0)
    assert found[:2].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    np.testing.assert_allclose(np.sort(found[2:], axis=0), [[-7.0, 3.0], [10.3, 10.1]])
    cells = [[0.0, 0.0], [1.0, 1.0], [-7.0, 3.0], [10.0, 10.0], [11.0, 10.0]]
    assert vector.lattice(points, 1.0, 5, 0).tolist() == cells


def test_what_an_entry_costs_beside_its_error_sways_the_choice() -> None:
    points, centres = np.array([[0.4], [0.9]]), np.array([[0.0], [1.0]])
    assert vector.nearest(points, centres).tolist() == [0, 1]
    assert vector.nearest(points, centres, np.array([[0.5, 0.0], [0.0, 1.0]])).tolist() == [1, 0]
    extra = np.array([[0.0, 0.9]])
    assert vector.assign(np.array([[0.9, 0.4]]), np.eye(2), centres, extra).tolist() == [[0, 0]]
    assert vector.polish(np.array([[0.9, 0.4]]), np.array([[1, 1]]), np.eye(2), centres, extra).tolist() == [[0, 0]]
