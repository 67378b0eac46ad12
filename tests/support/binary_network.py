"""A small binary network as Brevitas exports them: signs for weights and activations, batch normalization between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.qonnx import DOMAINS

Layer = Callable[[NDArray[np.float64]], NDArray[np.float64]]
CHANNELS, SIDE = 32, 8


def binary_network(seed: int, *, depth: int = 2, channels: int = CHANNELS) -> tuple[onnx.ModelProto, list[Layer]]:
    """A first convolution of floats, `depth` binary 3 x 3 convolutions, and a binary classifier; seeded.

    Returns:
        The model, input x float32 [N, 1, SIDE, SIDE] and output y [N, 10]; and what its binary convolutions make of
        [N, channels, SIDE, SIDE] of -1 and 1, one after the other, in float64.
    """
    rng, nodes, arrays, layers = np.random.default_rng(seed), [], {}, []

    def array(name: str, value: NDArray[np.float64] | float) -> str:
        arrays[name] = np.asarray(value, np.float32)
        return name

    def sign(source: str, name: str, scale: float) -> str:
        node = helper.make_node("BipolarQuant", [source, array(f"{name}_scale", scale)], [name], name=name)
        node.domain = DOMAINS[0]
        nodes.append(node)
        return name

    first = [array("first", 0.3 * rng.normal(size=(channels, 1, 3, 3))), array("bias", 0.1 * rng.normal(size=channels))]
    nodes.append(helper.make_node("Conv", ["x", *first], ["start"], name="start", pads=[1] * 4))
    value = sign("start", "signs", 1.0)
    for index in range(depth):
        weights = sign(array(f"w{index}", rng.normal(size=(channels, channels, 3, 3))), f"binary{index}", 0.1)
        nodes.append(helper.make_node("Conv", [value, weights], [f"conv{index}"], name=f"conv{index}"))
        statistics = (
            rng.choice([-1.0, 1.0], channels) * rng.uniform(0.5, 1.5, channels),
            0.2 * rng.normal(size=channels),
            rng.normal(size=channels),
            rng.uniform(1, 3, channels),
        )
        names = [array(f"{kind}{index}", each) for kind, each in zip("gbmv", statistics)]
        nodes.append(
            helper.make_node("BatchNormalization", [f"conv{index}", *names], [f"norm{index}"], name=f"norm{index}")
        )
        value = sign(f"norm{index}", f"signs{index}", 1.0)
        layers.append(_layer(arrays[f"w{index}"], [arrays[name].astype(np.float64) for name in names]))
    size = channels * (SIDE - 2 * depth) ** 2
    weights = sign(array("last", rng.normal(size=(10, size))), "classifier_signs", 0.05)
    nodes.append(helper.make_node("Flatten", [value], ["flat"], name="flat"))
    bias = array("classifier_bias", 0.1 * rng.normal(size=10))
    nodes.append(helper.make_node("Gemm", ["flat", weights, bias], ["y"], name="classifier", transB=1))
    graph = helper.make_graph(
        nodes,
        "binary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(each, name) for name, each in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAINS[0], 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), layers


def _layer(weights: NDArray[np.float32], statistics: list[NDArray[np.float64]]) -> Layer:
    gain, bias, mean, variance = (each[:, None, None] for each in statistics)
    signs = np.where(weights >= 0, 1.0, -1.0)

    def run(x: NDArray[np.float64]) -> NDArray[np.float64]:
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        sums = 0.1 * np.einsum("nchwij,ocij->nohw", windows, signs)
        return np.where((sums - mean) / np.sqrt(variance + 1e-5) * gain + bias >= 0, 1.0, -1.0)

    return run
