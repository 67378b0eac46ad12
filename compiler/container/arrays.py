"""Raw bytes of tensors to arrays of integers and back: packed nibbles, two's complement, planes of floating words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.container.wire import TYPES, Class, Tensor

Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """The array that a tensor is coded as: rows are its first dimension."""
    rows = tensor.dims[0] if len(tensor.dims) > 1 else 1
    return rows, tensor.elements // rows


def kernel_of(tensor: Tensor) -> tuple[int, ...]:
    """Kernel sizes behind the input channels."""
    return tensor.dims[2:]


def to_integers(raw: bytes, data_type: int, elements: int) -> Integers:
    """The integers of a tensor of a SIGNED or UNSIGNED type, little-endian, the first element in the lowest bits."""
    kind = TYPES[data_type]
    if kind.bits >= 8:
        letter = "i" if kind.coded is Class.SIGNED else "u"
        return np.frombuffer(raw, f"<{letter}{kind.bits // 8}").astype(np.int64)
    per_byte = 8 // kind.bits
    shifts = np.arange(per_byte) * kind.bits
    codes = np.frombuffer(raw, np.uint8).astype(np.int64)[:, None] >> shifts & (1 << kind.bits) - 1
    codes = codes.ravel()[:elements]
    half = 1 << kind.bits - 1
    return (codes ^ half) - half if kind.coded is Class.SIGNED else codes


def from_integers(values: Integers, data_type: int) -> bytes:
    """The inverse of `to_integers`, unused bits 0. What does not fit is cut to its low bits."""
    kind = TYPES[data_type]
    if kind.bits >= 8:
        return values.astype(f"<i{kind.bits // 8}").tobytes()
    per_byte = 8 // kind.bits
    padded = np.zeros(-(-values.size // per_byte) * per_byte, np.int64)
    padded[: values.size] = values & (1 << kind.bits) - 1
    shifts = np.arange(per_byte) * kind.bits
    return (padded.reshape(-1, per_byte) << shifts).sum(axis=1).astype(np.uint8).tobytes()


def to_planes(raw: bytes, width: int) -> Bytes:
    """Words to planes, uint8 [width, words], the most significant byte first.

    Every word of up to 8 bytes is rotated left by one bit: a float's first byte is then all exponent, or nearly, and
    its sign is the last bit of the last byte.
    """
    words = np.frombuffer(raw, np.uint8).reshape(-1, width)
    if width in (2, 4, 8):
        typed = words.view(f"<u{width}").ravel()
        words = ((typed << 1) | (typed >> (8 * width - 1))).astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    return np.ascontiguousarray(words[:, ::-1].T)


def from_planes(planes: Bytes) -> bytes:
    """The inverse of `to_planes`."""
    width = planes.shape[0]
    words = np.ascontiguousarray(planes.T[:, ::-1])
    if width in (2, 4, 8):
        typed = words.view(f"<u{width}").ravel()
        words = ((typed >> 1) | (typed << (8 * width - 1))).astype(f"<u{width}")
    return words.tobytes()
