"""Golden model of Requantize and of the rounding that every requantization ends with."""

from fractions import Fraction


def round_half_even(value: int, shift: int) -> int:
    """value / 2**shift to the nearest integer, ties to even, exactly."""
    return round(Fraction(value, 1 << shift))  # Python rounds fractions half to even


def clamp(value: int, low: int, high: int) -> int:
    """`value` limited to [low, high]."""
    return max(low, min(high, value))


def requantize(
    acc: int, multiplier: int, shift: int, offset: int, *, zero_point: int = 0, low: int = -128, high: int = 127
) -> int:
    """clamp(zero_point + rhe((acc * multiplier + offset) / 2**shift), low, high)."""
    return clamp(zero_point + round_half_even(acc * multiplier + offset, shift), low, high)
