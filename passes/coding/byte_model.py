"""Strings of bytes to fewer: contexts of the last bytes, words, numbers and repetitions, mixed and range coded."""

from __future__ import annotations

from copy import copy

from passes.coding.mixing import Mixer
from passes.coding.range_coder import BitCoder

_ORDERS = (2, 3, 4, 6)
"""Lengths of the contexts of last bytes, beside 0 and 1."""
_HASHED = len(_ORDERS) + 3
_TABLE = 1 << 17
_MATCH_LEAST = 5
_MATCH_TABLE = 1 << 14
_LONGEST = 31
_MISSES = 4
_STATES = (_LONGEST + 1) * _MISSES
_SURE = 12
"""So long a repetition is first asked about as a whole byte."""
_GIVE_UP = 8
_FORGIVE = 16
_PAD = 8

_PLAIN = 1 << 16
_MATCH = _PLAIN + 256
_FLAG = _MATCH + 2 * _STATES
_FLAG_PAIR = _FLAG + _STATES
_FIRST = _FLAG_PAIR + (1 << 16)
_SLOTS = _FIRST + _HASHED * _TABLE

_PRIME, _OTHER = 0x9E3779B1, 0x2F0B4C47
_STRIDE = 0x9E35
_WORD = (1 << 32) - 1


class ByteModel:
    """What has been learned of the strings that went before.

    Names of a network's tensors are words, numbers and repetitions: a repetition goes on behind a byte that differs.

    Source: Mahoney, Adaptive Weighing of Context Models for Lossless Data Compression, 2005, sections 3 and 4.
    """

    def __init__(self, coder: BitCoder) -> None:
        self._mixer = Mixer(coder, _SLOTS, [_HASHED + 3] * _STATES + [3], start=100000, rate=13)
        self._history = bytearray(_PAD)
        self._last = [0] * _MATCH_TABLE
        self._match = self._length = self._misses = 0
        self._word = self._previous_word = 0
        self._number = self._previous_number = 0

    def copy(self, coder: BitCoder) -> ByteModel:
        """What has been learned so far, to go on with another coder."""
        other = copy(self)
        other._mixer = self._mixer.copy(coder)
        other._history, other._last = self._history.copy(), self._last.copy()
        return other

    def code(self, data: bytes | None, size: int) -> bytes:
        """Code `size` bytes; without data, read them."""
        start = len(self._history)
        for index in range(size):
            self._byte(data[index] if data is not None else 0)
        return bytes(self._history[start:])

    def _byte(self, given: int) -> None:
        history = self._history
        expected = history[self._match] if self._match else -1
        if self._match and self._length >= _SURE:
            pair = _FLAG_PAIR + (expected << 8) + history[-1]
            slots = [_FLAG + self._state(), pair, _FIRST + (self._hash(4) & _TABLE - 1)]
            if self._mixer.code(int(given == expected), slots, _STATES):
                self._learn(expected)
                return
        self._learn(self._bits(given, expected))

    def _state(self) -> int:
        return min(self._length, _LONGEST) * _MISSES + min(self._misses, _MISSES - 1)

    def _bits(self, given: int, expected: int) -> int:
        code = self._mixer.code
        last = self._history[-1] << 8
        hashes = self._hashes(expected)
        state = self._state() if expected >= 0 else 0
        target = expected | 256
        node = 1
        for shift in range(7, -1, -1):
            step = node * _STRIDE
            slots = [_PLAIN + node, last + node]
            base = _FIRST
            for hashed in hashes:
                slots.append(base + (hashed + step & _TABLE - 1))
                base += _TABLE
            if expected >= 0 and target >> shift + 1 == node:
                slots.append(_MATCH + 2 * state + (expected >> shift & 1))
            else:
                state = 0
                slots.append(_MATCH)
            node = node * 2 + code(given >> shift & 1, slots, state)
        return node & 255

    def _hashes(self, expected: int) -> list[int]:
        last = self._history[-1]
        words = self._word + self._previous_word
        numbers = self._number * 3 + self._previous_number + last * _OTHER
        repeated = (expected + 1) * _OTHER + (last + (min(self._length, 15) << 8)) * _PRIME
        return [
            *map(self._hash, _ORDERS),
            (words * _PRIME & _WORD) >> 7,
            (numbers * _PRIME & _WORD) >> 7,
            (repeated & _WORD) >> 7,
        ]

    def _hash(self, order: int) -> int:
        hashed = order
        for value in self._history[-order:]:
            hashed = (hashed + value + 1) * _PRIME & _WORD
        return hashed >> 7

    def _learn(self, byte: int) -> None:
        if self._match:
            self._follow(byte)
        self._history.append(byte)
        self._read(byte)
        place = self._hash(_MATCH_LEAST) & _MATCH_TABLE - 1
        if self._length < _LONGEST and (found := self._last[place]):
            length = self._common(found)
            if length > max(self._length, _MATCH_LEAST - 1):
                self._match, self._length, self._misses = found, length, 0
        self._last[place] = len(self._history)

    def _follow(self, byte: int) -> None:
        """Go on with the repetition, whether or not it foretold `byte`."""
        if self._history[self._match] == byte:
            self._length += 1
        else:
            self._length, self._misses = 0, self._misses + 1
        self._match += 1
        if self._length > _FORGIVE:
            self._misses = 0
        if self._misses > _GIVE_UP:
            self._match = self._length = self._misses = 0

    def _read(self, byte: int) -> None:
        """Keep hashes of the word and the number that `byte` belongs to, and of those before them."""
        if 97 <= byte | 32 <= 122:
            self._word = (self._word + byte) * _OTHER & _WORD
        elif self._word:
            self._previous_word, self._word = self._word * _PRIME & _WORD, 0
        if 48 <= byte <= 57:
            self._number = (self._number + byte) * _OTHER & _WORD
        elif self._number:
            self._previous_number, self._number = self._number * _PRIME & _WORD, 0

    def _common(self, found: int) -> int:
        """How many bytes before `found` are the last ones, counted to _LONGEST."""
        history = self._history
        length = 0
        while length < _LONGEST and found - length > _PAD and history[found - 1 - length] == history[-1 - length]:
            length += 1
        return length
