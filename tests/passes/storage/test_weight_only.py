"""Weight-only storage: codes, the nodes that read them, what onnxruntime computes at every level, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.importer import import_model
from passes.graph import bypass
from passes.storage.weight_only import BITS, Fit, StoreWeights, WeightOnlyConfig, quantize_tensor
from tests.support.canonical import canonical, normal
from tests.support.light_models import light_model
from tests.support.onnx_models import Array, imported, node, random_feeds
from tests.support.shared import shared

BASIC, ALL = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL
ROUNDING = 2e-6
"""Of float32 sums in another order. MatMulNBits, which quantizes activations, errs a thousand times more."""


def outputs(model: ir.Model, feeds: Mapping[str, Array], level: object = BASIC) -> list[Array]:
    """What onnxruntime computes with its own default settings but for the level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


def dequantized(model: ir.Model) -> ir.Model:
    """The same network with every DequantizeLinear of constants replaced by the float weights that it stands for."""
    plain = model.clone()
    for step in [n for n in plain.graph if n.op_type == "DequantizeLinear"]:
        codes, scale = (value.const_value.numpy() for value in step.inputs)  # type: ignore[union-attr]
        axis = step.attributes.get_int("axis", 1)
        if scale.ndim:
            scale = scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        real = codes.astype(np.float32) * scale
        name = f"{step.outputs[0].name}_real"
        value = ir.Value(name=name, shape=ir.Shape(real.shape), type=ir.TensorType(ir.DataType.FLOAT))
        value.const_value = ir.tensor(real, name=name)
        plain.graph.register_initializer(value)
        step.outputs[0].replace_all_uses_with(value)
        plain.graph.remove(step, safe=True)
    return plain


def distance(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference, relative to the largest value of its output."""
    pairs = zip(actual, expected, strict=True)
    return max(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs)


def store(model: ir.Model, **config: object) -> StoreWeights:
    step = StoreWeights(WeightOnlyConfig(**config))  # type: ignore[arg-type]
    step(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return step


def initializers(model: ir.Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (str(value.const_value.dtype), tuple(value.const_value.shape.numpy()))  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


# One case for each operator: node, shape of its input, shape of its weights, axis of the scales.

RECURRENT = {"hidden_size": 12}
CASES: dict[str, tuple[onnx.NodeProto, list[int | str], list[int], int]] = {
    "conv": (node("Conv", ["x", "w"], ["y"]), [1, 8, 9, 7], [16, 8, 3, 3], 0),
    "conv 1-d": (node("Conv", ["x", "w"], ["y"]), [1, 8, 9], [16, 8, 3], 0),
    "depthwise": (node("Conv", ["x", "w"], ["y"], group=40), [1, 40, 9, 7], [40, 1, 3, 3], 0),
    "transposed conv": (node("ConvTranspose", ["x", "w"], ["y"]), [1, 8, 5, 4], [8, 16, 3, 3], 1),
    "grouped transposed conv": (node("ConvTranspose", ["x", "w"], ["y"], group=2), [1, 8, 5, 4], [8, 6, 3, 3], 1),
    "gemm": (node("Gemm", ["x", "w"], ["y"]), [3, 24], [24, 20], 0),
    "gemm with alpha": (node("Gemm", ["x", "w"], ["y"], alpha=0.5), [1, 24], [24, 20], 0),
    "transposed gemm": (node("Gemm", ["x", "w"], ["y"], transB=1), [3, 24], [20, 24], 0),
    "matmul of a matrix": (node("MatMul", ["x", "w"], ["y"]), [3, 24], [24, 20], 0),
    "matmul of a row": (node("MatMul", ["x", "w"], ["y"]), [1, 24], [24, 20], 0),
    "matmul of a vector": (node("MatMul", ["x", "w"], ["y"]), [24], [24, 20], 0),
    "matmul of a batch": (node("MatMul", ["x", "w"], ["y"]), [2, 5, 24], [24, 20], 2),
    "matmul of four axes": (node("MatMul", ["x", "w"], ["y"]), [2, 3, 5, 24], [24, 20], 2),
    "matmul of stacks": (node("MatMul", ["x", "w"], ["y"]), [2, 5, 24], [2, 24, 20], 2),
    "matmul from the left": (node("MatMul", ["w", "x"], ["y"]), [24, 5], [20, 24], 0),
    "einsum": (node("Einsum", ["x", "w"], ["y"], equation="bik, khd -> bhid"), [2, 5, 24], [24, 4, 6], 2),
    "lstm": (node("LSTM", ["x", "w", "r"], ["y"], **RECURRENT), [4, 1, 9], [1, 48, 9], 1),
    "gru": (node("GRU", ["x", "w", "r"], ["y"], **RECURRENT), [4, 1, 9], [1, 36, 9], 1),
    "rnn": (node("RNN", ["x", "w", "r"], ["y"], direction="bidirectional", **RECURRENT), [4, 1, 15], [2, 12, 15], 1),
}


def case(name: str) -> ir.Model:
    operation, shape, weights, _ = CASES[name]
    arrays = {"w": normal(*weights, seed=1)}
    if "r" in operation.input:
        arrays = {"w": normal(*weights, seed=1, scale=0.2), "r": normal(weights[0], weights[1], 12, seed=2, scale=0.2)}
    return canonical([operation], {"x": shape}, ["y"], arrays)


@pytest.mark.parametrize("name", CASES)
def test_every_operator_computes_with_exactly_the_stored_values_at_every_level(name: str) -> None:
    model = case(name)
    feeds = random_feeds(ir.to_proto(model), 3)
    before = outputs(model, feeds)
    step = store(model, elements=200)
    assert {tensor.name for tensor in step.stored} == set(CASES[name][0].input) - {"x"}
    (dequantize, *_) = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert dequantize.attributes.get_int("axis") == CASES[name][3]
    expected = outputs(dequantized(model), feeds)
    for level in (BASIC, ALL):
        assert distance(outputs(model, feeds, level), expected) < ROUNDING
    assert 0 < distance(expected, before) < 0.03
    assert [array.shape for array in expected] == [array.shape for array in before]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("name", ["conv", "gemm", "matmul of a batch", "matmul of a matrix", "lstm"])
def test_every_width_computes_with_exactly_the_stored_values_at_every_level(name: str, bits: int) -> None:
    model = case(name)
    feeds = random_feeds(ir.to_proto(model), 4)
    store(model, bits=bits)
    expected = outputs(dequantized(model), feeds)
    for level in (BASIC, ALL):
        assert distance(outputs(model, feeds, level), expected) < ROUNDING
    kinds = {kind for kind, shape in initializers(model).values() if math.prod(shape) > 200}
    assert kinds == {"INT4" if bits <= 4 else "INT8" if bits <= 8 else "INT16"}


def test_a_first_operand_of_unknown_rank_gets_a_scale_for_each_input() -> None:
    nodes = [node("Relu", ["x"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    model = canonical(nodes, {"x": [2, 5, 24]}, ["y"], {"w": normal(24, 20)})
    model.graph[0].outputs[0].shape = None
    feeds = {"x": normal(2, 5, 24)}
    step = store(model)
    assert step.stored[0].axis == 0
    assert [n.op_type for n in model.graph] == ["Relu", "DequantizeLinear", "MatMul"]
    expected = outputs(dequantized(model), feeds)
    assert distance(outputs(model, feeds, ALL), expected) < ROUNDING


def test_tables_have_a_scale_for_each_row_where_rows_are_long() -> None:
    for shape, axis in (((50, 64), 0), ((200, 8), 1)):
        loaded = canonical([node("Gather", ["t", "x"], ["y"])], {"x": [4]}, ["y"], {"t": normal(*shape)})
        loaded.graph.inputs[0].type = ir.TensorType(ir.DataType.INT64)
        step = store(loaded)
        assert step.stored[0].axis == axis
        feeds = {"x": np.array([3, 0, 49, 7])}
        expected = outputs(dequantized(loaded), feeds)
        np.testing.assert_array_equal(outputs(loaded, feeds, ALL)[0], expected[0])


def test_one_tensor_of_several_readers_is_stored_once() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["a", "w"], ["b"]),
    ]
    loaded = canonical(nodes, {"x": [1, 16, 8, 8]}, ["b"], {"w": normal(16, 16, 3, 3, scale=0.1)})
    feeds = {"x": normal(1, 16, 8, 8)}
    step = store(loaded)
    assert [n.op_type for n in loaded.graph].count("DequantizeLinear") == 1
    assert step.report.changed == ("a", "b")
    assert sorted(initializers(loaded)) == ["w_codes", "w_scale"]
    assert distance(outputs(loaded, feeds, ALL), outputs(dequantized(loaded), feeds)) < ROUNDING


def test_readers_that_differ_in_their_axis_share_one_scale() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["w", "x"], ["b"]),
        node("MatMul", ["v", "w"], ["c"]),
        node("MatMul", ["u", "w"], ["d"]),
    ]
    inputs = {"x": [24, 24], "v": [24], "u": [2, 3, 24]}
    loaded = canonical(nodes, inputs, ["a", "b", "c", "d"], {"w": normal(24, 24)})
    feeds = {name: normal(*map(int, shape)) for name, shape in inputs.items()}
    step = store(loaded)
    assert step.stored[0].axis is None
    expected = outputs(dequantized(loaded), feeds)
    assert distance(outputs(loaded, feeds, ALL), expected) < ROUNDING


# Codes


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(BITS), st.sampled_from(list(Fit)), st.sampled_from([None, 0, 1, 2])
)
def test_codes_are_narrow_and_the_error_is_that_of_the_stored_values(
    seed: int, bits: int, fit: Fit, axis: int | None
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 9, 3))
    weights = (rng.standard_normal(shape) * rng.choice([1e-30, 1.0, 1e30])).astype(np.float32)
    weights *= rng.integers(0, 2, shape).astype(np.float32)
    config = WeightOnlyConfig(bits=bits, fit=fit)
    codes = quantize_tensor(weights, axis, config)
    assert codes.values.shape == shape
    values = codes.values.astype(np.int64)
    assert np.abs(values).max() <= config.limit
    scale = codes.scale if axis is None else codes.scale.reshape([-1 if i == axis else 1 for i in range(3)])
    assert (codes.scale > 0).all()
    difference = values * scale.astype(np.float64) - weights
    norm = float(np.linalg.norm(weights.astype(np.float64)))
    assert codes.error == pytest.approx(float(np.linalg.norm(difference)) / norm if norm else 0.0, rel=1e-9, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from(BITS))
def test_minmax_rounds_to_the_nearest_and_mse_is_never_worse(seed: int, bits: int) -> None:
    weights = np.random.default_rng(seed).standard_t(3, (6, 40)).astype(np.float32)
    minmax = quantize_tensor(weights, 0, WeightOnlyConfig(bits=bits, fit=Fit.MINMAX))
    step = minmax.scale.astype(np.float64)[:, None]
    assert np.abs(minmax.values.astype(np.float64) * step - weights).max() <= step.max() * (0.5 + 1e-4)
    mse = quantize_tensor(weights, 0, WeightOnlyConfig(bits=bits, fit=Fit.MSE))
    assert mse.error <= minmax.error * (1 + 1e-6)


def test_integer_weights_are_stored_without_error() -> None:
    integers = np.random.default_rng(0).integers(-126, 127, (8, 64)).astype(np.float32)
    integers[:, 0] = 127
    scales = np.exp2(np.arange(-4, 4, dtype=np.float32))
    codes = quantize_tensor(integers * scales[:, None], 0, WeightOnlyConfig())
    np.testing.assert_array_equal(codes.values, integers)
    np.testing.assert_array_equal(codes.scale, scales)
    assert codes.error == 0


def test_large_tensors_are_coded_row_by_row_alike() -> None:
    weights = normal(700, 300)
    config = WeightOnlyConfig(fit=Fit.MSE)
    whole = quantize_tensor(weights, 0, config)
    for row in (0, 217, 218, 219, 699):
        one = quantize_tensor(weights[row : row + 1], 0, config)
        np.testing.assert_array_equal(one.values[0], whole.values[row])
        assert one.scale[0] == whole.scale[row]


def test_few_bits_need_the_least_error_and_many_do_not() -> None:
    weights = normal(64, 300)
    for bits, gain in ((3, 0.85), (4, 0.95), (8, 1.0)):
        by_default = quantize_tensor(weights, 0, WeightOnlyConfig(bits=bits))
        minmax = quantize_tensor(weights, 0, WeightOnlyConfig(bits=bits, fit=Fit.MINMAX))
        assert by_default.error <= gain * minmax.error


@pytest.mark.parametrize("bits", [0, 1, 9, 32])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be one of .*, not {bits}"):
        WeightOnlyConfig(bits=bits)


def test_codes_below_their_container_say_their_width() -> None:
    for bits, said in ((3, "3"), (4, None), (6, "6"), (8, None), (16, None)):
        model = case("conv")
        store(model, bits=bits)
        assert model.graph[0].metadata_props.get("edgec.bits") == said


# What is left alone


def why(model: ir.Model, name: str, **config: object) -> str:
    """The reason for which initializer `name` is left, and it alone."""
    step = store(model, **config)
    assert step.stored == ()
    assert step.report.changed == ()
    assert list(step.report.skipped) == [name]
    return step.report.skipped[name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_left(value: float) -> None:
    weights = normal(16, 8, 3, 3)
    weights[3, 2, 1, 0] = value
    model = canonical([CASES["conv"][0]], {"x": [1, 8, 9, 7]}, ["y"], {"w": weights})
    assert why(model, "w") == "it has values that are NaN or infinite"


def test_small_tensors_are_left_without_words() -> None:
    model = canonical([CASES["gemm"][0]], {"x": [1, 8]}, ["y"], {"w": normal(8, 31)})
    step = store(model)
    assert (step.stored, dict(step.report.skipped)) == ((), {})


def test_half_precision_is_left() -> None:
    weights = normal(24, 20).astype(np.float16)
    proto = ir.to_proto(canonical([CASES["gemm"][0]], {"x": [3, 24]}, ["y"], {"w": normal(24, 20)}))
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del proto.graph.value_info[:]
    assert why(ir.from_proto(proto), "w") == "it is float16; float32 alone is stored as integers"


def test_elementwise_constants_are_left() -> None:
    model = canonical([node("Mul", ["x", "w"], ["y"])], {"x": [1, 300]}, ["y"], {"w": normal(1, 300)})
    assert why(model, "w").startswith("node 'y' (Mul) reads it; products and tables alone")


def test_biases_are_left() -> None:
    conv = node("Conv", ["x", "w", "b"], ["y"])
    model = canonical([conv], {"x": [1, 1, 4, 4]}, ["y"], {"w": normal(300, 1, 1, 1), "b": normal(300)})
    step = store(model)
    assert step.report.skipped["b"] == "it is no weight but a bias or state of node 'y' (Conv)"
    assert step.report.skipped["w"] == "codes and scales would take 1500 bytes, not 1200"


def test_tensors_with_a_larger_error_than_allowed_are_left() -> None:
    assert why(case("conv"), "w", bits=3, error=0.05).startswith("its relative error would be 0.2")


def test_what_the_network_returns_is_left() -> None:
    model = canonical([CASES["gemm"][0]], {"x": [3, 24]}, ["y"], {"w": normal(24, 20)})
    model.graph.outputs.append(model.graph.initializers["w"])
    assert why(model, "w") == "it is an input or output of the network"


def test_a_codebook_is_left() -> None:
    nodes = [
        node("Cast", ["codes"], ["index"], to=onnx.TensorProto.INT32),
        node("Gather", ["book", "index"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    weights = {"codes": np.arange(8 * 8 * 9, dtype=np.uint8).reshape(8, 8, 3, 3) % 40, "book": normal(300)}
    assert "it is a vector" in why(canonical(nodes, {"x": [1, 8, 9, 7]}, ["y"], weights), "book")
    nodes[2] = node("Reshape", ["w", "shape"], ["v"])
    nodes.append(node("Conv", ["x", "v"], ["y"]))
    weights = {
        "codes": np.arange(8 * 8 * 3, dtype=np.uint8).reshape(-1) % 40,
        "book": normal(100, 3),
        "shape": np.array([8, 8, 3, 3 // 3]),
    }
    assert "makes a constant of it" in why(canonical(nodes, {"x": [1, 8, 9, 7]}, ["y"], weights), "book")


def test_weights_in_a_subgraph_are_left() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["t"], "inner_matmul")],
        "then",
        [],
        [helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [3, 24])],
        [numpy_helper.from_array(normal(24, 24), "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "outer"], ["e"], "outer_matmul")],
        "else",
        [],
        [helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, [3, 24])],
    )
    choice = helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=other)
    proto = ir.to_proto(canonical([node("Relu", ["x"], ["y"])], {"x": [3, 24]}, ["y"], {"outer": normal(24, 24)}))
    proto.graph.node[0].CopyFrom(choice)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    step = store(model := ir.from_proto(proto))
    assert dict(step.report.skipped) == {
        "inner": "it lies inside a subgraph",
        "outer": "node 'outer_matmul' (MatMul) reads it inside a subgraph",
    }
    assert [n.op_type for n in model.graph] == ["If"]


def test_a_second_run_finds_nothing() -> None:
    model = case("conv")
    store(model)
    data = ir.to_proto(model).SerializeToString()
    step = store(model)
    assert (step.report.changed, dict(step.report.skipped)) == ((), {})
    assert ir.to_proto(model).SerializeToString() == data


def test_an_older_opset_is_refused() -> None:
    model = case("conv")
    model.graph.opset_imports[""] = 17
    with pytest.raises(ir.passes.PreconditionError, match="needs opset 21, the model has 17"):
        StoreWeights()(model)


# What is reported, and whole networks


def test_the_report_adds_up() -> None:
    model = canonical(
        [node("Gemm", ["x", "a"], ["h"], transB=1), node("Gemm", ["h", "b"], ["y"], transB=1)],
        {"x": [1, 30]}, ["y"], {"a": normal(20, 30), "b": normal(40, 20, seed=1)},
    )  # fmt: skip
    step = store(model)
    a, b = step.stored
    assert (a.name, a.shape, a.axis, a.before_bytes, a.after_bytes) == ("a", (20, 30), 0, 2400, 680)
    assert (b.name, b.before_bytes, b.after_bytes) == ("b", 3200, 960)
    metrics = step.report.metrics
    assert (metrics["before_bytes"], metrics["after_bytes"]) == (5600, 1640)
    assert metrics["largest_relative_error"] == max(a.error, b.error)
    assert min(a.error, b.error) < metrics["relative_error"] < max(a.error, b.error)


def large_bytes(model: ir.Model) -> int:
    """Of float32 initializers with 256 elements or more that are no vectors."""
    arrays: list[NDArray[np.generic]] = [v.const_value.numpy() for v in model.graph.initializers.values()]  # type: ignore[union-attr]
    return sum(array.nbytes for array in arrays if array.dtype == np.float32 and array.ndim > 1 and array.size >= 256)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_networks_of_the_onnx_package(name: str) -> None:
    model = imported(light_model(name)).model
    _keeps_its_function(model)
    assert large_bytes(model) == 0


@pytest.mark.parametrize("name", ["dtln_model_1", "fastestdet", "go1_policy", "mnist_8", "ultraface_rfb320"])
def test_networks_of_the_zoo(name: str) -> None:
    _keeps_its_function(import_model(shared("zoo", f"{name}.onnx")).model)


def _keeps_its_function(model: ir.Model) -> None:
    before = len(ir.to_proto(model).SerializeToString())
    _return_scores(model)
    feeds = random_feeds(ir.to_proto(model), 0)
    exact = outputs(model, feeds)
    step = store(model)
    assert len(step.stored) > 1
    assert len(ir.to_proto(model).SerializeToString()) < before / 2
    expected = outputs(dequantized(model), feeds)
    for level in (BASIC, ALL):
        assert distance(outputs(model, feeds, level), expected) < 2e-5
    for stored, real in zip(expected, exact, strict=True):
        assert 0 < np.linalg.norm(stored - real) < 0.15 * np.linalg.norm(real)  # FastestDet amplifies 0.7 % to 12 %


def _return_scores(model: ir.Model) -> None:
    """Without the Softmax at the end, behind which large scores all look alike."""
    last = model.graph.outputs[0].producer()
    if last is not None and last.op_type == "Softmax":
        assert bypass(last)


def test_the_importer_reads_what_was_stored() -> None:
    for name in CASES:
        model = case(name)
        feeds = random_feeds(ir.to_proto(model), 5)
        store(model)
        expected = outputs(model, feeds)
        again = imported(ir.to_proto(model)).model
        assert distance(outputs(again, feeds), expected) < ROUNDING, name


def test_int4_codes_take_half_a_byte() -> None:
    model = case("conv")
    step = store(model, bits=4)
    (value,) = (v for v in model.graph.initializers.values() if v.const_value.dtype == ir.DataType.INT4)  # type: ignore[union-attr]
    assert value.const_value is not None
    assert value.const_value.numpy().dtype == np.dtype(ml_dtypes.int4)
    assert len(value.const_value.tobytes()) == 16 * 8 * 9 // 2
    assert step.stored[0].after_bytes == 16 * 8 * 9 // 2 + 16 * 4
