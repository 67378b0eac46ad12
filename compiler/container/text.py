"""The graph part of a container: bytes of a protobuf message."""

from __future__ import annotations

import zlib

from compiler.container.errors import damaged


def encode_bytes(data: bytes) -> bytes:
    coder = zlib.compressobj(9, wbits=-15)
    return coder.compress(data) + coder.flush()


def decode_bytes(data: bytes, length: int) -> bytes:
    decoder = zlib.decompressobj(wbits=-15)
    try:
        result = decoder.decompress(data, length) if length else b""
    except zlib.error as error:
        raise damaged(f"its graph cannot be read: {error}") from error
    if len(result) != length or decoder.unconsumed_tail:
        raise damaged("its graph has not the declared size")
    return result
