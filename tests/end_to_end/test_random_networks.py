"""Random small networks through the whole chain: float, quantized, reference integers, instruction set, RTL."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings

from backends.fpga.program import build_program
from compiler.equivalence import compare_layers
from hw.config import array_config
from sim.golden.machine import run_program
from tests.support.cases import case
from tests.support.random_networks import RandomNetwork, coverage_table, networks, random_network, why_badly_spread

CASES = 25
NIGHTLY_CASES = 200


def test_random_network_is_the_same_for_the_same_seed() -> None:
    first, again = random_network(7), random_network(7)
    assert first.model.SerializeToString() == again.model.SerializeToString()
    assert np.array_equal(first.samples, again.samples)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_random_network_runs_in_onnxruntime(network: RandomNetwork) -> None:
    session = onnxruntime.InferenceSession(network.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for output in session.run(None, {"x": network.samples[:1]}):
        assert np.isfinite(output).all()


def test_badly_spread_values_are_told() -> None:
    ramp = np.arange(-128, 128).astype(np.int8)
    assert why_badly_spread(ramp) is None
    assert why_badly_spread(np.minimum(ramp, 0)) == "50% of its values are saturated"
    assert why_badly_spread((ramp // 20).astype(np.int8)) == "it has 14 distinct values"


@pytest.mark.parametrize("number", range(CASES))
def test_onnxruntime_agrees_with_the_integers(number: int) -> None:
    """Each layer fed the same input: one step at most, and in a thousandth of a network's elements at most."""
    drawn = case(number)
    layers = compare_layers(drawn.quantized, drawn.lowered, drawn.samples)
    assert layers, str(drawn)
    off = [layer for layer in layers if layer.differing]
    assert max(layer.largest for layer in layers) <= 1, f"{drawn}: {off}"
    share = sum(layer.differing for layer in layers) / sum(layer.elements for layer in layers)
    assert share <= 0.001, f"{drawn}: {off}"


@pytest.mark.parametrize("number", range(CASES))
def test_the_instruction_set_computes_the_integers(number: int) -> None:
    """Every stored tensor of an 8x2 program, on the golden model of the machine."""
    drawn = case(number)
    program = build_program(drawn.lowered.graph, array_config(8, 2))
    inputs = {name: drawn.tensors[name][0].reshape(place.shape) for name, place in program.inputs.items()}
    for name, got in run_program(program, inputs).items():
        assert np.array_equal(got.reshape(drawn.tensors[name][0].shape), drawn.tensors[name][0]), f"{drawn}: {name}"


def test_cases_cover_every_kind_of_op() -> None:
    cells = [cell for seed in range(NIGHTLY_CASES) for cell in random_network(seed).cells]
    table = coverage_table(cells)
    assert all(cell.op in table for cell in cells)
    missing = {
        *("Conv1d", "Conv2d", "Gemm", "MaxPool2d", "MaxPool2d-ceil", "AveragePool2d-pads", "AveragePool2d-ceil"),
        *("GlobalAveragePool", "Add", "Sub", "Mul", "Add-broadcast", "Mul-broadcast", "Concat", "Resize", "Pad"),
        *("PRelu", "x*Sigmoid(x)", "Gelu by Erf", "BatchNormalization", "Flatten to Gemm", "Transpose to Gemm"),
        *("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Gelu", "Relu alone", "Clip alone"),
    } - {cell.op for cell in cells}
    assert not missing
    convs = [cell for cell in cells if cell.op == "Conv2d"]
    assert {cell.group for cell in convs} == {"1", "grouped", "depthwise", "multiplied"}
    assert {cell.pad for cell in convs} == {"none", "even", "uneven"}
    assert {"1x1", "2x2", "3x3", "4x4"} <= {cell.stride for cell in convs}
    assert {"1x1", "2x2", "3x3"} == {cell.dilation for cell in convs}
    assert {cell.size for cell in convs} == {"odd", "even"}
