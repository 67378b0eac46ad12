"""Transposes, reshapes and pads that exporters leave behind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.support.onnx_models import Array, assert_same_outputs, imported, model, node, ops

RNG = np.random.default_rng(9)
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def nhwc_conv(source: str, w: str, result: str) -> list[onnx.NodeProto]:
    """A Conv as tf2onnx writes it before its own optimizer: NHWC outside."""
    return [
        node("Transpose", [source], [f"{result}_in"], perm=TO_NCHW),
        node("Conv", [f"{result}_in", w], [f"{result}_out"], pads=[1, 1, 1, 1]),
        node("Transpose", [f"{result}_out"], [result], perm=TO_NHWC),
    ]


def test_nhwc_network_loses_its_transposes() -> None:
    nodes = [
        *nhwc_conv("x", "w", "c"),
        node("Add", ["c", "b"], ["a"]),
        node("Relu", ["a"], ["r"]),
        *nhwc_conv("r", "v", "d"),
        node("Add", ["d", "r"], ["s"]),
        node("Relu", ["s"], ["q"]),
        node("Reshape", ["q", "flat"], ["f"]),
        node("MatMul", ["f", "u"], ["y"]),
    ]
    constants = {
        "w": weights(4, 3, 3, 3), "v": weights(4, 4, 3, 3), "b": weights(4), "u": weights(6 * 5 * 4, 3),
        "flat": np.asarray([-1, 120]),
    }  # fmt: skip
    proto = model(nodes, {"x": ["N", 6, 5, 3]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Transpose", "Conv", "Relu", "Conv", "Add", "Relu", "Reshape", "Gemm"]
    assert_same_outputs(proto, result.model)


def test_squeeze_and_excite_in_nhwc() -> None:
    nodes = [
        *nhwc_conv("x", "w", "c"),
        node("ReduceMean", ["c"], ["m"], axes=[1, 2], keepdims=1),
        *[
            node("Transpose", ["m"], ["m_in"], perm=TO_NCHW),
            node("Conv", ["m_in", "u"], ["m_out"]),
            node("Transpose", ["m_out"], ["g"], perm=TO_NHWC),
        ],
        node("Sigmoid", ["g"], ["s"]),
        node("Mul", ["c", "s"], ["p"]),
        *nhwc_conv("p", "v", "d"),
        node("Concat", ["p", "d"], ["y"], axis=3),
    ]
    constants = {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 3, 3), "u": weights(4, 4, 1, 1)}
    proto = model(nodes, {"x": [1, 6, 5, 3]}, ["y"], constants)
    result = imported(proto)
    expected = ["Transpose", "Conv", "GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv", "Concat", "Transpose"]
    assert ops(result.model) == expected
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize(
    "inner",
    [
        [node("Pad", ["t", "pads"], ["z"])],
        [node("Slice", ["t", "starts", "ends", "axes"], ["z"])],
        [node("Softmax", ["t"], ["z"], axis=-1)],
        [node("Clip", ["t", "low"], ["z"])],
        [node("PRelu", ["t", "slope"], ["z"])],
        [node("Split", ["t"], ["z", "rest"], axis=3)],
        [node("Max", ["t", "slope"], ["z"])],
    ],
)
def test_one_node_between_two_transposes(inner: list[onnx.NodeProto]) -> None:
    nodes = [
        node("Abs", ["x"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=TO_NHWC),
        *inner,
        node("Transpose", ["z"], ["y"], perm=TO_NCHW),
    ]
    constants = {
        "pads": np.asarray([0, 1, 2, 0, 0, 3, 4, 0]), "starts": np.asarray([1, 0]), "ends": np.asarray([4, 2]),
        "axes": np.asarray([1, -1]), "low": np.asarray(0.5, np.float32), "slope": weights(4),
    }  # fmt: skip
    proto = model(nodes, {"x": [1, 4, 6, 5]}, ["y"], constants, opset=13)
    result = imported(proto)
    assert ops(result.model) == ["Abs", inner[0].op_type]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_the_map_is_global_average_pool(keepdims: int) -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=TO_NHWC),
        node("ReduceMean", ["t"], ["y"], axes=[1, 2], keepdims=keepdims),
    ]
    proto = model(nodes, {"x": [1, 4, 6, 5]}, ["y"])
    result = imported(proto)
    assert ops(result.model) == ["Relu", "GlobalAveragePool", "Reshape"]
    assert_same_outputs(proto, result.model)


def test_transpose_and_inverse_at_both_ends_keep_names() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=TO_NHWC), node("Transpose", ["t"], ["y"], perm=TO_NCHW)]
    proto = model(nodes, {"x": [1, 4, 6, 5]}, ["y"])
    result = imported(proto)
    assert [v.name for v in result.model.graph.outputs] == ["y"]
    assert_same_outputs(proto, result.model)


def test_channel_shuffle_is_one_gather() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Reshape", ["r", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "join"], ["j"]),
        node("Conv", ["j", "w"], ["y"]),
    ]
    constants = {
        "split": np.asarray([1, 2, 3, 4, 5]), "join": np.asarray([1, -1, 4, 5]), "w": weights(2, 6, 1, 1)
    }  # fmt: skip
    proto = model(nodes, {"x": [1, 6, 4, 5]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Relu", "Gather", "Conv"]
    assert result.model.graph[1].inputs[1].const_value.numpy().tolist() == [0, 3, 1, 4, 2, 5]
    assert_same_outputs(proto, result.model)


def test_pixel_shuffle_is_left_for_the_target() -> None:
    nodes = [
        node("Reshape", ["x", "split"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", ["t", "join"], ["y"]),
    ]
    constants = {"split": np.asarray([1, 1, 2, 2, 4, 5]), "join": np.asarray([1, 1, 8, 10])}
    proto = model(nodes, {"x": [1, 4, 4, 5]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Reshape", "Transpose", "Reshape"]
    report = next(r for r in result.reports if r.name == "canonicalize-layout")
    assert report.skipped == {"y": "it reorders elements within a channel"}


def test_shape_arithmetic_folds_to_a_constant() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["u"]),
        node("Concat", ["u", "minus"], ["target"], axis=0),
        node("Reshape", ["r", "target"], ["f"]),
        node("Gemm", ["f", "w"], ["y"]),
    ]
    constants = {
        "zero": np.asarray(0), "axes": np.asarray([0]), "minus": np.asarray([-1]), "w": weights(12, 2)
    }  # fmt: skip
    proto = model(nodes, {"x": ["N", 3, 2, 2]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Relu", "Reshape", "Gemm"]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("op", "size"), [("Conv", 7), ("Conv", 8), ("MaxPool", 7), ("AveragePool", 8)])
def test_auto_pad_becomes_explicit(mode: str, op: str, size: int) -> None:
    shape = {} if op == "Conv" else {"kernel_shape": [3, 3]}
    inputs = ["x", "w"] if op == "Conv" else ["x"]
    nodes = [node(op, inputs, ["y"], auto_pad=mode, strides=[2, 2], **shape)]
    proto = model(nodes, {"x": [1, 3, size, size]}, ["y"], {"w": weights(4, 3, 3, 3)} if op == "Conv" else {})
    result = imported(proto)
    assert "auto_pad" not in result.model.graph[0].attributes
    assert_same_outputs(proto, result.model)


def test_pad_of_zeros_goes_into_conv() -> None:
    nodes = [node("Pad", ["x", "pads"], ["p"]), node("Conv", ["p", "w"], ["y"], pads=[1, 0, 0, 1])]
    constants = {"pads": np.asarray([0, 0, 1, 2, 0, 0, 3, 4]), "w": weights(4, 3, 3, 3)}
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Conv"]
    assert list(result.model.graph[0].attributes["pads"].as_ints()) == [2, 2, 3, 5]
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize(
    ("op", "value", "reason"),
    [
        ("Conv", 1.0, "it does not pad with 0, as node 'y' (Conv) does"),
        ("MaxPool", 0.0, "it does not pad with the lowest float, as node 'y' (MaxPool) does"),
        ("AveragePool", 0.0, "node 'y' (AveragePool) reads it"),
    ],
)
def test_pad_that_stays_says_why(op: str, value: float, reason: str) -> None:
    inputs, extra = (["p", "w"], {}) if op == "Conv" else (["p"], {"kernel_shape": [3, 3]})
    nodes = [node("Pad", ["x", "pads", "v"], ["p"]), node(op, inputs, ["y"], **extra)]
    constants = {"pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.asarray(value, np.float32)}
    constants |= {"w": weights(4, 3, 3, 3)} if op == "Conv" else {}
    proto = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)
    result = imported(proto)
    assert ops(result.model) == ["Pad", op]
    assert next(r for r in result.reports if r.name == "merge-pad").skipped == {"p": reason}
    assert_same_outputs(proto, result.model)
