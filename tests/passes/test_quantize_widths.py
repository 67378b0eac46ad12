"""Weights of 2 to 8 and 16 bits, activations of 4, 8 and 16, symmetric or on powers of two: files that run."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from passes import statistics
from passes.quantize import QuantizeConfig, quantize_with
from passes.recipes.uniform import Uniform, limit_of
from passes.scales import ActivationConfig
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import Array, node, run

WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
ACTIVATIONS = {
    "A4": ActivationConfig(bits=4),
    "A8": ActivationConfig(),
    "A16": ActivationConfig(bits=16),
    "A8 symmetric": ActivationConfig(symmetric=True),
    "A8 power of two": ActivationConfig(power_of_two=True),
    "A16 symmetric power of two": ActivationConfig(bits=16, symmetric=True, power_of_two=True),
}
SAMPLES = {"x": np.abs(normal(32, 3, 8, 8, seed=7))}
FRESH = {"x": np.abs(normal(16, 3, 8, 8, seed=70))}
TYPES = {4: ir.DataType.INT8, 8: ir.DataType.INT8, 16: ir.DataType.INT16}  # 4 bits are int8 behind a Clip


def network() -> ir.Model:
    nodes = [
        node("Conv", ["x", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "v"], ["c2"], group=8, pads=[1] * 4),
        node("Add", ["c2", "r1"], ["a"]),
        node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "u", "b"], ["y"], transB=1),
    ]
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 1, 3, 3, seed=1), "u": normal(5, 8, seed=2), "b": normal(5)}
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


def made(weights: int, activations: ActivationConfig) -> ir.Model:
    loaded = network()
    recipes = dict.fromkeys(("c1", "c2", "y"), Uniform(weights))
    config = QuantizeConfig(activations, equalize=None)
    return quantize_with(loaded, every_node(loaded), SAMPLES, recipes=recipes, config=config).model


def error(result: ir.Model) -> float:
    """Mean squared error of the output, relative to its variance."""
    exact, got = (
        np.concatenate([row["y"] for row in statistics.run(each, FRESH, ["y"])]) for each in (network(), result)
    )
    return float(np.square(exact - got).mean() / exact.var())


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_file_is_valid_and_both_levels_of_onnxruntime_run_it(bits: int, name: str) -> None:
    result = made(bits, ACTIVATIONS[name])
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    answers: list[Array] = []
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        active = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answers.append(np.concatenate([active.run(["y"], {"x": row[None]})[0] for row in FRESH["x"]]))
    step = next(each for each in result.graph if each.name == "y_q").inputs[1].const_value.numpy()  # type: ignore[union-attr]
    # Fused integer kernels round elsewhere: a few steps of the output.
    assert np.abs(answers[0] - answers[1]).max() <= 4 * step + 1e-5
    np.testing.assert_allclose(answers[0][:1], run(proto, {"x": FRESH["x"][:1]})["y"], atol=4 * step + 1e-5)


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_are_integers_of_their_width(bits: int) -> None:
    result = made(bits, ActivationConfig())
    largest = 0
    for at in result.graph:
        if at.op_type in ("Conv", "Gemm"):
            codes = at.inputs[1].producer().inputs[0].const_value.numpy()  # type: ignore[union-attr]
            biases = at.inputs[2].producer().inputs[0].const_value.numpy()  # type: ignore[union-attr]
            assert codes.dtype == (np.int16 if bits > 8 else np.int8)
            assert biases.dtype == np.int32
            largest = max(largest, int(np.abs(codes).max()))
    # 16-bit codes of many weights would not fit the accumulator: their scale is raised.
    assert limit_of(bits) * (0.5 if bits == 16 else 0.95) <= largest <= limit_of(bits)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_integers_of_their_width_and_form(name: str) -> None:
    config = ACTIVATIONS[name]
    points = [each for each in made(8, config).graph if each.op_type == "QuantizeLinear"]
    assert len(points) == 8
    zero_points = set()
    for each in points:
        scale, zero_point = (value.const_value.numpy() for value in each.inputs[1:3])  # type: ignore[union-attr]
        assert each.outputs[0].dtype == TYPES[config.bits]
        assert each.inputs[2].dtype == TYPES[config.bits]  # type: ignore[union-attr]
        zero_points.add(int(zero_point))
        if config.power_of_two:
            assert math.frexp(float(scale))[0] == 0.5
    assert (zero_points == {0}) == config.symmetric


def test_activations_of_four_bits_have_sixteen_values() -> None:
    result = made(8, ACTIVATIONS["A4"])
    names = {each.outputs[0].name: each for each in result.graph if each.op_type == "QuantizeLinear"}
    dequantized = [str(each.outputs[0].consumers()[0].outputs[0].name) for each in names.values()]
    rows = list(statistics.run(result, FRESH, dequantized))
    for name, each in zip(dequantized, names.values(), strict=True):
        scale = each.inputs[1].const_value.numpy()  # type: ignore[union-attr]
        zero_point = int(each.inputs[2].const_value.numpy())  # type: ignore[union-attr]
        codes = np.concatenate([np.rint(row[name] / scale).ravel() for row in rows]) + zero_point
        assert codes.min() >= -8, name
        assert codes.max() <= 7, name


def test_more_bits_err_less() -> None:
    by_weights = [error(made(bits, ActivationConfig(bits=16))) for bits in WIDTHS]
    assert by_weights == sorted(by_weights, reverse=True)
    by_activations = [error(made(8, ActivationConfig(bits=bits))) for bits in (4, 8, 16)]
    assert by_activations == sorted(by_activations, reverse=True)
    assert by_weights[-1] < 1e-4


def test_forms_with_less_freedom_err_more_but_not_much() -> None:
    free, symmetric, power = (error(made(8, ACTIVATIONS[name])) for name in ("A8", "A8 symmetric", "A8 power of two"))
    # A symmetric range wastes half of itself on what is never negative, a power of two up to half: 6 dB at most each.
    assert free < symmetric < 8 * free
    assert free < power < 8 * free


def test_the_same_arguments_give_the_same_bytes() -> None:
    first, again = (ir.to_proto(made(3, ActivationConfig(bits=16))).SerializeToString() for _ in range(2))
    assert first == again
