"""exp and erf in float32 as arithmetic that runs in vectors; TVM's own are a call of the C library for each element.

TVM makes tanh and sigmoid of exp. Rules are registered for LLVM targets when operators are compiled; integer kernels
use none of these functions. exp: range reduction after Cody and Waite (Software Manual for the Elementary Functions,
1980, chapter 6), the Taylor polynomial of degree 7 on [-ln 2 / 2, ln 2 / 2]; 2 units in the last place. erf:
x P(x**2) / Q(x**2) on [-4, 4], fitted by reweighted least squares; 4e-7 relative.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from backends.cpu import tir
from backends.cpu.tir import Expr

_MAGIC, _MAGIC_BITS = float(3 << 22), 0x4B400000
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -104.0, 89.0
"""Beyond these exp is 0 or infinite in float32."""
_EXP = tuple(1 / math.factorial(k) for k in range(8))
_ERF_TOP = (
    1.1283791681554323, 0.1854379124474615, 0.054167939381092156, 0.00383548091894893,
    0.00037191382531042474, 4.4755511462325576e-06, -1.2142591634961424e-08,
)  # fmt: skip
_ERF_BOTTOM = (
    1.0, 0.49767344722763085, 0.11389592293603329, 0.015407471122187428, 0.0012942893568758391, 6.112125158641521e-05,
)  # fmt: skip
_LEVEL = 120
"""Above TVM's own rules."""
_ERF_END = 4.0
"""From here on erf is 1 in float32."""


@cache
def register() -> None:
    """Use these rules for LLVM targets from now on; a second time changes nothing."""
    from tvm.tirx import register_intrin_lowering

    for name, rule in (("exp", _exp), ("erf", _erf)):
        register_intrin_lowering(f"tirx.{name}", target="llvm", f=_for_float32(rule), level=_LEVEL)


def _for_float32(rule: Any) -> Any:
    def lower(call: Expr) -> Expr | None:
        (x,) = call.args
        if not tir.dtype_of(x).startswith("float32"):
            return call
        return tir.named(x, rule)

    return lower


def _exp(x: Expr) -> Expr:
    """2**n * exp(r), 2**n in two factors so that denormals and infinity come out."""
    lanes = tir.lanes_of(x)

    def number(value: float, dtype: str = "float32") -> Expr:
        return tir.constant(value, dtype, lanes)

    within = tir.clamp(x, number(_LOWEST), number(_HIGHEST))
    shifted = tir.multiply_add(within, number(1 / math.log(2)), number(_MAGIC))
    words = "int32" if lanes == 1 else f"int32x{lanes}"

    def with_power(n: Expr) -> Expr:
        exact = tir.cast(n, "float32")
        rest = tir.multiply_add(exact, number(-_LOG2_LOW), tir.multiply_add(exact, number(-_LOG2_HIGH), within))
        series = tir.named(rest, lambda r: _polynomial(r, _EXP))
        half = n >> number(1, "int32")
        return series * _power(half) * _power(n - half)

    value = tir.named(tir.reinterpret(shifted, words) - number(_MAGIC_BITS, "int32"), with_power)
    return tir.select(_is_nan(x), x, value)


def _power(n: Expr) -> Expr:
    """2**n for -126 <= n <= 127."""
    lanes = tir.lanes_of(n)
    bits = (n + tir.constant(127, "int32", lanes)) << tir.constant(23, "int32", lanes)
    return tir.reinterpret(bits, "float32" if lanes == 1 else f"float32x{lanes}")


def _erf(x: Expr) -> Expr:
    """x P(x**2) / Q(x**2)."""
    lanes = tir.lanes_of(x)
    end = tir.constant(_ERF_END, "float32", lanes)

    def ratio(a: Expr) -> Expr:
        return tir.named(a * a, lambda t: a * _polynomial(t, _ERF_TOP) / _polynomial(t, _ERF_BOTTOM))

    near = tir.named(tir.clamp(x, tir.constant(-_ERF_END, "float32", lanes), end), ratio)
    return tir.select(_is_nan(x), x, near)


def _is_nan(x: Expr) -> Expr:
    """By its bits: TVM takes x != x for false."""
    lanes = tir.lanes_of(x)
    bits = tir.reinterpret(x, "int32" if lanes == 1 else f"int32x{lanes}")
    without_sign = bits & tir.constant(0x7FFFFFFF, "int32", lanes)
    return without_sign > tir.constant(0x7F800000, "int32", lanes)


def _polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Horner's rule; the constant term first."""
    lanes = tir.lanes_of(x)
    value = tir.constant(coefficients[-1], "float32", lanes)
    for coefficient in reversed(coefficients[:-1]):
        value = tir.multiply_add(value, x, tir.constant(coefficient, "float32", lanes))
    return value
