"""What becomes one operation, and what must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.fixed_point import Constant, requantize
from backends.fpga.fold import flatten_inputs, fold
from backends.layers import Add, Conv, Layer, LayerGraph, PRelu, Table, Tensor

X = Tensor("x", (4, 6, 6), 1.0, 3)


def conv(name: str, x: Tensor, outputs: int = 4, kernel: int = 1) -> Conv:
    size = (x.shape[1] - kernel + 1, x.shape[2] - kernel + 1)
    scale = requantize(np.full(outputs, 0.01), Constant(np.zeros(outputs, np.int64), np.zeros(outputs)))
    weights = np.ones((outputs, x.shape[0], kernel, kernel), np.int8)
    return Conv(name, x, Tensor(f"{name}_y", (outputs, *size), 1.0, 0), weights, scale)


def add(name: str, a: Tensor, b: Tensor) -> Add:
    return Add(name, a, b, Tensor(f"{name}_y", a.shape, 1.0, 0), 1, 1, 0)


def table(name: str, x: Tensor) -> Table:
    return Table(name, x, Tensor(f"{name}_y", x.shape, 1.0, 0), np.zeros(256, np.int8))


def graph(*layers: Layer) -> LayerGraph:
    return LayerGraph("g", (X,), (layers[-1].output,), layers)


def test_a_residual_block_is_two_operations() -> None:
    first = conv("first", X)
    second = conv("second", first.output)
    total = add("total", second.output, X)
    last = table("last", total.output)
    operations = fold(graph(first, second, total, last))
    assert [op.layers for op in operations] == [("first",), ("second", "total", "last")]
    assert operations[1].operand == X
    assert operations[1].output == last.output


def test_the_folded_side_of_a_sum_is_known() -> None:
    inner = conv("inner", X)
    (operation,) = fold(graph(inner, add("total", X, inner.output)))
    assert operation.swapped
    assert operation.operand == X


def test_of_two_convolutions_the_later_takes_the_sum() -> None:
    left, right = conv("left", X), conv("right", X)
    operations = fold(graph(left, right, add("total", left.output, right.output)))
    assert [op.layers for op in operations] == [("left",), ("right", "total")]


def test_a_tensor_that_is_read_twice_is_stored() -> None:
    inner = conv("inner", X)
    outer = conv("outer", inner.output)
    operations = fold(graph(inner, outer, add("total", inner.output, inner.output)))
    assert [op.layers for op in operations] == [("inner",), ("outer",), ("total",)]


def test_an_output_is_stored() -> None:
    inner = conv("inner", X)
    last = table("last", inner.output)
    both = replace(graph(inner, last), outputs=(inner.output, last.output))
    assert [op.layers for op in fold(both)] == [("inner",), ("last",)]


def test_a_named_layer_stands_alone() -> None:
    inner = conv("inner", X)
    operations = fold(graph(inner, add("total", inner.output, X)), frozenset({"total"}))
    assert [op.layers for op in operations] == [("inner",), ("total",)]


def test_a_sum_does_not_follow_a_table() -> None:
    inner = conv("inner", X)
    curve = table("curve", inner.output)
    operations = fold(graph(inner, curve, add("total", curve.output, X)))
    assert [op.layers for op in operations] == [("inner", "curve"), ("total",)]


def test_slopes_do_not_follow_a_fully_connected_layer() -> None:
    whole = conv("whole", X, kernel=6)
    slope = PRelu("slope", whole.output, Tensor("slope_y", whole.output.shape, 1.0, 0), 1, np.ones(4, np.int64), 0)
    assert [op.layers for op in fold(graph(whole, slope))] == [("whole",), ("slope",)]


def test_an_input_that_only_dense_layers_read_becomes_a_vector() -> None:
    whole = conv("whole", X, kernel=6)
    flat = flatten_inputs(graph(whole))
    (layer,) = flat.layers
    assert isinstance(layer, Conv)
    assert flat.inputs[0].shape == layer.input.shape == (144, 1, 1)
    assert layer.weights.shape == (4, 144, 1, 1)


def test_an_input_that_others_read_stays_a_map() -> None:
    whole, other = conv("whole", X, kernel=6), conv("other", X)
    found = LayerGraph("g", (X,), (whole.output, other.output), (whole, other))
    assert flatten_inputs(found) is found
