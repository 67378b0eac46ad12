"""Real scales as integers: closed forms, laws, and limits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fixed_point import (
    OFFSET_LIMIT,
    Constant,
    FixedPointError,
    decode,
    encode,
    encode_common,
    requantize,
    round_half_even_shift,
)


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (1.0, (1 << 15, 15)),
        (-0.5, (-(1 << 15), 16)),
        (65535.0, (65535, 0)),
        (2.0**-32, (1 << 15, 47)),
        (2.0**-40, (1 << 7, 47)),
        (2.0**-60, (0, 47)),
        (0.0, (0, 0)),
        (np.nextafter(1.0, 0.0), (1 << 15, 15)),  # the mantissa rounds up to 2**16: one shift less
    ],
)
def test_encode_is_the_closed_form(real: float, expected: tuple[int, int]) -> None:
    assert encode(real) == expected


@pytest.mark.parametrize("real", [65536.0, -65536.0, 65535.75, float("inf"), float("nan")])
def test_encode_refuses_what_does_not_fit(real: float) -> None:
    with pytest.raises(FixedPointError):
        encode(real)


@given(st.floats(2.0**-32, 65535.0), st.sampled_from([-1, 1]))
def test_encode_has_16_significant_bits(real: float, sign: int) -> None:
    multiplier, shift = encode(sign * real)
    assert 1 << 15 <= abs(multiplier) < 1 << 16
    assert abs(decode(multiplier, shift) - sign * real) <= real * 2.0**-16


@given(st.integers(1 << 15, (1 << 16) - 1), st.integers(0, 47))
def test_a_factor_on_the_grid_survives_float32(multiplier: int, shift: int) -> None:
    assert encode(float(np.float32(multiplier / (1 << shift)))) == (multiplier, shift)


def test_common_shift_is_that_of_the_largest() -> None:
    assert encode_common((1.0, -0.25)) == ((1 << 15, -(1 << 13)), 15)


@given(st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=20), st.integers(0, 47))
def test_rounding_is_half_to_even(values: list[int], shift: int) -> None:
    rounded = round_half_even_shift(np.array(values, np.int64), shift)
    assert rounded.tolist() == [round(Fraction(value, 1 << shift)) for value in values]


@given(st.integers(-1000, 1000), st.integers(1, 40))
def test_ties_go_to_even(quotient: int, shift: int) -> None:
    tie = np.array([(quotient << shift) + (1 << (shift - 1))], np.int64)
    assert round_half_even_shift(tie, shift)[0] == quotient + (quotient & 1)


def test_an_integer_bias_enters_the_offset_exactly() -> None:
    config = requantize([0.1, -0.3], Constant(np.array([12345, -7]), np.zeros(2)), zero_point=3, low=3)
    assert config.offset.tolist() == [12345 * encode(0.1)[0], -7 * encode(-0.3)[0]]
    assert (config.zero_point, config.low, config.high) == (3, 3, 127)


def test_a_real_bias_enters_in_output_steps() -> None:
    config = requantize([0.5], Constant(np.array([0]), np.array([2.5])))
    assert config.offset[0] / 2.0 ** config.shift[0] == 2.5


def test_a_large_offset_gives_up_mantissa_bits_until_it_fits() -> None:
    config = requantize([1.0], Constant(np.array([1 << 40]), np.zeros(1)))
    assert (config.multiplier[0], config.shift[0], config.offset[0]) == (1 << 6, 6, 1 << 46)


def test_an_impossible_offset_names_its_channel() -> None:
    with pytest.raises(FixedPointError, match="channel 1: the offset"):
        requantize([1.0, 1.0], Constant(np.array([0, OFFSET_LIMIT]), np.zeros(2)))


def test_an_impossible_factor_names_its_channel() -> None:
    with pytest.raises(FixedPointError, match="channel 1: the factor"):
        requantize([1.0, float("nan")], Constant(np.zeros(2, np.int64), np.zeros(2)))


@given(
    st.floats(65536.0, 2.0**60),
    st.sampled_from([-1, 1]),
    st.integers(-1000, 1000),
    st.floats(-1e6, 1e6),
    st.sampled_from([(0, -1, 1), (0, 0, 1), (-128, -128, 127), (5, -128, 127)]),
)
def test_a_factor_beyond_the_multiplier_is_a_step_of_the_accumulator(
    real: float, sign: int, exact: int, added: float, ends: tuple[int, int, int]
) -> None:
    zero_point, low, high = ends
    start = Constant(np.array([exact]), np.array([added]))
    config = requantize([sign * real], start, zero_point=zero_point, low=low, high=high)
    assert abs(config.multiplier[0]) < 1 << 16
    assert config.shift[0] == 0
    for acc in (*range(-exact - 20, -exact + 20), -(2**23), 2**23 - 1):
        wanted = zero_point + round((Fraction(acc) + exact) * Fraction(sign * real) + Fraction(added))
        got = zero_point + acc * int(config.multiplier[0]) + int(config.offset[0])
        assert min(max(got, low), high) == min(max(wanted, low), high)
