"""The container file: header, graph, coded integers, raw bytes. docs/container.md describes it field by field."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from compiler import model_file
from compiler.container import wire
from compiler.container.errors import ContainerError, damaged
from compiler.container.roles import Bank, Part, assign
from compiler.container.tensors import TensorReader, TensorWriter, items_of
from compiler.container.text import decode_bytes, encode_bytes
from passes.coding.range_coder import CodingError
from passes.coding.symbols import Decoder, Encoder

MAGIC = b"\xedGEC"
VERSION = 1
WHOLE, LONG = 1, 2
"""Flags: the graph part is the whole file, nothing was cut out of it; it is coded as an array of integers."""
CRC_BYTES = 4
TEXT_BYTES_MAX = 1 << 16
"""A longer graph part is coded as an array: the model for texts is slow."""
ROW_BYTES = 256


@dataclass(frozen=True)
class Sizes:
    """Bytes of a container by what they stand for; they sum to the size of the file.

    Attributes:
        codes: Weights, as integers, indices or floats.
        codebooks: Tables that indices point into.
        scales: Scales and zero points.
        biases: Of Conv and Gemm.
        graph: The graph, its shapes and axes, and which method each tensor uses.
        headers: Magic, version, sizes, checksums.
    """

    codes: int
    codebooks: int
    scales: int
    biases: int
    graph: int
    headers: int

    @property
    def total(self) -> int:
        return self.codes + self.codebooks + self.scales + self.biases + self.graph + self.headers


@dataclass(frozen=True)
class _Header:
    """What stands before the parts.

    Attributes:
        flags: WHOLE, LONG or neither.
        file_bytes: Of the ONNX file.
        skeleton_bytes: Of its skeleton.
        parts: Bytes of the graph, of the coded integers, and of the raw part.
        file_crc: CRC32 of the ONNX file.
        end: Where the parts start.
    """

    flags: int
    file_bytes: int
    skeleton_bytes: int
    parts: tuple[int, int, int]
    file_crc: int
    end: int = 0


def pack(data: bytes, *, verify: bool = True) -> bytes:
    """The container of an ONNX file.

    Args:
        data: Bytes of the file, its weights inside.
        verify: Unpack the result and compare. It takes as long again; without it, what the tests of this package hold
            is all the assurance there is.

    Raises:
        ContainerError: It is no ONNX file, or has external data.
    """
    return pack_with_sizes(data)[0] if verify else _tried(data) or _packed(data, data, [], WHOLE)


def pack_with_sizes(data: bytes) -> tuple[bytes, Sizes]:
    """The container of an ONNX file, and where its bytes go: packed once, unpacked once and found to be the file.

    Raises:
        ContainerError: As `pack`.
    """
    packed = _tried(data)
    opened = None if packed is None else _opened(packed)
    if packed is not None and opened is not None and opened[0] == data:
        return packed, opened[1]
    packed = _packed(data, data, [], WHOLE)
    return packed, sizes(packed)


def unpack(data: bytes, limit: int = model_file.FILE_BYTES_MAX) -> bytes:
    """The ONNX file of a container, byte for byte.

    Args:
        data: Bytes of the container; they need not be trusted.
        limit: A larger ONNX file is refused before memory is taken for it.

    Raises:
        ContainerError: The container is damaged, of another version, or too large.
    """
    return unpack_with_sizes(data, limit)[0]


def sizes(data: bytes) -> Sizes:
    """Where the bytes of a container go.

    Raises:
        ContainerError: As `unpack`.
    """
    return unpack_with_sizes(data)[1]


def unpack_with_sizes(data: bytes, limit: int = model_file.FILE_BYTES_MAX) -> tuple[bytes, Sizes]:
    """Both at once; see `unpack` and `sizes`."""
    header, tally = _read_header(data, limit), _Tally()
    result = _restored(data, header, tally)
    if len(result) != header.file_bytes or zlib.crc32(result) != header.file_crc:
        raise damaged("the ONNX file does not match its checksum")
    counts = {part.value: tally.bytes.get(part, 0) for part in Part}
    counts["graph"] += header.parts[0]
    return result, Sizes(**counts, headers=len(data) - sum(header.parts))


# Packing


def _check(data: bytes) -> None:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as cause:
        raise _not_onnx() from cause
    if not model.HasField("graph"):
        raise _not_onnx()
    outside = [where for where, t in model_file.tensors(model) if t.data_location == TensorProto.EXTERNAL]
    if outside:
        error = ContainerError(f"{outside[0]} keeps its data in another file")
        error.add_note("remedy: save the model with its weights inside, for instance with onnx.load and onnx.save")
        raise error


def _tried(data: bytes) -> bytes | None:
    """The container with the tensors cut out, or None where they cannot be told apart."""
    _check(data)
    skeleton, raws = wire.cut(data)
    return _packed(data, skeleton, raws, 0) if _rejoined(skeleton, len(raws), raws) == data else None


def _not_onnx() -> ContainerError:
    error = ContainerError("not an ONNX file")
    error.add_note("remedy: give a file that a model was exported to")
    return error


def _rejoined(skeleton: bytes, count: int, raws: list[bytes]) -> bytes | None:
    """What the parts of a file give together; None where some tensor is not told apart from an empty one."""
    tensors = wire.read(skeleton).tensors
    if len(tensors) != count or any(t.bytes != len(raw) for t, raw in zip(tensors, raws, strict=True)):
        return None
    return wire.join(skeleton, raws)


def _packed(data: bytes, skeleton: bytes, raws: list[bytes], flags: int) -> bytes:
    coded, raw = b"", bytearray()
    if not flags & WHOLE:
        found = wire.read(skeleton)
        writer = TensorWriter(items_of(found.tensors, assign(found)), raws)
        coded, raw = writer.run(), writer.raw
    if len(skeleton) > TEXT_BYTES_MAX:
        flags |= LONG
    graph = _rows_encoded(skeleton) if flags & LONG else encode_bytes(skeleton)
    parts = (len(graph), len(coded), len(raw))
    head = _header(_Header(flags, len(data), len(skeleton), parts, zlib.crc32(data)))
    body = b"".join((head, graph, coded, raw))
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def _header(header: _Header) -> bytes:
    numbers = (header.file_bytes, header.skeleton_bytes, *header.parts)
    return b"".join(
        (
            MAGIC,
            bytes((VERSION, header.flags)),
            *map(wire.varint, numbers),
            header.file_crc.to_bytes(CRC_BYTES, "little"),
        )
    )


def _rows_encoded(data: bytes) -> bytes:
    padded = np.zeros(-(-len(data) // ROW_BYTES) * ROW_BYTES, np.int64)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    encoder = Encoder()
    encoder.write(padded.reshape(-1, ROW_BYTES), int(Bank.WORDS))
    return encoder.finish()


# Unpacking


@dataclass
class _Tally:
    """Bytes of the coded and raw parts by what they stand for."""

    bytes: dict[Part, int] = field(default_factory=dict)
    before: int = 0

    def add(self, part: Part, position: int) -> None:
        self.bytes[part] = self.bytes.get(part, 0) + position - self.before
        self.before = position


def _read_header(data: bytes, limit: int) -> _Header:
    """The header, once it is known to fit the container and the limit."""
    if data[: len(MAGIC)] != MAGIC:
        raise damaged("it does not start with the magic number of one")
    if len(data) < len(MAGIC) + 2:
        raise damaged("it is cut short")
    version, flags = data[len(MAGIC)], data[len(MAGIC) + 1]
    if version != VERSION:
        error = ContainerError(f"the container is of version {version}, not {VERSION}")
        error.add_note("remedy: unpack it with the edgec that wrote it, or a later one")
        raise error
    view, position, numbers = memoryview(data), len(MAGIC) + 2, []
    for _ in range(5):
        number, position = wire.read_varint(view, position, len(data))
        numbers.append(number)
    file_bytes, skeleton_bytes, *parts = numbers
    end = position + CRC_BYTES
    if flags & ~(WHOLE | LONG) or end + sum(parts) + CRC_BYTES != len(data):
        raise damaged(f"it has {len(data)} bytes, and its header declares others")
    if zlib.crc32(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise damaged("it does not match its checksum")
    if file_bytes > limit:
        raise damaged(f"it declares an ONNX file of {file_bytes} bytes, more than {limit}")
    if skeleton_bytes > file_bytes or (flags & WHOLE and (skeleton_bytes != file_bytes or parts[1] or parts[2])):
        raise damaged("its sizes contradict each other")
    crc = int.from_bytes(data[position:end], "little")
    return _Header(flags, file_bytes, skeleton_bytes, (parts[0], parts[1], parts[2]), crc, end)


def _restored(data: bytes, header: _Header, tally: _Tally) -> bytes:
    graph_end = header.end + header.parts[0]
    coded_end = graph_end + header.parts[1]
    graph, coded, raw = data[header.end : graph_end], data[graph_end:coded_end], data[coded_end:-CRC_BYTES]
    try:
        skeleton = _skeleton(graph, header)
        if header.flags & WHOLE:
            return skeleton
        found = wire.read(skeleton)
        if sum(tensor.bytes for tensor in found.tensors) > header.file_bytes - header.skeleton_bytes:
            raise damaged("its tensors are larger than its header declares")
        reader = TensorReader(items_of(found.tensors, assign(found)), coded, raw)
        raws = reader.run(lambda part: tally.add(part, reader.position))
        tally.add(Part.CODES, len(coded) + len(raw))
        return wire.join(skeleton, raws)
    except CodingError as error:
        raise damaged(str(error)) from error


def _opened(packed: bytes) -> tuple[bytes, Sizes] | None:
    """What `unpack_with_sizes` makes of it, None where it refuses."""
    try:
        return unpack_with_sizes(packed)
    except ContainerError:
        return None


def _skeleton(graph: bytes, header: _Header) -> bytes:
    if not header.flags & LONG:
        return decode_bytes(graph, header.skeleton_bytes)
    decoder, rows = Decoder(graph), -(-header.skeleton_bytes // ROW_BYTES)
    values = decoder.read(rows, ROW_BYTES, int(Bank.WORDS))
    decoder.finish()
    if values.size and not (int(values.min()) >= 0 and int(values.max()) <= 255):
        raise damaged("a byte of the graph is out of range")
    return values.astype(np.uint8).tobytes()[: header.skeleton_bytes]
