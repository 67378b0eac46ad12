"""The graph part of a container: a protobuf message, by a model of bytes that has seen such messages before."""

from __future__ import annotations

import functools

from compiler.container.errors import damaged
from compiler.container.primer import PRIMER
from passes.coding.byte_model import ByteModel
from passes.coding.range_coder import BitDecoder, BitEncoder


class _Teacher:
    """Neither writes nor reads: a model that codes with it just learns."""

    def code(self, bit: int, probability: int) -> int:
        return bit


@functools.cache
def _taught() -> ByteModel:
    """A model that has read the primer."""
    model = ByteModel(_Teacher())
    model.code(PRIMER, len(PRIMER))
    return model


def encode_bytes(data: bytes) -> bytes:
    """The coded form of a skeleton."""
    encoder = BitEncoder()
    _taught().copy(encoder).code(data, len(data))
    return encoder.finish()


def decode_bytes(data: bytes, length: int) -> bytes:
    """The inverse of `encode_bytes`.

    Raises:
        ContainerError, CodingError: The data is damaged and the damage shows.
    """
    decoder = BitDecoder(data)
    result = _taught().copy(decoder).code(None, length)
    decoder.finish()
    if len(result) != length:
        raise damaged("its graph has not the declared size")
    return result
