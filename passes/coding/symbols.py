"""Arrays of small integers to bytes: binary decisions in the contexts of the codes around them, mixed and range coded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from passes.coding.mixing import Mixer
from passes.coding.range_coder import BitCoder, BitDecoder, BitEncoder, CodingError

MODELS = 8
"""Banks of adaptive states: arrays of one kind share a bank."""

_LENGTHS = 33  # decision 0: not zero; decision k: more than k bits
_TREES = 8  # mantissas of 2 .. 8 bits, and of all longer ones
_TREE = 8
_NODES = _LENGTHS + _TREES * _TREE
_SIGN = _NODES
_LOW = _NODES + 1
_ALL = _LOW + 32
_LEVELS = 24
_INPUTS = 6


class _Model:
    """What has been learned of one kind of arrays."""

    def __init__(self, coder: BitCoder) -> None:
        self._mixer = Mixer(coder, _INPUTS * _LEVELS * _LEVELS * _ALL, _ALL, _INPUTS)

    def code(self, values: list[list[int]] | None, rows: int, columns: int, period: int) -> list[list[int]]:
        """Code rows of integers; without values, read them."""
        above, above2 = [0] * columns, [0] * columns
        mean = [0] * columns
        out: list[list[int]] = []
        for index in range(rows):
            row = self._row(values[index] if values else None, columns, period, above, above2, mean)
            out.append(row)
            above, above2 = row, above
        return out

    def _row(
        self, values: list[int] | None, columns: int, period: int, above: list[int], above2: list[int], mean: list[int]
    ) -> list[int]:
        row: list[int] = []
        level = sum(mean) // columns
        for column in range(columns):
            left = row[column - 1] if column else 0
            left2 = row[column - 2] if column > 1 else 0
            back = row[column - period] if period and column >= period else 0
            contexts = (
                0,
                _size(abs(left)) * _LEVELS + _size(abs(left2)),
                _size(abs(above[column])) * _LEVELS + _size(abs(above2[column])),
                _fine(level),
                _fine(mean[column]),
                _size(abs(back)) * _LEVELS + _fine(2 * abs(left) + abs(above[column]) + abs(left2) << 6),
            )
            signs = (0, _sign(left), _sign(above[column]), _sign(back), _sign(left) * 3 + _sign(left2), 0)
            value = self._value(values[column] if values else 0, contexts, signs)
            row.append(value)
            size = min(abs(value), 1 << 16) << 8
            level += (size - level) >> 4
            mean[column] += (size - mean[column]) >> 3
        return row

    def _value(self, value: int, contexts: tuple[int, ...], signs: tuple[int, ...]) -> int:
        code = self._mixer.code
        bases = [(number * _LEVELS * _LEVELS + context) * _ALL for number, context in enumerate(contexts)]
        magnitude = abs(value)
        bits = magnitude.bit_length()
        length = 0
        while length < 32 and code(int(bits > length), [base + length for base in bases], length):
            length += 1
        if not length:
            return 0
        found = 1
        tree = _LENGTHS + min(length - 1, _TREES - 1) * _TREE
        for shift in range(length - 2, -1, -1):
            bit = magnitude >> shift & 1
            if found < _TREE:
                bit = code(bit, [base + tree + found for base in bases], tree + found)
            else:
                node = _LOW + shift
                bit = code(bit, [node] * _INPUTS, node)
            found = found * 2 + bit
        bases = [(number * _LEVELS * _LEVELS + context) * _ALL + _SIGN for number, context in enumerate(signs)]
        negative = code(int(value < 0), bases, _SIGN)
        if found > (1 << 31) - 1 + negative:
            raise CodingError("a coded number does not fit 32 bits")
        return -found if negative else found


def _size(magnitude: int) -> int:
    return min(magnitude, magnitude.bit_length() + 1, _LEVELS - 1)


def _fine(mean: int) -> int:
    bits = mean.bit_length()
    return min(2 * bits + (mean >> bits - 2 & 1), _LEVELS - 1) if bits > 1 else bits


def _sign(value: int) -> int:
    return (value > 0) - (value < 0) + 1


class Encoder:
    """Writes arrays and strings one after the other; what one teaches serves the next of its kind."""

    def __init__(self) -> None:
        self._coder = BitEncoder()
        self._models: dict[int, _Model] = {}

    def write(self, values: NDArray[np.integer], model: int = 0, kernel: tuple[int, ...] = ()) -> None:
        """Append one array.

        Args:
            values: Integers within int32, [rows, columns].
            model: Which bank of adaptive states, 0 to MODELS - 1.
            kernel: Kernel sizes behind the input channels where a row is a filter: columns = channels * prod(kernel).

        Raises:
            CodingError: A value is not within int32, or the array has not two axes.
        """
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
            raise CodingError(f"values must be integers [rows, columns], not {values.dtype} {list(values.shape)}")
        if values.size == 0:
            return
        if int(values.min()) < -(1 << 31) or int(values.max()) >= 1 << 31:
            raise CodingError("values must be within int32")
        model_of(self._models, model, self._coder).code(values.tolist(), *values.shape, math.prod(kernel))

    def finish(self) -> bytes:
        """All that was written. The encoder is used up."""
        return self._coder.finish()


class Decoder:
    """Reads what an `Encoder` wrote; the reads must be those writes, in their order.

    Raises:
        CodingError: From any read, where the data is damaged and the damage shows.
    """

    def __init__(self, data: bytes) -> None:
        self._coder = BitDecoder(data)
        self._models: dict[int, _Model] = {}

    def read(self, rows: int, columns: int, model: int = 0, kernel: tuple[int, ...] = ()) -> NDArray[np.int32]:
        """The next array, int32 [rows, columns]; the arguments are those of its `Encoder.write`."""
        if rows * columns == 0:
            return np.zeros((rows, columns), np.int32)
        coded = model_of(self._models, model, self._coder).code(None, rows, columns, math.prod(kernel))
        return np.array(coded, np.int32)

    def finish(self) -> None:
        """Check that all of the data was read.

        Raises:
            CodingError: Something is left over.
        """
        self._coder.finish()


def model_of(models: dict[int, _Model], model: int, coder: BitCoder) -> _Model:
    """The bank `model`, made when first used."""
    if not 0 <= model < MODELS:
        raise CodingError(f"model must be 0 to {MODELS - 1}, not {model}")
    if model not in models:
        models[model] = _Model(coder)
    return models[model]


def encode(values: NDArray[np.integer], kernel: tuple[int, ...] = ()) -> bytes:
    """One array by itself; see `Encoder.write`."""
    encoder = Encoder()
    encoder.write(values, kernel=kernel)
    return encoder.finish()


def decode(data: bytes, rows: int, columns: int, kernel: tuple[int, ...] = ()) -> NDArray[np.int32]:
    """The inverse of `encode`, int32 [rows, columns].

    Raises:
        CodingError: The data is damaged and the damage shows.
    """
    decoder = Decoder(data)
    values = decoder.read(rows, columns, kernel=kernel)
    decoder.finish()
    return values
