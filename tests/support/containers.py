"""ONNX files for tests of containers: one quantized layer with everything on its grid, and a float one."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.container import pack
from passes.scale_grid import scale_of_factor, weight_scale
from tests.support.onnx_models import model, node

CHANNELS = 64
SOURCE, TARGET = np.float32(0.02), np.float32(0.05)


def quantized_file(
    *, exponent: int = 5, multipliers: NDArray[np.int64] | None = None, channels: int = CHANNELS, seed: int = 0
) -> bytes:
    """x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y. Its scales are on the logarithmic grid, or have `multipliers`."""
    rng = np.random.default_rng(seed)
    source, target = float(SOURCE), float(TARGET)
    if multipliers is None:
        scale = [weight_scale(int(k), source, target) for k in rng.integers(-33, -27, channels)]
    else:
        scale = [scale_of_factor(int(m), 24, source, target) for m in multipliers]
    scales = np.array(scale, np.float32)
    step = target * 2.0**-exponent
    counts = rng.integers(-40, 41, channels) * 2 ** (exponent - 5) + (exponent > 5)
    bias = np.rint(counts * step / (scales.astype(np.float64) * source)).astype(np.int32)
    weights = {
        "x_scale": SOURCE,
        "x_zero": np.int8(-3),
        "weight": np.rint(rng.normal(0, 2, (channels, 3, 3, 3))).astype(np.int8),
        "weight_scale": scales,
        "bias": bias,
        "bias_scale": scales * SOURCE,
        "y_scale": TARGET,
        "y_zero": np.int8(-128),
    }
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        node("DequantizeLinear", ["weight", "weight_scale"], ["wd"], axis=0),
        node("DequantizeLinear", ["bias", "bias_scale"], ["bd"], axis=0),
        node("Conv", ["xd", "wd", "bd"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "y_scale", "y_zero"], ["yq"]),
        node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]),
    ]
    return model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights, opset=21, ir_version=10).SerializeToString()


def float_file() -> bytes:
    """A Gemm of random float weights, an int64 shape, and a constant."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(20, 30)).astype(np.float32), "s": np.array([1, 30], np.int64)}
    constant = onnx.helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([1.5, 2.5])))
    nodes = [constant, node("Reshape", ["x", "s"], ["r"]), node("Gemm", ["r", "w"], ["y"], transB=1)]
    return model(nodes, {"x": [1, 5, 6]}, ["y"], weights).SerializeToString()


@functools.cache
def some_containers() -> tuple[bytes, ...]:
    """Small containers of several kinds, to damage."""
    odd = 2 * np.random.default_rng(2).integers(2**14, 2**15, 6) + 1
    return tuple(map(pack, (quantized_file(channels=4), quantized_file(channels=6, multipliers=odd), float_file())))


def sealed(data: bytes) -> bytes:
    """The container with its last checksum made right."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")
