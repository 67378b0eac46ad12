"""Golden model of Elementwise."""

from dataclasses import dataclass

from hw.isa import Elementwise as Operation
from sim.golden.requantize import clamp, round_half_even


@dataclass(frozen=True)
class ElementwiseConfig:
    """What an instruction says about the second operand; see isa.py."""

    operation: int
    multiplier_a: int = 0
    multiplier_b: int = 0
    shift: int = 0
    zero_point_a: int = 0
    zero_point_b: int = 0
    zero_point_y: int = 0
    low: int = -128
    high: int = 127


def elementwise(a: int, b: int, slope: int, config: ElementwiseConfig) -> int:
    """One int8 result; `slope` is the multiplier of negative values (PRELU)."""
    if config.operation == Operation.NONE:
        return a
    a, b = a - config.zero_point_a, b - config.zero_point_b
    if config.operation == Operation.ADD:
        total = a * config.multiplier_a + b * config.multiplier_b
    elif config.operation == Operation.MUL:
        total = a * b * config.multiplier_b
    else:
        total = a * (config.multiplier_a if a >= 0 else slope)
    return clamp(config.zero_point_y + round_half_even(total, config.shift), config.low, config.high)
