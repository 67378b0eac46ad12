"""What the context coder will spend on an array, without coding it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_EXACT = 15
_TOKENS = _EXACT + 33
_LEVELS = 24
_GUESSES = 15
_LARGEST = 255
_MAGNITUDE_COST = 0.38
_SIGN_COST = 0.5
_START_BITS = 8.0
_SEEN = 1 << 18
"""Of a larger array, the first rows stand for all."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def code_bits(values: NDArray[np.integer], kernel: tuple[int, ...] = ()) -> float:
    """Bits that `passes.coding.symbols.encode` will spend on an array, estimated.

    The empirical entropy of magnitudes and of signs, each in a context like the coder's, and what it costs to learn
    those distributions. On weights of trained networks at 3 to 8 bits it is within 3 % from 1,000 symbols on (1 % in
    the mean), and within 5 % on sparse ones; arrays that follow others in one stream cost less, since the coder has
    learned already. Of arrays of more than 2**18 symbols, the first rows are looked at.

    Args:
        values: Integers within int32, [rows, columns].
        kernel: Kernel sizes behind the input channels, as for the coder.
    """
    if values.size == 0:
        return 0.0
    if (rows := max(1, _SEEN // values.shape[1])) < len(values):
        return code_bits(values[:rows], kernel) * len(values) / rows
    clipped = np.clip(values.astype(np.int64), -_LARGEST, _LARGEST).astype(np.float64)
    near = _neighbours(clipped, kernel)
    size = np.abs(clipped)
    mean = float(size.mean()) + 1e-9
    guess = _guess(near, clipped)
    token, raw = _tokens(np.abs(values.astype(np.int64)))
    learned = [_learned(each, token, _LEVELS, _TOKENS, _MAGNITUDE_COST) for each in _levels(size, near, mean)]
    bits = raw + (learned[0] + min(learned)) / 2  # the coder mixes both, and finds out which is better
    signed = values != 0
    bins = np.clip(np.floor(6 * guess / (mean + 0.25) + 0.5), -7, 7).astype(np.int64) + 7
    bits += _learned(bins[signed], (values[signed] < 0).astype(np.int64), _GUESSES, 2, _SIGN_COST)
    return bits + _START_BITS


def _tokens(size: Integers) -> tuple[Integers, float]:
    """Magnitudes to 15 as they are, larger ones as their length; and what the bits behind those lengths cost."""
    length = np.frexp(size.astype(np.float64))[1].astype(np.int64)
    large = size > _EXACT
    long, length_of_long = size[large], length[large]
    if not long.size:
        return size, 0.0
    below = length_of_long - 4
    bits = _learned(length_of_long, long >> below & 7, 33, 8, _MAGNITUDE_COST)
    for place in range(int(below.max())):
        bit = long[below > place] >> place & 1
        bits += _learned(np.zeros_like(bit), bit, 1, 2, _MAGNITUDE_COST)
    return np.where(large, _EXACT + length, size), bits


def _learned(context: Integers, token: Integers, contexts: int, tokens: int, price: float) -> float:
    """Entropy of the tokens in their contexts, in bits, and `price` times half the logarithm of each count."""
    counts = np.bincount(context.ravel() * tokens + token.ravel(), minlength=contexts * tokens)
    counts = counts.reshape(contexts, tokens).astype(np.float64)
    total = counts.sum(axis=1)
    entropy = float((total * np.log2(np.maximum(total, 1))).sum() - (counts * np.log2(np.maximum(counts, 1))).sum())
    return entropy + price * float(np.log2(1 + counts).sum())


def _neighbours(values: Floats, kernel: tuple[int, ...]) -> list[Floats]:
    """The coder's neighbours of each number, zero where there is none; see passes.coding.symbols."""
    period, width = math.prod(kernel), kernel[-1] if kernel else 1
    column = np.arange(values.shape[1])
    above, above2 = _down(values, 1), _down(values, 2)
    if period <= 1:
        left = _right(values, 1)
        return [left, _right(values, 2), _right(above, 1), _right(above, -1), above, above2]
    down, across = np.divmod(column % period, width)
    return [
        _right(values, 1) * (across > 0),
        _right(values, 2) * (across > 1),
        _right(values, width) * (down > 0),
        _right(values, width + 1) * ((down > 0) & (across > 0)),
        _right(values, width - 1) * ((down > 0) & (across < width - 1)),
        _right(values, period),
        above,
        above2,
        _right(values, 2 * width) * (down > 1),
        _right(values, 2 * period),
    ]


def _right(values: Floats, by: int) -> Floats:
    moved = np.zeros_like(values)
    if by >= 0:
        moved[:, by:] = values[:, : max(values.shape[1] - by, 0)]
    else:
        moved[:, :by] = values[:, -by:]
    return moved


def _down(values: Floats, by: int) -> Floats:
    moved = np.zeros_like(values)
    moved[by:] = values[: max(len(values) - by, 0)]
    return moved


def _guess(near: list[Floats], values: Floats) -> Floats:
    """The best linear prediction of all, as the coder's predictor comes to find it."""
    stacked = np.stack([each.ravel() for each in near])
    gram = stacked @ stacked.T + np.eye(len(near)) * (np.square(values).sum() * 1e-2 + 1e-9)
    return np.asarray(np.linalg.solve(gram, stacked @ values.ravel()) @ stacked).reshape(values.shape)


def _levels(size: Floats, near: list[Floats], mean: float) -> list[Integers]:
    """What is expected of each magnitude, in thirds of an octave: by all that is known, and by the column alone."""
    rows, columns = size.shape
    row_mean = (np.cumsum(size, axis=1) - size + 4 * mean) / (np.arange(columns) + 4)
    column_mean = (np.cumsum(size, axis=0) - size + 3 * mean) / (np.arange(rows)[:, None] + 3)
    around = 2 * np.abs(near[0]) + np.abs(near[1]) + np.abs(near[2]) + 2 * sum(np.abs(each) for each in near[5:7])
    expected = (3 * row_mean * column_mean / mean + around / 8) / 4
    return [
        np.clip(np.floor(3 * np.log2(each / mean + 1e-9)) + _LEVELS // 2, 0, _LEVELS - 1).astype(np.int64)
        for each in (expected, column_mean)
    ]
