"""Which values become int8: fused clamps, cones with one source, keepers, and what several readers change."""

from __future__ import annotations

import onnx_ir as ir

from passes.cones import Kind, Point, int8_points, points
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import node

MAP = {"x": [1, 2, 4, 4]}
WEIGHTS = {"w": normal(2, 2, 1, 1), "half": normal(1).reshape(()), "each": normal(2, 1, 1)}


def conv(source: str, result: str) -> object:
    return node("Conv", [source, "w"], [result])


def names(loaded: ir.Model, *but: str) -> tuple[str, ...]:
    return int8_points(loaded, every_node(loaded, *but))


def point(loaded: ir.Model, name: str) -> Point:
    return next(p for p in points(loaded, every_node(loaded)) if p.name == name)


def test_a_relu_that_alone_reads_a_conv_is_fused() -> None:
    loaded = canonical([conv("x", "c"), node("Relu", ["c"], ["y"])], MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "y")
    assert point(loaded, "y") == Point("y", Kind.ANCHOR, "c", ("c", "y"), ("x",))


def test_clamps_in_a_row_are_all_fused() -> None:
    nodes = [conv("x", "c"), node("Relu", ["c"], ["r"]), node("Clip", ["r", "", "half"], ["y"])]
    assert names(canonical(nodes, MAP, ["y"], WEIGHTS)) == ("x", "y")


def test_a_conv_read_twice_is_a_point_of_its_own() -> None:
    nodes = [conv("x", "c"), node("Relu", ["c"], ["r"]), node("Add", ["c", "r"], ["s"]), conv("s", "y")]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "c", "s", "y")
    assert point(loaded, "s") == Point("s", Kind.CONE, "s", ("r", "s"), ("c",))


def test_a_conv_that_is_an_output_is_a_point_of_its_own() -> None:
    loaded = canonical([conv("x", "c"), node("Relu", ["c"], ["y"])], MAP, ["c", "y"], WEIGHTS)
    assert names(loaded) == ("x", "c", "y")
    assert point(loaded, "y").kind is Kind.CONE


def test_a_relu_behind_a_max_pool_is_a_table() -> None:
    nodes = [node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2]), node("Relu", ["p"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"])
    assert [p.kind for p in points(loaded, every_node(loaded))] == [Kind.INPUT, Kind.KEEPER, Kind.CONE]


def test_swish_is_one_cone() -> None:
    nodes = [conv("x", "c"), node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "c", "y")
    assert point(loaded, "y") == Point("y", Kind.CONE, "y", ("s", "y"), ("c",))


def test_gelu_with_scalar_constants_is_one_cone() -> None:
    nodes = [
        node("Div", ["x", "half"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "half"], ["a"]),
        node("Mul", ["x", "a"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "y")
    assert point(loaded, "y").nodes == ("d", "e", "a", "m", "y")


def test_a_constant_for_each_channel_ends_a_cone() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "each"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "s", "y")
    assert point(loaded, "y").kind is Kind.ANCHOR


def test_a_cone_value_needed_outside_becomes_a_point() -> None:
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        node("Mul", ["x", "s"], ["m"]),
        conv("s", "c"),
        node("Add", ["m", "c"], ["y"]),
    ]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "s", "m", "c", "y")
    assert point(loaded, "m") == Point("m", Kind.ANCHOR, "m", ("m",), ("x", "s"))


def test_an_add_of_two_points_takes_its_relu() -> None:
    nodes = [conv("x", "c"), node("Add", ["x", "c"], ["a"]), node("Relu", ["a"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert names(loaded) == ("x", "c", "y")
    assert point(loaded, "y") == Point("y", Kind.ANCHOR, "a", ("a", "y"), ("x", "c"))


def test_a_relu_behind_a_cone_joins_it() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Add", ["x", "s"], ["a"]), node("Relu", ["a"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"])
    assert names(loaded) == ("x", "y")
    assert point(loaded, "y").nodes == ("s", "a", "y")


def test_a_value_added_to_itself_is_a_table() -> None:
    assert point(canonical([node("Add", ["x", "x"], ["y"])], MAP, ["y"]), "y").kind is Kind.CONE


def test_layout_nodes_are_keepers() -> None:
    nodes = [conv("x", "c"), node("Flatten", ["c"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert point(loaded, "y") == Point("y", Kind.KEEPER, "y", ("y",), ("c",))


def test_host_nodes_are_no_points_and_their_reader_does_not_fuse() -> None:
    nodes = [conv("x", "c"), node("Relu", ["c"], ["r"]), node("Softmax", ["r"], ["y"])]
    assert names(canonical(nodes, MAP, ["y"], WEIGHTS), "Softmax") == ("x", "r")
    assert names(canonical(nodes, MAP, ["y"], WEIGHTS), "Softmax", "Relu") == ("x", "c")


def test_a_value_made_on_the_host_is_an_input() -> None:
    nodes = [node("Sub", ["x", "each"], ["h"]), conv("h", "y")]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    assert [p.name for p in points(loaded, frozenset({"y"})) if p.kind is Kind.INPUT] == ["h"]


def test_every_output_of_a_split_is_a_point() -> None:
    nodes = [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Mul", ["a", "b"], ["y"])]
    assert names(canonical(nodes, MAP, ["y"])) == ("x", "a", "b", "y")
