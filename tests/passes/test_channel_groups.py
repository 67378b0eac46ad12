"""Channels that depend on each other go together, and the network without them computes what the masked one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.importer import import_model
from passes.channel_groups import ChannelError, ChannelGraph, ChannelGroup, Cost, groups, remove
from passes.layer import layer_of
from passes.prune_channels import taps_of
from tests.support.canonical import canonical
from tests.support.onnx_models import Array, imported, node, run
from tests.support.random_networks import networks
from tests.support.shared import shared


def whole(*shape: int, seed: int = 0) -> Array:
    """Small integers as float32: sums of their products are exact in any order."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def by_name(loaded: ir.Model) -> dict[str, ChannelGroup]:
    return {group.name: group for group in groups(loaded)}


def ties(group: ChannelGroup) -> tuple[list[str], list[str]]:
    return [member.node for member in group.producers], [member.node for member in group.consumers]


def masked(loaded: ir.Model, removal: Mapping[str, Sequence[int]]) -> ir.Model:
    """A copy of which no layer sees the channels that go."""
    result = loaded.clone()
    nodes = {str(n.name): n for n in result.graph}
    for group in groups(loaded):
        for member in group.consumers:
            target = nodes[member.node]
            layer, value = layer_of(target), target.inputs[1]
            assert layer is not None
            assert value is not None
            array = value.const_value.numpy().copy()
            inputs = [i for c in removal.get(group.name, ()) for i in member.channels[c]]
            matrix = array.reshape(array.shape[0], -1)
            matrix[:, taps_of(layer, inputs)] = 0
            fresh = ir.Value(name=f"{member.node}_masked_{len(result.graph.initializers)}")
            fresh.const_value = ir.Tensor(array, name=fresh.name)
            fresh.type, fresh.shape = value.type, ir.Shape(array.shape)
            result.graph.register_initializer(fresh)
            target.replace_input_with(1, fresh)
    return result


def shrunk(loaded: ir.Model, removal: Mapping[str, Sequence[int]], tolerance: float = 0.0) -> ir.Model:
    """A copy without channels: valid, with right shapes and costs, and equal to the masked network."""
    result, reference, cost = loaded.clone(), masked(loaded, removal), ChannelGraph(loaded).cost(removal)
    remove(result, removal)
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    assert shapes(ir.from_proto(onnx.shape_inference.infer_shapes(bare(proto), strict_mode=True))) == shapes(result)
    assert ChannelGraph(result).cost({}) == cost
    for seed in range(2):
        feeds = {str(v.name): whole(*(int(d) for d in v.shape or ()), seed=seed) for v in loaded.graph.inputs}
        expected, actual = run(reference, feeds), run(result, feeds)
        for name, values in expected.items():
            assert actual[name].shape == values.shape
            np.testing.assert_allclose(actual[name], values, rtol=0, atol=tolerance * float(np.abs(values).max()))
    return result


def bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the shapes between: inference must find them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    return copy


def at(**entries: int) -> dict[str, Array]:
    """Lists of one number each."""
    return {name: np.asarray([number]) for name, number in entries.items()}


def shapes(loaded: ir.Model) -> dict[str, list[int]]:
    return {str(v.name): [int(d) for d in v.shape or ()] for n in loaded.graph for v in n.outputs}


def chain(*between: onnx.NodeProto, channels: int = 6, last: Sequence[int] = (4, 6, 1, 1), **more: Array) -> ir.Model:
    """Conv a 3 -> `channels`, `between` from a to m, Conv or Gemm z."""
    weights = {"wa": whole(channels, 3, 3, 3, seed=1), "ba": whole(channels, seed=2), "wz": whole(*last, seed=3)}
    final = node("Gemm", ["m", "wz"], ["z"], transB=1) if len(last) == 2 else node("Conv", ["m", "wz"], ["z"])
    nodes = [node("Conv", ["x", "wa", "ba"], ["a"], pads=[1] * 4), *between, final]
    return canonical(nodes, {"x": [1, 3, 4, 4]}, ["z"], weights | more)


@pytest.mark.parametrize(
    ("between", "last", "more"),
    [
        ([node("Relu", ["a"], ["m"])], (4, 6, 3, 3), {}),
        ([node("MaxPool", ["a"], ["m"], kernel_shape=[2, 2])], (4, 6, 1, 1), {}),
        ([node("Flatten", ["a"], ["m"])], (5, 96), {}),
        ([node("Reshape", ["a", "s"], ["m"])], (5, 96), {"s": np.asarray([1, -1])}),
        ([node("GlobalMaxPool", ["a"], ["p"]), node("Squeeze", ["p", "s"], ["m"])], (5, 6), {"s": np.asarray([2, 3])}),
        ([node("ReduceMax", ["a", "s"], ["m"], keepdims=0)], (5, 6), {"s": np.asarray([2, 3])}),
        ([node("Clip", ["a", "s"], ["m"])], (4, 6, 1, 1), {"s": np.float32(-3)}),
        ([node("PRelu", ["a", "s"], ["m"])], (4, 6, 1, 1), {"s": whole(6, 1, 1)}),
        ([node("Mul", ["s", "a"], ["m"])], (4, 6, 1, 1), {"s": whole(1, 6, 1, 1)}),
        ([node("Add", ["a", "s"], ["m"])], (4, 6, 1, 1), {"s": whole(6, 4, 4)}),
        ([node("Where", ["s", "a", "t"], ["m"])], (4, 6, 1, 1), {"s": whole(6, 1, 1) > 0, "t": np.float32(2)}),
        ([node("Resize", ["a", "", "s"], ["m"])], (4, 6, 1, 1), {"s": np.asarray([1, 1, 2, 2], np.float32)}),
        ([node("Resize", ["a", "", "", "s"], ["m"])], (4, 6, 1, 1), {"s": np.asarray([1, 6, 8, 8])}),
        ([node("Pad", ["a", "s"], ["m"])], (4, 6, 1, 1), {"s": np.asarray([0, 0, 1, 1, 0, 0, 0, 2])}),
        ([node("Slice", ["a", "s", "t", "u"], ["m"])], (4, 6, 1, 1), at(s=1, t=3, u=2)),
        ([node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]), node("Flatten", ["t"], ["m"])], (5, 96), {}),
        ([node("Softmax", ["a"], ["s"], axis=3), node("Mul", ["s", "t"], ["m"])], (4, 6, 1, 1), {"t": np.float32(0)}),
        ([node("SpaceToDepth", ["a"], ["m"], blocksize=2)], (4, 24, 1, 1), {}),
    ],
    ids=lambda value: value[-1].op_type if isinstance(value, list) else "",
)  # fmt: skip
def test_channels_are_followed_through(
    between: list[onnx.NodeProto], last: tuple[int, ...], more: dict[str, Array]
) -> None:
    loaded = chain(*between, last=last, **more)
    group = by_name(loaded)["a"]
    assert (group.size, group.reason, ties(group)) == (6, None, (["a"], ["z"]))
    assert sorted(c for channel in group.consumers[0].channels for c in channel) == list(range(last[1]))
    result = shrunk(loaded, {"a": [0, 3, 4]})
    assert shapes(result)["a"] == [1, 3, 4, 4]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_ties_the_channels_of_a_block(mode: str) -> None:
    loaded = chain(node("DepthToSpace", ["a"], ["m"], blocksize=2, mode=mode), channels=12, last=(4, 3, 1, 1))
    (group,) = [group for group in groups(loaded) if group.reason is None]
    step = {"DCR": (0, 3, 6, 9), "CRD": (0, 1, 2, 3)}[mode]
    assert group.producers[0].channels[0] == step
    shrunk(loaded, {"a": [0, 2]})


def test_flatten_gives_each_channel_a_block_of_inputs() -> None:
    group = by_name(chain(node("Flatten", ["a"], ["m"]), last=(5, 96)))["a"]
    assert group.consumers[0].channels == tuple(tuple(range(16 * c, 16 * c + 16)) for c in range(6))


def test_an_add_ties_all_that_it_adds() -> None:
    weights = {"wa": whole(4, 3, 1, 1), "wb": whole(4, 4, 3, 3, seed=1), "wc": whole(4, 4, 1, 1, seed=2)}
    nodes = [
        node("Conv", ["x", "wa"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "wb"], ["b"], pads=[1] * 4),
        node("Add", ["b", "r"], ["s"]),
        node("Conv", ["s", "wc"], ["c"]),
    ]
    loaded = canonical(nodes, {"x": [1, 3, 5, 5]}, ["c"], weights)
    assert ties(by_name(loaded)["a"]) == (["a", "b"], ["b", "c"])
    result = shrunk(loaded, {"a": [1, 2]})
    assert {n.name: n.inputs[1].const_value.shape.numpy() for n in result.graph if n.op_type == "Conv"} == {
        "a": (2, 3, 1, 1),
        "b": (2, 2, 3, 3),
        "c": (4, 2, 1, 1),
    }


def test_a_gate_is_tied_to_its_map() -> None:
    nodes = [
        node("GlobalMaxPool", ["a"], ["p"]),
        node("Conv", ["p", "wg"], ["g"]),
        node("Relu", ["g"], ["h"]),
        node("Mul", ["a", "h"], ["m"]),
    ]
    loaded = chain(*nodes, wg=whole(6, 6, 1, 1, seed=7))
    assert ties(by_name(loaded)["a"]) == (["a", "g"], ["g", "z"])
    shrunk(loaded, {"a": [5, 0]})


@pytest.mark.parametrize(("groups_", "rows"), [(6, 1), (6, 2), (3, 2), (2, 3)])
def test_a_grouped_convolution_ties_what_a_group_reads_and_computes(groups_: int, rows: int) -> None:
    channels = groups_ * rows
    between = node("Conv", ["a", "wd"], ["m"], group=groups_, pads=[1] * 4)
    loaded = chain(between, last=(4, channels, 1, 1), wd=whole(channels, 6 // groups_, 3, 3, seed=5))
    group = by_name(loaded)["a"]
    assert (group.size, ties(group)) == (groups_, (["a", "m"], ["z"]))
    wide = 6 // groups_
    assert group.producers[0].channels[1] == tuple(range(wide, 2 * wide))
    assert group.producers[1].channels[1] == tuple(range(rows, 2 * rows))
    result = shrunk(loaded, {"a": [0]})
    assert next(n for n in result.graph if n.name == "m").attributes["group"].as_int() == groups_ - 1


def two_branches(*nodes: onnx.NodeProto, last: int, **more: Array) -> ir.Model:
    """Conv a 3 -> 4 and Conv b 3 -> 6 as far as they are read, `nodes` to m, Conv z."""
    read = {name for each in nodes for name in each.input}
    convs = [node("Conv", ["x", f"w{name}"], [name]) for name in ("a", "b") if name in read]
    weights = {"wa": whole(4, 3, 1, 1, seed=1), "wb": whole(6, 3, 1, 1, seed=2), "wz": whole(5, last, 3, 3, seed=3)}
    final = node("Conv", ["m", "wz"], ["z"])
    return canonical([*convs, *nodes, final], {"x": [1, 3, 4, 4]}, ["z"], weights | more)


def test_concat_puts_channels_at_an_offset() -> None:
    loaded = two_branches(node("Concat", ["a", "b"], ["m"], axis=1), last=10)
    found = by_name(loaded)
    assert found["a"].consumers[0].channels == tuple((c,) for c in range(4))
    assert found["b"].consumers[0].channels == tuple((c,) for c in range(4, 10))
    shrunk(loaded, {"a": [3], "b": [0, 4]})


def test_maps_side_by_side_lose_the_same_channels() -> None:
    nodes = [node("Conv", ["x", "wc"], ["c"]), node("Concat", ["c", "b"], ["m"], axis=2)]
    loaded = two_branches(*nodes, last=6, wc=whole(6, 3, 1, 1, seed=9))
    assert ties(by_name(loaded)["b"]) == (["b", "c"], ["z"])
    shrunk(loaded, {"b": [2, 5]})


def test_an_add_across_a_concat_splits_its_channels() -> None:
    nodes = [
        node("Concat", ["a", "b"], ["j"], axis=1),
        node("Conv", ["x", "wc"], ["c"]),
        node("Add", ["j", "c"], ["m"]),
    ]
    loaded = two_branches(*nodes, last=10, wc=whole(10, 3, 1, 1, seed=9))
    found = by_name(loaded)
    assert ties(found["a"]) == (["a", "c"], ["z"])
    assert ties(found["b"]) == (["b", "c"], ["z"])
    assert found["b"].producers[1].channels == tuple((c,) for c in range(4, 10))
    shrunk(loaded, {"a": [0, 1], "b": [5]})


@pytest.mark.parametrize("sizes", [True, False])
def test_split_sends_channels_two_ways(sizes: bool) -> None:
    split = node("Split", ["b", "s"] if sizes else ["b"], ["p", "q"], axis=1, **({} if sizes else {"num_outputs": 2}))
    nodes = [split, node("Conv", ["q", "wq"], ["c"]), node("Add", ["p", "c"], ["m"])]
    more = {"s": np.asarray([4, 2])} if sizes else {}
    first = 4 if sizes else 3
    loaded = two_branches(*nodes, last=first, wq=whole(first, 6 - first, 1, 1, seed=8), **more)
    found = by_name(loaded)
    assert ties(found["b"]) == (["b", "c"], ["z"])
    assert found["b_1"].producers[0].channels == tuple((c,) for c in range(first, 6))
    shrunk(loaded, {"b": [0, 2], "b_1": [1]})


@pytest.mark.parametrize(("start", "end"), [(1, 5), (-4, 2**62), (0, -2)])
def test_slice_of_channels(start: int, end: int) -> None:
    cut = node("Slice", ["b", "s", "t", "u"], ["m"])
    left = len(range(6)[start:end])
    loaded = two_branches(cut, last=left, s=np.asarray([start]), t=np.asarray([end]), u=np.asarray([1]))
    read = next(g for g in groups(loaded) if [m.node for m in g.consumers] == ["z"])
    assert read.size == left
    unread = next(g for g in groups(loaded) if g.producers[0].node == "b" and not g.consumers)
    shrunk(loaded, {read.name: [1, 3], unread.name: [0]})


def test_gather_permutes_channels() -> None:
    loaded = two_branches(node("Gather", ["b", "s"], ["m"], axis=1), last=5, s=np.asarray([5, 3, -6, 1, 2]))
    group = by_name(loaded)["b"]
    assert group.consumers[0].channels == ((2,), (3,), (4,), (1,), (0,))
    shrunk(loaded, {"b": [0, 3]})


def test_a_channel_shuffle_ties_channels_across_its_groups() -> None:
    shuffle = [
        node("Reshape", ["b", "s"], ["h"]),
        node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "u"], ["m"]),
    ]
    more = {"s": np.asarray([1, 2, 3, 4, 4]), "u": np.asarray([1, 6, 4, 4])}
    loaded = two_branches(*shuffle, last=6, **more)
    group = by_name(loaded)["b"]
    assert group.producers[0].channels == ((0, 3), (1, 4), (2, 5))
    assert group.consumers[0].channels == ((0, 1), (2, 3), (4, 5))
    shrunk(loaded, {"b": [1]})


def test_padded_channels_go_with_those_that_they_are_added_to() -> None:
    """The shortcut of a ResNet without projections."""
    nodes = [node("Pad", ["a", "s"], ["p"]), node("Add", ["p", "b"], ["m"])]
    loaded = two_branches(*nodes, last=6, s=np.asarray([0, 1, 0, 0, 0, 1, 0, 0]))
    found = by_name(loaded)
    assert [(ties(found[name])[0], found[name].size) for name in ("a", "b")] == [(["a", "b"], 4), (["b"], 2)]
    assert found["b"].producers[0].channels == ((0,), (5,))
    shrunk(loaded, {"a": [0, 2], "b": [1]})


def test_a_layer_that_nobody_reads_can_go_too() -> None:
    loaded = chain(node("Relu", ["a"], ["m"]))
    extra = ir.Node("", "Conv", [loaded.graph.inputs[0], loaded.graph.initializers["wa"]], name="unread")
    extra.outputs[0].name, extra.outputs[0].shape = "unread", ir.Shape((1, 6, 2, 2))
    loaded.graph.append(extra)
    assert by_name(loaded)["unread"].consumers == ()


FROZEN: dict[str, tuple[list[onnx.NodeProto], str, dict[str, Array]]] = {
    "output": ([], "it is an output of the network", {}),
    "softmax": ([node("Softmax", ["b"], ["y"], axis=1)], "node 'y': Softmax over channels", {}),
    "unknown": ([node("LpNormalization", ["b"], ["y"], axis=1)], "node 'y': LpNormalization may mix channels", {}),
    "reduction": ([node("ReduceSum", ["b", "s"], ["y"])], "node 'y': ReduceSum over channels", {"s": np.asarray([1])}),
    "argmax": (
        [node("ArgMax", ["b"], ["i"], axis=1), node("Cast", ["i"], ["y"], to=1)],
        "node 'i': ArgMax may mix channels",
        {},
    ),
    "step": (
        [node("Slice", ["b", "s", "t", "u", "v"], ["y"])],
        "node 'y': it takes every second channel or so",
        at(s=0, t=6, u=1, v=2),
    ),
    "scalar gather": (
        [node("Gather", ["b", "s"], ["y"], axis=1)],
        "node 'y': it does not read a list of channels",
        {"s": np.asarray(2)},
    ),
    "reflection": (
        [node("Pad", ["b", "s"], ["y"], mode="reflect")],
        "node 'y': it pads channels with other channels",
        {"s": np.asarray([0, 1, 0, 0, 0, 1, 0, 0])},
    ),
    "crop": ([node("Pad", ["b", "s"], ["y"])], "node 'y': it crops", {"s": np.asarray([0, 0, -1, 0, 0, 0, 0, 0])}),
    "two outputs": ([node("MaxPool", ["b"], ["y", "i"], kernel_shape=[2, 2])], "node 'y': it has several outputs", {}),
    "product": ([node("MatMul", ["b", "b"], ["y"])], "node 'y': MatMul may mix channels", {}),
    "layer of computed weights": (
        [node("Conv", ["x", "b"], ["y"])],
        "node 'y': its weights are quantized or not constant",
        {},
    ),
    "outer product": (
        [
            node("Reshape", ["b", "s"], ["r"]),
            node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            node("Mul", ["r", "t"], ["y"]),
        ],
        "node 'y' reads it for every channel of another tensor",
        {"s": np.asarray([1, 6, 1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
def test_what_is_not_understood_stays_with_a_reason(case: str) -> None:
    between, reason, more = FROZEN[case]
    side = 1 if case in ("outer product", "layer of computed weights") else 4
    shape = [6, 3, side, side] if case == "layer of computed weights" else [1, 3, side, side]
    nodes = [node("Conv", ["x", "wb"], ["b"]), *between]
    weights = {"wb": whole(3 if case == "layer of computed weights" else 6, 3, 1, 1)}
    loaded = canonical(nodes, {"x": shape}, ["y" if between else "b"], weights | more)
    group = by_name(loaded)["b"]
    assert group.reason == reason
    with pytest.raises(ChannelError, match=r"no channel of 'b' can go: "):
        remove(loaded, {"b": [0]})


def test_a_map_for_all_channels_stays() -> None:
    """A spatial mask has one channel, which all channels of the other tensor read."""
    loaded = two_branches(
        node("Conv", ["x", "wk"], ["k"]), node("Mul", ["k", "b"], ["m"]), last=6, wk=whole(1, 3, 1, 1)
    )
    assert by_name(loaded)["k"].reason == "node 'm' reads it for every channel of another tensor"
    assert by_name(loaded)["b"].reason is None
    shrunk(loaded, {"b": [1, 2]})


def test_joined_constants_stay() -> None:
    loaded = two_branches(node("Concat", ["b", "s"], ["m"], axis=1), last=8, s=whole(1, 2, 4, 4))
    assert by_name(loaded)["b"].reason is None
    assert [g.reason for g in groups(loaded) if "s" in g.name] == []
    shrunk(loaded, {"b": [0, 5]})


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ({"nobody": [0]}, "there is no group of channels 'nobody'"),
        ({"a": [6]}, "'a' has 6 channels, and no channel 6"),
        ({"a": [-1]}, "'a' has 6 channels, and no channel -1"),
        ({"a": range(6)}, "one channel of 'a' must stay"),
        ({"z": [0]}, "no channel of 'z' can go: it is an output of the network"),
    ],
)
def test_impossible_removals_are_refused_and_change_nothing(removal: dict[str, Sequence[int]], message: str) -> None:
    loaded = chain(node("Relu", ["a"], ["m"]))
    before = ir.to_proto(loaded).SerializeToString()
    with pytest.raises(ChannelError, match=message):
        remove(loaded, removal)
    assert ir.to_proto(loaded).SerializeToString() == before


def test_removing_nothing_changes_nothing() -> None:
    loaded = chain(node("Relu", ["a"], ["m"]))
    before = ir.to_proto(loaded).SerializeToString()
    remove(loaded, {"a": []})
    assert ir.to_proto(loaded).SerializeToString() == before


def test_costs_count_both_sides_of_a_group() -> None:
    graph = ChannelGraph(chain(node("Relu", ["a"], ["m"])))
    assert graph.cost({}) == Cost(6 * 27 * 16 + 4 * 6 * 16, 6 * 28 + 4 * 6)
    assert graph.rows({"a": [0, 3]}) == {"a": (1, 2, 4, 5)}
    assert graph.cost({"a": [0, 1]}) == Cost(4 * 27 * 16 + 4 * 4 * 16, 4 * 28 + 4 * 4)


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 2**16))
def test_random_networks_without_channels_are_the_masked_ones(network: object, seed: int) -> None:
    loaded = imported(network.model).model  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    free = [group for group in groups(loaded) if group.reason is None]
    removal = {g.name: rng.choice(g.size, int(rng.integers(1, g.size)), replace=False).tolist() for g in free}
    shrunk(loaded, removal, tolerance=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "dscnn_kws", "autoencoder_ad", "streaming_wakeword", "mobilenet_vww"])
def test_mlperf_tiny_networks_can_lose_a_third_of_every_group(name: str) -> None:
    loaded = import_model(shared("models", f"mlperf_tiny_{name}.onnx")).model
    rng = np.random.default_rng(0)
    free = [group for group in groups(loaded) if group.reason is None]
    removal = {g.name: rng.choice(g.size, g.size // 3, replace=False).tolist() for g in free}
    shrunk(loaded, removal, tolerance=1e-5)


def test_the_channels_of_a_shuffle_network_are_found() -> None:
    loaded = import_model(shared("zoo", "fastestdet.onnx")).model
    free = [group for group in groups(loaded) if group.reason is None]
    assert len(free) > 70
    remove(loaded, {group.name: [0] for group in free})
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    assert all(
        np.isfinite(values).all()
        for values in run(loaded, {"input.1": np.zeros((1, 3, 352, 352), np.float32)}).values()
    )
