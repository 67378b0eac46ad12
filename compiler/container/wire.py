"""The protobuf wire format of an ONNX file, as far as it takes to cut the raw bytes of tensors out and put them back.

The skeleton is the file without them: every `raw_data` that fills its tensor exactly has length 0, and the lengths of
the messages around it are shorter by that much. Everything else stays byte for byte where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from compiler.container.errors import damaged

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
VARINT_BYTES_MAX = 10
RANK_MAX = 64
ELEMENTS_MAX = (1 << 31) - 1


class Class(Enum):
    """How the elements of a tensor are coded."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    WORDS = "words"


@dataclass(frozen=True)
class ElementType:
    """An ONNX data type: how many bits an element has, and how it is coded."""

    bits: int
    coded: Class


S, U, W = Class.SIGNED, Class.UNSIGNED, Class.WORDS
TYPES: Mapping[int, ElementType] = {
    1: ElementType(32, W),  # FLOAT
    2: ElementType(8, U),  # UINT8
    3: ElementType(8, S),  # INT8
    4: ElementType(16, U),  # UINT16
    5: ElementType(16, S),  # INT16
    6: ElementType(32, S),  # INT32
    7: ElementType(64, S),  # INT64
    9: ElementType(8, U),  # BOOL
    10: ElementType(16, W),  # FLOAT16
    11: ElementType(64, W),  # DOUBLE
    12: ElementType(32, W),  # UINT32
    13: ElementType(64, W),  # UINT64
    14: ElementType(64, W),  # COMPLEX64
    15: ElementType(128, W),  # COMPLEX128
    16: ElementType(16, W),  # BFLOAT16
    17: ElementType(8, W),  # FLOAT8E4M3FN
    18: ElementType(8, W),  # FLOAT8E4M3FNUZ
    19: ElementType(8, W),  # FLOAT8E5M2
    20: ElementType(8, W),  # FLOAT8E5M2FNUZ
    21: ElementType(4, U),  # UINT4
    22: ElementType(4, S),  # INT4
    23: ElementType(4, U),  # FLOAT4E2M1
    24: ElementType(8, W),  # FLOAT8E8M0
    25: ElementType(2, U),  # UINT2
    26: ElementType(2, S),  # INT2
}
"""TensorProto.DataType to how it is kept; a type without a line here stays in the skeleton."""
FLOAT = 1


class Message(Enum):
    """The messages on the way from the model to its tensors."""

    MODEL = "ModelProto"
    GRAPH = "GraphProto"
    NODE = "NodeProto"
    ATTRIBUTE = "AttributeProto"
    TENSOR = "TensorProto"


CHILDREN: Mapping[Message, Mapping[int, Message]] = {
    Message.MODEL: {7: Message.GRAPH},
    Message.GRAPH: {1: Message.NODE, 5: Message.TENSOR},
    Message.NODE: {5: Message.ATTRIBUTE},
    Message.ATTRIBUTE: {5: Message.TENSOR},
    Message.TENSOR: {},
}
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
INPUT, OUTPUT, OP_TYPE = 1, 2, 4


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number, wire_type: From its tag.
        start: Where the tag starts.
        body: Where its content starts: behind the tag, and behind the length of a LENGTH field.
        end: Where the next field starts.
        value: Of a VARINT; 0 for other types.
    """

    number: int
    wire_type: int
    start: int
    body: int
    end: int
    value: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor whose bytes are cut out.

    Attributes:
        name: Of an initializer; that of an attribute's tensor is of no use.
        dims: Sizes.
        data_type: A key of TYPES.
    """

    name: bytes
    dims: tuple[int, ...]
    data_type: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return byte_count(self.dims, self.data_type)


@dataclass(frozen=True)
class Node:
    """What of a node tells the roles of its tensors."""

    op_type: bytes
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


@dataclass
class Skeleton:
    """What a skeleton says: its nodes, and the tensors that were cut out of it, in the order of the file."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


def byte_count(dims: tuple[int, ...], data_type: int) -> int:
    """Bytes of a dense tensor; 0 where the type is unknown or the sizes are beyond all reason."""
    if data_type not in TYPES or len(dims) > RANK_MAX:
        return 0
    elements = 1
    for size in dims:
        if not 0 <= size <= ELEMENTS_MAX:
            return 0
        elements *= size
        if elements > ELEMENTS_MAX:
            return 0
    return -(-elements * TYPES[data_type].bits // 8)


def varint(value: int) -> bytes:
    """The shortest varint of `value` >= 0."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """The value at `position`, 64 bits at most, and where it ends."""
    value = 0
    for index in range(VARINT_BYTES_MAX):
        if position >= end:
            raise damaged("a number of the graph is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise damaged("a number of the graph has more than 64 bits")


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in data[start:end].

    Raises:
        ContainerError: The bytes are no message.
    """
    position = start
    while position < end:
        tag, body = read_varint(data, position, end)
        number, wire_type, value = tag >> 3, tag & 7, 0
        match wire_type:
            case 0:
                value, after = read_varint(data, body, end)
            case 1:
                after = body + 8
            case 2:
                length, body = read_varint(data, body, end)
                after = body + length
            case 5:
                after = body + 4
            case _:
                raise damaged(f"the graph has a field of wire type {wire_type}")
        if after > end or not number:
            raise damaged("a field of the graph reaches beyond its message")
        yield Field(number, wire_type, position, body, after, value)
        position = after


def _sizes(data: memoryview, start: int, end: int) -> tuple[tuple[int, ...], int, bytes]:
    """dims, data type and name of the TensorProto in data[start:end]."""
    dims: list[int] = []
    data_type, name = 0, b""
    for each in fields(data, start, end):
        match each.number, each.wire_type:
            case (1, 0):
                dims.append(each.value)
            case (1, 2):
                position = each.body
                while position < each.end:
                    value, position = read_varint(data, position, each.end)
                    dims.append(value)
            case (2, 0):
                data_type = each.value
            case (8, 2):
                name = bytes(data[each.body : each.end])
        if len(dims) > RANK_MAX:
            break  # byte_count refuses it
    return tuple(dims), data_type, name


def _rewritten(
    data: memoryview, start: int, end: int, message: Message, raw: Callable[[Tensor, Field], bytes]
) -> list[bytes | memoryview]:
    """The message with the content of every raw_data that `raw` is asked about replaced, and the lengths mended."""
    out: list[bytes | memoryview] = []
    kept = start
    tensor = Tensor(*_reordered(_sizes(data, start, end))) if message is Message.TENSOR else None
    for each in fields(data, start, end):
        if each.wire_type != LENGTH:
            continue
        if tensor is not None and each.number == RAW_DATA and tensor.bytes:
            part: list[bytes | memoryview] = [raw(tensor, each)]
        elif each.number in CHILDREN[message]:
            part = _rewritten(data, each.body, each.end, CHILDREN[message][each.number], raw)
        else:
            continue
        length = sum(map(len, part))
        if length == each.end - each.body:
            head = data[kept : each.body]
            out += [head, *part]
        else:
            _, after_tag = read_varint(data, each.start, end)
            out += [data[kept:after_tag], varint(length), *part]
        kept = each.end
    return [*out, data[kept:end]]


def _reordered(sizes: tuple[tuple[int, ...], int, bytes]) -> tuple[bytes, tuple[int, ...], int]:
    dims, data_type, name = sizes
    return name, dims, data_type


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The skeleton of an ONNX file, and the raw bytes of its tensors in the order of the file.

    Raises:
        ContainerError: The bytes are no protobuf message.
    """
    view, found = memoryview(data), []

    def take(tensor: Tensor, where: Field) -> bytes:
        raw = bytes(view[where.body : where.end])
        if len(raw) != tensor.bytes:
            return raw
        found.append(raw)
        return b""

    return b"".join(_rewritten(view, 0, len(view), Message.MODEL, take)), found


def read(skeleton: bytes) -> Skeleton:
    """The nodes of a skeleton, and the tensors that were cut out of it.

    Raises:
        ContainerError: It is no protobuf message.
    """
    result = Skeleton()
    view = memoryview(skeleton)

    def note(tensor: Tensor, where: Field) -> bytes:
        if where.end == where.body:
            result.tensors.append(tensor)
        return bytes(view[where.body : where.end])

    _rewritten(view, 0, len(view), Message.MODEL, note)
    for model_field in _children(view, 0, len(view), 7):
        for each in _children(view, model_field.body, model_field.end, 1):
            result.nodes.append(_node(view, each))
    return result


def _children(data: memoryview, start: int, end: int, number: int) -> Iterator[Field]:
    return (each for each in fields(data, start, end) if each.number == number and each.wire_type == LENGTH)


def _node(data: memoryview, where: Field) -> Node:
    op_type, inputs, outputs = b"", [], []
    for each in fields(data, where.body, where.end):
        if each.wire_type != LENGTH:
            continue
        text = bytes(data[each.body : each.end]) if each.number in (INPUT, OUTPUT, OP_TYPE) else b""
        if each.number == INPUT:
            inputs.append(text)
        elif each.number == OUTPUT:
            outputs.append(text)
        elif each.number == OP_TYPE:
            op_type = text
    return Node(op_type, tuple(inputs), tuple(outputs))


def join(skeleton: bytes, raws: list[bytes]) -> bytes:
    """The file of which `skeleton` and `raws` are the parts.

    Args:
        skeleton: Of `cut`.
        raws: One for each of `read(skeleton).tensors`, of its size.
    """
    view, rest = memoryview(skeleton), iter(raws)

    def give(tensor: Tensor, where: Field) -> bytes:
        return next(rest) if where.end == where.body else bytes(view[where.body : where.end])

    return b"".join(_rewritten(view, 0, len(view), Message.MODEL, give))
