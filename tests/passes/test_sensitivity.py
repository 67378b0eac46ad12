"""Gradients against finite differences, operator by operator, and predicted costs against measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes import graph as edit
from passes import sensitivity, statistics
from passes.gram import collect_moments
from passes.layer import layers
from passes.problem import Importance, problem_of
from passes.sensitivity import DRAWS, calibrated, importance
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node, run

SHAPE = (1, 4, 6, 6)


@dataclass(frozen=True)
class Tail:
    """What stands between the value c, [1, 4, 6, 6] unless told otherwise, and the output y."""

    nodes: Sequence[onnx.NodeProto]
    weights: dict[str, Array] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE


def one(op: str, *inputs: str, weights: dict[str, Array] | None = None, **attributes: object) -> Tail:
    return Tail([node(op, inputs or ["c"], ["y"], **attributes)], weights or {})


INT = np.int64
TAILS: dict[str, Tail] = {
    "Conv": one("Conv", "c", "v", "b", weights={"v": normal(3, 4, 3, 3), "b": normal(3)}, pads=[1] * 4),
    "Conv, strided, dilated, unevenly padded": one(
        "Conv", "c", "v", weights={"v": normal(3, 4, 3, 2)}, pads=[2, 0, 1, 1], strides=[2, 1], dilations=[1, 2]
    ),
    "Conv, grouped": one("Conv", "c", "v", weights={"v": normal(6, 2, 3, 3)}, group=2),
    "Conv, depthwise": one("Conv", "c", "v", weights={"v": normal(4, 1, 3, 3)}, group=4, pads=[1] * 4),
    "Conv 1-D": replace(one("Conv", "c", "v", weights={"v": normal(3, 4, 3)}, pads=[1, 1]), shape=(1, 4, 9)),
    "Gemm": replace(one("Gemm", "c", "v", weights={"v": normal(3, 7)}, transB=1), shape=(1, 7)),
    "MatMul": replace(one("MatMul", "c", "v", weights={"v": normal(7, 3)}), shape=(1, 5, 7)),
    "Relu": one("Relu"),
    "LeakyRelu": one("LeakyRelu", alpha=0.2),
    "Sigmoid": one("Sigmoid"),
    "HardSwish": one("HardSwish"),
    "PRelu": one("PRelu", "c", "s", weights={"s": normal(4, 1, 1)}),
    "Clip": one("Clip", "c", "low", "high", weights={"low": np.float32(-0.5), "high": np.float32(1)}),
    "Mul by constants": one("Mul", "c", "k", weights={"k": normal(4, 1, 1)}),
    "Div by constants": one("Div", "c", "k", weights={"k": normal(4, 1, 1) + 3}),
    "Add of constants": one("Add", "c", "k", weights={"k": normal(4, 1, 1)}),
    "Sub from constants": one("Sub", "k", "c", weights={"k": normal(4, 1, 1)}),
    "MaxPool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]),
    "AveragePool": one("AveragePool", kernel_shape=[3, 2], strides=[1, 2]),
    "AveragePool that counts its pads": one(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1
    ),
    "GlobalAveragePool": one("GlobalAveragePool"),
    "GlobalMaxPool": one("GlobalMaxPool"),
    "Transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "Flatten": one("Flatten"),
    "Reshape": one("Reshape", "c", "to", weights={"to": np.array([1, 6, 24], INT)}),
    "Unsqueeze": one("Unsqueeze", "c", "at", weights={"at": np.array([2], INT)}),
    "Pad": one("Pad", "c", "pads", weights={"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1], INT)}),
    "Slice": one(
        "Slice",
        *("c", "from", "to", "along"),
        weights={"from": np.array([1], INT), "to": np.array([3], INT), "along": np.array([1], INT)},
    ),
    "Gather": one("Gather", "c", "at", weights={"at": np.array([2, 0, 2], INT)}, axis=1),
    "Resize": one("Resize", "c", "", "by", weights={"by": np.array([1, 1, 2, 2], np.float32)}, mode="nearest"),
    "Split": Tail(
        [node("Split", ["c", "sizes"], ["s", "t"], axis=1), node("Tanh", ["s"], ["y"])],
        {"sizes": np.array([1, 3], INT)},
    ),
    "Split, both parts": Tail(
        [node("Split", ["c"], ["s", "t"], axis=1, num_outputs=2), node("Mul", ["s", "t"], ["y"])],
    ),
    "Add of two": Tail([node("Tanh", ["c"], ["t"]), node("Add", ["c", "t"], ["y"])]),
    "Add of itself": one("Add", "c", "c"),
    "Sub of two": Tail([node("Tanh", ["c"], ["t"]), node("Sub", ["t", "c"], ["y"])]),
    "Mul of two": Tail([node("Sigmoid", ["c"], ["t"]), node("Mul", ["c", "t"], ["y"])]),
    "Mul by a gate for each channel": Tail([node("GlobalAveragePool", ["c"], ["g"]), node("Mul", ["g", "c"], ["y"])]),
    "Add of one number for each channel": Tail(
        [node("GlobalAveragePool", ["c"], ["g"]), node("Add", ["c", "g"], ["y"])]
    ),
    "Concat": Tail([node("Tanh", ["c"], ["t"]), node("Concat", ["t", "c", "t"], ["y"], axis=1)]),
    "Concat with constants": one("Concat", "k", "c", weights={"k": normal(1, 2, 6, 6)}, axis=1),
}


def whole(tail: Tail) -> ir.Model:
    """A 1x1 Conv or Gemm that gives c, then the tail."""
    kernel, size = len(tail.shape) - 2, tail.shape[1]
    if kernel > 0 and tail.nodes[0].op_type != "MatMul":
        first = node("Conv", ["x", "w"], ["c"], kernel_shape=[1] * kernel)
        weights = normal(size, size, *[1] * kernel, seed=3)
    else:
        first, weights = node("MatMul", ["x", "w"], ["c"]), normal(tail.shape[-1], tail.shape[-1], seed=3)
    return canonical([first, *tail.nodes], {"x": tail.shape}, ["y"], {"w": weights, **tail.weights})


@pytest.mark.parametrize("name", TAILS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    tail = TAILS[name]
    model = whole(tail)
    values = [str(v.name) for each in model.graph for v in each.outputs]
    (row,) = statistics.run(model, {"x": normal(*tail.shape, seed=5)}, ["x", *values])
    blocked: dict[str, str] = {}
    backward = sensitivity._Backward(model, row, np.random.default_rng(0), {"y": 1.0}, blocked)
    found = dict(backward.layers(layers(model)))
    assert blocked == {}
    directions = np.random.default_rng(0).standard_normal((DRAWS, *row["y"].shape[1:]))  # as the seed of y
    rest = canonical(tail.nodes, {"c": tail.shape}, ["y"], tail.weights)
    grad = found[str(model.graph[0].name)]
    assert grad.shape == (DRAWS, *tail.shape[1:])
    for seed in range(3):
        change = 1e-3 * normal(*tail.shape, seed=100 + seed)
        up, down = (run(rest, {"c": row["c"] + sign * change})["y"].astype(np.float64) for sign in (1, -1))
        measured = directions.reshape(DRAWS, -1) @ ((up - down) / 2).ravel()
        expected = grad.reshape(DRAWS, -1).astype(np.float64) @ change.ravel()
        np.testing.assert_allclose(expected, measured, rtol=0, atol=0.01 * float(np.abs(measured).max()))


def network(size: float = 0.3, *, last: str = "Softmax") -> ir.Model:
    """A little network; small logits, so that softening does not change its curvature."""
    nodes = [
        node("Conv", ["x", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "v"], ["c2"], pads=[1] * 4),
        node("Add", ["c2", "p"], ["a"]),
        node("Relu", ["a"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "u", "b"], ["z"], transB=1),
        node(last, ["z"], ["y"]),
    ]
    weights = {"w": normal(8, 3, 3, 3) / 4, "v": normal(8, 8, 3, 3, seed=1) / 8}
    weights |= {"u": normal(5, 8, seed=2) * size, "b": normal(5, seed=3) * size}
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


LAYERS = ("c1", "c2", "z")
X = {"x": normal(32, 3, 8, 8, seed=9)}


def moved(model: ir.Model, name: str, size: float, seed: int) -> tuple[ir.Model, NDArray[np.float64]]:
    """The network with noise on the weights of one layer and the mean of its answers kept, and the noise."""
    copy = model.clone()
    at = next(each for each in copy.graph if each.name == name)
    layer, weights = layers(model)[name], edit.constant(at.inputs[1])
    assert weights is not None
    noise = size * np.abs(weights).max() * np.random.default_rng(seed).uniform(-1, 1, weights.shape)
    mean = collect_moments(model, X, [name])[name].mean
    shift = -np.einsum("grt,gt->gr", layer.matrix(noise), mean).ravel()
    bias = edit.constant(edit.operand(at, 2))
    shift = shift + (0 if bias is None else bias)
    edit.set_input(at, 1, edit.new_initializer(copy.graph, "moved", (weights + noise).astype(np.float32)))
    edit.set_input(at, 2, edit.new_initializer(copy.graph, "shift", shift.astype(np.float32)))
    return copy, layer.matrix(noise)


def divergence(before: ir.Model, after: ir.Model) -> float:
    p, q = (
        np.concatenate([row["y"] for row in statistics.run(each, X, ["y"])]).astype(float) for each in (before, after)
    )
    return float((p * np.log(p / q)).sum() / len(p))


def relative_error(before: ir.Model, after: ir.Model) -> float:
    p, q = (
        np.concatenate([row["y"] for row in statistics.run(each, X, ["y"])]).astype(float) for each in (before, after)
    )
    return float(np.square(p - q).sum() / np.square(p).sum())


def predicted(model: ir.Model, name: str, noise: NDArray[np.float64], cost: Importance) -> float:
    """By the covariances themselves, channel by channel."""
    moments = collect_moments(model, X, [name])[name]
    own = np.einsum("grt,gtu,gru->gr", noise, moments.covariance, noise).ravel()
    common = np.einsum("grt,gtu,gru->gr", noise, moments.shared_covariance, noise).ravel()
    return float(cost.scattered @ own + cost.shared @ common)


@pytest.mark.parametrize("name", LAYERS)
def test_predicted_divergence_of_small_changes_is_the_measured_one(name: str) -> None:
    model = network()
    cost = importance(model, X).importance[name]
    ratios = []
    for seed in range(8):
        after, noise = moved(model, name, 0.05, seed)
        ratios.append(predicted(model, name, noise, cost) / divergence(model, after))
    assert 0.5 < np.median(ratios) < 2
    assert min(ratios) > 0.2
    assert max(ratios) < 5


@pytest.mark.parametrize("name", LAYERS)
def test_without_softmax_the_cost_is_the_relative_squared_error(name: str) -> None:
    model = network(last="Identity")
    cost = importance(model, X).importance[name]
    ratios = []
    for seed in range(8):
        after, noise = moved(model, name, 0.05, seed)
        ratios.append(predicted(model, name, noise, cost) / relative_error(model, after))
    assert 0.5 < np.median(ratios) < 2


@pytest.mark.parametrize("name", LAYERS)
def test_after_the_probes_the_cost_of_a_rounding_is_the_measured_one(name: str) -> None:
    """Also where the network is so sure that the curvature at the point itself says little."""
    model = network(3.0)
    found = calibrated(model, X, importance(model, X), probe=0.02).importance[name]
    moments, layer = collect_moments(model, X, [name])[name], layers(model)[name]
    weights = edit.constant(next(each for each in model.graph if each.name == name).inputs[1])
    assert weights is not None
    problem, ratios = problem_of(layer, weights, moments, found), []
    for seed in range(8):
        after, noise = moved(model, name, 0.15, seed)
        ratios.append(problem.loss(problem.weights + noise) / divergence(model, after))
    assert 1 / 3 < np.median(ratios) < 3


def test_probes_only_scale_each_layer() -> None:
    model = network()
    before = importance(model, X)
    after = calibrated(model, X, before)
    for name in LAYERS:
        for kind in ("scattered", "shared"):
            old, new = getattr(before.importance[name], kind), getattr(after.importance[name], kind)
            np.testing.assert_allclose(new * old.sum(), old * new.sum(), rtol=1e-9)


def test_a_channel_that_nothing_reads_costs_nothing() -> None:
    model = network()
    dead = edit.constant(model.graph.initializers["u"])
    assert dead is not None
    array = dead.copy()
    array[:, 2] = 0
    model.graph.initializers["u"].const_value = ir.Tensor(array, name="u")
    cost = importance(model, X).importance["c2"]
    assert cost.scattered[2] == cost.shared[2] == 0
    assert (np.delete(cost.shared, 2) > 0).all()


def test_one_position_is_shared_alone() -> None:
    cost = importance(network(), X).importance["z"]
    np.testing.assert_allclose(cost.scattered, 0, atol=1e-6 * float(cost.shared.max()))


def test_what_has_no_gradient_is_named_and_layers_before_it_count_on_average() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c1"]),
        node("ReduceMax", ["c1", "axes"], ["m"], keepdims=0),
        node("Gemm", ["m", "u"], ["z"], transB=1),
        node("Gemm", ["z", "v"], ["y"], transB=1),
    ]
    weights = {"w": normal(8, 3, 3, 3), "u": normal(5, 8), "v": normal(4, 5), "axes": np.array([2, 3], INT)}
    model = canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)
    found = importance(model, X)
    assert found.blocked == {"m": "ReduceMax has no gradient rule"}
    averages = [found.importance[name].shared.mean() for name in ("z", "y")]
    np.testing.assert_allclose(found.importance["c1"].shared, np.mean(averages), rtol=1e-9)


def test_a_softmax_inside_has_no_gradient() -> None:
    nodes = [
        node("Gemm", ["x", "u"], ["z"], transB=1),
        node("Softmax", ["z"], ["s"]),
        node("Gemm", ["s", "v"], ["y"], transB=1),
    ]
    model = canonical(nodes, {"x": [1, 6]}, ["y"], {"u": normal(5, 6), "v": normal(4, 5)})
    assert importance(model, {"x": normal(8, 6)}).blocked == {"s": "Softmax has no gradient rule"}


def test_same_seed_same_importance_and_few_samples_are_enough() -> None:
    model = network()
    first, again, other = (importance(model, X, seed=seed).importance for seed in (0, 0, 1))
    for name in LAYERS:
        np.testing.assert_array_equal(first[name].shared, again[name].shared)
        assert (first[name].shared != other[name].shared).any()
        ratio = first[name].shared.sum() / other[name].shared.sum()
        assert 0.5 < ratio < 2


def test_the_model_stays_intact() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    calibrated(model, X, importance(model, X))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_correlation_is_that_of_the_gradients() -> None:
    """Two channels of which the next layer reads the sum cost together; one that it takes away costs against them."""
    readers = normal(3, 1, 1, 1).repeat(3, axis=1) * np.array([1, 1, -2], np.float32).reshape(1, 3, 1, 1)
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Conv", ["c", "v"], ["y"])]
    loaded = canonical(nodes, {"x": [1, 2, 5, 5]}, ["y"], {"w": normal(3, 2, 1, 1), "v": readers})
    samples = {"x": normal(8, 2, 5, 5, seed=4)}
    found = importance(loaded, samples, is_correlated=True).importance
    assert found["c"].correlation is not None
    np.testing.assert_allclose(found["c"].correlation, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-5)
    assert found["y"].correlation is not None
    assert np.diagonal(found["y"].correlation).tolist() == [1, 1, 1]
    assert importance(loaded, samples).importance["c"].correlation is None
    scaled = calibrated(loaded, samples, importance(loaded, samples, is_correlated=True)).importance["c"]
    np.testing.assert_array_equal(scaled.correlation, found["c"].correlation)
