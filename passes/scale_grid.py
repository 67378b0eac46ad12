"""Weight scales on a coarse logarithmic grid, moved onto the machine's factors: a small integer stands for each.

Everything here is integers and single IEEE 754 double operations rounded to nearest even, no function of a maths
library: a decoder in another language repeats it bit for bit.
"""

from __future__ import annotations

import math

import numpy as np

MANTISSA_BITS = 16
SHIFT_MAX = 47
STEPS_PER_OCTAVE = 4
STEP_MAX = 400
"""Largest magnitude of a step: scales from 2**-100 to 2**100."""

_QUARTERS = (1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074290)
"""2**(0/4) .. 2**(3/4), the nearest doubles."""
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127


def wished_scale(step: int) -> float:
    """2**(step/4), the scale before it is moved onto the machine's grid.

    Raises:
        ValueError: `step` is beyond +-STEP_MAX.
    """
    if not -STEP_MAX <= step <= STEP_MAX:
        raise ValueError(f"a scale's step must be in -{STEP_MAX}..{STEP_MAX}, not {step}")
    return math.ldexp(_QUARTERS[step % STEPS_PER_OCTAVE], step // STEPS_PER_OCTAVE)


def nearest_step(scale: float) -> int:
    """The step whose wished scale is nearest to `scale` > 0 in ratio."""
    return round(STEPS_PER_OCTAVE * math.log2(scale))


def factor_at_least(factor: float) -> tuple[int, int]:
    """The smallest odd multiplier of at most 16 bits and shift of at most 47 whose quotient is not below `factor`.

    Args:
        factor: A normal double, 0 < factor < 2**16 - 1.

    Returns:
        (multiplier, shift): factor <= multiplier / 2**shift. Where the shift is below 47, multiplier >= 2**15.
    """
    fraction, exponent = math.frexp(factor)
    mantissa = int(math.ldexp(fraction, 53))  # factor = mantissa * 2**(exponent - 53), exactly
    shift = min(MANTISSA_BITS - exponent, SHIFT_MAX)
    drop = 53 - exponent - shift  # at least 37
    multiplier = -(-mantissa >> drop) | 1
    if multiplier >> MANTISSA_BITS:  # the next power of two is nearer than the next odd number
        return (1 << (MANTISSA_BITS - 1)) | 1, shift - 1
    return multiplier, shift


def scale_of_factor(multiplier: int, shift: int, source_scale: float, target_scale: float) -> np.float32:
    """The float32 weight scale s_w for which s_x * s_w / s_y is multiplier / 2**shift as nearly as float32 can say.

    s_w = float32((multiplier / 2**shift) / (s_x / s_y)); divisions and the rounding to float32 are to nearest even.

    Raises:
        ValueError: The result is no normal float32.
    """
    scale = math.ldexp(multiplier, -shift) / (source_scale / target_scale)
    if not _SMALLEST <= scale < _LARGEST:
        raise ValueError(f"a weight scale of {scale:g} is no normal float32")
    return np.float32(scale)


def weight_scale(step: int, source_scale: float, target_scale: float) -> np.float32:
    """The weight scale that `step` stands for: the first on the machine's grid that is at least 2**(step/4).

    Args:
        step: Of the logarithmic grid, any sign.
        source_scale: Of the layer's input (s_x), a positive float32 value.
        target_scale: Of the layer's output (s_y), likewise.

    Raises:
        ValueError: s_x * s_w / s_y would be 2**16 or more, or a number is out of range.
    """
    factor = wished_scale(step) * (source_scale / target_scale)
    if not 0 < factor < 2**MANTISSA_BITS - 1:
        raise ValueError(f"weights of step 2**({step}/4) are too coarse: s_x * s_w / s_y is {factor:g}")
    return scale_of_factor(*factor_at_least(factor), source_scale, target_scale)


def step_of(scale: float, source_scale: float, target_scale: float) -> int | None:
    """The step for which `weight_scale` gives `scale` bit for bit, or None."""
    nearest = nearest_step(scale)
    return nearest if _is(nearest, scale, source_scale, target_scale) else None


def _is(step: int, scale: float, source_scale: float, target_scale: float) -> bool:
    try:
        return float(weight_scale(step, source_scale, target_scale)) == scale
    except ValueError:
        return False


def factor_of(scale: float, source_scale: float, target_scale: float) -> tuple[int, int] | None:
    """(multiplier, shift) of 16 and 47 bits at most for which `scale_of_factor` gives `scale` bit for bit, or None."""
    unit = source_scale / target_scale
    near = scale * unit
    if not 0 < near < 2**MANTISSA_BITS - 1:
        return None
    shift = min(MANTISSA_BITS - math.frexp(near)[1], SHIFT_MAX)
    multiplier = round(math.ldexp(near, shift))
    try:
        found = float(scale_of_factor(multiplier, shift, source_scale, target_scale))
    except ValueError:
        return None
    return (multiplier, shift) if multiplier & 1 and multiplier >> MANTISSA_BITS == 0 and found == scale else None
