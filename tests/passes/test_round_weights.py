"""Rounded weights err less at the output, stay beside the real ones, and leave zeros alone."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from passes.quantize import QuantizeConfig, accumulator_fits, quantize
from passes.round_weights import covariance, descend
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import node

SAMPLES = {"x": np.abs(normal(24, 8, 9, 9, seed=7)) + normal(24, 1, 9, 9, seed=8)}


def network(seed: int) -> ir.Model:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=12, pads=[2] * 4, dilations=[2, 2]),
        node("Conv", ["c2", "w3"], ["c3"]),
        node("Flatten", ["c3"], ["f"]),
        node("Gemm", ["f", "w4"], ["y"], transB=1),
    ]
    weights = {
        "w1": normal(12, 8, 3, 3, seed=seed),
        "b1": normal(12, seed=seed + 1),
        "w2": normal(12, 1, 3, 3, seed=seed + 2),
        "w3": normal(6, 12, 1, 1, seed=seed + 3),
        "w4": normal(10, 150, seed=seed + 4),
    }
    weights["w3"][:, ::3] = 0
    return canonical(nodes, {"x": [1, 8, 9, 9]}, ["y"], weights)


def quantized(loaded: ir.Model, *, is_rounded: bool) -> ir.Model:
    config = QuantizeConfig(equalize=None, round_weights=is_rounded)
    return quantize(loaded, every_node(loaded), SAMPLES, config)[0]


def codes(result: ir.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """int8 weights and scales of every layer."""
    found = {}
    for layer in result.graph:
        if layer.op_type in ("Conv", "Gemm"):
            inputs = layer.inputs[1].producer().inputs
            found[layer.name] = tuple(value.const_value.numpy() for value in inputs[:2])
    return found


@pytest.mark.parametrize("seed", [0, 10, 20])
def test_the_first_layer_errs_less_on_new_samples(seed: int) -> None:
    loaded = network(seed)
    fresh = np.abs(normal(24, 8, 9, 9, seed=70)) + normal(24, 1, 9, 9, seed=80)
    spread = covariance(loaded.graph[0], fresh, (8, 3, 3))[0]
    exact = loaded.graph.initializers["w1"].const_value.numpy().reshape(12, -1)
    errors = []
    for is_rounded in (False, True):
        values, scale = codes(quantized(loaded, is_rounded=is_rounded))["c1"]
        wrong = values.reshape(12, -1) * scale[:, None] - exact
        errors.append(float(np.sum(wrong @ spread * wrong)))
    assert errors[1] < 0.8 * errors[0]


def test_codes_stay_beside_the_weights_and_zeros_stay() -> None:
    loaded = network(0)
    nearest, rounded = (codes(quantized(loaded, is_rounded=is_rounded)) for is_rounded in (False, True))
    for layer, name in (("c1", "w1"), ("c2", "w2"), ("c3", "w3"), ("y", "w4")):
        values, scale = rounded[layer]
        exact = loaded.graph.initializers[name].const_value.numpy() / scale.reshape(-1, *[1] * (values.ndim - 1))
        assert np.abs(values - exact).max() <= 1.001
        assert not values[exact == 0].any()
        assert (values != nearest[layer][0]).any()
        assert np.array_equal(scale, nearest[layer][1])


def test_a_channel_that_would_not_fit_the_accumulator_keeps_its_codes() -> None:
    loaded = network(0)
    bits = 17
    config = QuantizeConfig(equalize=None, acc_bits=bits)
    result = quantize(loaded, every_node(loaded), SAMPLES, config)[0]
    for values, _ in codes(result).values():
        assert accumulator_fits(values, bits).all()


def test_descent_finds_the_best_of_all_roundings_of_a_pair() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        exact = rng.uniform(-5, 5, (1, 1, 2))
        spread = np.array([[[2.0, 0.9], [0.9, 1.0]]])
        found = descend(exact, np.rint(exact), spread)
        candidates = itertools.product(*[(np.floor(v), np.ceil(v)) for v in exact.ravel()])
        errors = [(np.array(c) - exact[0, 0]) @ spread[0] @ (np.array(c) - exact[0, 0]) for c in candidates]
        first, got = ((q - exact)[0, 0] @ spread[0] @ (q - exact)[0, 0] for q in (np.rint(exact), found))
        assert min(errors) - 1e-12 <= got <= first + 1e-12
        # No single step makes it better.
        for tap, step in itertools.product(range(2), (-1, 1)):
            moved = found[0, 0].copy()
            moved[tap] += step
            if abs(moved[tap] - exact[0, 0, tap]) <= 1:
                assert (moved - exact[0, 0]) @ spread[0] @ (moved - exact[0, 0]) >= got - 1e-12


def test_covariance_is_that_of_what_the_kernel_covers() -> None:
    loaded = network(0)
    conv = loaded.graph[0]
    inputs = SAMPLES["x"][:5]
    found = covariance(conv, inputs, (8, 3, 3))
    padded = np.pad(inputs, [(0, 0), (0, 0), (1, 1), (1, 1)])
    rows = [
        padded[n, :, i : i + 3, j : j + 3].ravel() for n in range(5) for i in range(0, 9, 2) for j in range(0, 9, 2)
    ]
    expected = np.cov(np.array(rows, np.float64).T, bias=True)
    expected += np.eye(72) * np.trace(expected) / 72 * max(0.1, 72 / len(rows))
    np.testing.assert_allclose(found, expected[None], rtol=0, atol=1e-4)
