"""The integers and scales of quantization obey their laws, and the Q/DQ pairs stand where they should."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.importer import import_model
from passes import quantize_weights as qw
from passes import scales as q
from passes.quantize import Quantize, QuantizeConfig, quantize
from passes.scales import ActivationConfig, Ranges, Scale
from passes.statistics import session
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import Array, model, node, run
from tests.support.shared import shared

SCALES = st.builds(
    lambda low, high: q.scale_of_range(-low, high), st.floats(0, 1000, width=32), st.floats(0.0078125, 1000, width=32)
)
PLAIN = QuantizeConfig(equalize=None, reconstruct=False)


# Numbers


@given(SCALES, st.floats(-1, 1))
def test_round_trip_is_within_half_a_step(scale: Scale, place: float) -> None:
    low, high = ((code - scale.zero_point) * scale.scale for code in (-128, 127))
    value = np.float32(np.clip(place * max(-low, high), low, high))
    back = q.to_real(q.to_int8(value, scale), scale)
    assert abs(float(back) - float(value)) <= scale.scale / 2 * (1 + 1e-5)


@given(SCALES, st.lists(st.floats(-2000, 2000, width=32), min_size=2))
def test_rounding_is_monotone(scale: Scale, values: list[float]) -> None:
    codes = q.to_int8(np.sort(np.asarray(values, np.float32)), scale).astype(int)
    assert (np.diff(codes) >= 0).all()


@given(SCALES)
def test_zero_is_exact(scale: Scale) -> None:
    assert int(q.to_int8(0.0, scale)) == scale.zero_point


def test_ties_go_to_even() -> None:
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert q.to_int8(values, Scale(1.0, 0)).tolist() == [-2, -2, 0, 0, 2, 2]
    assert q.to_int8(values, Scale(1.0, 1)).tolist() == [-1, -1, 1, 1, 3, 3]


@settings(max_examples=30, deadline=None)
@given(SCALES, st.lists(st.floats(-2000, 2000, width=32), min_size=1, max_size=50))
def test_rounding_is_that_of_onnxruntime(scale: Scale, values: list[float]) -> None:
    weights = {"s": np.float32(scale.scale), "z": np.int8(scale.zero_point)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["y"])]
    proto = model(nodes, {"x": ["n"]}, ["y"], weights, opset=21, ir_version=10)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    x = np.asarray(values, np.float32)
    assert q.to_int8(x, scale).tolist() == run(proto, {"x": x})["y"].tolist()


def test_a_range_above_zero_begins_at_the_lowest_code() -> None:
    assert q.scale_of_range(0.0, 255.0) == Scale(1.0, -128)


def test_a_tensor_of_zeros_has_a_scale() -> None:
    assert q.scale_of_range(0.0, 0.0) == Scale(1.0, 0)


@given(st.floats(2.0**-32, 2.0**15))
def test_the_grid_is_odd_and_just_above(factor: float) -> None:
    snapped = q.on_grid(factor)
    assert factor <= snapped <= factor * (1 + 2.0**-14)
    mantissa, exponent = math.frexp(snapped)
    multiplier = math.ldexp(mantissa, 16)
    assert multiplier == int(multiplier)
    assert int(multiplier) % 2 == 1
    assert 16 - exponent <= 47


# Weights

SOURCE, TARGET = Scale(0.02, -128), Scale(0.05, 3)


def layer(weights: Array, bias: Array | None = None, acc_bits: int = 24) -> qw.QuantizedWeights:
    bias = np.zeros(len(weights), np.float32) if bias is None else bias
    return qw.quantize_weights(weights, bias.astype(np.float32), SOURCE, TARGET, acc_bits=acc_bits)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_factors_are_on_the_grid(seed: int, size: float, bias: float) -> None:
    made = layer(normal(8, 4, 3, 3, seed=seed, scale=size), normal(8, seed=seed, scale=bias))
    factors = SOURCE.scale * made.scale.astype(np.float64) / TARGET.scale
    multipliers = np.ldexp(np.frexp(factors)[0], 16)
    np.testing.assert_allclose(multipliers, np.rint(multipliers), rtol=1e-6)
    assert (np.rint(multipliers).astype(int) % 2 == 1).all()


def test_weights_are_within_half_a_step() -> None:
    weights = normal(8, 4, 3, 3)
    made = layer(weights)
    back = made.weights * made.scale.reshape(-1, 1, 1, 1).astype(np.float64)
    assert (np.abs(back - weights) <= made.scale.reshape(-1, 1, 1, 1) * 0.5001).all()
    assert np.abs(made.weights).max() == 127
    assert not made.is_raised.any()
    assert not made.is_dead.any()


def test_the_largest_weight_is_127_or_just_below() -> None:
    made = layer(normal(64, 16))
    assert (np.abs(made.weights).max(axis=1) >= 126).all()


def test_a_bias_that_would_overflow_raises_the_scale() -> None:
    made = layer(np.full((1, 4), 1e-5, np.float32), np.array([1e4]))
    assert made.is_raised.all() or made.is_dead.all()
    assert abs(int(made.bias[0])) <= qw.BIAS_MAX
    assert made.bias[0] * (SOURCE.scale * float(made.scale[0])) == pytest.approx(1e4, rel=1e-6)


@given(st.floats(-100, 100), st.floats(1e-30, 1e-9))
def test_float_noise_with_a_bias_is_code_0_and_keeps_the_bias(bias: float, noise: float) -> None:
    made = layer(np.full((1, 16), noise, np.float32), np.array([bias]))
    assert made.is_dead.all()
    assert not made.weights.any()
    real = made.bias[0] * SOURCE.scale * float(made.scale[0])
    assert real == pytest.approx(np.float32(bias), rel=1e-5, abs=TARGET.scale * 1e-4)


def test_an_empty_channel_is_legal() -> None:
    made = layer(np.zeros((2, 4), np.float32))
    assert made.is_dead.all()
    assert (made.scale > 0).all()
    assert not made.bias.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(600, 5000), st.integers(12, 26))
def test_accumulators_fit(inputs: int, acc_bits: int) -> None:
    weights = np.sign(normal(3, inputs)) * np.float32(0.1)
    made = layer(weights, acc_bits=acc_bits)
    low, high = qw.accumulator_range(made.weights)
    rows = made.weights.astype(np.int64)
    assert high.tolist() == np.where(rows > 0, rows * 127, rows * -128).sum(axis=1).tolist()
    assert (low >= -(2 ** (acc_bits - 1))).all()
    assert (high < 2 ** (acc_bits - 1)).all()


def test_a_raised_accumulator_is_no_coarser_than_needed() -> None:
    made = layer(np.full((1, 2000), 0.1, np.float32))
    low, _ = qw.accumulator_range(made.weights)
    assert made.is_raised.all()
    assert made.weights[0, 0] == (2**23) // (2000 * 128)
    assert low[0] - 2000 * 128 < -(2**23)


def test_an_offset_fits_48_bits() -> None:
    """|b - z * sum w| * M < 2**47 with M < 2**16, at the largest bias."""
    made = layer(normal(4, 500), np.array([1e9, -1e9, 1e-3, 0.0]))
    inside = made.bias.astype(np.int64) - SOURCE.zero_point * made.weights.astype(np.int64).sum(axis=1)
    assert (np.abs(inside) * 65535 < 2**47).all()


def test_an_output_too_fine_for_the_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="too fine for weights"):
        qw.quantize_weights(normal(1, 4, scale=1e9), np.zeros(1, np.float32), Scale(10.0, 0), Scale(1e-6, 0))


# Graphs

MAP = {"x": [1, 2, 6, 6]}
WEIGHTS = {"w": normal(2, 2, 3, 3), "b": normal(2, seed=1), "v": normal(4, 72, seed=2)}


def conv(source: str, result: str, weights: str = "w") -> onnx.NodeProto:
    return node("Conv", [source, weights, "b"], [result], pads=[1, 1, 1, 1])


def samples(*shape: int, count: int = 16) -> dict[str, Array]:
    return {"x": normal(count, *shape, seed=9)}


def quantized(loaded: ir.Model, config: QuantizeConfig = PLAIN, **but: str) -> ir.Model:
    shape = [int(size) for size in loaded.graph.inputs[0].shape]  # type: ignore[union-attr, arg-type]
    return quantize(loaded, every_node(loaded), samples(*shape[1:]), config)[0]


def scale_of(result: ir.Model, point: str) -> Scale:
    by_name = {n.name: n for n in result.graph}
    _, scale, zero_point = by_name[f"{point}_q"].inputs
    return Scale(float(scale.const_value.numpy()), int(zero_point.const_value.numpy()))  # type: ignore[union-attr]


def residual() -> ir.Model:
    nodes = [
        conv("x", "c1"),
        node("Relu", ["c1"], ["r1"]),
        conv("r1", "c2"),
        node("Add", ["r1", "c2"], ["a"]),
        node("Relu", ["a"], ["r2"]),
        node("AveragePool", ["r2"], ["p"], kernel_shape=[6, 6]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g"], ["y"], transB=1),
    ]
    return canonical(nodes, MAP, ["y"], {**WEIGHTS, "g": normal(3, 2, seed=3)})


def test_pairs_stand_at_the_points_alone() -> None:
    result = quantized(residual())
    marked = [n.metadata_props["edgec.point"] for n in result.graph if n.op_type == "QuantizeLinear"]
    assert marked == ["x", "r1", "c2", "r2", "p", "f", "y"]
    relu = next(n for n in result.graph if n.name == "r1")
    assert relu.inputs[0].producer().op_type == "Conv"  # type: ignore[union-attr]
    assert [n.op_type for n in relu.outputs[0].consumers()] == ["QuantizeLinear"]


def test_readers_take_the_dequantized_value_and_outputs_keep_their_name() -> None:
    result = quantized(residual())
    add = next(n for n in result.graph if n.op_type == "Add")
    assert [v.name for v in add.inputs if v is not None] == ["r1_dequantized", "c2_dequantized"]
    assert [v.name for v in result.graph.outputs] == ["y"]
    assert result.graph.outputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_weights_and_biases_are_integers() -> None:
    result = quantized(residual())
    layers = [n for n in result.graph if n.op_type in ("Conv", "Gemm")]
    for at in layers:
        weights, bias = (at.inputs[i].producer() for i in (1, 2))  # type: ignore[union-attr]
        assert weights.op_type == bias.op_type == "DequantizeLinear"  # type: ignore[union-attr]
        assert weights.inputs[0].dtype == ir.DataType.INT8  # type: ignore[union-attr]
        assert bias.inputs[0].dtype == ir.DataType.INT32  # type: ignore[union-attr]
    assert not {"w", "b", "g"} & set(result.graph.initializers)


def test_the_float_model_stays_intact() -> None:
    loaded = residual()
    before = ir.to_proto(loaded).SerializeToString(deterministic=True)
    quantized(loaded, QuantizeConfig())
    assert ir.to_proto(loaded).SerializeToString(deterministic=True) == before


def test_the_bytes_are_the_same_every_time() -> None:
    first, second = (ir.to_proto(quantized(residual(), QuantizeConfig())).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_the_file_is_valid_and_loads(level: str) -> None:
    proto = ir.to_proto(quantized(residual(), QuantizeConfig()))
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.opset_import[0].version, proto.ir_version) == (21, 10)
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    x = normal(1, 2, 6, 6, seed=50)
    (fast,) = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    np.testing.assert_allclose(fast, run(residual(), {"x": x})["y"], atol=0.1 * np.abs(fast).max())


def test_the_error_is_small() -> None:
    loaded, x = residual(), samples(2, 6, 6)
    result, _ = quantize(loaded, every_node(loaded), x)
    for row in x["x"]:
        expected, got = (run(m, {"x": row[None]})["y"] for m in (loaded, result))
        assert np.abs(expected - got).max() < 4 * scale_of(result, "y").scale


def test_relu_puts_the_zero_point_at_the_lowest_code() -> None:
    result = quantized(residual())
    assert scale_of(result, "r1").zero_point == scale_of(result, "r2").zero_point == -128


def assert_on_grid(factors: Array) -> None:
    """Whole numbers over the power of two that the largest decides, 16 bits of it."""
    multipliers = np.ldexp(factors, 16 - math.frexp(float(np.abs(factors).max()))[1])
    np.testing.assert_allclose(multipliers, np.rint(multipliers), rtol=1e-6)


def test_add_and_pool_factors_are_on_the_grid() -> None:
    result = quantized(residual())
    r2 = scale_of(result, "r2").scale
    assert_on_grid(np.array([scale_of(result, name).scale / r2 for name in ("r1", "c2")]))
    assert_on_grid(np.array([r2 / 36 / scale_of(result, "p").scale]))


def test_a_product_of_two_points_is_on_the_grid() -> None:
    nodes = [conv("x", "a"), conv("x", "c"), node("Mul", ["a", "c"], ["y"])]
    result = quantized(canonical(nodes, MAP, ["y"], WEIGHTS))
    a, c, y = (scale_of(result, name).scale for name in ("a", "c", "y"))
    assert_on_grid(np.array([a * c / y]))


def test_an_input_with_two_readers_moves_the_second_output() -> None:
    nodes = [
        conv("x", "c"),
        node("GlobalAveragePool", ["c"], ["p"]),
        node("Add", ["c", "x"], ["y"]),
    ]
    result = quantized(canonical(nodes, MAP, ["p", "y"], WEIGHTS))
    c, p, y = (scale_of(result, name).scale for name in ("c", "p", "y"))
    assert_on_grid(np.array([c / y]))
    assert_on_grid(np.array([c / 36 / p]))


def test_every_window_of_a_pool_is_on_the_grid() -> None:
    pool = node("AveragePool", ["c"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    result = quantized(canonical([conv("x", "c"), pool], MAP, ["y"], WEIGHTS))
    for window in (4, 6, 9):
        assert_on_grid(np.array([scale_of(result, "c").scale / window / scale_of(result, "y").scale]))


@pytest.mark.parametrize(
    ("attributes", "windows"),
    [
        ({}, (9,)),
        ({"pads": [1, 1, 1, 1]}, (4, 6, 9)),
        ({"pads": [1, 1, 1, 1], "count_include_pad": 1}, (9,)),
        ({"strides": [2, 2], "ceil_mode": 1}, (4, 6, 9)),
        ({"strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}, (4, 6, 9)),
    ],
)
def test_windows_of_an_average_pool(attributes: dict[str, object], windows: tuple[int, ...]) -> None:
    pool = node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], **attributes)
    loaded = canonical([pool], MAP, ["y"])
    assert q._windows(loaded.graph[0]) == windows


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_constants_for_each_channel_are_on_the_grid(op: str) -> None:
    each = np.array([0.3, -1.7, 0.0 if op == "Mul" else 5.0]).reshape(3, 1, 1).astype(np.float32)
    loaded = canonical([node(op, ["x", "each"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"], {"each": each})
    result, _ = quantize(loaded, every_node(loaded), samples(3, 4, 4), PLAIN)
    snapped = result.graph.initializers["y_factor"].const_value.numpy()  # type: ignore[union-attr]
    factor = scale_of(result, "x").scale / scale_of(result, "y").scale
    for value in snapped.ravel():
        if value:
            assert_on_grid(np.array([value * factor if op == "Mul" else factor / value]))
    np.testing.assert_allclose(snapped, each, rtol=2.0**-14)


def test_slopes_are_on_the_grid() -> None:
    slopes = np.array([0.25, -0.3, 0.7]).reshape(3, 1, 1).astype(np.float32)
    loaded = canonical([node("PRelu", ["x", "slope"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"], {"slope": slopes})
    result, _ = quantize(loaded, every_node(loaded), samples(3, 4, 4), PLAIN)
    snapped = result.graph.initializers["y_slope"].const_value.numpy()  # type: ignore[union-attr]
    factor = scale_of(result, "x").scale / scale_of(result, "y").scale
    assert_on_grid(np.append(snapped.ravel(), 1.0) * factor)
    np.testing.assert_allclose(snapped, slopes, rtol=0, atol=2.0**-15)


@pytest.mark.parametrize(
    "keeper",
    [
        node("MaxPool", ["c"], ["k"], kernel_shape=[2, 2]),
        node("Flatten", ["c"], ["k"]),
        node("Transpose", ["c"], ["k"], perm=[0, 1, 3, 2]),
        node("Reshape", ["c", "shape"], ["k"]),
        node("Resize", ["c", "", "scales"], ["k"], mode="nearest"),
    ],
    ids=lambda n: n.op_type,
)
def test_keepers_share_scale_and_zero_point(keeper: onnx.NodeProto) -> None:
    weights = {**WEIGHTS, "shape": np.array([1, -1]), "scales": np.array([1, 1, 2, 2], np.float32)}
    result = quantized(canonical([conv("x", "c"), keeper], MAP, ["k"], weights))
    assert scale_of(result, "c") == scale_of(result, "k")


def test_a_pad_value_is_inside_the_range() -> None:
    weights = {**WEIGHTS, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.float32(-40.0)}
    result = quantized(canonical([conv("x", "c"), node("Pad", ["c", "pads", "value"], ["y"])], MAP, ["y"], weights))
    scale = scale_of(result, "c")
    assert (-128 - scale.zero_point) * scale.scale == pytest.approx(-40.0, abs=scale.scale)


def test_concat_parts_share_the_scale_unless_read_elsewhere() -> None:
    nodes = [conv("x", "a"), conv("x", "c"), node("Concat", ["a", "c"], ["j"], axis=1), node("Neg", ["c"], ["n"])]
    result = quantized(canonical(nodes, MAP, ["j", "n"], {**WEIGHTS, "b": normal(2, scale=9)}))
    assert scale_of(result, "a") == scale_of(result, "j")
    assert scale_of(result, "c") != scale_of(result, "j")


def test_a_swish_cone_has_pairs_at_its_ends() -> None:
    nodes = [conv("x", "c"), node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])]
    result = quantized(canonical(nodes, MAP, ["y"], WEIGHTS))
    mul = next(n for n in result.graph if n.op_type == "Mul")
    assert [v.producer().op_type for v in mul.inputs] == ["DequantizeLinear", "Sigmoid"]  # type: ignore[union-attr]


def test_host_readers_of_an_input_keep_the_float_value() -> None:
    nodes = [conv("x", "c"), node("Softmax", ["x"], ["s"]), node("Add", ["c", "s"], ["y"])]
    loaded = canonical(nodes, MAP, ["y"], WEIGHTS)
    result, _ = quantize(loaded, frozenset({"c"}), samples(2, 6, 6), PLAIN)
    by_name = {n.name: n for n in result.graph}
    assert [v.name for v in by_name["s"].inputs if v is not None] == ["x"]
    assert [v.name for v in by_name["y"].inputs if v is not None] == ["c_dequantized", "s"]


def test_a_quantized_model_passes_through_with_the_reason() -> None:
    result = quantized(residual())
    again, report = quantize(result, every_node(result), samples(2, 6, 6))
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(result).SerializeToString()
    assert not report.changed
    assert "is quantized already" in report.skipped["c1"]


def test_nothing_accelerated_changes_nothing() -> None:
    result, report = quantize(residual(), frozenset(), samples(2, 6, 6))
    assert [n.op_type for n in result.graph] == [n.op_type for n in residual().graph]
    assert not report.changed


def test_only_so_many_samples_are_run() -> None:
    loaded = residual()
    _, report = quantize(loaded, every_node(loaded), samples(2, 6, 6), QuantizeConfig(samples=5))
    assert report.metrics["calibration_samples"] == 5


def test_shared_weights_are_quantized_for_each_reader() -> None:
    nodes = [conv("x", "c"), conv("c", "y")]
    result = quantized(canonical(nodes, MAP, ["y"], WEIGHTS))
    assert {"c_weight", "y_weight"} <= set(result.graph.initializers)


def test_another_opset_is_refused() -> None:
    loaded = residual()
    loaded.graph.opset_imports[""] = 17
    with pytest.raises(ir.passes.PreconditionError, match="needs opset 21, the model has 17"):
        Quantize(every_node(loaded), {})(loaded)


def test_a_layer_that_cannot_be_quantized_is_named() -> None:
    loaded = canonical([node("Gemm", ["x", "g"], ["y"], transB=1)], {"x": [1, 2]}, ["y"], {"g": normal(3, 2)})
    scales = {"x": Scale(1e6, 0), "y": Scale(1e-6, 0)}
    with pytest.raises(ir.passes.PassError, match=r"node 'y' \(Gemm\): the output's step 1e-06 is too fine"):
        Quantize(every_node(loaded), scales)(loaded)


@pytest.mark.parametrize("ranges", list(Ranges))
def test_inputs_keep_their_whole_range(ranges: Ranges) -> None:
    x = {"x": np.append(normal(40), 30).reshape(-1, 1).astype(np.float32)}
    loaded = canonical([node("Tanh", ["x"], ["y"])], {"x": [1, 1]}, ["y"])
    result, _ = quantize(loaded, every_node(loaded), x, QuantizeConfig(ActivationConfig(ranges=ranges)))
    scale = scale_of(result, "x")
    assert (127 - scale.zero_point) * scale.scale == pytest.approx(30, abs=scale.scale)


# Networks


def accuracy(result: ir.Model, x: Array, labels: Array) -> float:
    active = session(result)
    name = active.get_inputs()[0].name
    answers = [int(active.run(None, {name: row[None]})[0].argmax()) for row in x]
    return 100 * float(np.mean(np.asarray(answers) == labels))


def prepared(file: str, calibration: Array) -> tuple[ir.Model, ir.Model]:
    loaded = import_model(shared(f"models/{file}")).model
    name = str(loaded.graph.inputs[0].name)
    result, _ = quantize(loaded, every_node(loaded, "Softmax"), {name: calibration})
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ByteSize() < shared(f"models/{file}").stat().st_size / 1.9
    return loaded, result


@pytest.mark.slow
def test_resnet8_keeps_its_accuracy() -> None:
    with np.load(shared("data/cifar10_train_8068.npz")) as data:
        _, result = prepared("mlperf_tiny_resnet8.onnx", data["x"][:256].astype(np.float32))
    with np.load(shared("data/cifar10_devtest_500.npz")) as data:
        assert accuracy(result, data["x"].astype(np.float32), data["y"]) >= 88.8


@pytest.mark.slow
def test_keyword_spotting_keeps_its_accuracy() -> None:
    with np.load(shared("data/kws_calib_200.npz")) as data:
        _, result = prepared("mlperf_tiny_dscnn_kws.onnx", data["x"])
    with np.load(shared("data/kws_devtest_400.npz")) as data:
        assert accuracy(result, data["x"], data["y"]) >= 92.0


@pytest.mark.slow
def test_visual_wake_words_keeps_its_margins() -> None:
    with np.load(shared("data/photos_calib_96.npz")) as data:
        _, result = prepared("mlperf_tiny_mobilenet_vww.onnx", data["x"].astype(np.float32) / 255)
    with np.load(shared("data/vww_judge_600.npz")) as data:
        x, margin = data["x"].astype(np.float32) / 255, data["float_margin"]
    active = session(result)
    name = active.get_inputs()[0].name
    odds = np.log(np.concatenate([active.run(None, {name: row[None]})[0] for row in x]))
    found = odds[:, 1] - odds[:, 0]
    assert np.abs(found - margin).mean() <= 0.143
    for person in (True, False):
        of_class = (margin > 0) == person
        assert np.mean((found[of_class] > 0) == person) >= 0.97


@pytest.mark.slow
def test_float_noise_channels_of_visual_wake_words_are_dead() -> None:
    loaded = import_model(shared("models/mlperf_tiny_mobilenet_vww.onnx")).model
    with np.load(shared("data/photos_calib_96.npz")) as data:
        x = data["x"][::4].astype(np.float32) / 255
    _, report = quantize(loaded, every_node(loaded, "Softmax"), {str(loaded.graph.inputs[0].name): x}, PLAIN)
    assert report.metrics["dead_channels"] == 971


@pytest.mark.slow
def test_the_autoencoder_keeps_its_reconstruction_error() -> None:
    with np.load(shared("data/ad_calib_aug_1000.npz")) as data:
        calibration, x = data["x"][::2], data["x"][1::2]
    loaded, result = prepared("mlperf_tiny_autoencoder_ad.onnx", calibration)
    errors = []
    for each in (loaded, result):
        active = session(each)
        name = active.get_inputs()[0].name
        errors.append(np.mean([np.square(active.run(None, {name: row[None]})[0] - row).mean() for row in x]))
    assert errors[1] / errors[0] == pytest.approx(1, abs=0.02)
