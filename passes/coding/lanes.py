"""Large arrays of integers to bytes: many range coders in step, so that numpy does their work at once.

An array [rows, columns] is walked through row by row, in a row kernel position by kernel position, and there in steps
of as many input channels as there are lanes. All symbols of a step are coded at the same time, each by its lane's rANS
state, with frequencies that were counted in the steps before.

Source: Duda, Asymmetric numeral systems, arXiv 1311.2540; Giesen, Interleaved entropy coders, arXiv 1402.3392.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.coding.range_coder import CodingError

LANES_MAX = 4096
_LANE_SYMBOLS = 1 << 11
_CHANNELS_LEAST = 16
_LEVELS = 32
_CONTEXTS = _LEVELS * 3
_TOKENS = 128
_ESCAPE = _TOKENS - 1
_EXACT = 15
"""Largest magnitude with a token of its own; a larger one has one for its length and two bits, the rest follow raw."""
_LENGTH_MAX = 16
_BITS = 16
_TOTAL = 1 << _BITS
_WORD = 16
_LOWEST = 1 << 16
_SHARED = 24
"""How many symbols the counts of all contexts weigh in each."""
_KEPT = 512
"""How many symbols' worth of each context's counts an array hands on to the next."""
_INTERVAL = 63
_LARGEST = 255
_ROWS_KEPT = 3

Integers = NDArray[np.int64]
_Operation = tuple[NDArray[np.uint32], NDArray[np.uint32]]
"""Where symbols begin among 65536, and how much of it they have."""


@dataclass(frozen=True)
class _Walk:
    """The order of symbols: each step takes `lanes` channels of one row and kernel position, or what is left."""

    rows: int
    period: int
    width: int
    channels: int
    lanes: int

    def steps(self) -> Iterator[tuple[int, int, slice]]:
        """Row, kernel position and channels of each step."""
        for row in range(self.rows):
            for place in range(self.period):
                for first in range(0, self.channels, self.lanes):
                    yield row, place, slice(first, min(first + self.lanes, self.channels))


def walk_of(rows: int, columns: int, kernel: tuple[int, ...]) -> _Walk:
    """The order for an array; one of few channels is taken as a single row."""
    period, width = math.prod(kernel), kernel[-1] if kernel else 1
    if columns % period:
        period = width = 1
    channels = columns // period
    if channels < _CHANNELS_LEAST:
        rows, period, width, channels = 1, 1, 1, rows * columns
    lanes = min(channels, LANES_MAX, max(rows * period * channels // _LANE_SYMBOLS, 1))
    return _Walk(rows, period, width, channels, lanes)


class LaneModel:
    """How often each token came in each context, in the arrays that went before."""

    def __init__(self) -> None:
        self.counts: Integers = np.zeros((_CONTEXTS, _TOKENS), np.int64)

    def begin(self) -> None:
        """Let the past weigh less, before another array."""
        total = self.counts.sum(axis=1, keepdims=True)
        self.counts = -(-self.counts * _KEPT // np.maximum(total, _KEPT))

    def add(self, cells: Integers) -> None:
        """Count symbols, int64 [n]: context * 128 + token."""
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)

    def starts(self) -> Integers:
        """Where each cell begins in the numbers below contexts * 65536, int64 [contexts * 128 + 1]; none is empty."""
        shared = self.counts.sum(axis=0) * 16 + 1
        blended = (self.counts << 12) + (shared * _SHARED << 12) // shared.sum()
        frequency = 1 + blended * (_TOTAL - _TOKENS) // blended.sum(axis=1, keepdims=True)
        most = blended.argmax(axis=1)
        frequency[np.arange(_CONTEXTS), most] += _TOTAL - frequency.sum(axis=1)
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(frequency.ravel())))


class _Contexts:
    """What the symbols already known say about those of the next step; of the rows, the last three are kept."""

    def __init__(self, walk: _Walk) -> None:
        self._walk = walk
        self._values = np.zeros((_ROWS_KEPT, walk.period, walk.channels), np.int64)
        self._sizes = np.zeros_like(self._values)
        self._sums = np.zeros((walk.period, walk.channels), np.int64)
        self._total = self._done = 0
        self._row, self._row_total, self._row_done = 0, 0, 0

    def of(self, row: int, place: int, part: slice) -> Integers:
        """Contexts of the symbols of a step, int64 [symbols]."""
        if row != self._row:
            self._row, self._row_total, self._row_done = row, 0, 0
        mean = ((self._total + 1) << 8) // (self._done + 1) + 1
        row_mean = ((self._row_total << 8) + 4 * mean) // (self._row_done + 4)
        level = row_mean * (((self._sums[place, part] << 8) + 3 * mean) // (row + 3)) // mean
        down, across = divmod(place, self._walk.width)
        near: list[tuple[int, int]] = []
        if across:
            near.append((row, place - 1))
        if down:
            near.append((row, place - self._walk.width))
        hints = near or [(row - 1, place)]
        near += [(row - back, place) for back in (1, 2) if row >= back]
        if near:
            level = 3 * level + (_added(self._sizes, near, part) << 8) // len(near) >> 2
        found = _HALVES[np.minimum(level, len(_HALVES) - 1)]
        if hints[0][0] < 0:
            return found + 1
        return found + np.sign(_added(self._values, hints, part)) + 1

    def learn(self, row: int, place: int, part: slice, values: Integers) -> None:
        """Take in the symbols of a step."""
        clipped = np.minimum(np.maximum(values, -_LARGEST), _LARGEST)
        sizes = np.abs(clipped)
        self._values[row % _ROWS_KEPT, place, part] = clipped
        self._sizes[row % _ROWS_KEPT, place, part] = sizes
        self._sums[place, part] += sizes
        total = int(np.add.reduce(sizes))
        self._total += total
        self._row_total += total
        self._done += len(sizes)
        self._row_done += len(sizes)


def _added(table: Integers, places: list[tuple[int, int]], part: slice) -> Integers:
    row, place = places[0]
    total = table[row % _ROWS_KEPT, place, part]
    for row, place in places[1:]:
        total = total + table[row % _ROWS_KEPT, place, part]
    return total


def _half(mean: Integers) -> Integers:
    """Logarithm of a mean with 8 fractional bits in halves of an octave, 0 to 31."""
    bits = np.frexp(mean.astype(np.float64))[1].astype(np.int64)  # exact: means stay below 2**53
    below = mean << 1 >> np.maximum(bits - 1, 0) & 1
    return np.where(bits > 0, np.clip(2 * bits + below - 8, 0, _LEVELS - 1), 0)


_HALVES = _half(np.arange((3 << 17) + 1)) * 3
"""By the mean; what is larger than all of these is like the last."""


class _Schedule:
    """Steps at which the frequencies are made anew: often at first, then each 64th."""

    def __init__(self) -> None:
        self._next = 0

    def due(self, step: int) -> bool:
        if step < self._next:
            return False
        self._next = step + 1 + min(step >> 2, _INTERVAL)
        return True


@dataclass(frozen=True)
class _Coded:
    """Symbols as tokens and raw bits, each int64 [places, channels]: up to three rounds of at most 13 bits."""

    token: Integers
    bits: tuple[Integers, ...]
    raw: tuple[Integers, ...]


def _coded(values: Integers) -> _Coded:
    size = np.abs(values)
    length = np.frexp(size.astype(np.float64))[1].astype(np.int64)
    escape = length > _LENGTH_MAX
    large = (size > _EXACT) & ~escape
    rest = np.where(large, length - 3, 0)
    bucket = np.where(large, _EXACT + 1 + (length - 5) * 4 + (size >> rest & 3), size)
    token = np.where(bucket > 0, 2 * bucket - 1 + (values < 0), 0)
    word = values & 0xFFFFFFFF
    bits = (np.where(escape, 11, rest), np.where(escape, 11, 0), np.where(escape, 10, 0))
    raw = (
        np.where(escape, word & 2047, np.where(large, size & (1 << rest) - 1, 0)),
        np.where(escape, word >> 11 & 2047, 0),
        np.where(escape, word >> 22, 0),
    )
    return _Coded(np.where(escape, _ESCAPE, token), bits, raw)


_BUCKET = (np.arange(_TOKENS) + 1) // 2
_LONG = np.clip(_BUCKET - _EXACT - 1, 0, None)
_REST = np.where(_BUCKET > _EXACT, _LONG // 4 + 2, 0)
_REST[_ESCAPE] = 11
_BASE = np.where(_BUCKET > _EXACT, (4 + _LONG % 4) << _REST, _BUCKET)
_NEGATIVE = (np.arange(_TOKENS) > 0) & (np.arange(_TOKENS) % 2 == 0)


def encode_lanes(values: NDArray[np.integer], kernel: tuple[int, ...], model: LaneModel) -> bytes:
    """The bytes of one array, integers within int32 [rows, columns], not empty."""
    walk = walk_of(values.shape[0], values.shape[1], kernel)
    ordered = values.reshape(walk.rows, walk.channels, walk.period).transpose(0, 2, 1)
    contexts, schedule = _Contexts(walk), _Schedule()
    model.begin()
    pending: list[Integers] = []
    operations: list[_Operation] = []
    firsts, frequencies = _table(model)
    for step, (row, place, part) in enumerate(walk.steps()):
        if schedule.due(step):
            if pending:
                model.add(np.concatenate(pending))
            pending, (firsts, frequencies) = [], _table(model)
        if not place and not part.start:
            current = ordered[row].astype(np.int64)
            coded = _coded(current)
            is_raw = coded.bits[0].any()
        cells = contexts.of(row, place, part) * _TOKENS + coded.token[place, part]
        operations.append((firsts[cells], frequencies[cells]))
        if is_raw:
            operations += _raw_operations(coded, place, part)
        pending.append(cells)
        contexts.learn(row, place, part, current[place, part])
    model.add(np.concatenate(pending))
    return _rans(operations, walk.lanes)


def _table(model: LaneModel) -> _Operation:
    """The operation of every cell."""
    starts = model.starts()
    return _operation(starts[:-1] & _TOTAL - 1, np.diff(starts))


def _operation(first: Integers, frequency: Integers) -> _Operation:
    return first.astype(np.uint32), frequency.astype(np.uint32)


def _raw_operations(coded: _Coded, place: int, part: slice) -> list[_Operation]:
    operations = []
    for bits, raw in zip(coded.bits, coded.raw):
        if not bits[place, part].any():
            break
        share = _BITS - bits[place, part]
        operations.append(_operation(raw[place, part] << share, 1 << share))
    return operations


def _rans(operations: list[_Operation], lanes: int) -> bytes:
    state = np.full(lanes, _LOWEST, np.int64)
    words: list[NDArray[np.uint16]] = []
    for first, frequency in reversed(operations):
        active = state[: len(first)]
        high = active >> _WORD
        full = high >= frequency
        words.append(active[full].astype("<u2"))  # the low bits
        active = np.where(full, high, active)
        quotient = active // frequency
        state[: len(first)] = (quotient << _BITS) + active - quotient * frequency + first
    return state.astype("<u4").tobytes() + b"".join(part.tobytes() for part in reversed(words))


class _States:
    """The lanes' states, and the words behind them."""

    def __init__(self, data: bytes, lanes: int) -> None:
        if len(data) < 4 * lanes:
            raise CodingError("the coded data ends too soon")
        self.state = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(data, "<u2", (len(data) - 4 * lanes) // 2, 4 * lanes).astype(np.int64)
        self.next = 0

    def take(self, count: int, slot: Integers, first: Integers, frequency: Integers) -> None:
        """Leave the symbol that `slot`, the low bits of the states, was found in."""
        state = frequency * (self.state[:count] >> _BITS) + slot - first
        low = state < _LOWEST
        needed = int(np.count_nonzero(low))
        if needed:
            if self.next + needed > len(self._words):
                raise CodingError("the coded data ends too soon")
            state[low] = state[low] << _WORD | self._words[self.next : self.next + needed]
            self.next += needed
        self.state[:count] = state

    def raw(self, bits: Integers) -> Integers:
        """Raw bits of the first lanes, int64 as `bits`."""
        share = _BITS - bits
        slot = self.state[: len(bits)] & _TOTAL - 1
        value = slot >> share
        self.take(len(bits), slot, value << share, 1 << share)
        return value


def decode_lanes(
    data: bytes, rows: int, columns: int, kernel: tuple[int, ...], model: LaneModel
) -> tuple[NDArray[np.int32], int]:
    """The inverse of `encode_lanes`: int32 [rows, columns], and how many bytes of `data` it took.

    Raises:
        CodingError: The data is damaged and the damage shows.
    """
    walk = walk_of(rows, columns, kernel)
    states = _States(data, walk.lanes)
    out = np.zeros((walk.rows, walk.period, walk.channels), np.int32)
    contexts, schedule = _Contexts(walk), _Schedule()
    model.begin()
    pending: list[Integers] = []
    starts = model.starts()
    firsts, frequencies = starts[:-1] & _TOTAL - 1, np.diff(starts)
    for step, (row, place, part) in enumerate(walk.steps()):
        if schedule.due(step):
            if pending:
                model.add(np.concatenate(pending))
            pending, starts = [], model.starts()
            firsts, frequencies = starts[:-1] & _TOTAL - 1, np.diff(starts)
        context = contexts.of(row, place, part)
        slot = states.state[: len(context)] & _TOTAL - 1
        number = (context << _BITS) + slot
        cells = np.searchsorted(starts, number, side="right") - 1
        states.take(len(cells), slot, firsts[cells], frequencies[cells])
        values = _values(cells & _TOKENS - 1, states)
        pending.append(cells)
        contexts.learn(row, place, part, values)
        out[row, place, part] = values
    model.add(np.concatenate(pending))
    if (states.state != _LOWEST).any():
        raise CodingError("the coded data is damaged")
    return out.transpose(0, 2, 1).reshape(rows, columns), 4 * walk.lanes + 2 * states.next


_SMALL = np.where(_NEGATIVE, -_BASE, _BASE)
"""The number of a token without raw bits."""


def _values(tokens: Integers, states: _States) -> Integers:
    if tokens.max() <= 2 * _EXACT:
        return _SMALL[tokens]
    bits = _REST[tokens]
    size = _BASE[tokens]
    escape = tokens == _ESCAPE
    raw = states.raw(bits)
    size = size + raw
    if escape.any():
        word = raw | states.raw(np.where(escape, 11, 0)) << 11
        word |= states.raw(np.where(escape, 10, 0)) << 22
        wide = (word ^ 1 << 31) - (1 << 31)
        return np.where(escape, wide, np.where(_NEGATIVE[tokens], -size, size))
    return np.where(_NEGATIVE[tokens], -size, size)
