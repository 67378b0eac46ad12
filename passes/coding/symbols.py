"""Arrays of integers to bytes: binary decisions in the contexts of the codes around them, mixed and range coded."""

from __future__ import annotations

import math
from operator import mul

import numpy as np
from numpy.typing import NDArray

from passes.coding.byte_model import ByteModel
from passes.coding.lanes import LaneModel, decode_lanes, encode_lanes
from passes.coding.mixing import Mixer
from passes.coding.range_coder import BitCoder, BitDecoder, BitEncoder, CodingError

MODELS = 8
"""Banks of adaptive states: arrays of one kind share a bank."""

_SCALAR_LEAST = 1 << 14
_SCALAR_TOTAL, _SCALAR_TOTAL_OF_LARGE = 300_000, 1 << 15
"""Smaller arrays, and the first so many symbols, are coded one by one: fewer bytes, in seconds. The rest is laned."""
_TRAILER = 4

_NODES = 32
_LENGTHS = 12
"""Decisions 0 to 11 ask whether a magnitude has more than that many bits. Behind them stand those on the bits after
the leading one: 12 for the one of 2-bit magnitudes, 13 to 15 for 3 bits, 16 to 22 for 4, 23 to 29 for the first
three of more."""
_TREES = (0, 11, 12, 15, 22)
_TREE = 8
_ANY, _COLUMN, _NEAR, _PRODUCT = (first * _NODES for first in (0, 1, 1 + 64, 1 + 64 + 32 * 8))
_SIGN = _PRODUCT + 64 * 8 * _NODES
_GUESS = _SIGN + 3
_PLACE = _GUESS + 15
_DEEP = _PLACE + 15 * 16
_LOW = _DEEP + 32
_SLOTS = _LOW + 32
_PLACES = 16
_LARGEST = 255
"""Neighbours count as at most this large."""
_GUESS_LIMIT = 1 << 17


class _Model:
    """What has been learned of one kind of arrays.

    A magnitude is expected to be that of its row times that of its column over that of all, and like its neighbours;
    its sign is guessed by a linear predictor that learns as it goes (normalised least mean squares).
    """

    def __init__(self, coder: BitCoder) -> None:
        self._mixer = Mixer(coder, _SLOTS, [4] * _NODES + [3], start=72090, rate=16)
        self._filter_weights = [0] * 10
        self._dense_weights = [0] * 6

    def code(self, values: list[list[int]] | None, rows: int, columns: int, kernel: tuple[int, ...]) -> list[list[int]]:
        """Code rows of integers; without values, read them."""
        period, width = math.prod(kernel), kernel[-1] if kernel else 1
        above, above2, sums, total = [0] * columns, [0] * columns, [0] * columns, 0
        out: list[list[int]] = []
        for index in range(rows):
            given = values[index] if values is not None else None
            row: list[int] = []
            small: list[int] = []
            row_total = 0
            for column in range(columns):
                if period > 1:
                    weights, near = self._filter_weights, _filter(small, above, above2, column, period, width)
                else:
                    weights, near = self._dense_weights, _dense(small, above, above2, column)
                mean = ((total + 1) << 8) // (index * columns + column + 1) + 1
                row_mean = ((row_total << 8) + 4 * mean) // (column + 4)
                column_mean = ((sums[column] << 8) + 3 * mean) // (index + 3)
                product = row_mean * column_mean // mean
                guess = min(max(sum(map(mul, weights, near)) >> 8, -_GUESS_LIMIT), _GUESS_LIMIT)
                step = min(max((6 * guess + (mean + 64 >> 1)) // (mean + 64), -7), 7)
                left = abs(small[column - 1]) if column else 0
                contexts = (
                    _ANY,
                    _COLUMN + _quarter(column_mean) * _NODES,
                    _NEAR + (_half((3 * product + _mean(near)) >> 2) * 8 + min(_size(left), 7)) * _NODES,
                    _PRODUCT + (_quarter(product) * 8 + abs(step)) * _NODES,
                )
                place = column % period if 1 < period <= _PLACES else 0
                signs = [_SIGN + _sign(near[2]), _GUESS + step + 7, _PLACE + (step + 7) * _PLACES + place]
                value = self._value(given[column] if given is not None else 0, contexts, signs)
                row.append(value)
                clipped = min(max(value, -_LARGEST), _LARGEST)
                small.append(clipped)
                energy = sum(map(mul, near, near))
                if energy:
                    share = (((clipped << 8) - guess) << 15) // (energy + (mean * mean >> 13) + 1)
                    weights[:] = [weight + (share * value >> 12) for weight, value in zip(weights, near)]
                size = abs(clipped)
                total += size
                row_total += size
                sums[column] += size
            out.append(row)
            above, above2 = small, above
        return out

    def _value(self, value: int, contexts: tuple[int, ...], signs: list[int]) -> int:
        code, alone = self._mixer.code, self._mixer.code_alone
        magnitude = abs(value)
        bits = magnitude.bit_length()
        length = 0
        while length < 32:
            more = int(bits > length)
            if length < _LENGTHS:
                more = code(more, [base + length for base in contexts], length)
            else:
                more = alone(more, _DEEP + length)
            if not more:
                break
            length += 1
        if not length:
            return 0
        found = 1
        tree = _TREES[min(length - 1, 4)]
        for shift in range(length - 2, -1, -1):
            bit = magnitude >> shift & 1
            if found < _TREE:
                node = tree + found
                bit = code(bit, [base + node for base in contexts], node)
            else:
                bit = alone(bit, _LOW + shift)
            found = found * 2 + bit
        negative = code(int(value < 0), signs, _NODES)
        if found > (1 << 31) - 1 + negative:
            raise CodingError("a coded number does not fit 32 bits")
        return -found if negative else found


def _filter(row: list[int], above: list[int], above2: list[int], column: int, period: int, width: int) -> list[int]:
    """Neighbours in the kernel (left, second left, over, over left, over right, second over), the same place of the
    two input channels before, and of the two output channels before."""
    down, across = divmod(column % period, width)
    return [
        row[column - 1] if across else 0,
        row[column - 2] if across > 1 else 0,
        row[column - width] if down else 0,
        row[column - width - 1] if down and across else 0,
        row[column - width + 1] if down and across < width - 1 else 0,
        row[column - period] if column >= period else 0,
        above[column],
        above2[column],
        row[column - 2 * width] if down > 1 else 0,
        row[column - 2 * period] if column >= 2 * period else 0,
    ]


def _dense(row: list[int], above: list[int], above2: list[int], column: int) -> list[int]:
    """Neighbours in the matrix: left, second left, above left, above right, above, second above."""
    return [
        row[column - 1] if column else 0,
        row[column - 2] if column > 1 else 0,
        above[column - 1] if column else 0,
        above[column + 1] if column + 1 < len(above) else 0,
        above[column],
        above2[column],
    ]


def _mean(near: list[int]) -> int:
    return (2 * abs(near[0]) + abs(near[1]) + abs(near[2]) + 2 * sum(map(abs, near[5:7])) << 8) // 8


def _quarter(mean: int) -> int:
    """Logarithm of a mean with 8 fractional bits in quarters of an octave, 0 to 63."""
    bits = mean.bit_length()
    return min(max(4 * bits + ((mean << 2 >> bits - 1) & 3) - 16, 0), 63) if bits else 0


def _half(mean: int) -> int:
    """Logarithm of a mean with 8 fractional bits in halves of an octave, 0 to 31."""
    bits = mean.bit_length()
    return min(max(2 * bits + ((mean << 1 >> bits - 1) & 1) - 8, 0), 31) if bits else 0


def _size(magnitude: int) -> int:
    return magnitude if magnitude < 3 else magnitude.bit_length() + 1


def _sign(value: int) -> int:
    return (value > 0) - (value < 0) + 1


class Encoder:
    """Writes arrays and strings one after the other; what one teaches serves the next of its kind.

    Args:
        is_large: Whether so much will come that the first symbols matter less than the time that they take.
    """

    def __init__(self, *, is_large: bool = False) -> None:
        self._scalars = _scalars(is_large)
        self._coder = BitEncoder()
        self._models: dict[int, _Model] = {}
        self._lanes: dict[int, LaneModel] = {}
        self._text: ByteModel | None = None
        self._written = 0
        self._blocks = bytearray()

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
        if _laned(values.size, self._written, self._scalars):
            lanes = self._lanes.setdefault(_checked(model), LaneModel())
            self._blocks += encode_lanes(values, kernel, lanes)
            return
        self._written += values.size
        model_of(self._models, model, self._coder).code(values.tolist(), values.shape[0], values.shape[1], kernel)

    def write_bytes(self, data: bytes) -> None:
        """Append a string of bytes; all of them share one model."""
        self._text = self._text or ByteModel(self._coder)
        self._text.code(data, len(data))

    def finish(self) -> bytes:
        """All that was written. The encoder is used up.

        The laned arrays stand behind the others, and behind them where they begin.
        """
        if not self._blocks:
            return self._coder.finish()
        coded = self._coder.finish(whole=True)
        return coded + bytes(self._blocks) + len(coded).to_bytes(_TRAILER, "little")


class Decoder:
    """Reads what an `Encoder` wrote; the reads must be those writes, in their order.

    Args:
        data: What `Encoder.finish` gave.
        is_large: As the `Encoder` was told.

    Raises:
        CodingError: From any read, where the data is damaged and the damage shows.
    """

    def __init__(self, data: bytes, *, is_large: bool = False) -> None:
        self._data, self._scalars = data, _scalars(is_large)
        self._coder = BitDecoder(data)
        self._models: dict[int, _Model] = {}
        self._lanes: dict[int, LaneModel] = {}
        self._text: ByteModel | None = None
        self._read = 0
        self._begin = self._next = -1

    def read(self, rows: int, columns: int, model: int = 0, kernel: tuple[int, ...] = ()) -> NDArray[np.int32]:
        """The next array, int32 [rows, columns]; the arguments are those of its `Encoder.write`."""
        if rows * columns == 0:
            return np.zeros((rows, columns), np.int32)
        if _laned(rows * columns, self._read, self._scalars):
            return self._read_laned(rows, columns, model, kernel)
        self._read += rows * columns
        coded = model_of(self._models, model, self._coder).code(None, rows, columns, kernel)
        return np.array(coded, np.int32)

    @property
    def position(self) -> int:
        """Bytes of the data that were needed so far."""
        return self._coder.position + self._next - self._begin

    def _read_laned(self, rows: int, columns: int, model: int, kernel: tuple[int, ...]) -> NDArray[np.int32]:
        end = len(self._data) - _TRAILER
        if self._next < 0:
            self._begin = self._next = int.from_bytes(self._data[max(end, 0) :], "little")
        if self._next > end:
            raise CodingError("the coded data ends too soon")
        lanes = self._lanes.setdefault(_checked(model), LaneModel())
        values, taken = decode_lanes(self._data[self._next : end], rows, columns, kernel, lanes)
        self._next += taken
        return values

    def read_bytes(self, size: int) -> bytes:
        """The next string, of `size` bytes."""
        self._text = self._text or ByteModel(self._coder)
        return self._text.code(None, size)

    def finish(self) -> None:
        """Check that all of the data was read.

        Raises:
            CodingError: Something is left over.
        """
        if self._next < 0:
            self._coder.finish()
        elif self._coder.position != self._begin or self._next != len(self._data) - _TRAILER:
            raise CodingError("the parts of the coded data have not the sizes that were read")


def model_of(models: dict[int, _Model], model: int, coder: BitCoder) -> _Model:
    """The bank `model`, made when first used."""
    if _checked(model) not in models:
        models[model] = _Model(coder)
    return models[model]


def _checked(model: int) -> int:
    if not 0 <= model < MODELS:
        raise CodingError(f"model must be 0 to {MODELS - 1}, not {model}")
    return model


def _scalars(is_large: bool) -> int:
    """Symbols that a stream codes one by one."""
    return _SCALAR_TOTAL_OF_LARGE if is_large else _SCALAR_TOTAL


def _laned(size: int, written: int, scalars: int) -> bool:
    """Whether an array goes to the lanes, of a stream that has coded `written` symbols one by one."""
    return size >= _SCALAR_LEAST and written + size > scalars


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


def encode_bytes(data: bytes) -> bytes:
    """One string by itself; see `Encoder.write_bytes`."""
    encoder = Encoder()
    encoder.write_bytes(data)
    return encoder.finish()


def decode_bytes(data: bytes, size: int) -> bytes:
    """The inverse of `encode_bytes`.

    Args:
        data: What `encode_bytes` gave.
        size: Length of the string.

    Raises:
        CodingError: The data is damaged and the damage shows.
    """
    decoder = Decoder(data)
    text = decoder.read_bytes(size)
    decoder.finish()
    return text
