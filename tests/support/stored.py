"""Small quantized networks of given codes, and the proof that a stored form is the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.importer import import_model
from passes.storage.emit import PROPERTY, emit
from passes.storage.forms import Storage
from passes.weights import weights_of
from tests.support.onnx_models import model, node


def quantized(codes: NDArray[np.int8], groups: int | None = None) -> ir.Model:
    """x -> Q -> DQ -> Conv or Gemm of `codes` -> y; a Conv of one channel is depthwise unless told."""
    rng, rows = np.random.default_rng(1), codes.shape[0]
    groups = groups or (rows if codes.shape[1] == 1 else 1)
    constants = {
        "scale": np.array(0.0625, np.float32),
        "zero": np.array(3, np.int8),
        "codes": codes,
        "steps": 2.0 ** rng.integers(-9, -5, rows).astype(np.float32),
    }
    kernel = list(codes.shape[2:])
    layer = (
        node("Gemm", ["xq", "w"], ["y"], transB=1)
        if codes.ndim == 2
        else node("Conv", ["xq", "w"], ["y"], pads=[1] * 2 * len(kernel), group=groups, kernel_shape=kernel)
    )
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["xq"]),
        node("DequantizeLinear", ["codes", "steps"], ["w"], axis=0),
        layer,
    ]
    shape = (1, codes.shape[1]) if codes.ndim == 2 else (1, groups * codes.shape[1], *(8,) * len(kernel))
    proto = model(nodes, {"x": shape}, ["y"], constants, opset=21, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def layer_of(network: ir.Model) -> ir.Node:
    """Its one Conv or Gemm."""
    return next(item for item in network.graph if item.op_type in ("Conv", "Gemm"))


def outputs(data: bytes, level: ort.GraphOptimizationLevel) -> NDArray[np.float32]:
    """Of the network on a random input."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    active = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    shape = active.get_inputs()[0].shape
    feed = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    return np.asarray(active.run(None, {"x": feed})[0])


def check_stored(
    storage: Storage, shape: tuple[int, ...], folder: Path, groups: int | None = None
) -> tuple[onnx.ModelProto, int]:
    """`storage` takes fewer bytes, is valid, computes the same bit for bit, and is imported as plain codes.

    Returns:
        The file, and the bytes that it saves.
    """
    codes = storage.codes().reshape(shape).astype(np.int8)
    network = quantized(codes, groups)
    dense = ir.to_proto(network).SerializeToString()
    assert emit(layer_of(network), storage) is None
    proto = ir.to_proto(network)
    stored = proto.SerializeToString()
    assert len(stored) < len(dense)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        expected = outputs(dense, level)
        assert np.ptp(expected) > 0
        assert np.array_equal(outputs(stored, level), expected)
    path = folder / "stored.onnx"
    path.write_bytes(stored)
    layer = layer_of(import_model(path).model)
    weights = weights_of(layer)
    assert weights is not None
    assert weights.dequantize is not None
    assert weights.values.dtype == np.int8
    assert np.array_equal(weights.values, codes)
    assert weights.dequantize.metadata_props[PROPERTY] == storage.form
    return proto, len(dense) - len(stored)
