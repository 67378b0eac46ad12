"""Views against the operators themselves, in numpy and onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.layout import View, map_shape, rearrange, whole, why_no_view
from tests.support.onnx_models import run
from tests.support.qdq import QuantizedGraph

SHAPE = (1, 4, 3, 5)
CODES = np.arange(60, dtype=np.int8).reshape(SHAPE)


def chain(graph: QuantizedGraph, value: str, *wanted: tuple[str, list[int], dict[str, int | list[int]]]) -> str:
    """A chain of layout nodes: (op, integer operand, attributes)."""
    for op, numbers, attributes in wanted:
        operands = [graph.constant(np.array(numbers))] if numbers else []
        value = graph.node(op, value, *operands, **attributes)
    return value


@pytest.mark.parametrize(
    "steps",
    [
        [("Flatten", [], {})],
        [("Reshape", [1, 4, 15], {}), ("Unsqueeze", [2], {}), ("Squeeze", [2], {})],
        [("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Reshape", [1, -1], {})],
        [("Reshape", [1, 2, 2, 3, 5], {}), ("Transpose", [], {"perm": [0, 2, 1, 3, 4]}), ("Reshape", [1, 4, 3, 5], {})],
        [("Gather", [3, 1, 1], {"axis": 1})],
        [("Gather", [4, 0], {"axis": -1}), ("Transpose", [], {"perm": [0, 3, 2, 1]})],
    ],
)
def test_views_follow_onnxruntime(steps: list[tuple[str, list[int], dict[str, int | list[int]]]]) -> None:
    graph = QuantizedGraph(*SHAPE, scale=None)
    name = chain(graph, "x", *steps)
    model = graph.model(name)
    view = whole(SHAPE)
    assert view is not None
    for node in model.graph:
        assert why_no_view(node) is None
        view = rearrange(node, view)
    expected = run(model, {"x": CODES.astype(np.float32)})[name]
    np.testing.assert_array_equal(view.take(CODES)[0], expected[0].astype(np.int8))


@given(st.data())
def test_slices_follow_onnxruntime(data: st.DataObject) -> None:
    axis = data.draw(st.integers(1, 3))
    step = data.draw(st.sampled_from([-3, -2, -1, 1, 2]))
    start, end = data.draw(st.integers(-6, 6)), data.draw(st.integers(-7, 7))
    graph = QuantizedGraph(*SHAPE, scale=None)
    operands = [graph.constant(np.array([v])) for v in (start, end, axis, step)]
    name = graph.node("Slice", "x", *operands)
    model = graph.model(name)
    expected = run(model, {"x": CODES.astype(np.float32)})[name]
    view = whole(SHAPE)
    assert view is not None
    if expected.size:
        got = rearrange(model.graph[-1], view).take(CODES)
        np.testing.assert_array_equal(got, expected.astype(np.int8))


def test_split_gives_each_output_its_part() -> None:
    graph = QuantizedGraph(*SHAPE, scale=None)
    first = graph.node("Split", "x", graph.constant(np.array([1, 3])), outputs=2, axis=1)
    node = graph.model(first, first[:-1] + "1").graph[0]
    view = whole(SHAPE)
    assert view is not None
    parts = [rearrange(node, view, index).channels() for index in (0, 1)]
    assert [part.tolist() for part in parts if part is not None] == [[0], [1, 2, 3]]


def test_a_value_that_is_the_map_is_known_as_such() -> None:
    assert View((4, 3, 5), (1, 4, 3, 5)).is_map
    assert View((4, 1, 5), (1, 4, 5)).is_map
    assert View((4, 1, 1), (1, 4)).is_map
    assert not View((4, 3, 5), (1, 60)).is_map
    assert map_shape((2, 3)) is None
    assert whole((1, 2, 3, 4, 5)) is None


def test_transposing_back_is_the_map_again() -> None:
    graph = QuantizedGraph(*SHAPE, scale=None)
    name = chain(graph, "x", ("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Transpose", [], {"perm": [0, 2, 3, 1]}))
    view = whole(SHAPE)
    assert view is not None
    for node in graph.model(name).graph:
        view = rearrange(node, view)
    assert view.order is None


def test_put_undoes_take() -> None:
    view = View((4, 3, 5), (1, 5, 12), np.random.default_rng(0).permutation(60).reshape(1, 5, 12))
    np.testing.assert_array_equal(view.put(view.take(CODES)), CODES)


def test_channels_are_whole_or_none() -> None:
    order = np.arange(60).reshape(SHAPE)
    assert View((4, 3, 5), (1, 2, 3, 5), order[:, [2, 0]]).channels().tolist() == [2, 0]
    assert View((4, 3, 5), (1, 4, 3, 5), order[:, :, ::-1]).channels() is None
    assert View((4, 3, 5), (1, 4, 15), order.reshape(1, 4, 15)).channels() is None


def test_indices_from_the_network_are_no_view() -> None:
    values = [ir.Value(name=n, shape=ir.Shape([1, 2]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xi"]
    node = ir.node("Gather", values, {"axis": 1})
    node.outputs[0].shape = ir.Shape([1, 1, 2])
    assert why_no_view(node) == "its indices are computed at run time"
