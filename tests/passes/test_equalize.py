"""Equalization changes no output of the float network, and uses more of the int8 range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes import statistics
from passes.cones import points
from passes.equalize import Equalize, EqualizeConfig, channel_factors, equalizable
from passes.quantize import QuantizeConfig, quantize
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import node, run


def separable(multiplier: int = 1) -> ir.Model:
    """Pointwise, depthwise, pointwise; the channels of the first differ much in size."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=6, pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["y"]),
    ]
    sizes = np.geomspace(0.1, 10, 6).astype(np.float32)
    weights = {
        "w1": normal(6, 3, 1, 1, seed=1) * sizes.reshape(-1, 1, 1, 1),
        "b1": normal(6, seed=2) * sizes,
        "w2": normal(6 * multiplier, 1, 3, 3, seed=3) / sizes.repeat(multiplier).reshape(-1, 1, 1, 1),
        "w3": normal(4, 6 * multiplier, 1, 1, seed=4),
    }
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


SAMPLES = {"x": normal(8, 3, 8, 8, seed=7)}


def equalized(loaded: ir.Model, config: EqualizeConfig | None = None) -> tuple[ir.Model, Equalize]:
    result = loaded.clone()
    convs = equalizable(loaded, points(loaded, every_node(loaded)))
    step = Equalize(convs, statistics.collect(loaded, SAMPLES, peaks=convs).peaks, config)
    step(result)
    return result, step


@pytest.mark.parametrize("multiplier", [1, 2])
def test_the_float_outputs_stay(multiplier: int) -> None:
    loaded = separable(multiplier)
    result, step = equalized(loaded)
    assert step.report.changed == ("c1",)
    assert step.report.metrics["equalized_channels"] > 0
    for row in SAMPLES["x"]:
        expected, got = (run(m, {"x": row[None]})["y"] for m in (loaded, result))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_peaks_become_equal_up_to_headroom_and_limit() -> None:
    result, _ = equalized(separable(), EqualizeConfig(headroom=1.0, limit=1e9))
    peaks = statistics.collect(result, SAMPLES, peaks=["r1"]).peaks["r1"]
    live = peaks > 0
    assert live.sum() > 3
    np.testing.assert_allclose(peaks[live], peaks.max(), rtol=1e-5)


def test_factors_are_bounded() -> None:
    peaks = np.array([0.0, 1e-9, 1.0, 7.0, 10.0])
    assert channel_factors(peaks, EqualizeConfig(headroom=1.25, limit=2.0)).tolist() == [1, 2, 2, 10 / 7 / 1.25, 1]


def test_channels_of_zeros_stay() -> None:
    assert channel_factors(np.zeros(3), EqualizeConfig()).tolist() == [1, 1, 1]


def test_equal_channels_are_skipped_with_the_reason() -> None:
    loaded = separable()
    step = Equalize({"r1": "c1"}, {"r1": np.ones(6)})
    step(loaded)
    assert step.report.skipped == {"c1": "its channels are equal already"}


@pytest.mark.parametrize(
    "reader",
    [
        node("Conv", ["r", "dense"], ["y"]),
        node("Conv", ["r", "grouped"], ["y"], group=2),
        node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2]),
    ],
    ids=["dense", "grouped", "pool"],
)
def test_only_depthwise_readers_count(reader: object) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), reader]
    weights = {"w": normal(4, 3, 1, 1), "dense": normal(4, 4, 1, 1), "grouped": normal(4, 2, 1, 1)}
    loaded = canonical(nodes, {"x": [1, 3, 4, 4]}, ["y"], weights)
    assert equalizable(loaded, points(loaded, every_node(loaded))) == {}


def test_a_clip_or_an_output_or_another_reader_forbids_it() -> None:
    depthwise = node("Conv", ["r", "d"], ["y"], group=4)
    weights = {"w": normal(4, 3, 1, 1), "d": normal(4, 1, 1, 1), "six": np.float32(6)}
    first = node("Conv", ["x", "w"], ["c"])
    relu, clip = node("Relu", ["c"], ["r"]), node("Clip", ["c", "", "six"], ["r"])
    shape = {"x": [1, 3, 4, 4]}
    for nodes, outputs, expected in (
        ([first, relu, depthwise], ["y"], {"r": "c"}),
        ([first, clip, depthwise], ["y"], {}),
        ([first, relu, depthwise], ["y", "r"], {}),
        ([first, relu, depthwise, node("Neg", ["r"], ["n"])], ["y", "n"], {}),
    ):
        loaded = canonical(nodes, shape, outputs, weights)
        assert equalizable(loaded, points(loaded, every_node(loaded))) == expected


def test_quantization_gets_better_and_sqnr_sees_through_the_factors() -> None:
    loaded = separable()
    plain, with_it = (
        statistics.sqnr(loaded, quantize(loaded, every_node(loaded), SAMPLES, config)[0], SAMPLES)
        for config in (QuantizeConfig(equalize=None), QuantizeConfig())
    )
    assert with_it["r2"] > plain["r2"] + 2
    assert with_it["r1"] > plain["r1"] - 1

