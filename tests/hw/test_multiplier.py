"""Multiplier in Verilator, the ECP5 one with behavioural cells; what may not be asked for."""

import pytest
from amaranth import Shape, signed, unsigned

from hw.config import ConfigError
from hw.multiplier import Multiplier
from tests.support.hardware import run_testbench

SHAPES = [(unsigned(18), signed(17)), (signed(18), signed(18)), (signed(9), unsigned(5)), (unsigned(18), unsigned(18))]


@pytest.mark.verilator
@pytest.mark.parametrize("technology", ["generic", "ecp5"])
@pytest.mark.parametrize(("a", "b"), SHAPES[:2])
def test_multiplier_multiplies(a: Shape, b: Shape, technology: str) -> None:
    _run(a, b, technology)


@pytest.mark.verilator
@pytest.mark.parametrize(("a", "b"), SHAPES[2:])
def test_ecp5_multiplier_extends_narrow_and_unsigned_operands(a: Shape, b: Shape) -> None:
    _run(a, b, "ecp5")


def test_operand_of_19_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match="operand b must have 1 to 18 bits, not 19"):
        Multiplier(signed(8), signed(19))


def test_unknown_technology_is_refused() -> None:
    with pytest.raises(ConfigError, match="technology must be one of generic, verilog, ecp5, not 'asic'"):
        Multiplier(signed(8), signed(8), "asic")


def _run(a: Shape, b: Shape, technology: str) -> None:
    ran = run_testbench(
        Multiplier(a, b, technology), "multiplier", technology,
        a_bits=a.width, b_bits=b.width, a_signed=int(a.signed), b_signed=int(b.signed),
    )
    assert ran == 1
