"""The host's part: quantization at the cuts, and what samples are refused."""

from __future__ import annotations

import numpy as np
import pytest

from backends.layers import Tensor
from compiler.equivalence import verification_session
from compiler.host import HostError, dequantize, host_of, quantize
from compiler.lowering import lower
from compiler.partition import partition
from tests.support.qdq import QuantizedGraph

HALVES = Tensor("x", (5, 1, 1), 0.5, 10)


def test_quantize_rounds_half_to_even_then_adds_the_zero_point() -> None:
    values = np.array([[0.25, 0.75, -0.25, 1e9, -1e9]], np.float32)
    assert quantize(values, HALVES).tolist() == [[10, 12, 10, 127, -128]]


def test_every_code_survives_the_way_there_and_back() -> None:
    codes = np.arange(-128, 128, dtype=np.int8)
    tensor = Tensor("x", (256, 1, 1), float(np.float32(0.0371)), -17)
    np.testing.assert_array_equal(quantize(dequantize(codes, tensor), tensor), codes)


def _network() -> tuple[QuantizedGraph, str]:
    """x * c on the host, a Gemm, and a Softmax of its result plus the network's input on the host."""
    graph = QuantizedGraph(1, 6, scale=None)
    scaled = graph.node("Mul", "x", graph.constant(np.linspace(0.5, 2, 6, dtype=np.float32)))
    y = graph.pair(graph.node("Gemm", graph.pair(scaled, 0.25, 3), graph.weights(6, 6), transB=1))
    return graph, graph.node("Add", graph.node("Softmax", y, axis=1), "x")


def test_the_tail_may_read_the_networks_input() -> None:
    graph, output = _network()
    model, x = graph.model(output), graph.samples()
    lowered = lower(model, partition(model))
    host = host_of(lowered, model)
    result = host.reference(x).outputs
    assert list(result) == [output]
    assert result[output].shape == (4, 6)
    probabilities = result[output] - x["x"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((2, 5), np.float32)}, r"input 'x': expected \[N, 6\], got \(2, 5\)"),
    ],
)
def test_wrong_samples_are_refused(samples: dict[str, np.ndarray], message: str) -> None:
    graph, output = _network()
    model = graph.model(output)
    with pytest.raises(HostError, match=message):
        host_of(lower(model, partition(model)), model).reference(samples)


def test_values_without_a_batch_axis_pass_between_the_hosts_turns() -> None:
    """The head's [3, 2] is read again by the tail; each sample has its own."""
    graph = QuantizedGraph(1, 6, scale=None)
    rows = graph.node("Softmax", graph.node("Reshape", "x", graph.constant(np.array([3, 2]))), axis=0)
    y = graph.pair(graph.node("Gemm", graph.pair("x", 0.25, 3), graph.weights(6, 6), transB=1), 2.0, 0)
    y = graph.node("Add", graph.node("Reshape", y, graph.constant(np.array([3, 2]))), rows)
    mixed = graph.node("MatMul", y, graph.constant(np.eye(2, dtype=np.float32)[::-1]))
    model, samples = graph.model(mixed), graph.samples()
    lowered = lower(model, partition(model))
    assert lowered.head is not None
    assert [value.name for value in lowered.head.graph.outputs] == [rows]
    (found,) = host_of(lowered, model).reference(samples).outputs.values()
    session = verification_session(model)
    expected = np.concatenate([session.run(None, {"x": x[None]})[0] for x in samples["x"]])
    assert found.shape == (12, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_each_node_of_the_host_runs_once() -> None:
    """A node of the middle that later turns read, too: its value is handed on, not computed again."""
    graph = QuantizedGraph(1, 6)
    y = graph.pair(graph.node("Gemm", graph.x, graph.weights(6, 6), transB=1), 2.0, 0)
    once = graph.node("Softmax", y, axis=1)
    y = graph.pair(graph.node("Gemm", graph.pair(once, 1 / 256, -128), graph.weights(6, 6), transB=1), 0.125, 0)
    model, samples = graph.model(graph.node("Mul", graph.node("Softmax", y, axis=1), once)), graph.samples()
    lowered = lower(model, partition(model))
    turns = [segment.host for segment in lowered.segments] + [lowered.tail]
    run = [[node.op_type for node in turn.graph] for turn in turns if turn is not None]
    assert run == [["Softmax"], ["Softmax", "Mul"]]
    (found,) = host_of(lowered, model).reference(samples).outputs.values()
    session = verification_session(model)
    expected = np.concatenate([session.run(None, {"x": x[None]})[0] for x in samples["x"]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_a_number_does_not_enter() -> None:
    """0 / 0 on the host has no code; infinities are the ends of the scale."""
    graph = QuantizedGraph(1, 6)
    y = graph.pair(graph.node("Gemm", graph.x, graph.weights(6, 6), transB=1), 2.0, 0)
    y = graph.pair(graph.node("Div", y, graph.node("Abs", "x")), 0.5, 0)
    model = graph.model(graph.pair(graph.node("Gemm", y, graph.weights(6, 6), transB=1), 2.0, 0))
    lowered = lower(model, partition(model))
    host = host_of(lowered, model)
    assert len(lowered.segments) == 2
    some = np.full((2, 6), 3.0, np.float32)
    codes = host.reference({"x": some}).tensors
    some[1, 2] = 0.0
    infinite = host.reference({"x": some}).tensors[lowered.segments[1].inputs[0].tensor.name]
    assert infinite[1, 2].item() in (-128, 127)
    assert np.array_equal(infinite[0], codes[lowered.segments[1].inputs[0].tensor.name][0])
    some[1] = np.nan
    with pytest.raises(HostError, match="value 'x' enters the accelerator and is not a number"):
        host.reference({"x": some})
