"""The binary range coder: bits and their probabilities to bytes, and back."""

from __future__ import annotations

from typing import Protocol

STATE_BYTES = 4
_MASK = (1 << 32) - 1


class CodingError(ValueError):
    """A stream that no encoder of this package wrote, or a value that it has no code for."""


class BitCoder(Protocol):
    """Either direction, so that a model of data is written once."""

    def code(self, bit: int, probability: int) -> int:
        """The bit itself. A decoder takes no notice of `bit`, and returns what was written.

        Args:
            bit: 0 or 1.
            probability: Share of 65536 that bit 1 is given, 1 to 65535.
        """


class BitEncoder:
    """Narrows an interval of 32-bit numbers by each bit, and writes the leading bytes once its ends agree on them.

    Source: the carry-less range coder, Mahoney, Adaptive Weighing of Context Models for Lossless Data Compression,
    Florida Tech. CS-2005-16, section 2.
    """

    def __init__(self) -> None:
        self._low, self._high = 0, _MASK
        self._bytes = bytearray()

    def code(self, bit: int, probability: int) -> int:
        middle = self._low + ((self._high - self._low) * probability >> 16)
        if bit:
            self._high = middle
        else:
            self._low = middle + 1
        while not (self._low ^ self._high) >> 24:
            self._bytes.append(self._high >> 24)
            self._low = self._low << 8 & _MASK
            self._high = self._high << 8 & _MASK | 0xFF
        return bit

    def finish(self, *, whole: bool = False) -> bytes:
        """All that was written. The encoder is used up.

        Args:
            whole: Other data follows; else the end is as short as zeros behind it permit.
        """
        for count in range(STATE_BYTES if whole else 0, STATE_BYTES + 1):
            unit = 1 << 8 * (STATE_BYTES - count)
            number = -(-self._low // unit) * unit
            if number <= self._high:
                break
        return bytes(self._bytes) + number.to_bytes(STATE_BYTES, "big")[:count]


class BitDecoder:
    """The inverse of `BitEncoder`.

    Raises:
        CodingError: From `code`, where the data ends too soon.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data + bytes(STATE_BYTES)
        self._low, self._high = 0, _MASK
        self._value = int.from_bytes(self._data[:STATE_BYTES], "big")
        self._next = STATE_BYTES

    def code(self, bit: int, probability: int) -> int:
        middle = self._low + ((self._high - self._low) * probability >> 16)
        if self._value <= middle:
            bit, self._high = 1, middle
        else:
            bit, self._low = 0, middle + 1
        while not (self._low ^ self._high) >> 24:
            if self._next == len(self._data):
                raise CodingError("the coded data ends too soon")
            self._low = self._low << 8 & _MASK
            self._high = self._high << 8 & _MASK | 0xFF
            self._value = self._value << 8 & _MASK | self._data[self._next]
            self._next += 1
        return bit

    @property
    def position(self) -> int:
        """Bytes of the data that were needed so far."""
        return min(self._next, len(self._data) - STATE_BYTES)

    def finish(self) -> None:
        """Check that nothing is left over.

        Raises:
            CodingError: There are bytes that no read has touched.
        """
        if self._next < len(self._data) - STATE_BYTES:
            raise CodingError(f"{len(self._data) - STATE_BYTES - self._next} bytes of the coded data are left over")
