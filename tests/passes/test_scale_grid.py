"""The logarithmic grid of weight scales gives what the quantizer's own search on the machine's grid gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes import quantize_weights
from passes.scale_grid import (
    STEP_MAX,
    factor_at_least,
    factor_of,
    scale_of_factor,
    step_of,
    weight_scale,
    wished_scale,
)
from passes.scales import Scale, on_grid

activation_scales = st.floats(2.0**-20, 2.0**10, width=32)
steps = st.integers(-60, 20)


@given(st.floats(2.0**-60, 65534.0))
def test_a_factor_is_the_quantizers(factor: float) -> None:
    multiplier, shift = factor_at_least(factor)
    assert multiplier / 2**shift == on_grid(factor)
    assert multiplier % 2 == 1
    assert multiplier < 2**16


@given(st.integers(-47, 15), st.sampled_from([-1, 0, 1]))
def test_a_factor_beside_a_power_of_two_is_the_quantizers(exponent: int, side: int) -> None:
    power = math.ldexp(1.0, exponent)
    factor = power if side == 0 else math.nextafter(power, math.inf * side)
    multiplier, shift = factor_at_least(factor)
    assert multiplier / 2**shift == on_grid(factor)


@given(steps, activation_scales, activation_scales)
def test_a_weight_scale_is_the_quantizers_for_the_wished_scale(step: int, source: float, target: float) -> None:
    try:
        expected = quantize_weights.weight_scale(wished_scale(step), Scale(source, 0), Scale(target, 0))
    except ValueError:
        with pytest.raises(ValueError):
            weight_scale(step, source, target)
        return
    assert float(weight_scale(step, source, target)) == expected


@given(steps, st.floats(2.0**-8, 2.0**4, width=32), st.floats(2.0**-4, 2.0**4, width=32))
def test_a_scale_tells_its_step(step: int, source: float, target: float) -> None:
    try:
        scale = float(weight_scale(step, source, target))
    except ValueError:
        return
    if factor_at_least(wished_scale(step) * (source / target))[0] >= 2**15:
        assert step_of(scale, source, target) == step
        assert step_of(float(np.nextafter(np.float32(scale), np.float32(np.inf))), source, target) is None


@given(st.integers(2**14, 2**15 - 1), st.integers(5, 47), activation_scales, activation_scales)
def test_a_scale_tells_its_factor(half: int, shift: int, source: float, target: float) -> None:
    scale = float(scale_of_factor(2 * half + 1, shift, source, target))
    assert factor_of(scale, source, target) == (2 * half + 1, shift)


def test_the_grid_has_four_steps_in_an_octave() -> None:
    assert wished_scale(0) == 1.0
    assert wished_scale(-4) == 0.5
    assert wished_scale(9) == 4 * 2**0.25
    assert wished_scale(3) ** 4 == pytest.approx(8)


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="a scale's step must be in -400..400, not 401"):
        weight_scale(STEP_MAX + 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="are too coarse: s_x \\* s_w / s_y is 65536"):
        weight_scale(64, 1.0, 1.0)
    with pytest.raises(ValueError, match="no normal float32"):
        scale_of_factor(1, 47, 2.0**100, 2.0**-10)
    assert step_of(1e30, 1.0, 1.0) is None
    assert factor_of(1e30, 1.0, 1.0) is None
    assert factor_of(0.0, 1.0, 1.0) is None
