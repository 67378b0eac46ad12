"""Quantized graphs to integer layers: every element equal to onnxruntime's, and the layers that were meant."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from backends.base import UnsupportedOpError
from backends.layers import Add, AveragePool, Concat, Conv, Layer, MaxPool, Mul, Pad, PRelu, Resize, Table
from backends.reference import run_layer
from compiler.lowering import Lowered, lower
from compiler.partition import partition
from tests.support.qdq import Attribute, QuantizedGraph, lowered_exactly

MAP = (1, 4, 7, 6)
STEP = 0.25 * 0.03125


def kinds(lowered: Lowered) -> list[type[Layer]]:
    return [type(layer) for layer in lowered.graph.layers]


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({}, (5, 4, 3, 3)),
        ({"pads": [1, 1, 1, 1]}, (5, 4, 3, 3)),
        ({"pads": [0, 1, 2, 0], "strides": [2, 1]}, (5, 4, 3, 2)),
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (5, 4, 3, 3)),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2]}, (5, 4, 3, 3)),
        ({"strides": [3, 3]}, (5, 4, 1, 1)),
        ({"group": 2}, (6, 2, 3, 3)),
        ({"group": 4, "pads": [1, 1, 1, 1]}, (4, 1, 3, 3)),
        ({"group": 4}, (8, 1, 3, 3)),
        ({}, (3, 4, 7, 6)),
    ],
)
@pytest.mark.parametrize("activation", ["none", "Relu", "Clip"])
def test_conv(attributes: dict[str, Attribute], shape: tuple[int, ...], activation: str) -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("Conv", graph.x, graph.weights(*shape), graph.bias(shape[0], STEP), **attributes)
    if activation == "Relu":
        y = graph.node("Relu", y)
    if activation == "Clip":
        y = graph.node("Clip", y, graph.constant(np.float32(-3.3)), graph.constant(np.float32(6.1)))
    lowered = lowered_exactly(graph, graph.pair(y))
    assert kinds(lowered) == [Conv]
    config = lowered.graph.layers[0].requantize
    bounds = {"none": (-128, 127), "Relu": (-5, 127), "Clip": (-12, 7)}
    assert (config.low, config.high) == bounds[activation]


def test_conv_with_a_scale_for_each_channel_and_a_real_bias() -> None:
    graph = QuantizedGraph(*MAP)
    weights = graph.weights(3, 4, 1, 1, scales=[0.125, 0.03125, 0.0078125])
    y = graph.node("Conv", graph.x, weights, graph.constant(np.array([0.25, -3.5, 1.125], np.float32)))
    lowered = lowered_exactly(graph, graph.pair(y))
    assert len(set(lowered.graph.layers[0].requantize.shift.tolist())) == 3


def test_pads_are_what_the_output_needs() -> None:
    graph = QuantizedGraph(1, 4, 8, 8)
    y = graph.node("Conv", graph.x, graph.weights(2, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    assert lowered_exactly(graph, graph.pair(y)).graph.layers[0].pads == (1, 1, 0, 0)


@pytest.mark.parametrize(
    "attributes", [{}, {"pads": [2, 1]}, {"strides": [2]}, {"dilations": [3], "pads": [3, 3]}, {"group": 2}]
)
def test_conv_of_a_signal(attributes: dict[str, Attribute]) -> None:
    graph = QuantizedGraph(1, 4, 11)
    weights = graph.weights(6, 4 // int(attributes.get("group", 1)), 3)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Conv", graph.x, weights, **attributes)))
    assert lowered.graph.inputs[0].shape == (4, 1, 11)
    assert lowered.graph.layers[0].kernel == (1, 3)


def test_gemm_of_a_flattened_map_is_a_kernel_as_large_as_the_map() -> None:
    graph = QuantizedGraph(1, 3, 4, 2)
    flat = graph.node("Flatten", graph.x)
    y = graph.node("Gemm", flat, graph.weights(5, 24), graph.bias(5, STEP), transB=1)
    lowered = lowered_exactly(graph, graph.pair(y))
    assert kinds(lowered) == [Conv]
    assert lowered.graph.layers[0].kernel == (4, 2)


def test_gemm_of_a_map_flattened_with_channels_last() -> None:
    graph = QuantizedGraph(1, 3, 4, 2)
    moved = graph.pair(graph.node("Transpose", graph.x, perm=[0, 2, 3, 1]), 0.25, 3)
    flat = graph.node("Reshape", moved, graph.constant(np.array([1, -1])))
    y = graph.node("Gemm", flat, graph.weights(5, 24), transB=1)
    assert kinds(lowered_exactly(graph, graph.pair(y))) == [Conv]


def test_matmul_has_its_weights_the_other_way_round() -> None:
    graph = QuantizedGraph(1, 9)
    codes = graph.rng.integers(-127, 128, (9, 5), dtype=np.int8)
    scales = np.array([0.25, 0.5, 0.125, 1.0, 0.0625], np.float32)
    weights = graph.node("DequantizeLinear", graph.constant(codes), graph.constant(scales), axis=1)
    lowered_exactly(graph, graph.pair(graph.node("MatMul", graph.x, weights), 4.0))


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 0, 0, 1]}, {"dilations": [2, 1]}])
def test_max_pool(attributes: dict[str, Attribute], ceil: int) -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("MaxPool", graph.x, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=ceil, **attributes)
    assert kinds(lowered_exactly(graph, graph.pair(y, 0.25, 3))) == [MaxPool]


def test_max_pool_into_another_scale_is_followed_by_a_table() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("Relu", graph.node("MaxPool", graph.x, kernel_shape=[2, 2]))
    assert kinds(lowered_exactly(graph, graph.pair(y))) == [MaxPool, Table]


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
def test_average_pool(pads: list[int], ceil: int, include: int) -> None:
    """Windows of 1, 2 and 4 divide exactly."""
    graph = QuantizedGraph(*MAP)
    attributes = {"pads": pads, "ceil_mode": ceil, "count_include_pad": include}
    y = graph.node("AveragePool", graph.x, kernel_shape=[2, 2], strides=[2, 2], **attributes)
    lowered = lowered_exactly(graph, graph.pair(y, 0.25, 9))
    assert kinds(lowered) == [AveragePool]
    layer = lowered.graph.layers[0]
    covered = sum((r.bottom - r.top) * (r.right - r.left) for r in layer.regions)
    assert covered == layer.output.shape[1] * layer.output.shape[2]


def test_an_average_over_other_windows_is_close() -> None:
    graph = QuantizedGraph(1, 8, 16, 16)
    y = graph.node("AveragePool", graph.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    lowered = lowered_exactly(graph, graph.pair(y, 0.10713, 9), scales_are_exact=False)
    assert len(lowered.graph.layers[0].regions) == 9


@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceMean", "ReduceMean without sides", "GlobalMaxPool"])
def test_global_pools(op: str) -> None:
    graph = QuantizedGraph(1, 5, 4, 8)
    if op.startswith("ReduceMean"):
        axes = graph.constant(np.array([2, 3]))
        y = graph.node("ReduceMean", graph.x, axes, keepdims=int(op == "ReduceMean"))
    else:
        y = graph.node(op, graph.x)
    lowered = lowered_exactly(graph, graph.pair(y, 0.25, 3))
    assert lowered.graph.outputs[0].shape == (5, 1, 1)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("case", ["equal", "second is small", "first is small"])
def test_two_values(op: str, case: str) -> None:
    graph = QuantizedGraph(*MAP)
    small = graph.pair(graph.node("GlobalMaxPool", graph.x), 0.25, 3)
    other = graph.pair(graph.node("Conv", graph.x, graph.weights(4, 4, 1, 1)), 0.5, -7)
    a, b = {"equal": (graph.x, other), "second is small": (other, small), "first is small": (small, other)}[case]
    y = graph.node("Relu", graph.node(op, a, b))
    lowered = lowered_exactly(graph, graph.pair(y, 0.5 if op != "Mul" else 8.0, -100))
    assert kinds(lowered)[-1] is (Mul if op == "Mul" else Add)
    assert lowered.graph.layers[-1].a.shape == lowered.graph.outputs[0].shape


@pytest.mark.parametrize(
    ("op", "is_first"),
    [("Add", False), ("Add", True), ("Sub", False), ("Sub", True), ("Mul", False), ("Mul", True), ("Div", False)],
)
def test_a_constant_for_each_channel_is_a_depthwise_conv(op: str, is_first: bool) -> None:
    graph = QuantizedGraph(*MAP)
    constant = graph.constant(np.array([0.5, -2.0, 4.0, 1.0], np.float32).reshape(1, 4, 1, 1))
    y = graph.node(op, *((constant, graph.x) if is_first else (graph.x, constant)))
    lowered = lowered_exactly(graph, graph.pair(y))
    assert kinds(lowered) == [Conv]
    assert lowered.graph.layers[0].is_depthwise


def test_batch_normalization_is_a_depthwise_conv() -> None:
    graph = QuantizedGraph(*MAP)
    parameters = [np.array(p, np.float32) for p in ([1, 2, 4, -1], [0, 1, 2, 3], [1, 0, 0, 2], [0.25, 1, 4, 16])]
    y = graph.node("BatchNormalization", graph.x, *(graph.constant(p) for p in parameters), epsilon=0.0)
    assert kinds(lowered_exactly(graph, graph.pair(y, 1.0))) == [Conv]


def test_prelu_with_a_slope_for_each_channel() -> None:
    graph = QuantizedGraph(*MAP)
    slope = graph.constant(np.array([0.5, 0.25, -0.125, 0.0], np.float32).reshape(4, 1, 1))
    assert kinds(lowered_exactly(graph, graph.pair(graph.node("PRelu", graph.x, slope)))) == [PRelu]


def test_prelu_with_one_slope_is_a_table() -> None:
    graph = QuantizedGraph(*MAP)
    slope = graph.constant(np.array([0.25], np.float32))
    assert kinds(lowered_exactly(graph, graph.pair(graph.node("PRelu", graph.x, slope)))) == [Table]


def test_concat_rescales_its_parts() -> None:
    graph = QuantizedGraph(*MAP)
    other = graph.pair(graph.node("Relu", graph.x), 0.125, -100)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Concat", graph.x, other, axis=1), 0.25, 3))
    assert kinds(lowered) == [Table, Concat]
    assert (lowered.graph.layers[1].multipliers[0], lowered.graph.layers[1].shifts[0]) == (1, 0)


@pytest.mark.parametrize(
    "attributes",
    [
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"coordinate_transformation_mode": "half_pixel"},
        {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"},
    ],
)
def test_resize(attributes: dict[str, Attribute]) -> None:
    graph = QuantizedGraph(*MAP)
    scales = graph.constant(np.array([1, 1, 2, 3], np.float32))
    y = graph.node("Resize", graph.x, "", scales, mode="nearest", **attributes)
    lowered = lowered_exactly(graph, graph.pair(y, 0.25, 3))
    assert kinds(lowered) == [Resize]
    assert lowered.graph.layers[0].factors == (2, 3)


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_pad(value: float) -> None:
    graph = QuantizedGraph(*MAP)
    pads = graph.constant(np.array([0, 0, 1, 0, 0, 0, 2, 3]))
    y = graph.node("Pad", graph.x, pads, graph.constant(np.float32(value)))
    lowered = lowered_exactly(graph, graph.pair(y, 0.25, 3))
    assert lowered.graph.layers[0] == Pad(
        lowered.graph.layers[0].name,
        lowered.graph.inputs[0],
        lowered.graph.outputs[0],
        (1, 0, 2, 3),
        int(value * 4) + 3,
    )


@pytest.mark.parametrize(
    "op",
    [
        "Abs",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Tanh",
    ],
)
def test_a_unary_function_is_a_table(op: str) -> None:
    graph = QuantizedGraph(1, 1, 16, 64)
    lowered = lowered_exactly(graph, graph.pair(graph.node(op, graph.x), 0.0625, -100))
    assert kinds(lowered) == [Table]


def test_a_cone_is_one_table() -> None:
    """x * Sigmoid(1.5 x) through two DequantizeLinear of one value, as onnxruntime's quantizer writes it."""
    graph = QuantizedGraph(1, 1, 16, 64)
    twin = graph.node("DequantizeLinear", *next(n for n in graph.nodes if n.op_type == "DequantizeLinear").input)
    inner = graph.node("Sigmoid", graph.node("Mul", twin, graph.constant(np.float32(1.5))))
    lowered = lowered_exactly(graph, graph.pair(graph.node("Mul", graph.x, inner), 0.125, -100))
    assert kinds(lowered) == [Table]
    assert lowered.graph.layers[0].table[[0, 131, 255]].tolist() == [-100, -100, 127]


def test_a_pair_after_a_pair_rescales() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("MaxPool", graph.pair(graph.x, 0.5, 10), kernel_shape=[2, 2])
    assert kinds(lowered_exactly(graph, graph.pair(y, 0.5, 10))) == [Table, MaxPool]


def test_one_value_quantized_twice_is_two_layers() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1))
    lowered = lowered_exactly(graph, graph.pair(y), graph.pair(y, 1.0, 4))
    assert [layer.name for layer in lowered.graph.layers] == [y[:-2], f"{y[:-2]}_2"]
    assert [tensor.name for tensor in lowered.graph.outputs] == [y, f"{y}_2"]


def test_narrow_activations_are_bounds() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)), 2.0, 1, ml_dtypes.int4)
    config = lowered_exactly(graph, y).graph.layers[0].requantize
    assert (config.low, config.high) == (-8, 7)


# Layout


def test_a_channel_shuffle_is_a_matter_of_the_next_weights() -> None:
    graph = QuantizedGraph(*MAP)
    shuffled = graph.pair(graph.node("Gather", graph.x, graph.constant(np.array([2, 0, 3, 1])), axis=1), 0.25, 3)
    y = graph.node("Conv", shuffled, graph.weights(5, 4, 3, 3))
    lowered = lowered_exactly(graph, graph.pair(y))
    assert kinds(lowered) == [Conv]
    assert lowered.graph.layers[0].input.name == "x"


def test_a_selection_of_channels_becomes_a_copying_conv_where_a_map_is_needed() -> None:
    graph = QuantizedGraph(*MAP)
    shapes = [graph.constant(np.array(s)) for s in ([1, 2, 2, 7, 6], [1, 4, 7, 6])]
    grouped = graph.node("Transpose", graph.node("Reshape", graph.x, shapes[0]), perm=[0, 2, 1, 3, 4])
    shuffled = graph.node("Reshape", grouped, shapes[1])
    y = graph.node("Conv", shuffled, graph.weights(4, 1, 3, 3), group=4)
    lowered = lowered_exactly(graph, graph.pair(y))
    assert kinds(lowered) == [Conv, Conv]
    copy = lowered.graph.layers[0]
    q = np.random.default_rng(0).integers(-128, 128, (1, *copy.input.shape), dtype=np.int8)
    np.testing.assert_array_equal(run_layer(copy, (q,)), q[:, [0, 2, 1, 3]])


def test_halves_of_a_split_go_their_ways() -> None:
    graph = QuantizedGraph(*MAP)
    first = graph.node("Split", graph.x, axis=1, num_outputs=2, outputs=2)
    second = first[:-1] + "1"
    left = graph.pair(graph.node("Conv", first, graph.weights(2, 2, 1, 1)), 0.5, 0)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Add", left, second), 0.5, 0))
    assert kinds(lowered) == [Conv, Conv, Add]


def test_an_elementwise_layer_keeps_any_order() -> None:
    graph = QuantizedGraph(*MAP)
    moved = graph.node("Transpose", graph.x, perm=[0, 2, 3, 1])
    y = graph.pair(graph.node("Sigmoid", moved), 2.0**-8, -128)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Add", y, moved), 0.25, 0))
    assert kinds(lowered) == [Table, Add]
    assert lowered.outputs[0].view.shape == (1, 7, 6, 4)


def test_a_reversed_slice_of_channels() -> None:
    graph = QuantizedGraph(*MAP)
    bounds = [graph.constant(np.array([v])) for v in (3, -5, 1, -2)]
    y = graph.node("Slice", graph.x, *bounds)
    lowered = lowered_exactly(graph, graph.pair(graph.node("MaxPool", y, kernel_shape=[2, 2]), 0.25, 3))
    assert kinds(lowered) == [Conv, MaxPool]
    assert lowered.graph.outputs[0].shape == (2, 6, 5)


# The whole


def test_layers_that_reach_no_output_are_dropped() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Relu", graph.x))
    graph.pair(graph.node("Sigmoid", graph.x))
    assert kinds(lowered_exactly(graph, y)) == [Table]


def test_head_and_tail_run_on_the_host() -> None:
    graph = QuantizedGraph(1, 6, scale=None)
    affine = graph.node("Mul", "x", graph.constant(np.linspace(0.5, 2, 6, dtype=np.float32)))
    y = graph.node("Gemm", graph.pair(affine, 0.25, 3), graph.weights(5, 6), transB=1)
    lowered = lowered_exactly(graph, graph.node("Softmax", graph.pair(y), axis=1))
    assert lowered.head is not None
    assert lowered.tail is not None
    assert [(node.op, node.side) for node in lowered.host_nodes] == [("Mul", "head"), ("Softmax", "tail")]


def test_two_outputs_one_of_them_in_the_middle() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)))
    z = graph.pair(graph.node("Sigmoid", y), 2.0**-8, -128)
    lowered = lowered_exactly(graph, y, z)
    assert len(lowered.graph.outputs) == 2


def test_the_graph_names_its_tensors_after_float_values() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("Relu", graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)))
    assert [tensor.name for tensor in lowered_exactly(graph, graph.pair(y)).graph.tensors()] == ["x", y]


# Refusals


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_window_that_starts_beyond_the_map_is_refused(op: str) -> None:
    graph = QuantizedGraph(*MAP)
    pads = {"pads": [0, 0, 0, 1], "ceil_mode": 1, "kernel_shape": [2, 2], "strides": [2, 2]}
    assert "starts beyond the map" in refusal(graph, graph.pair(graph.node(op, graph.x, **pads), 0.25, 3))


def refusal(graph: QuantizedGraph, *outputs: str, acc_bits: int = 24) -> str:
    model = graph.model(*outputs)
    with pytest.raises(UnsupportedOpError) as caught:
        lower(model, partition(model), acc_bits=acc_bits)
    return str(caught.value)


def test_asymmetric_weights_are_refused() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1, zero_point=3))
    expected = "node 'conv6' (Conv): its weights are asymmetric (their zero point is not 0)"
    assert refusal(graph, graph.pair(y)) == expected.replace("conv6", y[:-2])


def test_all_refusals_are_listed() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1, zero_point=3)))
    z = graph.pair(graph.node("Conv", y, graph.weights(3, 3, 1, 1, zero_point=3)))
    assert refusal(graph, z).count("asymmetric") == 2


def test_an_accumulator_that_could_overflow_is_refused() -> None:
    graph = QuantizedGraph(1, 64)
    weights = graph.node(
        "DequantizeLinear", graph.constant(np.full((3, 64), 127, np.int8)), graph.constant(np.float32(1))
    )
    y = graph.pair(graph.node("Gemm", graph.x, weights, transB=1), 256.0)
    expected = f"output channel 0 can reach {64 * 127 * 128}, beyond an accumulator of 20 bits"
    assert expected in refusal(graph, y, acc_bits=20)
    lowered_exactly(graph, y)


def test_a_factor_beyond_the_multiplier_is_a_step_of_the_accumulator() -> None:
    graph = QuantizedGraph(1, 4)
    y = graph.node("Gemm", graph.x, graph.weights(3, 4), transB=1)
    lowered = lowered_exactly(graph, graph.pair(y, 2.0**-30))
    assert lowered.graph.layers[0].requantize.shift.tolist() == [0, 0, 0]


def test_uint8_activations_are_the_importers_business() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Relu", graph.x), 0.5, 3, np.uint8)
    assert "activations of type UINT8 are not supported" in refusal(graph, y)


def test_a_node_of_the_host_between_two_layers_makes_two_segments() -> None:
    """The first layer's result goes on to the second segment, past the host, as it is."""
    graph = QuantizedGraph(*MAP)
    first = graph.pair(graph.node("Conv", graph.x, graph.weights(5, 4, 1, 1)), 4.0, 3)
    mixed = graph.pair(graph.node("CumSum", first, graph.constant(np.array(1))), 16.0, 0)
    second = graph.pair(graph.node("Conv", mixed, graph.weights(5, 5, 1, 1)), 64.0, 1)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Add", second, first), 64.0, 0))
    one, two = lowered.segments
    assert [kinds(replace(lowered, graph=segment.graph)) for segment in lowered.segments] == [[Conv], [Conv, Add]]
    assert [cut.value for cut in one.inputs] == ["x"]
    assert len(two.inputs) == 1
    assert two.graph.inputs[-1] == one.graph.outputs[0]
    assert one.outputs[0].tensor == one.graph.outputs[0]
    assert [node.side for node in lowered.host_nodes] == ["middle"]
    assert lowered.tail is None


def test_an_input_of_the_last_segment_is_not_sent_before() -> None:
    graph = QuantizedGraph(*MAP)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(4, 4, 1, 1)), 4.0, 3)
    y = graph.pair(graph.node("CumSum", y, graph.constant(np.array(1))), 16.0, 0)
    y = graph.pair(graph.node("Conv", y, graph.weights(4, 4, 1, 1)), 64.0, 1)
    other = graph.pair("x", 0.5, 0)
    lowered = lowered_exactly(graph, graph.pair(graph.node("Add", y, other), 64.0, 0))
    assert [node.op for node in lowered.host_nodes] == ["CumSum"]  # and not the pair that became a cut
    assert [len(segment.inputs) for segment in lowered.segments] == [1, 2]
    assert len(lowered.segments[0].graph.inputs) == 1
