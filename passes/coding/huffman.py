"""Canonical Huffman codes of limited length: the coder of Deep Compression, and what the others are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from passes.coding.range_coder import CodingError

LENGTH_MAX = 15
LENGTH_BITS = 4
"""A code's length in a stored table."""


def code_lengths(counts: NDArray[np.int64], limit: int = LENGTH_MAX) -> NDArray[np.int64]:
    """Bits of each symbol's code, int64 [symbols]: the shortest prefix code with no code above `limit` bits.

    Args:
        counts: How often each symbol occurs, int64 [symbols]; one that never does has no code, length 0. A single
            symbol has a code of 1 bit.
        limit: Longest code, in bits.

    Raises:
        CodingError: More than 2**limit symbols occur.

    Source: Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes, J. ACM 37 (1990):
        package-merge.
    """
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.int64)
    if len(used) > 1 << limit:
        raise CodingError(f"{len(used)} symbols have no code of at most {limit} bits")
    if len(used) <= 1:
        lengths[used] = 1
        return lengths
    used = used[np.argsort(counts[used], kind="stable")]
    lengths[used] = _merged([int(count) for count in counts[used]], limit)
    return lengths


def _merged(weights: list[int], limit: int) -> list[int]:
    """Lengths for ascending weights, by package-merge.

    A row holds packages and symbols by weight; of a row only which items are symbols is kept: the last row's first
    2n - 2 items are bought, an item that is a package buys the row before's two next.
    """
    rows: list[list[bool]] = []
    row = [(weight, True) for weight in weights]
    rows.append([True] * len(weights))
    for _ in range(limit - 1):
        packages = [(row[i][0] + row[i + 1][0], False) for i in range(0, len(row) - 1, 2)]
        row = sorted([(weight, True) for weight in weights] + packages, key=lambda item: item[0])
        rows.append([symbol for _, symbol in row])
    lengths = [0] * len(weights)
    bought = 2 * len(weights) - 2
    for symbols in reversed(rows):
        count = sum(symbols[:bought])
        for place in range(count):
            lengths[place] += 1
        bought = 2 * (bought - count)
    return lengths


def canonical_codes(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The code of each symbol, int64 [symbols]: numbered by length, then symbol, so that the lengths tell them all."""
    codes = np.zeros(len(lengths), np.int64)
    code = previous = 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)):
        length = int(lengths[symbol])
        if not length:
            continue
        code = code << length - previous if previous else 0
        codes[symbol], previous = code, length
        code += 1
    return codes


def encode(symbols: NDArray[np.integer], lengths: NDArray[np.int64]) -> bytes:
    """The codes one after the other, most significant bit first, and zeros to the next byte.

    Raises:
        CodingError: A symbol has no code.
    """
    sizes = lengths[symbols]
    if (sizes == 0).any():
        raise CodingError("a symbol has no code")
    ends = np.cumsum(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    shift = ends[owner] - 1 - np.arange(len(owner))
    return np.packbits((canonical_codes(lengths)[symbols][owner] >> shift & 1).astype(np.uint8)).tobytes()


def decode(data: bytes, count: int, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The inverse of `encode`: the first `count` symbols, int64 [count].

    Raises:
        CodingError: The data ends too soon, or has bits that begin no code.
    """
    codes = canonical_codes(lengths)
    table = {(int(size), int(codes[symbol])): symbol for symbol, size in enumerate(lengths) if size}
    longest = int(lengths.max(initial=0))
    found: list[int] = []
    size = code = 0
    for bit in np.unpackbits(np.frombuffer(data, np.uint8)).tolist():
        if len(found) == count:
            break
        size, code = size + 1, code << 1 | bit
        symbol = table.get((size, code))
        if symbol is not None:
            found.append(symbol)
            size = code = 0
        elif size >= longest:
            raise CodingError("the coded data has a code of no symbol")
    if len(found) < count:
        raise CodingError("the coded data ends too soon")
    return np.array(found, np.int64)
