"""Adaptive bits: several models' probabilities mixed in the logistic domain, all in integers."""

from __future__ import annotations

from operator import mul

from passes.coding.logistic import HALF, LIMIT, ONE, SQUASH, STRETCH
from passes.coding.range_coder import BitCoder

_WEIGHT_BITS = 16
_START = 22000
"""First weight of every input: a little above 1 / inputs, since models that agree are surer together."""
_RATE_BITS = 16
_SLOWEST = 255


def _rates(limit: int) -> list[int]:
    return [2 * ONE // (2 * count + 3) for count in range(limit + 1)]


class Mixer:
    """Probabilities of bits in contexts, each context a slot, and weights that say which contexts to believe.

    A slot counts what it has seen: it moves by 1 / (count + 1.5) of the error, never slower than its limit. One
    that has seen nothing begins where the first of the bit's slots stands.

    Source: Mahoney, Adaptive Weighing of Context Models for Lossless Data Compression, 2005, section 3.
    """

    def __init__(self, coder: BitCoder, slots: int, nodes: int, inputs: int, rate: int = 6) -> None:
        """Args:
        coder: Writes or reads.
        slots: Contexts in all.
        nodes: Sets of weights, one for each kind of decision.
        inputs: Contexts that are mixed for one bit.
        rate: How fast the weights learn.
        """
        self._coder = coder
        self._probability = [HALF] * slots
        self._count = [0] * slots
        self._weights = [[_START] * inputs for _ in range(nodes)]
        self._rates = _rates(_SLOWEST)
        self._rate = rate

    def code(self, bit: int, slots: list[int], node: int) -> int:
        """Code one bit in the contexts `slots` with the weights `node`; returns it."""
        table, counts, rates, weights = self._probability, self._count, self._rates, self._weights[node]
        first = table[slots[0]]
        for slot in slots:
            if not counts[slot]:
                table[slot] = first
        inputs = [STRETCH[table[slot] >> 4] for slot in slots]
        total = sum(map(mul, weights, inputs)) >> _WEIGHT_BITS
        probability = SQUASH[min(max(total, -LIMIT), LIMIT) + LIMIT + 1]
        bit = self._coder.code(bit, probability)
        step = ((bit << 16) - probability) * self._rate
        self._weights[node] = [weight + (value * step >> _RATE_BITS) for weight, value in zip(weights, inputs)]
        for slot in slots:
            count = counts[slot]
            if bit:
                table[slot] += (ONE - table[slot]) * rates[count] >> 16
            else:
                table[slot] -= table[slot] * rates[count] >> 16
            if count < _SLOWEST:
                counts[slot] = count + 1
        return bit
