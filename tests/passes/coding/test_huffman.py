"""Huffman codes are prefix codes, as short as there are, and come back."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.coding.huffman import LENGTH_MAX, canonical_codes, code_lengths, decode, encode
from passes.coding.range_coder import CodingError

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=60)


def unlimited(counts: list[int]) -> int:
    """Bits of the best prefix code of any length: the sum of all merged weights."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(COUNTS.filter(lambda counts: sum(map(bool, counts)) > 1))
def test_kraft_sum_is_one_and_the_length_is_within_a_bit_of_the_entropy(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    assert sum(1 << LENGTH_MAX - int(length) for length in lengths if length) == 1 << LENGTH_MAX
    share = np.array([count for count in counts if count]) / sum(counts)
    entropy = float(-(share * np.log2(share)).sum())
    mean = float((lengths * counts).sum()) / sum(counts)
    assert entropy - 1e-9 <= mean < entropy + 1


@given(COUNTS.filter(lambda counts: sum(map(bool, counts)) > 1))
def test_with_room_the_code_is_huffmans(counts: list[int]) -> None:
    assert int((code_lengths(np.array(counts), 60) * counts).sum()) == unlimited(counts)


def test_fibonacci_counts_meet_the_limit() -> None:
    counts = [1, 1]
    while len(counts) < 24:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == LENGTH_MAX
    assert sum(1 << LENGTH_MAX - int(length) for length in lengths) == 1 << LENGTH_MAX
    assert code_lengths(np.array(counts), 30).max() == 23


@given(COUNTS)
def test_no_code_begins_another(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    codes = [format(int(code), f"0{size}b") for code, size in zip(canonical_codes(lengths), lengths) if size]
    assert len(set(codes)) == len(codes)
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)


@given(st.lists(st.integers(0, 40), max_size=200))
def test_what_was_encoded_is_decoded(symbols: list[int]) -> None:
    array = np.array(symbols, np.int64)
    lengths = code_lengths(np.bincount(array, minlength=41))
    assert decode(encode(array, lengths), len(array), lengths).tolist() == symbols


def test_as_many_symbols_as_codes_all_have_the_longest_code() -> None:
    assert (code_lengths(np.ones(1 << LENGTH_MAX, np.int64)) == LENGTH_MAX).all()
    with pytest.raises(CodingError, match="32769 symbols have no code of at most 15 bits"):
        code_lengths(np.ones((1 << LENGTH_MAX) + 1, np.int64))


def test_data_that_ends_too_soon_is_refused() -> None:
    lengths = code_lengths(np.array([3, 2, 1]))
    data = encode(np.array([2, 2, 2, 2, 2]), lengths)
    with pytest.raises(CodingError, match="ends too soon"):
        decode(data[:1], 5, lengths)
    with pytest.raises(CodingError, match="a symbol has no code"):
        encode(np.array([1]), np.array([1, 0]))
