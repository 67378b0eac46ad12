"""Cones of elementwise nodes against closed forms in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from compiler.cone_table import evaluate
from tests.support.qdq import QuantizedGraph

X = np.linspace(-6, 6, 256)


def cone(*steps: str) -> np.ndarray:
    """The named unary functions of x one after the other, times x."""
    graph = QuantizedGraph(1, 256, scale=None)
    value = "x"
    for op in steps:
        value = graph.node(op, value)
    value = graph.node("Mul", "x", value)
    model = graph.model(value)
    return evaluate(list(model.graph), [model.graph.inputs[0]], model.graph.outputs[0], X)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Erf", math.erf),
        ("Exp", math.exp),
        ("Sigmoid", lambda x: 1 / (1 + math.exp(-x))),
        ("Softplus", lambda x: math.log1p(math.exp(x))),
        ("Tanh", math.tanh),
        ("Gelu", lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
        ("Mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
        ("Softsign", lambda x: x / (1 + abs(x))),
        ("Elu", lambda x: x if x > 0 else math.exp(x) - 1),
        ("HardSwish", lambda x: x * min(max(x / 6 + 0.5, 0), 1)),
    ],
)
def test_functions_in_float64(op: str, function: Callable[[float], float]) -> None:
    expected = [x * function(x) for x in X.tolist()]
    np.testing.assert_allclose(cone(op), expected, rtol=1e-12, atol=1e-12)


def test_chains_are_followed() -> None:
    np.testing.assert_allclose(cone("Tanh", "Abs", "Sqrt"), X * np.sqrt(np.abs(np.tanh(X))), rtol=1e-12)


def test_no_nodes_is_the_identity() -> None:
    graph = QuantizedGraph(1, 256, scale=None)
    model = graph.model(graph.node("Relu", "x"))
    source = model.graph.inputs[0]
    np.testing.assert_array_equal(evaluate([], [source], source, X), X)


def test_where_a_function_is_undefined_there_is_no_warning() -> None:
    assert np.isnan(cone("Sqrt")[0])
