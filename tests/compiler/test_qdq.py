"""QDQ models of onnxruntime's quantizer keep their quantization, code for code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compiler.importer import ModelError, import_model
from tests.support.onnx_models import Array, imported, model, node, ops, run, save

RNG = np.random.default_rng(2)


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


class _Samples(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter([{"x": weights(1, 3, 8, 8)} for _ in range(8)])

    def get_next(self) -> dict[str, Array] | None:  # type: ignore[override]
        return next(self._left, None)


def network() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "v"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["p", "d"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        node("Gemm", ["f", "u", "g"], ["y"]),
    ]
    constants = {
        "w": weights(4, 3, 3, 3), "b": weights(4), "v": weights(4, 4, 3, 3), "u": weights(64, 5), "g": weights(5)
    }  # fmt: skip
    return model(nodes, {"x": [1, 3, 8, 8]}, ["y"], constants, opset=17)


@pytest.mark.parametrize("activations", [QuantType.QUInt8, QuantType.QInt8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_quantize_static(tmp_path: Path, activations: QuantType, per_channel: bool) -> None:
    target = tmp_path / "qdq.onnx"
    quantize_static(
        save(network(), tmp_path), target, _Samples(), quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=activations, weight_type=QuantType.QInt8,
    )  # fmt: skip
    result = import_model(target).model
    quantizers = [n for n in result.graph if n.op_type == "QuantizeLinear"]
    before = [n for n in onnx.load(target).graph.node if n.op_type == "QuantizeLinear"]
    assert [n.name for n in quantizers] == [n.name for n in before]
    assert {n.outputs[0].dtype for n in quantizers} == {ir.DataType.INT8}
    assert {"Conv", "Gemm", "MaxPool", "Add"} <= set(ops(result))
    for _ in range(4):
        feeds = {"x": weights(1, 3, 8, 8)}
        np.testing.assert_array_equal(run(result, feeds)["y"], run(target, feeds)["y"])


def pair(source: str, result: str, zero: str = "z") -> list[onnx.NodeProto]:
    scales = ["s", zero] if zero else ["s"]
    return [
        node("QuantizeLinear", [source, *scales], [f"{result}_q"]),
        node("DequantizeLinear", [f"{result}_q", *scales], [result]),
    ]


@pytest.mark.parametrize("zero", ["z", ""])
def test_uint8_codes_shift_by_128(zero: str) -> None:
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(7, np.uint8)}
    constants = constants if zero else {"s": constants["s"]}
    proto = model(pair("x", "y", zero), {"x": [1, 500]}, ["y"], constants)
    result = imported(proto).model
    feeds = {"x": (weights(1, 500) * 10).astype(np.float32)}
    np.testing.assert_array_equal(run(result, feeds)["y"], run(proto, feeds)["y"])
    assert result.graph[0].inputs[2].const_value.numpy() == (7 if zero else 0) - 128  # type: ignore[union-attr]


def test_pool_between_quantizer_and_dequantizer() -> None:
    quantize, dequantize = pair("x", "y")
    dequantize.input[0] = "p"
    pool = node("MaxPool", [quantize.output[0]], ["p"], kernel_shape=[2, 2])
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(7, np.uint8)}
    proto = model([quantize, pool, dequantize], {"x": [1, 2, 6, 6]}, ["y"], constants)
    feeds = {"x": (weights(1, 2, 6, 6) * 10).astype(np.float32)}
    np.testing.assert_array_equal(run(imported(proto).model, feeds)["y"], run(proto, feeds)["y"])


def test_uint8_output_is_refused() -> None:
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(7, np.uint8)}
    proto = model(pair("x", "y")[:1], {"x": [1, 5]}, ["y_q"], constants)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    with pytest.raises(ModelError, match="output 'y_q' is a uint8 code") as caught:
        imported(proto)
    assert "keep the last DequantizeLinear" in caught.value.__notes__[0]


def test_microsoft_domain_is_standard_by_now() -> None:
    nodes = pair("x", "y")
    for n in nodes:
        n.domain = "com.microsoft"
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(3, np.int8)}
    proto = model(nodes, {"x": [1, 5]}, ["y"], constants, domains={"com.microsoft": 1})
    assert {n.domain for n in imported(proto).model.graph} == {""}


def test_batchnorm_behind_a_quantizer_stays_and_says_why() -> None:
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(3, np.int8)}
    constants |= {"g": weights(3), "b": weights(3), "m": weights(3), "v": np.ones(3, np.float32)}
    nodes = [*pair("x", "d"), node("BatchNormalization", ["d", "g", "b", "m", "v"], ["y"])]
    result = imported(model(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))
    assert ops(result.model) == ["QuantizeLinear", "DequantizeLinear", "BatchNormalization"]
    report = next(r for r in result.reports if r.name == "fold-batchnorm")
    assert report.skipped == {"y": "the network is quantized, and its input is not a Conv or Gemm"}
