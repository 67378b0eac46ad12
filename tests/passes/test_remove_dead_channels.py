"""Channels that do not depend on the input go, and the outputs stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.importer import import_model
from passes.constant_channels import constant_channels
from passes.remove_dead_channels import RemoveDeadChannels
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node, run
from tests.support.shared import shared

NOISE = np.float32(1e-9)


def removed(loaded: ir.Model) -> tuple[ir.Model, RemoveDeadChannels]:
    """A pruned copy, that computes what `loaded` does, and whose shapes are right."""
    result, step = loaded.clone(), RemoveDeadChannels()
    step(result)
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    for seed in range(3):
        feeds = {str(v.name): normal(*(int(d) for d in v.shape or ()), seed=seed) for v in loaded.graph.inputs}
        expected, actual = run(loaded, feeds), run(result, feeds)
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values, rtol=0, atol=1e-5 * np.abs(values).max())
    return result, step


def shapes(loaded: ir.Model, op: str = "Conv") -> list[tuple[int, ...]]:
    """Of the weights of every node `op`."""
    return [tuple(n.inputs[1].const_value.numpy().shape) for n in loaded.graph if n.op_type == op]


def dead(weights: Array, bias: Array, channels: Mapping[int, float], noise: float = 0.0) -> None:
    """Make `channels` of a layer constant: their bias is the value, their weights are `noise` times what they were."""
    for channel, value in channels.items():
        weights[channel] *= noise
        bias[channel] = value


def chain(
    first: Mapping[int, float], *between: onnx.NodeProto, noise: float = 0.0, pads: Sequence[int] = (), **more: Array
) -> ir.Model:
    """Conv 3 -> 6 of which `first` are constant, Relu, `between` from r to m, Conv 6 -> 4."""
    w1, b1 = normal(6, 3, 3, 3, seed=1), normal(6, seed=2)
    dead(w1, b1, first, noise)
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r"]),
        *between,
        node("Conv", ["m" if between else "r", "w2"], ["y"], pads=list(pads) or [0] * 4),
    ]
    weights = {"w1": w1, "b1": b1, "w2": normal(4, 6, 3, 3, seed=3), **more}
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_zeros_and_constants_go_before_an_unpadded_conv(noise: float) -> None:
    result, step = removed(chain({1: 0.0, 3: 0.7, 4: -2.0}, noise=noise))
    assert shapes(result) == [(3, 3, 3, 3), (4, 3, 3, 3)]
    assert step.report.changed == ("c1",)
    assert step.report.metrics == {
        "channels_removed": 3.0,
        "channels_removed:c1": 3.0,
        "macs_before": 6 * 27 * 64 + 4 * 54 * 36,
        "macs_after": 3 * 27 * 64 + 4 * 27 * 36,
    }


def test_weights_above_noise_stay() -> None:
    result, step = removed(chain({1: 0.0, 4: 0.0}, noise=1e-4))
    assert shapes(result) == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert step.report.changed == ()


def test_noise_that_the_next_layer_amplifies_stays() -> None:
    loaded = chain({2: 0.5}, noise=NOISE)
    weights = loaded.graph.initializers["w2"]
    array = weights.const_value.numpy().copy()
    array[:, 2] *= 1e9
    weights.const_value = ir.Tensor(array, name="w2")
    result, step = removed(loaded)
    assert shapes(result)[0] == (6, 3, 3, 3)
    assert step.report.skipped == {"c1": "1 constant channels stay: node 'y' amplifies them"}


def test_a_padded_conv_takes_zeros_alone() -> None:
    result, step = removed(chain({1: 0.0, 3: 0.7}, pads=[1] * 4))
    assert shapes(result) == [(5, 3, 3, 3), (4, 5, 3, 3)]
    assert step.report.skipped == {"c1": "1 constant channels stay: node 'y' pads with 0, not with their value"}


@pytest.mark.parametrize(
    "between",
    [
        [node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], pads=[1] * 4)],
        [node("AveragePool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4)],
        [node("Sigmoid", ["r"], ["s"]), node("Mul", ["r", "s"], ["m"])],
        [node("Clip", ["r", "low", "high"], ["m"])],
        [node("LeakyRelu", ["c1"], ["m"], alpha=0.1)],
        [node("PRelu", ["c1", "slope"], ["m"])],
        [node("Resize", ["r", "", "scales"], ["m"], mode="nearest")],
        [node("Exp", ["r"], ["m"])],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)
def test_constants_are_followed_through(between: list[onnx.NodeProto]) -> None:
    more = {
        "low": np.float32(0.2),
        "high": np.float32(0.5),
        "slope": normal(6, 1, 1, seed=8),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
    }
    result, _ = removed(chain({0: 0.0, 3: 0.7, 4: -2.0}, *between, **more))
    assert shapes(result) == [(3, 3, 3, 3), (4, 3, 3, 3)]


def test_padding_that_is_averaged_makes_a_constant_vary() -> None:
    average = node("AveragePool", ["r"], ["m"], kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=1)
    result, step = removed(chain({0: 0.0, 3: 0.7}, average))
    assert shapes(result) == [(5, 3, 3, 3), (4, 5, 3, 3)]
    assert step.report.skipped == {"c1": "1 constant channels stay: node 'm' makes them vary"}


def depthwise(bias: float, weight: float, multiplier: int = 1) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A padded depthwise Conv whose channel 3 has these weights, all alike, and bias."""
    w, b = normal(6 * multiplier, 1, 3, 3, seed=5), normal(6 * multiplier, seed=6)
    w[3 * multiplier : 4 * multiplier] = weight
    b[3 * multiplier : 4 * multiplier] = bias
    convs = [node("Conv", ["r", "w", "b"], ["d"], group=6, pads=[1] * 4), node("Relu", ["d"], ["m"])]
    return convs, {"w": w, "b": b}


@pytest.mark.parametrize(
    ("bias", "weight", "is_gone"),
    [
        (-1.0, 0.1, True),  # 0.7 * 0.1 * 9 - 1 is below 0 everywhere
        (-1.0, -0.1, True),
        (-0.5, 0.1, False),  # 0.63 - 0.5 inside, 0.28 - 0.5 in the corner
        (0.3, 0.0, True),
    ],
)
def test_a_constant_under_a_padded_depthwise_conv(bias: float, weight: float, is_gone: bool) -> None:
    convs, more = depthwise(bias, weight)
    result, step = removed(chain({1: 0.0, 3: 0.7}, *convs, **more))
    # Channel 1 is relu(bias) behind the depthwise Conv: a constant, which goes.
    live = 4 if is_gone else 5
    assert shapes(result) == [(live, 3, 3, 3), (live, 1, 3, 3), (4, live, 3, 3)]
    reason = "1 constant channels stay: node 'd' makes them vary"
    assert step.report.skipped == ({} if is_gone else {"c1": reason})


def test_depthwise_with_two_outputs_for_each_input() -> None:
    convs, more = depthwise(-1.0, 0.1, multiplier=2)
    loaded = chain({1: 0.0, 3: 0.7}, *convs, **{**more, "w2": normal(4, 12, 3, 3, seed=3)})
    result, _ = removed(loaded)
    assert shapes(result) == [(4, 3, 3, 3), (8, 1, 3, 3), (4, 8, 3, 3)]


def two_branches(op: str, left: Mapping[int, float], right: Mapping[int, float], **attributes: int) -> ir.Model:
    """Two Convs 3 -> 4, joined by `op`, before a Conv without padding."""
    weights = {"wa": normal(4, 3, 1, 1, seed=1), "ba": normal(4, seed=2), "bb": normal(4, seed=4)}
    weights |= {"wb": normal(4, 3, 1, 1, seed=3), "w": normal(5, 8 if op == "Concat" else 4, 3, 3, seed=5)}
    dead(weights["wa"], weights["ba"], left)
    dead(weights["wb"], weights["bb"], right)
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"]),
        node("Conv", ["x", "wb", "bb"], ["b"]),
        node(op, ["a", "b"], ["s"], **attributes),
        node("Conv", ["s", "w"], ["y"]),
    ]
    return canonical(nodes, {"x": [1, 3, 6, 6]}, ["y"], weights)


def test_a_sum_loses_what_is_constant_in_both_operands() -> None:
    result, step = removed(two_branches("Add", {0: 1.0, 2: 2.0}, {0: -3.0, 1: 5.0}))
    assert shapes(result) == [(3, 3, 1, 1), (3, 3, 1, 1), (5, 3, 3, 3)]
    assert step.report.skipped == dict.fromkeys(("a", "b"), "1 constant channels stay: node 's' makes them vary")


def test_a_product_loses_what_is_zero_in_one_operand() -> None:
    result, _ = removed(two_branches("Mul", {0: 0.0, 2: 2.0}, {3: 0.0}))
    assert shapes(result) == [(2, 3, 1, 1), (2, 3, 1, 1), (5, 2, 3, 3)]


def test_concatenation_shifts_the_channels() -> None:
    result, _ = removed(two_branches("Concat", {0: 1.0}, {1: 2.0, 3: 0.0}, axis=1))
    assert shapes(result) == [(3, 3, 1, 1), (2, 3, 1, 1), (5, 5, 3, 3)]


@pytest.mark.parametrize("op", ["Flatten", "Reshape", "Squeeze"])
def test_columns_of_a_gemm_go_behind_a_flatten(op: str) -> None:
    w1, b1 = normal(6, 3, 3, 3, seed=1), normal(6, seed=2)
    dead(w1, b1, {1: 0.0, 5: 0.7})
    pooled = op == "Squeeze"
    inputs = {"Flatten": ["p"], "Reshape": ["p", "shape"], "Squeeze": ["p", "axes"]}[op]
    pool = node("GlobalAveragePool", ["c"], ["p"]) if pooled else node("Relu", ["c"], ["p"])
    columns = 6 if pooled else 6 * 16
    nodes = [node("Conv", ["x", "w1", "b1"], ["c"]), pool, node(op, inputs, ["f"])]
    nodes.append(node("Gemm", ["f", "w", "b"], ["y"], transB=1))
    weights = {"w1": w1, "b1": b1, "w": normal(3, columns, seed=3), "b": normal(3, seed=4)}
    weights |= {"shape": np.asarray([1, columns]), "axes": np.asarray([2, 3])}
    used = {name: weights[name] for n in nodes for name in n.input if name in weights}
    result, _ = removed(canonical(nodes, {"x": [1, 3, 6, 6]}, ["y"], used))
    assert shapes(result) == [(4, 3, 3, 3)]
    assert shapes(result, "Gemm") == [(3, columns * 4 // 6)]


def test_outputs_of_the_network_keep_their_channels() -> None:
    loaded = chain({})
    dead_last = loaded.graph.initializers["w2"].const_value.numpy().copy()
    dead_last[1] = 0
    loaded.graph.initializers["w2"].const_value = ir.Tensor(dead_last, name="w2")
    result, step = removed(loaded)
    assert shapes(result) == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert step.report.skipped == {"y": "1 constant channels stay: it is an input or output of the network"}


def test_a_node_that_may_mix_channels_keeps_them() -> None:
    mixed = [node("Transpose", ["r"], ["m"], perm=[0, 1, 3, 2])]
    result, step = removed(chain({1: 0.0}, *mixed))
    assert shapes(result) == [(6, 3, 3, 3), (4, 6, 3, 3)]
    reason = "1 constant channels stay: node 'm': Transpose may mix channels"
    assert step.report.skipped == {"c1": reason}


def test_one_channel_remains() -> None:
    result, step = removed(chain(dict.fromkeys(range(6), 0.5)))
    assert shapes(result) == [(1, 3, 3, 3), (4, 1, 3, 3)]
    assert step.report.skipped["c1"] == "1 constant channels stay: a tensor keeps one channel"
    assert step.report.skipped["y"] == "4 constant channels stay: it is an input or output of the network"


def test_channels_that_nothing_reads_go() -> None:
    loaded = chain({})
    unread = loaded.graph.initializers["w2"].const_value.numpy().copy()
    unread[:, 3] = 0
    loaded.graph.initializers["w2"].const_value = ir.Tensor(unread, name="w2")
    result, _ = removed(loaded)
    assert shapes(result) == [(5, 3, 3, 3), (4, 5, 3, 3)]


def test_a_quantized_network_is_left_alone() -> None:
    q = {"s": np.float32(0.1), "z": np.int8(0)}
    pair = [node("QuantizeLinear", ["r", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["m"])]
    result, step = removed(chain({1: 0.0}, *pair, **q))
    assert shapes(result) == [(6, 3, 3, 3), (4, 6, 3, 3)]
    assert list(step.report.skipped.values()) == ["the network is quantized"]


# Random networks


def planted(seed: int) -> tuple[ir.Model, dict[str, int]]:
    """A residual block, a depthwise Conv and a Concat with constant channels in known places.

    Returns:
        The network, and how many channels of each Conv must go.
    """
    rng = np.random.default_rng(seed)
    width = int(rng.integers(4, 10))
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def conv(source: str, name: str, shape: tuple[int, ...], channels: Sequence[int], value: float, pad: int) -> None:
        w, b = normal(*shape, seed=int(rng.integers(1 << 30))), normal(shape[0], seed=int(rng.integers(1 << 30)))
        noise = float(rng.choice([0.0, NOISE]))
        dead(w, b, dict.fromkeys(channels, value), noise)
        weights.update({f"{name}_w": w, f"{name}_b": b})
        group = width if shape[1] == 1 else 1
        nodes.append(node("Conv", [source, f"{name}_w", f"{name}_b"], [name], group=group, pads=[pad] * 4))
        nodes.append(node("Relu", [name], [f"{name}_r"]))

    both, one, side = (sorted(rng.choice(width, int(rng.integers(1, width - 1)), replace=False)) for _ in range(3))
    only = sorted(set(one) | set(both))
    conv("x", "stem", (width, 3, 3, 3), both, 0.0, 1)
    conv("stem_r", "body", (width, width, 3, 3), only, float(rng.uniform(0.1, 1)), 1)
    nodes.append(node("Add", ["stem_r", "body_r"], ["sum"]))
    conv("sum", "point", (width, width, 1, 1), side, 0.0, 0)
    conv("point_r", "deep", (width, 1, 3, 3), (), 0.0, 1)
    nodes.append(node("Concat", ["sum", "deep_r"], ["joined"], axis=1))
    conv("joined", "last", (5, 2 * width, 1, 1), (), 0.0, 0)
    gone = {"stem": len(both), "body": len(both), "point": len(side), "deep": len(side), "last": 0}
    return canonical(nodes, {"x": [1, 3, 7, 9]}, ["last_r"], weights), gone


@pytest.mark.parametrize("seed", range(12))
def test_planted_channels_go_and_outputs_stay(seed: int) -> None:
    loaded, gone = planted(seed)
    _, step = removed(loaded)
    metrics = step.report.metrics
    assert {name: int(metrics.get(f"channels_removed:{name}", 0)) for name in gone} == gone


@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize(
    "window",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0], "strides": [2, 3]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"pads": [1, 0, 1, 0], "strides": [1, 2], "dilations": [1, 2]},
    ],
    ids=str,
)
def test_bounds_at_padded_borders_are_met(window: dict[str, list[int]], size: int) -> None:
    w, b = normal(4, 4, 3, 3, seed=1), normal(4, seed=2)
    dead(w, b, dict.fromkeys(range(4), 0.7))
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        node("Conv", ["c", "d"], ["y"], group=4, **window),
    ]
    shape = [1, 4, size + 3, size + 4]
    loaded = canonical(nodes, {"x": shape}, ["y"], {"w": w, "b": b, "d": normal(4, 1, 3, 3, seed=3)})
    known = constant_channels(loaded)[loaded.graph.outputs[0]]
    got = run(loaded, {"x": normal(*shape)})["y"][0]
    assert (known.low < known.high).all()
    np.testing.assert_allclose(got.min((1, 2)), known.low, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.max((1, 2)), known.high, rtol=0, atol=1e-5)


def test_person_detection_keeps_half_of_its_multiplications() -> None:
    loaded = import_model(shared("models/mlperf_tiny_mobilenet_vww.onnx")).model
    with np.load(shared("data/photos_calib_96.npz")) as file:
        samples = file["x"].astype(np.float32) / np.float32(255)
    result, step = loaded.clone(), RemoveDeadChannels()
    step(result)
    assert step.report.metrics["macs_before"] == 7_489_664
    assert step.report.metrics["macs_after"] == 3_742_091
    assert step.report.skipped == {}
    name = str(loaded.graph.inputs[0].name)
    for row in samples[::10]:
        (expected,), (got,) = (run(m, {name: row[None]}).values() for m in (loaded, result))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
