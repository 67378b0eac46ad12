"""The format of Deep Compression: relative indices with fillers, and Huffman codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.coding.deep_compression import Sparse, best, dense, pack, sparse, unpack
from passes.coding.range_coder import CodingError

VALUES = st.lists(st.sampled_from([0] * 12 + [-2, 1, 3]), max_size=300)


def test_the_papers_example_needs_a_filler() -> None:
    """Non-zeros at 1, 4 and 15 with distances of 3 bits: the last is further than a distance reaches (figure 2)."""
    values = np.zeros(16, np.int64)
    values[[1, 4, 15]] = (34, 9, 17)
    stored = sparse(values, 3)
    assert (stored.gaps + 1).tolist() == [2, 3, 8, 3]
    assert stored.indices.tolist() == [34, 9, 0, 17]


@given(VALUES, st.integers(1, 8))
def test_what_was_packed_is_unpacked(values: list[int], bits: int) -> None:
    array = np.array(values, np.int64)
    assert np.array_equal(dense(sparse(array, bits)), array)
    assert np.array_equal(unpack(pack(array, bits)), array)


@given(VALUES.filter(any))
def test_best_is_none_above(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert best(array).bytes == min(pack(array, bits).bytes for bits in range(2, 9))


def test_distances_that_lead_beyond_the_array_are_refused() -> None:
    with pytest.raises(CodingError, match="the distances lead beyond the array"):
        dense(Sparse(np.array([3, 3]), np.array([1, 1]), 7))


def test_widths_out_of_range_are_refused() -> None:
    with pytest.raises(CodingError, match="bits of a distance must be 1 to 15, not 0"):
        sparse(np.zeros(3, np.int64), 0)
