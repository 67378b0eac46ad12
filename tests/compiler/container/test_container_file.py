"""Containers: every ONNX file comes back byte for byte; what is derived is not stored; damage is refused."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from compiler.container import ContainerError, file, pack, sizes, unpack
from compiler.container.file import LONG, MAGIC, VERSION, WHOLE
from tests.support.containers import CHANNELS, float_file, long_file, quantized_file, sealed, some_containers, tensors
from tests.support.shared import shared

FLAGS = len(MAGIC) + 1


@given(st.lists(tensors(), max_size=5), st.lists(tensors(), max_size=2))
@settings(deadline=None, max_examples=40)
def test_any_tensors_come_back(initializers: list[TensorProto], attributes: list[TensorProto]) -> None:
    nodes = [onnx.NodeProto(op_type="Constant", output=[f"k{i}"]) for i in range(len(attributes))]
    for each, tensor in zip(nodes, attributes, strict=True):
        each.attribute.append(onnx.AttributeProto(name="value", t=tensor, type=onnx.AttributeProto.TENSOR))
    graph = onnx.GraphProto(name="g", node=nodes, initializer=initializers)
    data = onnx.ModelProto(ir_version=10, graph=graph).SerializeToString()
    packed = pack(data)
    assert unpack(packed) == data
    assert sizes(packed).total == len(packed)


@pytest.mark.parametrize("name", ["digits_cnn.onnx", "digits_mlp.onnx"])
def test_a_float_model_comes_back(name: str) -> None:
    data = Path("examples", name).read_bytes()
    packed = pack(data)
    assert unpack(packed) == data
    assert not packed[FLAGS] & WHOLE
    assert len(packed) < len(data)


def test_a_graph_of_odd_numbers_is_kept_whole() -> None:
    """A length of two bytes where one would do: no protobuf library writes it, and it must come back all the same."""
    graph = onnx.GraphProto(name="g", initializer=[numpy_helper.from_array(np.arange(9, dtype=np.int8), "w")])
    body = graph.SerializeToString()
    data = b"\x08\x0a\x3a" + bytes((len(body) | 0x80, 0)) + body
    packed = pack(data)
    assert packed[FLAGS] & WHOLE
    assert unpack(packed) == data


def test_a_long_graph_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    data = long_file()
    monkeypatch.setattr(file, "TEXT_BYTES_MAX", 1000)
    packed = pack(data)
    assert packed[FLAGS] == LONG
    assert unpack(packed) == data


def test_packing_without_the_check_gives_the_same() -> None:
    assert pack(float_file(), verify=False) == pack(float_file())


def test_external_data_is_refused(tmp_path: Path) -> None:
    proto = onnx.load("examples/digits_cnn.onnx")
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ContainerError, match="keeps its data in another file") as caught:
        pack((tmp_path / "m.onnx").read_bytes())
    assert caught.value.__notes__ == [
        "remedy: save the model with its weights inside, for instance with onnx.load and onnx.save"
    ]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x0a", b"\x3a\xff\xff"])
def test_what_is_no_onnx_file_is_refused(data: bytes) -> None:
    with pytest.raises(ContainerError, match="not an ONNX file"):
        pack(data)


# What is derived


def test_the_scales_and_biases_of_a_quantized_layer_are_almost_free() -> None:
    """Scales of 64 channels, on the grid: 256 bytes; biases and their scales: 512 bytes more."""
    found = sizes(pack(quantized_file()))
    assert found.scales < 64
    assert found.biases < 80


@pytest.mark.parametrize("which", ["weight_scale", "bias_scale", "bias"])
def test_a_value_that_does_not_follow_is_stored(which: str) -> None:
    proto = onnx.ModelProto.FromString(quantized_file())
    tensor = next(t for t in proto.graph.initializer if t.name == which)
    array = numpy_helper.to_array(tensor).copy()
    array.view(np.int32)[7] += 1
    tensor.raw_data = array.tobytes()
    data = proto.SerializeToString()
    packed = pack(data)
    assert unpack(packed) == data
    assert sizes(packed).total > sizes(pack(quantized_file())).total + 20


def test_scales_on_the_machines_grid_alone_take_two_bytes() -> None:
    rng = np.random.default_rng(1)
    plain, fine = quantized_file(), quantized_file(multipliers=2 * rng.integers(2**14, 2**15, CHANNELS) + 1)
    difference = sizes(pack(fine)).scales - sizes(pack(plain)).scales
    assert 1.2 * CHANNELS < difference < 2.3 * CHANNELS
    assert unpack(pack(fine)) == fine


def test_a_bias_of_another_exponent_is_found() -> None:
    """Three more bits in each of 64 counts are 24 bytes; the codes themselves would take 60."""
    usual, finer = sizes(pack(quantized_file())), sizes(pack(quantized_file(exponent=8)))
    assert finer.biases - usual.biases <= 26


# Refusals


def test_a_flipped_byte_anywhere_is_refused() -> None:
    packed = bytearray(pack(quantized_file()))
    for place in range(len(packed)):
        packed[place] ^= 0x10
        with pytest.raises(ContainerError):
            unpack(bytes(packed))
        packed[place] ^= 0x10
    assert unpack(bytes(packed)) == quantized_file()


def test_a_truncated_container_is_refused() -> None:
    packed = pack(quantized_file())
    for length in range(len(packed)):
        with pytest.raises(ContainerError):
            unpack(packed[:length])
    with pytest.raises(ContainerError, match="header declares others"):
        unpack(packed + b"\0")


def test_another_version_is_named() -> None:
    packed = bytearray(pack(float_file()))
    packed[len(MAGIC)] = VERSION + 1
    with pytest.raises(ContainerError, match=f"the container is of version {VERSION + 1}, not {VERSION}") as caught:
        unpack(bytes(packed))
    assert caught.value.__notes__ == ["remedy: unpack it with the edgec that wrote it, or a later one"]


def test_a_file_above_the_limit_is_refused() -> None:
    data = quantized_file()
    with pytest.raises(ContainerError, match=f"declares an ONNX file of {len(data)} bytes, more than 1000"):
        unpack(pack(data), limit=1000)
    assert unpack(pack(data), limit=len(data)) == data


def test_hostile_containers_are_refused_cleanly() -> None:
    """Mutated containers with their checksums made right again: a ContainerError, or some file of the declared size."""
    rng = random.Random(7)
    originals = some_containers()
    survived = 0
    for _ in range(100):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(5, len(data) - 4)
            data[place] = rng.randrange(256)
        try:
            unpack(sealed(bytes(data)), limit=1 << 20)
            survived += 1
        except ContainerError:
            pass
    assert survived < 10


def test_the_seal_is_the_checksum() -> None:
    packed = pack(float_file())
    assert sealed(packed) == packed
    assert zlib.crc32(packed[:-4]) == int.from_bytes(packed[-4:], "little")


# Real files


def test_the_graph_and_scales_of_a_real_file_are_small() -> None:
    path = shared("models", "mlperf_tiny_dscnn_kws.onnx")
    data = path.read_bytes()
    packed = pack(data)
    assert unpack(packed) == data
    assert sizes(packed).total == len(packed) < 0.95 * len(data)


def test_the_same_file_gives_the_same_container() -> None:
    assert pack(quantized_file()) == pack(quantized_file())
