"""Integer arithmetic of probabilities in the logistic domain: what encoder and decoders must share to the last bit.

A probability is a share of 65536. Its stretch, ln(p / (1 - p)), is a fixed-point number with 8 fractional bits.
"""

from __future__ import annotations

ONE = 1 << 16
"""The probability 1."""
HALF = ONE // 2
LEAST = 22
"""The smallest probability that is told from 0."""

KNOTS = (
    22, 28, 36, 47, 60, 77, 98, 126, 162, 208, 267, 342, 439, 562, 720, 922, 1179, 1506, 1921, 2446, 3108, 3938, 4971,
    6249, 7812, 9702, 11955, 14595, 17625, 21025, 24743, 28693, 32768, 36843, 40793, 44511, 47911, 50941, 53581, 55834,
    57724, 59287, 60565, 61598, 62428, 63090, 63615, 64030, 64357, 64614, 64816, 64974, 65097, 65194, 65269, 65328,
    65374, 65410, 65438, 65459, 65476, 65489, 65500, 65508, 65514,
)  # fmt: skip
"""65536 / (1 + exp(-x)) at x = -8, -7.75 .. 8: written out, so that no library's exp decides about a bit."""

LIMIT = 2047
"""Largest stretch that is told apart."""


def _squash(stretch: int) -> int:
    knot, rest = divmod(stretch + LIMIT + 1, 64)
    return KNOTS[knot] + ((KNOTS[knot + 1] - KNOTS[knot]) * rest >> 6)


def _stretches() -> list[int]:
    table: list[int] = []
    stretch = -LIMIT
    for probability in range(8, ONE, 16):
        while stretch < LIMIT and _squash(stretch) < probability:
            stretch += 1
        table.append(stretch)
    return table


SQUASH = [_squash(stretch) for stretch in range(-LIMIT - 1, LIMIT + 1)]
"""Probability of the stretch d at index d + LIMIT + 1."""
STRETCH = _stretches()
"""Stretch of the probability p at index p >> 4."""
