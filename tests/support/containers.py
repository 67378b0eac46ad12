"""ONNX files for tests of containers: one quantized layer with everything on its grid, and a float one."""

from __future__ import annotations

import functools
import random
import zlib

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from compiler.container import ContainerError, pack, wire
from compiler.container.file import MAGIC, VERSION
from compiler.container.roles import assign
from compiler.container.tensors import TensorWriter, items_of
from compiler.container.text import encode_bytes
from passes.scale_grid import scale_of_factor, weight_scale
from tests.support.onnx_models import model, node

CHANNELS = 64
TYPES = [
    TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32,
    TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT32,
    TensorProto.UINT64, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN,
    TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.UINT2, TensorProto.INT2,
]  # fmt: skip
BITS = {
    TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16, TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8, TensorProto.INT64: 64,
    TensorProto.DOUBLE: 64, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64, TensorProto.COMPLEX128: 128,
    TensorProto.UINT4: 4, TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.UINT2: 2, TensorProto.INT2: 2,
}  # fmt: skip

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


def long_file() -> bytes:
    """A chain of 40 Relus with names of 100 letters."""
    text = "value" * 20
    nodes = [node("Relu", [f"{text}_{i}"], [f"{text}_{i + 1}"]) for i in range(40)]
    return model(nodes, {f"{text}_0": [1, 2]}, [f"{text}_40"]).SerializeToString()


@functools.cache
def some_containers() -> tuple[bytes, ...]:
    """Small containers of several kinds, to damage."""
    odd = 2 * np.random.default_rng(2).integers(2**14, 2**15, 6) + 1
    return tuple(map(pack, (quantized_file(channels=4), quantized_file(channels=6, multipliers=odd), float_file())))


def sealed(data: bytes) -> bytes:
    """The container with its last checksum made right."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    """Any type, any small shape, any bytes that fill it; sometimes bytes that do not."""
    data_type = draw(st.sampled_from(TYPES))
    dims = draw(st.lists(st.integers(0, 5), max_size=4))
    size = -(-int(np.prod(dims, dtype=int)) * BITS.get(data_type, 32) // 8) + draw(st.sampled_from([0] * 9 + [1]))
    kind = draw(st.sampled_from(["zero", "small", "random"]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    raw = {"zero": bytes(size), "small": bytes(rng.choices([0, 1, 255], k=size)), "random": rng.randbytes(size)}[kind]
    return TensorProto(name=draw(st.text("abc", max_size=2)), dims=dims, data_type=data_type, raw_data=raw)


def mutated_skeletons(count: int) -> list[bytes]:
    """Containers whose graph was damaged before it was coded; sizes and checksums declare what the damage left.

    Where the damage takes no part in decoding, such a container is whole and decodes.
    """
    rng = random.Random(11)
    data = quantized_file(channels=6)
    skeleton, raws = wire.cut(data)
    found = wire.read(skeleton)
    writer = TensorWriter(items_of(found.tensors, assign(found)), raws)
    coded, containers = writer.run(), []
    while len(containers) < count:
        damaged = bytearray(skeleton)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 2, 3, 6, 7, 8, 255, rng.randrange(256)])
        try:
            tensors = wire.read(bytes(damaged)).tensors
            file = wire.join(bytes(damaged), [raw for raw, _ in zip(_cycled(raws, tensors), tensors, strict=False)])
        except ContainerError:
            file = data
        containers.append(_container(bytes(damaged), coded, bytes(writer.raw), file))
    return containers


def _cycled(raws: list[bytes], tensors: list[wire.Tensor]) -> list[bytes]:
    """Bytes for every tensor: its own where they fit, else zeros."""
    return [
        raws[number] if number < len(raws) and len(raws[number]) == tensor.bytes else bytes(min(tensor.bytes, 1 << 16))
        for number, tensor in enumerate(tensors)
    ]


def _container(skeleton: bytes, coded: bytes, raw: bytes, file: bytes) -> bytes:
    graph = encode_bytes(skeleton)
    numbers = (len(file), len(skeleton), len(graph), len(coded), len(raw))
    head = MAGIC + bytes((VERSION, 0)) + b"".join(map(wire.varint, numbers)) + zlib.crc32(file).to_bytes(4, "little")
    return sealed(head + graph + coded + raw + bytes(4))
