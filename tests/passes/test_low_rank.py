"""Splitting a layer keeps its function at full rank, and costs what the counters say."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.gram import collect_moments
from passes.graph import constant, operand
from passes.layer import layers
from passes.low_rank import (
    DEFAULT,
    METADATA,
    SEPARABLE,
    Choice,
    LowRank,
    Method,
    Option,
    Window,
    factors,
    options,
    product,
    window_of,
)
from passes.problem import Importance, turned
from passes.recipes.base import Problem
from passes.statistics import run as run_all
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node, ops, run

ROWS, CHANNELS = 24, 16


def conv(kernel: tuple[int, ...] = (3, 3), weights: Array | None = None, **attributes: object) -> ir.Model:
    """Relu(Conv(x)) with an input of unequal sides."""
    group = int(str(attributes.get("group", 1)))
    sizes = (9, 11)[: len(kernel)]
    weights = normal(ROWS, CHANNELS // group, *kernel, seed=1) if weights is None else weights
    nodes = [node("Conv", ["x", "w", "b"], ["c"], **attributes), node("Relu", ["c"], ["y"])]
    shapes = {"x": [1, CHANNELS, *sizes]}
    return canonical(nodes, shapes, ["y"], {"w": weights, "b": normal(len(weights), seed=2)})


def gemm() -> ir.Model:
    weights = {"w": normal(ROWS, 40, seed=1), "b": normal(ROWS, seed=2)}
    return canonical([node("Gemm", ["x", "w", "b"], ["c"], transB=1)], {"x": [1, 40]}, ["c"], weights)


def matmul() -> ir.Model:
    """Tokens, and a bias of their own."""
    nodes = [node("MatMul", ["x", "w"], ["c"]), node("Add", ["c", "b"], ["y"])]
    weights = {"w": normal(40, ROWS, seed=1), "b": normal(ROWS, seed=2)}
    return canonical(nodes, {"x": [1, 7, 40]}, ["y"], weights)


def problem(loaded: ir.Model, name: str = "c") -> Problem:
    """Exact: importance 1, and H of smooth random inputs."""
    sizes = [int(str(d)) for d in loaded.graph.inputs[0].shape or ()]
    samples = np.cumsum(normal(40, *sizes[1:], seed=5), axis=1)
    moments = collect_moments(loaded, {"x": samples.astype(np.float32)}, [name])[name]
    layer = layers(loaded)[name]
    weights = constant(operand(next(n for n in loaded.graph if n.name == name), 1))
    assert weights is not None
    even = np.ones((layer.groups, layer.rows))
    return Problem(layer.matrix(weights), moments.hessian(0.01), even, layer.kernel)


def split(loaded: ir.Model, choice: Choice, **keywords: object) -> tuple[ir.Model, LowRank]:
    result = loaded.clone()
    step = LowRank({"c": choice}, {"c": problem(loaded)}, **keywords)  # type: ignore[arg-type]
    step(result)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result, step


def sample(loaded: ir.Model, seed: int = 9) -> dict[str, Array]:
    return {"x": normal(*(int(str(d)) for d in loaded.graph.inputs[0].shape or ()), seed=seed)}


def assert_same(loaded: ir.Model, result: ir.Model, tolerance: float = 1e-4) -> None:
    feeds = sample(loaded)
    (expected,), (got,) = run(loaded, feeds).values(), run(result, feeds).values()
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


STRIDED = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}


@pytest.mark.parametrize("attributes", [{}, STRIDED, {"group": 4, **STRIDED}], ids=["plain", "strided", "grouped"])
@pytest.mark.parametrize(
    ("method", "rank"),
    [
        (Method.SVD, (24,)),
        (Method.SPATIAL, (48,)),
        (Method.ACROSS, (48,)),
        (Method.TUCKER, (16, 24)),
        (Method.CP, (120,)),
    ],
)
def test_full_rank_is_the_same_function(attributes: dict[str, object], method: Method, rank: tuple[int, ...]) -> None:
    loaded, per_group = conv(**attributes), int(str(attributes.get("group", 1)))
    result, step = split(loaded, Choice(method, tuple(r // per_group for r in rank)))
    if per_group > 1 and method in (Method.TUCKER, Method.CP):
        assert step.report.skipped == {"c": "it has groups"}
        return
    assert step.report.changed == ("c",)
    assert_same(loaded, result, 2e-3 if method is Method.CP else 1e-4)
    assert ops(result) == ["Conv"] * (3 if method in (Method.TUCKER, Method.CP) else 2) + ["Relu"]


def test_depthwise_kernels_split_into_columns_and_rows() -> None:
    loaded = conv(weights=normal(CHANNELS, 1, 3, 3), group=CHANNELS, pads=[1, 1, 1, 1])
    result, _ = split(loaded, Choice(Method.SPATIAL, (3,)))
    assert_same(loaded, result)
    assert [n.attributes["group"].as_int() for n in result.graph if n.op_type == "Conv"] == [CHANNELS, CHANNELS]


def test_a_gemm_a_matmul_and_one_dimension_split_too() -> None:
    for loaded in (gemm(), matmul()):
        assert_same(loaded, split(loaded, Choice(Method.SVD, (24,)))[0])
    line = conv((5,), strides=[2], pads=[2, 2], dilations=[2])
    assert_same(line, split(line, Choice(Method.SVD, (24,)))[0])
    assert_same(line, split(line, Choice(Method.TUCKER, (16, 24)))[0])


def counted(loaded: ir.Model) -> tuple[int, int]:
    """Weights and multiplications of all layers, from the graph alone."""
    weights = macs = 0
    for each in loaded.graph:
        if each.op_type in ("Conv", "Gemm", "MatMul"):
            size = int(operand(each, 1).const_value.size)  # type: ignore[union-attr]
            sizes = [int(str(d)) for d in each.outputs[0].shape or ()]
            places = math.prod(sizes[1:-1] if each.op_type == "MatMul" else sizes[2:])
            weights, macs = weights + size, macs + size * places
    return weights, macs


@pytest.mark.parametrize(
    "loaded",
    [conv(**STRIDED), conv(group=2, **STRIDED), conv((5,)), gemm(), matmul()],
    ids=["conv", "grouped", "line", "gemm", "matmul"],
)
def test_every_option_costs_what_its_graph_has_and_keeps_its_loss(loaded: ir.Model) -> None:
    window, about = window_of(loaded.graph[0]), problem(loaded)
    assert isinstance(window, Window)
    found = options(about, window, tuple(Method))
    assert found
    before = counted(loaded)
    assert before == (window.weights, window.macs)
    for option in _some_of_each_method(found):
        result, step = split(loaded, option.choice)
        assert counted(result) == (option.weights, option.macs)
        assert option.weights < before[0]
        assert option.macs <= before[1]
        assert step.report.metrics["split_macs_after"] == option.macs
        exact = about.loss(product(window, factors(about, window, option.choice, sweeps=0)))
        assert option.loss == pytest.approx(exact, rel=1e-6)
        assert about.loss(product(window, factors(about, window, option.choice))) <= option.loss * (1 + 1e-9)


def _some_of_each_method(found: list[Option]) -> list[Option]:
    methods = {option.choice.method: option for option in found} | {}
    return [*methods.values(), *{o.choice.method: o for o in reversed(found)}.values()]


def test_ranks_are_multiples_of_what_the_target_likes() -> None:
    loaded = conv()
    window = window_of(loaded.graph[0])
    assert isinstance(window, Window)
    found = options(problem(loaded), window, multiple=4)
    assert {option.choice.method for option in found} == set(DEFAULT)
    assert all(rank % 4 == 0 for option in found for rank in option.choice.rank)
    grouped = conv(group=4)
    window = window_of(grouped.graph[0])
    assert isinstance(window, Window)
    assert {o.choice.rank[0] % 2 for o in options(problem(grouped), window, [Method.SVD], multiple=8)} == {0}


def planted(method: Method) -> Array:
    rng = np.random.default_rng(4)
    rank = 5
    forms = {
        Method.SVD: ("or,rchw->ochw", [(ROWS, rank), (rank, CHANNELS, 3, 3)]),
        Method.SPATIAL: ("rch,orw->ochw", [(rank, CHANNELS, 3), (ROWS, rank, 3)]),
        Method.ACROSS: ("rcw,orh->ochw", [(rank, CHANNELS, 3), (ROWS, rank, 3)]),
    }
    expression, sizes = forms[method]
    return np.asarray(np.einsum(expression, *(rng.normal(size=size) for size in sizes)), np.float32)


@pytest.mark.parametrize("method", [Method.SVD, Method.SPATIAL, Method.ACROSS])
def test_a_planted_rank_is_found_and_used_and_the_output_stays(method: Method) -> None:
    loaded = conv(weights=planted(method), pads=[1, 1, 1, 1])
    window = window_of(loaded.graph[0])
    assert isinstance(window, Window)
    about = problem(loaded)
    found = [o for o in options(about, window) if o.loss <= 1e-12 * about.loss(0 * about.weights)]
    best = min(found, key=lambda option: option.macs)
    assert best.choice == Choice(method, (5,))
    result, _ = split(loaded, best.choice)
    assert_same(loaded, result, 1e-5)
    assert counted(result)[1] < 0.4 * counted(loaded)[1]


@pytest.mark.parametrize(
    ("method", "group"),
    [*((method, group) for method in (Method.SVD, *SEPARABLE) for group in (1, 2)), (Method.TUCKER, 1)],
)
def test_turned_rows_are_turned_back_and_the_correlated_loss_is_that_of_the_graph(method: Method, group: int) -> None:
    loaded = conv(pads=[1, 1, 1, 1], group=group)
    plain = problem(loaded)
    mixed = normal(ROWS, ROWS, seed=8).astype(np.float64)
    covariance = mixed @ mixed.T + np.eye(ROWS)
    size = np.sqrt(np.diagonal(covariance))
    known = Importance(np.ones(ROWS), np.zeros(ROWS), covariance / np.outer(size, size))
    about = turned(plain, known)
    window = window_of(loaded.graph[0])
    assert isinstance(window, Window)
    choice = Choice(method, (8, 12) if method is Method.TUCKER else (8,))

    def loss(step: LowRank) -> float:
        result = loaded.clone()
        step(result)
        first, *_ = (each for each in options(about.problem, window, [method], 4) if each.choice == choice)
        assert step.report.changed == ("c",)
        parts = [constant(operand(each, 1)) for each in result.graph if each.op_type == "Conv"]
        whole = _whole(method, [np.asarray(part, np.float64) for part in parts], group)
        assert np.isfinite(first.loss)
        delta = whole.reshape(plain.weights.shape) - plain.weights
        return about.problem.loss(about.problem.weights + np.linalg.solve(about.back, delta))

    correlated = loss(LowRank({"c": choice}, {"c": about}))
    alone = loss(LowRank({"c": choice}, {"c": plain}))
    predicted = next(o.loss for o in options(about.problem, window, [method], 4) if o.choice == choice)
    assert correlated <= predicted * (1 + 1e-6)
    assert correlated < 0.98 * alone


def _whole(method: Method, parts: list[Array], group: int) -> Array:
    """The kernel that the parts of a Conv stand for, from the graph alone."""
    if method is Method.TUCKER:
        first, core, last = parts
        return np.einsum("qcij,pqhw,opij->ochw", first, core, last)
    first, last = (part.reshape(group, -1, *part.shape[1:]) for part in parts)
    expression = {Method.SVD: "grchw,gorij->gochw", Method.SPATIAL: "grchj,gorjw->gochw"}
    whole = np.einsum(expression.get(method, "grcjw,gorhj->gochw"), first, last)
    return np.asarray(whole.reshape(-1, *whole.shape[2:]))


def test_a_random_layer_has_no_exact_rank() -> None:
    loaded = conv()
    window = window_of(loaded.graph[0])
    assert isinstance(window, Window)
    about = problem(loaded)
    assert min(o.loss for o in options(about, window)) > 1e-3 * about.loss(0 * about.weights)


def test_the_bias_takes_up_the_mean_error() -> None:
    loaded = gemm()
    samples = {"x": (normal(64, 40, seed=6) + 3).astype(np.float32)}
    moments = collect_moments(loaded, samples, ["c"])["c"]
    weights = constant(operand(loaded.graph[0], 1))
    assert weights is not None
    about = Problem(weights.astype(np.float64)[None], moments.hessian(0.01), np.ones((1, ROWS)))
    errors = []
    for means in ({}, {"c": moments.mean}):
        result = loaded.clone()
        LowRank({"c": Choice(Method.SVD, (8,))}, {"c": about}, means)(result)
        outputs = [[np.asarray(v["c"][0]) for v in run_all(m, samples, ["c"])] for m in (loaded, result)]
        errors.append(np.subtract(*outputs).mean(axis=0))
    assert np.abs(errors[0]).max() > 0.1
    np.testing.assert_allclose(errors[1], 0, atol=1e-4)


def test_the_measured_error_is_the_loss() -> None:
    loaded = gemm()
    about = problem(loaded)
    result, _ = split(loaded, Choice(Method.SVD, (8,)))
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(4000, 40)) @ np.linalg.cholesky(about.hessian[0]).T).astype(np.float32)
    inputs -= inputs.mean(axis=0)
    # White noise through the factor of its own covariance: then H is that of the samples, exactly.
    white = np.linalg.solve(np.linalg.cholesky(np.cov(inputs.T, bias=True)), inputs.T)
    inputs = (np.linalg.cholesky(about.hessian[0]) @ white).T.astype(np.float32)
    outputs = [np.stack([v["c"][0] for v in run_all(m, {"x": inputs}, ["c"])]) for m in (loaded, result)]
    measured = np.square(np.subtract(*outputs, dtype=np.float64)).sum(axis=1).mean()
    window = window_of(loaded.graph[0])
    assert isinstance(window, Window)
    expected = next(o.loss for o in options(about, window) if o.choice.rank == (8,))
    assert measured == pytest.approx(expected, rel=1e-5)


def test_new_nodes_say_what_they_are() -> None:
    result, _ = split(conv(), Choice(Method.TUCKER, (8, 16)))
    names = ["c_reduce", "c_core", "c"]
    assert [n.name for n in result.graph][:3] == names
    assert {n.metadata_props[METADATA] for n in result.graph if n.op_type == "Conv"} == {"tucker 8x16 of c"}
    assert [operand(n, 2) is not None for n in result.graph][:3] == [False, False, True]


@pytest.mark.parametrize(
    ("loaded", "choice", "reason"),
    [
        (gemm(), Choice(Method.SPATIAL, (8,)), "its kernel has not two sides to split"),
        (conv((1, 1)), Choice(Method.TUCKER, (8, 8)), "its kernel has one position: svd is the same and exact"),
        (conv(), Choice(Method.SVD, (25,)), "rank svd 25 is above 24"),
        (conv(), Choice(Method.TUCKER, (8,)), "tucker 8 is no rank of that method"),
        (conv(), Choice(Method.TUCKER, (17, 8)), "rank tucker 17x8 is above 16x24"),
    ],
)
def test_impossible_choices_are_skipped_with_the_reason(loaded: ir.Model, choice: Choice, reason: str) -> None:
    result, step = split(loaded, choice)
    assert step.report.skipped == {"c": reason}
    assert ops(result) == ops(loaded)


def test_nodes_without_constant_weights_or_statistics_are_skipped_with_the_reason() -> None:
    nodes = [node("Conv", ["x", "x2"], ["c"]), node("Relu", ["c"], ["r"])]
    loaded = canonical(nodes, {"x": [1, 2, 5, 5], "x2": [4, 2, 3, 3]}, ["r"])
    step = LowRank({"c": Choice(Method.SVD, (2,)), "r": Choice(Method.SVD, (2,))}, {})
    step(loaded)
    assert step.report.skipped == {"c": "its weights are not constant floats", "r": "it is no Conv, Gemm or MatMul"}
    other = conv()
    step = LowRank({"c": Choice(Method.SVD, (2,))}, {})
    step(other)
    assert step.report.skipped == {"c": "nothing is known about its input"}


def test_a_layer_that_two_others_read_is_split_once() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Add", ["c", "r"], ["y"]),
    ]
    loaded = canonical(nodes, {"x": [1, CHANNELS, 9, 11]}, ["y"], {"w": normal(ROWS, CHANNELS, 3, 3)})
    result, _ = split(loaded, Choice(Method.SVD, (24,)))
    assert_same(loaded, result)
