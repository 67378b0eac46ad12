"""BatchNormalization disappears into the layers around it, and the outputs stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.onnx_models import Array, assert_same_outputs, imported, model, node, ops

RNG = np.random.default_rng(3)


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def statistics(channels: int) -> dict[str, Array]:
    variance = np.square(weights(channels)) + np.float32(0.1)
    return {"gamma": weights(channels), "beta": weights(channels), "mean": weights(channels), "var": variance}


def batchnorm(source: str, result: str) -> object:
    return node("BatchNormalization", [source, "gamma", "beta", "mean", "var"], [result], epsilon=1e-3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_after_conv(bias: bool, group: int) -> None:
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    constants = {"w": weights(6, 4 // group, 3, 3), "b": weights(6), **statistics(6)}
    nodes = [node("Conv", inputs, ["c"], group=group), batchnorm("c", "y")]
    proto = model(nodes, {"x": [1, 4, 7, 5]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv"]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_after_a_product(op: str) -> None:
    nodes = [node(op, ["x", "w"], ["c"]), batchnorm("c", "y")]
    proto = model(nodes, {"x": [1, 4]}, ["y"], {"w": weights(4, 6), **statistics(6)})
    result = imported(proto)
    assert ops(result.model) == ["Gemm"]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("dims", [1, 2])
def test_first_in_the_network_becomes_depthwise(dims: int) -> None:
    nodes = [batchnorm("x", "n"), node("Conv", ["n", "w"], ["y"], pads=[1] * (2 * dims))]
    constants = {"w": weights(4, 3, *[3] * dims), **statistics(3)}
    proto = model(nodes, {"x": [1, 3, *[6] * dims]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Conv"]
    first = result.model.graph[0]
    assert first.attributes["group"].as_int() == 3
    assert_same_outputs(proto, result.model)


def test_before_an_unpadded_conv_goes_into_it() -> None:
    nodes = [
        node("Conv", ["x", "v"], ["c"]),
        node("Relu", ["c"], ["r"]),
        batchnorm("r", "n"),
        node("Conv", ["n", "w"], ["y"]),
    ]
    constants = {"v": weights(3, 3, 1, 1), "w": weights(4, 3, 3, 3), **statistics(3)}
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Relu", "Conv"]
    assert_same_outputs(proto, result.model)


def test_between_two_gemms_goes_into_the_second() -> None:
    nodes = [
        node("Gemm", ["x", "v"], ["c"]),
        node("Relu", ["c"], ["r"]),
        batchnorm("r", "n"),
        node("Gemm", ["n", "w"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 3]}, ["y"], {"v": weights(3, 5), "w": weights(5, 2), **statistics(5)})
    result = imported(proto)
    assert ops(result.model) == ["Gemm", "Relu", "Gemm"]
    assert_same_outputs(proto, result.model)


def test_conv_read_twice_keeps_its_own_output() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        batchnorm("c", "n"),
        node("Add", ["c", "n"], ["s"]),
        node("Conv", ["s", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"w": weights(3, 3, 3, 3), **statistics(3)})
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Conv", "Add", "Conv"]
    assert_same_outputs(proto, result.model)


def test_reason_when_the_variance_is_negative() -> None:
    constants = {"w": weights(3, 3, 1, 1), **statistics(3), "var": np.asarray([1, -1, 1], np.float32)}
    proto = model([node("Conv", ["x", "w"], ["c"]), batchnorm("c", "y")], {"x": [1, 3, 4, 4]}, ["y"], constants)
    report = next(r for r in imported(proto).reports if r.name == "fold-batchnorm")
    assert report.skipped == {"y": "its variance plus epsilon is not positive"}
