"""Constant Mul, Add, Sub and Div: into layers, into tables, to the host."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.onnx_models import Array, assert_same_outputs, imported, model, node, ops

RNG = np.random.default_rng(5)


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), ()])
@pytest.mark.parametrize(
    ("op", "constant_first"),
    [("Mul", False), ("Mul", True), ("Add", False), ("Add", True), ("Sub", False), ("Sub", True), ("Div", False)],
)
def test_behind_a_conv(op: str, shape: tuple[int, ...], constant_first: bool) -> None:
    operands = ["k", "c"] if constant_first else ["c", "k"]
    nodes = [node("Conv", ["x", "w"], ["c"]), node(op, operands, ["y"])]
    constants = {"w": weights(6, 4, 3, 3), "k": weights(*shape) + np.float32(3)}
    proto = model(nodes, {"x": [1, 4, 5, 5]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv"]
    assert_same_outputs(proto, result.model)


def test_quotient_by_the_network_stays() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Div", ["k", "c"], ["y"])]
    proto = model(nodes, {"x": [1, 4, 5, 5]}, ["y"], {"w": weights(6, 4, 3, 3), "k": weights(6, 1, 1)})
    assert ops(imported(proto).model) == ["Conv", "Div"]


def test_chain_of_keras_batchnorm_behind_a_product() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Mul", ["a", "f"], ["n"]),
        node("Add", ["n", "s"], ["o"]),
        node("Relu", ["o"], ["y"]),
    ]
    constants = {"w": weights(4, 6), "b": weights(6), "f": weights(6), "s": weights(1, 6)}
    proto = model(nodes, {"x": [1, 4]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Gemm", "Relu"]
    assert_same_outputs(proto, result.model)


def test_raw_input_stays_for_the_host() -> None:
    nodes = [node("Sub", ["x", "m"], ["s"]), node("Mul", ["s", "f"], ["n"]), node("Gemm", ["n", "w"], ["y"])]
    proto = model(nodes, {"x": [1, 4]}, ["y"], {"m": weights(4), "f": weights(4), "w": weights(4, 3)})
    result = imported(proto)
    assert ops(result.model) == ["Sub", "Mul", "Gemm"]
    report = next(r for r in result.reports if r.name == "fold-affine")
    assert report.skipped["s"] == "it scales the network's input, which the host does"


def test_factor_goes_through_padding_and_shift_does_not() -> None:
    nodes = [
        node("Conv", ["x", "v"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Mul", ["r", "f"], ["m"]),
        node("Conv", ["m", "w"], ["d"], pads=[1, 1, 1, 1]),
        node("Relu", ["d"], ["q"]),
        node("Add", ["q", "s"], ["a"]),
        node("Conv", ["a", "u"], ["y"], pads=[1, 1, 1, 1]),
    ]
    constants = {
        "v": weights(3, 3, 1, 1), "w": weights(4, 3, 3, 3), "u": weights(2, 4, 3, 3),
        "f": weights(3, 1, 1), "s": weights(4, 1, 1),
    }  # fmt: skip
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Relu", "Conv", "Relu", "Conv", "Conv"]
    assert result.model.graph[4].attributes["group"].as_int() == 4
    assert_same_outputs(proto, result.model)


def test_factor_and_shift_before_a_padded_conv_are_one_depthwise() -> None:
    nodes = [
        node("Conv", ["x", "v"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Mul", ["r", "f"], ["m"]),
        node("Add", ["m", "s"], ["a"]),
        node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    constants = {"v": weights(3, 3, 1, 1), "w": weights(4, 3, 3, 3), "f": weights(3, 1, 1), "s": weights(3, 1, 1)}
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv", "Relu", "Conv", "Conv"]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_into_the_next_grouped_conv(group: int) -> None:
    nodes = [
        node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]),
        node("Mul", ["p", "f"], ["m"]),
        node("Add", ["m", "s"], ["a"]),
        node("Conv", ["a", "w", "b"], ["y"], group=group),
    ]
    constants = {"w": weights(8, 4 // group, 3, 3), "b": weights(8), "f": weights(4, 1, 1), "s": weights(4, 1, 1)}
    proto = model(nodes, {"x": [1, 4, 7, 7]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["MaxPool", "Conv"]
    assert_same_outputs(proto, result.model)


def test_gelu_and_hard_swish_stay_whole() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Div", ["c", "root2"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["p"]),
        node("Mul", ["c", "p"], ["m"]),
        node("Mul", ["m", "half"], ["g"]),
        node("Conv", ["g", "w"], ["h"]),
        node("Add", ["h", "three"], ["t"]),
        node("Clip", ["t", "zero", "six"], ["k"]),
        node("Mul", ["h", "k"], ["s"]),
        node("Div", ["s", "six"], ["o"]),
        node("Conv", ["o", "w"], ["y"]),
    ]
    scalars = {"root2": 2**0.5, "one": 1, "half": 0.5, "three": 3, "zero": 0, "six": 6}
    constants = {"w": weights(3, 3, 1, 1), **{k: np.asarray(v, np.float32) for k, v in scalars.items()}}
    proto = model(nodes, {"x": [1, 3, 5, 5]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == [n.op_type for n in nodes]
    assert_same_outputs(proto, result.model)


def test_rank_2_shift_between_layers_becomes_depthwise() -> None:
    nodes = [
        node("Gemm", ["x", "v"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Add", ["r", "s"], ["a"]),
        node("Relu", ["a"], ["q"]),
        node("Gemm", ["q", "w"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 3]}, ["y"], {"v": weights(3, 5), "s": weights(5), "w": weights(5, 2)})
    result = imported(proto)
    assert ops(result.model) == ["Gemm", "Relu", "Reshape", "Conv", "Reshape", "Relu", "Gemm"]
    assert_same_outputs(proto, result.model)
