"""The graph part of a container: a protobuf message, by a model of bytes that has seen such messages before."""

from __future__ import annotations

import copy
import functools

from compiler.container.errors import damaged
from compiler.container.primer import PRIMER
from passes.coding.byte_model import ByteModel
from passes.coding.range_coder import BitCoder, BitDecoder, BitEncoder


class _Teacher:
    """Neither writes nor reads: a model that codes with it just learns."""

    def code(self, bit: int, probability: int) -> int:
        return bit


class _Switch:
    """A coder that can be exchanged under a model that has learned."""

    def __init__(self) -> None:
        self.target: BitCoder = _Teacher()

    def code(self, bit: int, probability: int) -> int:
        return self.target.code(bit, probability)


@functools.cache
def _taught() -> tuple[ByteModel, _Switch]:
    switch = _Switch()
    model = ByteModel(switch)
    model.code(PRIMER, len(PRIMER))
    return model, switch


def _model(target: BitCoder) -> ByteModel:
    """A model that has read the primer, before `target`."""
    model, switch = copy.deepcopy(_taught())
    switch.target = target
    return model


def encode_bytes(data: bytes) -> bytes:
    """The coded form of a skeleton."""
    encoder = BitEncoder()
    _model(encoder).code(data, len(data))
    return encoder.finish()


def decode_bytes(data: bytes, length: int) -> bytes:
    """The inverse of `encode_bytes`.

    Raises:
        ContainerError, CodingError: The data is damaged and the damage shows.
    """
    decoder = BitDecoder(data)
    result = _model(decoder).code(None, length)
    decoder.finish()
    if len(result) != length:
        raise damaged("its graph has not the declared size")
    return result
