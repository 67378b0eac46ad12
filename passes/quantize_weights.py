"""Integers of one layer's weights and bias: symmetric, one scale for each output channel, on the machine's grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from passes.scale_grid import nearest_step, wished_scale
from passes.scales import MANTISSA_BITS, Q_MAX, Q_MIN, SHIFT_MAX, Scale, on_grid

WEIGHT_MAX = 127
BIAS_MAX = 2**30  # leaves room for the zero-point term in a 48-bit offset, and in int32
DEAD_STEPS = 2.0**-8
"""A channel whose weights together cannot move its output by this many quantization steps has weight code 0."""

PART = 1 << 20
"""Weights that are rounded at once."""

Codes: TypeAlias = NDArray[np.int32]
Round: TypeAlias = Callable[[NDArray[np.float64]], Codes]
"""Scales float64 [C_out] to codes int32 [C_out, taps]."""


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """One layer's integers.

    Attributes:
        weights: int8, or int16 where a code is beyond it, [C_out, ...].
        scale: float32 [C_out].
        bias: int32 [C_out], at scale s_x * scale.
        is_dead: bool [C_out]; its weights are all 0.
        is_raised: bool [C_out]; the scale is above the wished one by more than the grid needs, so that bias,
            accumulator or multiplier fit.
    """

    weights: NDArray[np.signedinteger]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    is_dead: NDArray[np.bool_]
    is_raised: NDArray[np.bool_]


def quantize_weights(
    weights: NDArray[np.float32], bias: NDArray[np.float32], source: Scale, target: Scale, *, acc_bits: int = 24
) -> QuantizedWeights:
    """Quantize the weights and bias of a Conv or Gemm to the nearest 8-bit integers.

    w_q = clip(round half to even(w / s_w), -127, 127);  b_q = round half to even(b / (s_x * s_w))

    s_w is max|w| / 127, raised as far as needed so that |b_q| <= 2**30, the accumulator of every input in -128..127
    fits `acc_bits`, and the shift is at most 47; then raised to the grid, so that s_x * s_w / s_y = M / 2**S, M odd.
    A channel whose weights cannot move the output by 1/256 of a step gets code 0: its scale follows from the bias.

    Args:
        weights: float32 [C_out, ...].
        bias: float32 [C_out].
        source: Of the layer's input (s_x).
        target: Of the layer's output (s_y).
        acc_bits: Signed accumulator width.

    Raises:
        ValueError: s_x * s_w / s_y would be 2**16 or more.

    Source: Jacob et al., CVPR 2018, section 3.
    """
    is_dead = dead_channels(weights, source, target)
    rows = np.where(is_dead[:, None], np.float32(0), weights.reshape(len(weights), -1))
    natural = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64) / WEIGHT_MAX
    scale, codes = fitted(natural, nearest_codes(rows), bias, source, target, acc_bits=acc_bits)
    return QuantizedWeights(
        codes.reshape(weights.shape).astype(np.int8),
        scale,
        bias_codes(bias, source, scale),
        is_dead,
        (scale > natural * 1.001) & ~is_dead,
    )


def nearest_codes(rows: NDArray[np.floating], limit: int = WEIGHT_MAX) -> Round:
    """Rounding of `rows`, float [C_out, taps], to the nearest code."""

    def nearest(scale: NDArray[np.float64]) -> Codes:
        codes = np.empty(rows.shape, np.int32)
        for part in _parts(rows):
            exact = rows[part].astype(np.float64) / scale[part, None]
            codes[part] = np.clip(np.rint(exact), -limit, limit)
        return codes

    return nearest


def _parts(rows: NDArray[np.generic]) -> list[slice]:
    """Rows that are worked on together: what is made on the way stays small beside the weights of a huge layer."""
    step = max(1, PART // max(1, rows[0].size if len(rows) else 1))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def dead_channels(weights: NDArray[np.generic], source: Scale, target: Scale) -> NDArray[np.bool_]:
    """Channels that cannot move the output by DEAD_STEPS steps whatever the input, bool [C_out]."""
    rows = weights.reshape(len(weights), -1)
    sums = np.concatenate([np.abs(rows[part].astype(np.float64)).sum(axis=1) for part in _parts(rows)] or [np.zeros(0)])
    return np.asarray(sums * source.scale * (source.high - source.low) < DEAD_STEPS * target.scale)


def bias_codes(bias: NDArray[np.floating], source: Scale, scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """round half to even(b / (s_x * s_w)), cut at +-2**30, int32 [C_out]."""
    steps = np.rint(bias / (source.scale * scale.astype(np.float64)))
    return np.clip(steps, -BIAS_MAX, BIAS_MAX).astype(np.int32)


def fitted(
    wished: NDArray[np.float64],
    rounding: Round,
    bias: NDArray[np.floating],
    source: Scale,
    target: Scale,
    *,
    acc_bits: int,
    is_coarse: bool = False,
    least: NDArray[np.float64] | float = 0.0,
) -> tuple[NDArray[np.float32], Codes]:
    """Scales that the machine can take, no smaller than wished but for the grid, and the codes at these.

    Args:
        wished: float64 [C_out]; 0 where any will do.
        rounding: Gives the codes at certain scales.
        bias: Real biases [C_out], which must be integers of 31 bits at s_x * s_w.
        source, target: Of the layer's input and output.
        acc_bits: Signed accumulator width; proven from the codes, for 8-bit activations.
        is_coarse: Wish for powers of 2**(1/4), which a container stores as small integers.
        least: Where the nearest of these would be below this, float64 [C_out], the next one is taken.

    Raises:
        ValueError: s_x * s_w / s_y would be 2**16 or more.
    """
    bias_needs = np.abs(bias.astype(np.float64)) / source.scale / BIAS_MAX
    smallest = math.ldexp(1.0, MANTISSA_BITS - 1 - SHIFT_MAX) * target.scale / source.scale
    floor = np.maximum(bias_needs, smallest)
    needed = np.maximum(wished, floor)
    if is_coarse:
        needed = _coarse(needed, np.maximum(floor, least))
    scale = np.array([weight_scale(float(s), source, target) for s in needed], np.float32)
    codes = rounding(scale.astype(np.float64))
    while source.bits <= 8 and (overflow := ~accumulator_fits(codes, acc_bits)).any():
        grown = scale[overflow].astype(np.float64) * [_excess(c, acc_bits) for c in codes[overflow]]
        grown = _coarse(grown, grown) if is_coarse else grown
        scale[overflow] = [weight_scale(float(s), source, target) for s in grown]
        codes = rounding(scale.astype(np.float64))
    return scale, codes


def _coarse(needed: NDArray[np.float64], floor: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest power of 2**(1/4) that is not below `floor`."""
    scales = []
    for wish, least in zip(needed, floor, strict=True):
        step = nearest_step(float(wish))
        while wished_scale(step) < least:
            step += 1
        scales.append(wished_scale(step))
    return np.array(scales)


def accumulator_range(codes: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Smallest and largest sum of every channel over all int8 inputs, int64 [C_out] each."""
    rows = codes.reshape(codes.shape[0], -1)
    positive = np.maximum(rows, 0).sum(axis=1, dtype=np.int64)
    negative = np.minimum(rows, 0).sum(axis=1, dtype=np.int64)
    return positive * Q_MIN + negative * Q_MAX, positive * Q_MAX + negative * Q_MIN


def accumulator_fits(codes: NDArray[np.signedinteger], acc_bits: int) -> NDArray[np.bool_]:
    """Whether each channel's sum fits a signed accumulator of `acc_bits`, bool [C_out]."""
    low, high = accumulator_range(codes)
    return (low >= -(2 ** (acc_bits - 1))) & (high < 2 ** (acc_bits - 1))


def _excess(codes: Codes, acc_bits: int) -> float:
    """By how much one channel's scale must grow for its sum to fit; a little more than 1 at least."""
    low, high = accumulator_range(codes[None])
    return max(float(max(-low[0], high[0])) / 2 ** (acc_bits - 1), 1.0) * 1.0005


def weight_scale(needed: float, source: Scale, target: Scale) -> float:
    """The smallest scale on the grid that is at least `needed`: s_x * s_w / s_y = M / 2**S with M odd, of 16 bits."""
    unit = source.scale / target.scale
    if needed * unit >= 2**MANTISSA_BITS - 1:
        raise ValueError(
            f"the output's step {target.scale:g} is too fine for weights of step {needed:g} and inputs of step "
            f"{source.scale:g}: their ratio must be below 2**{MANTISSA_BITS}"
        )
    return float(np.float32(on_grid(needed * unit) / unit))
