"""Real scales as (multiplier, shift), and the one rounding of the integer machine.

A real factor r is multiplier / 2**shift with 2**15 <= |multiplier| < 2**16 wherever the shift range allows: 16
significant bits, a relative error of at most 2**-16. Everything here is exact: integers and fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backends.layers import MULTIPLIER_BITS, OFFSET_BITS, SHIFT_MAX, Requantize

MANTISSA_BITS = MULTIPLIER_BITS - 1
MULTIPLIER_LIMIT = 1 << MANTISSA_BITS
OFFSET_LIMIT = 1 << (OFFSET_BITS - 1)


class FixedPointError(ValueError):
    """A real factor or an offset that the machine's number formats cannot hold."""


def encode(real: float) -> tuple[int, int]:
    """The (multiplier, shift) nearest to a real factor.

    Args:
        real: Any finite factor with |real| < 2**16. Below 2**-32 it has fewer than 16 significant bits.

    Returns:
        multiplier (0, or signed with |multiplier| < 2**16) and shift (0 to 47).
    """
    (multiplier,), shift = encode_common((real,))
    return multiplier, shift


def encode_common(reals: tuple[float, ...]) -> tuple[tuple[int, ...], int]:
    """Multipliers of several factors under one shift, chosen by the largest: one sum, one rounding."""
    largest = max(abs(real) for real in reals)
    shift = _shift_for(largest)
    multipliers = tuple(_round_half_even(Fraction(real) * (1 << shift)) for real in reals)
    if max(abs(m) for m in multipliers) < MULTIPLIER_LIMIT:
        return multipliers, shift
    if shift == 0:  # rounded up to 2**16 at the upper end of the range
        raise FixedPointError(f"the factor {largest:g} is 2**{MANTISSA_BITS} or more")
    return tuple(_round_half_even(Fraction(real) * (1 << (shift - 1))) for real in reals), shift - 1


def encode_channels(reals: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`encode` for each channel.

    Args:
        reals: float64 [C].

    Returns:
        multiplier int64 [C], shift int64 [C].
    """
    pairs = []
    for channel, real in enumerate(np.asarray(reals, np.float64)):
        try:
            pairs.append(encode(float(real)))
        except FixedPointError as error:
            raise FixedPointError(f"channel {channel}: {error}") from None
    multiplier, shift = np.array(pairs, np.int64).reshape(-1, 2).T
    return multiplier.copy(), shift.copy()


def decode(multiplier: int, shift: int) -> float:
    """The real factor that a (multiplier, shift) stands for; exact."""
    return multiplier / (1 << shift)


@dataclass(frozen=True)
class Constant:
    """What is added to an accumulator of one layer before its scale.

    Attributes:
        exact: int64 [C], in accumulator units (int32 bias, input zero point).
        real: float64 [C], in units of the output's quantization step (float bias / s_y).
    """

    exact: NDArray[np.int64]
    real: NDArray[np.float64]


def requantize(
    reals: ArrayLike, constant: Constant, *, zero_point: int = 0, low: int = -128, high: int = 127
) -> Requantize:
    """The requantization of a layer whose channels scale by `reals` after adding `constant`.

    A channel whose offset does not fit 48 bits gives up mantissa bits, one at a time, until it does. A factor too large
    for a multiplier makes a step of the accumulator (what a sign is), which is exact.

    Raises:
        FixedPointError: naming the channel, where no shift holds both.
    """
    factors = np.asarray(reals, np.float64)
    is_step = np.isfinite(factors) & (np.abs(factors) >= MULTIPLIER_LIMIT)
    multiplier, shift = encode_channels(np.where(is_step, 0.0, factors))
    offset = np.zeros_like(multiplier)
    for channel, real in enumerate(factors):
        exact, added = int(constant.exact[channel]), float(constant.real[channel])
        if is_step[channel]:
            ends = (low - zero_point, high - zero_point)
            multiplier[channel], offset[channel] = _step(float(real), exact, added, ends, channel)
            continue
        m, s = int(multiplier[channel]), int(shift[channel])
        while abs(b := exact * m + _round_half_even(Fraction(added) * (1 << s))) >= OFFSET_LIMIT:
            if s == 0:
                raise FixedPointError(f"channel {channel}: the offset {b} does not fit {OFFSET_BITS} bits at any shift")
            s -= 1
            m = _round_half_even(Fraction(float(real)) * (1 << s))
        multiplier[channel], shift[channel], offset[channel] = m, s, b
    return Requantize(multiplier, shift, offset, zero_point, low, high)


def _step(real: float, exact: int, added: float, ends: tuple[int, int], channel: int) -> tuple[int, int]:
    """Multiplier and offset at shift 0 of clamp(rhe((acc + exact) * real + added), *ends) with |real| >= 2**16.

    From one accumulator to the next the value goes from one end to the other, with at most one accumulator in between:
    a line through its value that is as steep as the ends are apart is the same function.
    """
    low, high = ends
    if real < 0:  # the same of -acc
        multiplier, offset = _step(-real, -exact, added, ends, channel)
        return -multiplier, offset
    slope, start = Fraction(real), Fraction(exact) * Fraction(real) + Fraction(added)

    def value(acc: int) -> int:
        return min(max(_round_half_even(acc * slope + start), low), high)

    first = math.ceil((high - start) / slope)
    while value(first - 1) == high:
        first -= 1
    multiplier = MULTIPLIER_LIMIT - 1
    offset = value(first - 1) - multiplier * (first - 1)
    if abs(offset) >= OFFSET_LIMIT:
        raise FixedPointError(f"channel {channel}: the offset {offset} does not fit {OFFSET_BITS} bits")
    return multiplier, offset


def round_half_even_shift(value: NDArray[np.int64], shift: ArrayLike) -> NDArray[np.int64]:
    """value / 2**shift, rounded half to even; the definition of every rounding in the machine.

    Args:
        value: int64, |value| < 2**62.
        shift: 0 to 47, broadcast against `value`.
    """
    amount = np.asarray(shift, np.int64)
    odd = np.where(amount > 0, (value >> amount) & 1, 0)
    below_half = np.where(amount > 0, (np.int64(1) << np.maximum(amount - 1, 0)) - 1, 0)
    return (value + below_half + odd) >> amount


def _shift_for(real: float) -> int:
    """The shift that puts |real| * 2**shift in [2**15, 2**16), as far as 0..47 allows."""
    if not np.isfinite(real):
        raise FixedPointError(f"the factor {real} is not finite")
    if real >= MULTIPLIER_LIMIT:
        raise FixedPointError(f"the factor {real:g} is 2**{MANTISSA_BITS} or more")
    if real == 0:
        return 0
    _, exponent = np.frexp(real)  # real = f * 2**exponent, 0.5 <= f < 1
    return int(min(max(MANTISSA_BITS - int(exponent), 0), SHIFT_MAX))


def _round_half_even(value: Fraction) -> int:
    return round(value)
