"""The storage of Deep Compression: non-zeros by their distance, distances and codebook indices in Huffman codes.

Source: Han, Mao and Dally, Deep Compression, ICLR 2016, sections 2 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.coding import huffman
from passes.coding.range_coder import CodingError

VALUE_BYTES = 4
"""A codebook's entry, float32."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """A flat array as its non-zeros.

    Attributes:
        gaps: Zeros before each entry, int64 [entries], below 2**bits.
        indices: The entries' values, int64 [entries]; 0 is a filler, where a run of zeros was longer than a gap can be.
        size: Values in all; those behind the last entry are zero.
    """

    gaps: NDArray[np.int64]
    indices: NDArray[np.int64]
    size: int


def sparse(values: NDArray[np.integer], bits: int) -> Sparse:
    """The non-zeros of `values`, integers of any shape, with distances of `bits` bits.

    Raises:
        CodingError: `bits` is not 1 to 15.
    """
    if not 1 <= bits <= huffman.LENGTH_MAX:
        raise CodingError(f"bits of a distance must be 1 to {huffman.LENGTH_MAX}, not {bits}")
    flat = values.ravel()
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1) - 1
    span = 1 << bits
    fillers = gaps // span
    entries = np.cumsum(fillers + 1) - 1
    count = int(entries[-1]) + 1 if len(entries) else 0
    all_gaps, indices = np.full(count, span - 1, np.int64), np.zeros(count, np.int64)
    all_gaps[entries], indices[entries] = gaps - fillers * span, flat[places]
    return Sparse(all_gaps, indices, flat.size)


def dense(stored: Sparse) -> NDArray[np.int64]:
    """The inverse of `sparse`, int64 [size].

    Raises:
        CodingError: The gaps lead beyond the array.
    """
    places = np.cumsum(stored.gaps + 1) - 1
    if len(places) and int(places[-1]) >= stored.size:
        raise CodingError("the distances lead beyond the array")
    values = np.zeros(stored.size, np.int64)
    values[places] = stored.indices
    return values


@dataclass(frozen=True, eq=False)
class Packed:
    """One layer in the paper's format.

    Attributes:
        bits: Bits of a distance before Huffman coding.
        size: Values in all.
        entries: Non-zeros and fillers.
        alphabet: The distinct values, int64 [symbols]: which codebook entry each is.
        gap_lengths: Code lengths of the distances, int64 [2**bits].
        index_lengths: Code lengths of the alphabet, int64 [symbols].
        gaps: Coded distances.
        indices: Coded values.
    """

    bits: int
    size: int
    entries: int
    alphabet: NDArray[np.int64]
    gap_lengths: NDArray[np.int64]
    index_lengths: NDArray[np.int64]
    gaps: bytes
    indices: bytes

    @property
    def bytes(self) -> int:
        """What it takes: both streams, both tables of code lengths, and the codebook."""
        tables = (len(self.gap_lengths) + len(self.index_lengths)) * huffman.LENGTH_BITS
        return len(self.gaps) + len(self.indices) + -(-tables // 8) + len(self.alphabet) * VALUE_BYTES


def pack(values: NDArray[np.integer], bits: int) -> Packed:
    """Store integers, codebook indices with 0 for a pruned weight, in distances of `bits` bits (paper: 5 or 8).

    Raises:
        CodingError: `bits` is out of range, or there are more than 32,768 distinct values.
    """
    stored = sparse(values, bits)
    alphabet, symbols = np.unique(stored.indices, return_inverse=True)
    gap_lengths = huffman.code_lengths(np.bincount(stored.gaps, minlength=1 << bits))
    index_lengths = huffman.code_lengths(np.bincount(symbols, minlength=len(alphabet)))
    return Packed(
        bits,
        stored.size,
        len(stored.gaps),
        alphabet,
        gap_lengths,
        index_lengths,
        huffman.encode(stored.gaps, gap_lengths),
        huffman.encode(symbols, index_lengths),
    )


def unpack(packed: Packed) -> NDArray[np.int64]:
    """The inverse of `pack`, flat, int64 [size].

    Raises:
        CodingError: The streams are damaged and the damage shows.
    """
    gaps = huffman.decode(packed.gaps, packed.entries, packed.gap_lengths)
    symbols = huffman.decode(packed.indices, packed.entries, packed.index_lengths)
    return dense(Sparse(gaps, packed.alphabet[symbols], packed.size))


def best(values: NDArray[np.integer]) -> Packed:
    """The smallest of all widths of the distance from 2 to 8 bits."""
    return min((pack(values, bits) for bits in range(2, 9)), key=lambda packed: packed.bytes)
