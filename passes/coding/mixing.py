"""Adaptive bits: several models' probabilities mixed in the logistic domain, all in integers."""

from __future__ import annotations

from copy import copy
from operator import mul

from passes.coding.logistic import HALF, LEAST, LIMIT, ONE, SQUASH, STRETCH
from passes.coding.range_coder import BitCoder

SLOWEST = 255
RATES = [2 * ONE // (2 * count + 3) for count in range(SLOWEST + 1)]
"""Share of 65536 of its error by which a slot moves that has seen `index` bits."""
TRUST = [256 * (count + 1) // (count + 3) for count in range(SLOWEST + 1)]
"""Share of 256 at which such a slot's stretch counts."""


class Mixer:
    """Probabilities of bits in contexts, each context a slot, and weights that say which contexts to believe.

    A slot counts what it has seen: it moves by 1 / (count + 1.5) of its error, and speaks the louder. One that has
    seen nothing begins where the first of the bit's slots stands.

    Source: Mahoney, Adaptive Weighing of Context Models for Lossless Data Compression, 2005, section 3.
    """

    def __init__(self, coder: BitCoder, slots: int, inputs: list[int], start: int, rate: int) -> None:
        """Args:
        coder: Writes or reads.
        slots: Contexts in all.
        inputs: How many contexts are mixed, for each kind of decision.
        start: Sum of the first weights of a decision, a share of 65536: more than 1, since models that agree are
            surer together.
        rate: The weights learn by 2**-rate of error times input, each a share of 65536 and a stretch.
        """
        self._coder = coder
        self._rate = rate
        self._probability = [HALF] * slots
        self._count = [0] * slots
        self._weights = [[start // count] * count for count in inputs]

    def copy(self, coder: BitCoder) -> Mixer:
        """What has been learned so far, to go on with another coder."""
        other = copy(self)
        other._coder = coder
        other._probability, other._count = self._probability.copy(), self._count.copy()
        other._weights = [weights.copy() for weights in self._weights]
        return other

    def code(self, bit: int, slots: list[int], node: int) -> int:
        """Code one bit in the contexts `slots` with the weights of the decision `node`; returns it."""
        table, counts, weights = self._probability, self._count, self._weights[node]
        first = table[slots[0]]
        inputs = []
        for slot in slots:
            count = counts[slot]
            if not count:
                table[slot] = first
            inputs.append(STRETCH[table[slot] >> 4] * TRUST[count] >> 8)
        total = sum(map(mul, weights, inputs)) >> 16
        probability = SQUASH[min(max(total, -LIMIT), LIMIT) + LIMIT + 1]
        bit = self._coder.code(bit, probability)
        error, rate = (bit << 16) - probability, self._rate
        self._weights[node] = [weight + (value * error >> rate) for weight, value in zip(weights, inputs)]
        for slot in slots:
            count = counts[slot]
            if bit:
                table[slot] += (ONE - table[slot]) * RATES[count] >> 16
            else:
                table[slot] -= table[slot] * RATES[count] >> 16
            if count < SLOWEST:
                counts[slot] = count + 1
        return bit

    def code_alone(self, bit: int, slot: int) -> int:
        """Code one bit in a single context; returns it."""
        probability = min(max(self._probability[slot], LEAST), ONE - LEAST)
        bit = self._coder.code(bit, probability)
        count = self._count[slot]
        if bit:
            self._probability[slot] += (ONE - self._probability[slot]) * RATES[count] >> 16
        else:
            self._probability[slot] -= self._probability[slot] * RATES[count] >> 16
        self._count[slot] = min(count + 1, SLOWEST)
        return bit
