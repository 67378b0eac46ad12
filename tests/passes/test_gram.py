"""Second moments: sums over every window that the kernel covers, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from passes.gram import Gatherer, Moments, collect_moments
from passes.layer import Layer
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import node, run

CONV = Layer("Conv", (4, 3, 3, 3), 1, (2, 2), (1, 1, 1, 1), (1, 1))
GROUPED = Layer("Conv", (4, 2, 2, 2), 2, (1, 1), (0, 1, 1, 0), (2, 1))
DENSE = Layer("Gemm", (4, 7))
LAYERS = {"Conv": (CONV, (3, 5, 5)), "grouped": (GROUPED, (4, 5, 5)), "Gemm": (DENSE, (7,))}
every_layer = pytest.mark.parametrize("name", LAYERS)


def windows(layer: Layer, sample: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """What each output position reads, one loop after the other, float64 [groups, taps] each."""
    if layer.op != "Conv":
        return [sample.astype(np.float64).reshape(1, -1)]
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel, layer.strides, layer.dilations
    padded = np.pad(sample[0].astype(np.float64), [(0, 0), layer.pads[0::2], layer.pads[1::2]])
    found = []
    for top in range(0, padded.shape[1] - (kh - 1) * dh, sh):
        for left in range(0, padded.shape[2] - (kw - 1) * dw, sw):
            seen = [
                padded[c, top + i * dh, left + j * dw]
                for c in range(len(padded))
                for i in range(kh)
                for j in range(kw)
            ]
            found.append(np.array(seen).reshape(layer.groups, layer.taps))
    return found


def gathered(layer: Layer, samples: NDArray[np.float32], wanted: list[NDArray[np.float32]] | None = None) -> Moments:
    gatherer = Gatherer(layer)
    for index in range(len(samples)):
        gatherer.add(samples[index : index + 1], None if wanted is None else wanted[index])
    return gatherer.moments()


@every_layer
def test_moments_are_those_of_a_loop_over_all_windows(name: str) -> None:
    layer, shape = LAYERS[name]
    samples = normal(4, *shape) + 1
    seen = [windows(layer, sample[None]) for sample in samples]
    flat = np.array([window for sample in seen for window in sample])
    centres = np.array([np.mean(sample, axis=0) for sample in seen])
    found = gathered(layer, samples)
    assert found.count == len(flat)
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.square, np.einsum("ngt,ngu->gtu", flat, flat) / len(flat), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        found.shared, np.einsum("ngt,ngu->gtu", centres, centres) / len(seen), rtol=1e-5, atol=1e-6
    )
    for group, covariance in enumerate(found.covariance):
        np.testing.assert_allclose(covariance, np.cov(flat[:, group].T, bias=True), rtol=1e-4, atol=1e-5)
        shared = found.shared_covariance[group]
        np.testing.assert_allclose(shared, np.cov(centres[:, group].T, bias=True), rtol=1e-4, atol=1e-5)


@every_layer
def test_answers_are_correlated_with_what_is_read(name: str) -> None:
    """With W x as the wanted answer, E[y x^T] is W E[x x^T] and the covariance likewise."""
    layer, shape = LAYERS[name]
    samples, weights = normal(4, *shape) + 1, normal(layer.groups, layer.rows, layer.taps)
    wanted = [weights @ layer.patches(sample[None]) for sample in samples]
    found = gathered(layer, samples, wanted)
    assert found.answer is not None
    assert found.cross is not None
    assert found.cross_covariance is not None
    np.testing.assert_allclose(found.answer, np.einsum("grt,gt->gr", weights, found.mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.cross, weights @ found.square, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.cross_covariance, weights @ found.covariance, rtol=1e-4, atol=1e-4)


def test_no_answers_no_cross_moments() -> None:
    found = gathered(CONV, normal(2, 3, 5, 5))
    assert (found.answer, found.cross, found.cross_covariance) == (None, None, None)


def test_samples_add_up_whoever_gathers_them() -> None:
    samples = normal(6, 3, 5, 5)
    whole = gathered(CONV, samples)
    parts = [gathered(CONV, samples[:2]), gathered(CONV, samples[2:])]
    square = sum(part.count * part.square for part in parts) / whole.count
    np.testing.assert_allclose(whole.square, square, rtol=1e-12)


def test_hessian_is_symmetric_positive_definite_however_few_samples() -> None:
    found = gathered(CONV, normal(1, 3, 5, 5))
    hessian = found.hessian(0.01)[0]
    np.testing.assert_array_equal(hessian, hessian.T)
    # Nine positions cannot say what 27 taps do: as much of the mean variance is added as ever.
    mean = np.trace(found.covariance[0]) / 27
    np.testing.assert_allclose(hessian - found.covariance[0], np.eye(27) * 0.5 * mean, atol=1e-12)
    assert np.linalg.eigvalsh(hessian).min() > 0


def test_few_positions_are_damped_by_how_few_they_are() -> None:
    """45 positions of 27 taps would be 0.6 of the mean variance, 90 are 0.3; beyond that what is asked for."""
    counts = (5, 10, 100)
    shares = [gathered(CONV, normal(count, 3, 5, 5)).damping(0.1) for count in counts]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.1], rtol=1e-12)


def test_the_variance_of_the_wanted_answers() -> None:
    found, wanted = Gatherer(CONV), normal(20, 1, 4, 9, seed=8)
    for sample, answer in zip(normal(20, 3, 5, 5), wanted, strict=True):
        found.add(sample[None], answer)
    variance = found.moments().answer_variance
    assert variance is not None
    np.testing.assert_allclose(variance[0], np.moveaxis(wanted[:, 0], 1, 0).reshape(4, -1).var(axis=1), rtol=1e-5)
    assert gathered(CONV, normal(3, 3, 5, 5)).answer_variance is None


def test_shared_errors_count_as_much_as_asked() -> None:
    found = gathered(CONV, normal(300, 3, 5, 5))
    whole = found.covariance + 5.0 * found.shared_covariance
    added = found.hessian(0.1, 5.0) - whole
    np.testing.assert_allclose(added[0], np.eye(27) * 0.1 * np.trace(whole[0]) / 27, atol=1e-12)


def test_a_dead_input_is_damped_too() -> None:
    samples = normal(20, 3, 5, 5)
    samples[:, 1] = 0
    hessian = gathered(CONV, samples).hessian(0.1)
    assert np.linalg.eigvalsh(hessian[0]).min() > 0
    assert np.diagonal(gathered(CONV, np.zeros_like(samples)).hessian()[0]).tolist() == [1.0] * 27


def test_moments_of_named_layers_of_a_network() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"]),
        node("Flatten", ["d"], ["f"]),
        node("Gemm", ["f", "g"], ["y"], transB=1),
    ]
    weights = {"w": normal(4, 3, 3, 3), "v": normal(2, 4, 2, 2, seed=1), "g": normal(3, 32, seed=2)}
    loaded = canonical(nodes, {"x": [1, 3, 5, 5]}, ["y"], weights)
    samples = {"x": normal(5, 3, 5, 5, seed=3)}
    told: list[tuple[str, int, int]] = []
    found = collect_moments(loaded, samples, ["y", "d"], progress=lambda *what: told.append(what))
    assert list(found) == ["y", "d"]
    assert told == [("gram", done, 5) for done in range(1, 6)]
    inner = canonical(nodes[:2], {"x": [1, 3, 5, 5]}, ["r"], {"w": weights["w"]})
    read = np.concatenate([run(inner, {"x": row[None]})["r"] for row in samples["x"]])
    expected = gathered(Layer("Conv", (2, 4, 2, 2), 1, (1, 1), (0,) * 4, (1, 1)), read)
    np.testing.assert_allclose(found["d"].square, expected.square, rtol=1e-5, atol=1e-6)
