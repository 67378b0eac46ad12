"""A layer as a matrix: what it reads times its weights is what onnxruntime answers, whatever the geometry."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.gram import collect_moments
from passes.layer import Layer, layer_of, layers
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node, run

GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
    "plain": ((4, 3, 3, 3), (3, 8, 7), {}),
    "1x1": ((5, 3, 1, 1), (3, 6, 6), {}),
    "strides": ((4, 3, 3, 2), (3, 9, 8), {"strides": [2, 3]}),
    "dilations": ((4, 3, 3, 2), (3, 11, 9), {"dilations": [2, 3]}),
    "uneven pads": ((4, 3, 3, 3), (3, 6, 7), {"pads": [0, 1, 2, 0]}),
    "groups": ((6, 2, 3, 3), (6, 7, 7), {"group": 3, "pads": [1] * 4}),
    "depthwise": ((6, 1, 3, 3), (6, 7, 7), {"group": 6, "pads": [1] * 4, "strides": [2, 2]}),
    "two channels from one": ((8, 1, 3, 3), (4, 7, 7), {"group": 4}),
    "all at once": (
        (6, 2, 3, 2),
        (4, 12, 11),
        {"group": 2, "pads": [2, 0, 1, 3], "strides": [2, 1], "dilations": [2, 3]},
    ),
    "1-D": ((4, 3, 5), (3, 20), {"pads": [2, 1], "strides": [2]}),
    "1-D depthwise": ((3, 1, 4), (3, 16), {"group": 3, "dilations": [2], "pads": [3, 3]}),
    "3-D": ((2, 2, 2, 3, 2), (2, 5, 6, 4), {"pads": [0, 1, 0, 1, 0, 1], "strides": [1, 2, 1]}),
}


def conv(name: str) -> ir.Model:
    shape, source, attributes = GEOMETRIES[name]
    attributes = {"kernel_shape": list(shape[2:]), **attributes}
    nodes = [node("Conv", ["x", "w"], ["y"], **attributes)]
    return canonical(nodes, {"x": [1, *source]}, ["y"], {"w": normal(*shape, seed=1)})


def gemm() -> ir.Model:
    return canonical([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": [1, 7]}, ["y"], {"w": normal(4, 7)})


def matmul() -> ir.Model:
    return canonical([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 5, 7]}, ["y"], {"w": normal(7, 4)})


MODELS = {**{name: (lambda name=name: conv(name)) for name in GEOMETRIES}, "Gemm": gemm, "MatMul": matmul}


def inputs(loaded: ir.Model, count: int = 1) -> dict[str, Array]:
    return {"x": normal(count, *loaded.graph.inputs[0].shape.numpy()[1:], seed=9)}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_what_it_reads_times_its_weights_is_what_onnxruntime_answers(name: str) -> None:
    loaded = MODELS[name]()
    layer, x = layers(loaded)["y"], inputs(loaded)
    seen = layer.patches(x["x"], 10**6)
    answer = run(loaded, x)["y"]
    assert seen.shape[:2] == (layer.groups, layer.taps)
    assert seen.shape[2] * layer.channels == answer.size
    made = layer.matrix(loaded.graph.initializers["w"].const_value.numpy()) @ seen  # type: ignore[union-attr]
    wanted = layer.responses(answer, 10**6)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", MODELS)
def test_inputs_and_responses_are_taken_at_the_same_positions(name: str) -> None:
    loaded = MODELS[name]()
    layer, x = layers(loaded)["y"], inputs(loaded)
    seen, wanted = layer.patches(x["x"], 9), layer.responses(run(loaded, x)["y"], 9)
    made = layer.matrix(loaded.graph.initializers["w"].const_value.numpy()) @ seen  # type: ignore[union-attr]
    assert seen.shape[2] <= 2 * 9
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_energy_of_a_change_is_its_trace_with_the_second_moments(name: str) -> None:
    """E||W x||^2 = tr(W H W^T), with the left side as onnxruntime computes it."""
    loaded = MODELS[name]()
    layer, x = layers(loaded)["y"], inputs(loaded, 3)
    weights = layer.matrix(loaded.graph.initializers["w"].const_value.numpy())  # type: ignore[union-attr]
    moments = collect_moments(loaded, x, ["y"])["y"]
    answers = [run(loaded, {"x": row[None]})["y"].astype(np.float64) for row in x["x"]]
    positions = answers[0].size // layer.channels
    measured = sum(float(np.square(each).sum()) for each in answers) / (len(answers) * positions)
    traced = float(np.einsum("grt,gtu,gru->", weights, moments.square, weights))
    assert traced == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back_as_they_were_stored(name: str) -> None:
    loaded = MODELS[name]()
    layer = layers(loaded)["y"]
    weights = loaded.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    matrix = layer.matrix(weights)
    assert matrix.shape == (layer.groups, layer.rows, layer.taps)
    np.testing.assert_array_equal(layer.stored(matrix.astype(np.float32)), weights)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw, small = data.draw, st.integers(1, 3)
    groups, rank = draw(small), draw(st.integers(1, 2))
    shape = (groups * draw(small), draw(small), *(draw(small) for _ in range(rank)))
    strides, dilations = ([draw(small) for _ in range(rank)] for _ in range(2))
    pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    sides = [(k - 1) * d + draw(st.integers(1, 6)) for k, d in zip(shape[2:], dilations)]
    settings_of = {"group": groups, "strides": strides, "dilations": dilations, "pads": pads}
    weights = {"w": normal(*shape, seed=draw(st.integers(0, 99)))}
    nodes = [node("Conv", ["x", "w"], ["y"], kernel_shape=list(shape[2:]), **settings_of)]
    loaded = canonical(nodes, {"x": [1, groups * shape[1], *sides]}, ["y"], weights)
    layer, x = layers(loaded)["y"], inputs(loaded)
    limit = draw(st.sampled_from([4, 10**6]))
    wanted = layer.responses(run(loaded, x)["y"], limit)
    made = layer.matrix(weights["w"]) @ layer.patches(x["x"], limit)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * max(float(np.abs(wanted).max()), 1.0))


def test_shapes_of_a_grouped_convolution_and_of_a_matmul() -> None:
    grouped, product = layers(conv("groups"))["y"], layers(matmul())["y"]
    assert (grouped.channels, grouped.groups, grouped.rows, grouped.taps, grouped.kernel) == (6, 3, 2, 18, (3, 3))
    assert (product.channels, product.groups, product.rows, product.taps, product.kernel) == (4, 1, 4, 7, ())


def test_multiplications_of_one_inference() -> None:
    assert layers(conv("groups"))["y"].macs((1, 6, 7, 7)) == 6 * 49 * 18
    assert layers(matmul())["y"].macs((1, 5, 4)) == 5 * 4 * 7


def test_a_dequantized_weight_is_a_weight() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3]),
    ]
    weights = {"q": normal(4, 3, 3, 3, scale=50).astype(np.int8), "s": np.full(4, 0.5, np.float32)}
    loaded = canonical(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights)
    assert layers(loaded) == {"y": Layer("Conv", (4, 3, 3, 3), 1, (1, 1), (0,) * 4, (1, 1))}


def test_what_is_no_weighted_layer() -> None:
    nodes = [
        node("MatMul", ["x", "x"], ["square"]),
        node("Gemm", ["x", "w"], ["turned"], transB=0),
        node("Gemm", ["x", "w"], ["both"], transA=1, transB=1),
        node("MatMul", ["x", "stack"], ["stacked"]),
        node("Relu", ["x"], ["positive"]),
    ]
    names = ["square", "turned", "both", "stacked", "positive"]
    loaded = canonical(nodes, {"x": [4, 4]}, names, {"w": normal(4, 4), "stack": normal(2, 4, 4)})
    assert [layer_of(each) for each in loaded.graph] == [None] * 5
