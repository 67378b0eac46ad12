"""Bias correction removes the mean error of each channel, layer after layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes import correct_bias, statistics
from passes.cones import points
from passes.quantize import QuantizeConfig, quantize
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import Array, node


def network() -> ir.Model:
    """Two Convs and a Gemm on inputs that are far from zero on average, so that rounding of weights shifts the mean."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g", "h"], ["y"], transB=1),
    ]
    weights = {
        "w1": normal(8, 3, 3, 3, seed=1),
        "b1": normal(8, seed=2),
        "w2": normal(8, 8, 3, 3, seed=3),
        "g": normal(4, 8, seed=4),
        "h": normal(4, seed=5),
    }
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


def inputs(count: int = 32) -> dict[str, Array]:
    return {"x": np.abs(normal(count, 3, 8, 8, seed=7))}


def mean_error(loaded: ir.Model, result: ir.Model, name: str, quantized_name: str) -> Array:
    exact = statistics.collect(loaded, inputs(), means=[name]).means[name]
    return statistics.collect(result, inputs(), means=[quantized_name]).means[quantized_name] - exact


@pytest.mark.parametrize("name", ["c1", "c2", "y"])
def test_the_mean_of_every_channel_is_right(name: str) -> None:
    """What is left is at most half a step of the int32 bias; without correction it is far more."""
    loaded = network()
    inside = "y_float" if name == "y" else name
    errors = {}
    for is_on in (False, True):
        config = QuantizeConfig(correct_bias=is_on, correction_samples=32)
        result, _ = quantize(loaded, every_node(loaded), inputs(), config)
        layer = next(n for n in result.graph if n.outputs[0].name == inside)
        scale = layer.inputs[2].producer().inputs[1].const_value.numpy()  # type: ignore[union-attr]
        errors[is_on] = np.abs(mean_error(loaded, result, name, inside)) / scale
    assert (errors[True] <= 0.51).all()
    assert errors[False].max() > 5


def test_corrected_biases_are_counted() -> None:
    loaded = network()
    _, report = quantize(loaded, every_node(loaded), inputs())
    assert 0 < report.metrics["biases_corrected"] <= 20
    assert {"c1", "c2", "y"} <= set(report.changed)


def test_a_layer_on_the_host_is_left_alone() -> None:
    loaded = network()
    result, report = quantize(loaded, every_node(loaded, "Gemm"), inputs())
    assert "y" not in report.changed
    assert "g" in result.graph.initializers


def test_two_inputs_from_the_host_and_a_concat() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Softmax", ["x"], ["s"]),
        node("Conv", ["s", "w"], ["b"]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    loaded = canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": normal(2, 3, 1, 1)})
    result, _ = quantize(loaded, every_node(loaded, "Softmax"), inputs())
    assert statistics.sqnr(loaded, result, inputs())["y"] > 30


def test_large_networks_are_corrected_on_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = network()
    wanted = points(loaded, every_node(loaded))
    assert correct_bias.affordable(loaded, wanted, 64) == 64
    monkeypatch.setattr(correct_bias, "MEMORY", 8 * 8 * 8 * 5)
    assert correct_bias.affordable(loaded, wanted, 64) == 5
    monkeypatch.setattr(correct_bias, "MEMORY", 1)
    assert correct_bias.affordable(loaded, wanted, 64) == 1
