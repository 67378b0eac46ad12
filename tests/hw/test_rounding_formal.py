"""Proof of RoundShift: every value, every shift, every zero point and bound."""

from pathlib import Path

import pytest
from amaranth import Module, Mux, ResetSignal, Signal, signed
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.rounding import RoundShift
from tests.support.hardware import prove

pytestmark = pytest.mark.formal


class RoundShiftSpec(wiring.Component):
    """Holds arbitrary inputs still, and compares the first result with the formula.

    The remainder is compared with half of the divisor, a way to round that shares nothing with a sticky bit.
    """

    def __init__(self, value_bits: int) -> None:
        self._bits = value_bits
        super().__init__({
            "value": In(signed(value_bits)), "shift": In(6),
            "zero_point": In(signed(8)), "low": In(signed(8)), "high": In(signed(8)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = RoundShift(self._bits)
        cycle = Signal(range(RoundShift.LATENCY + 2))
        m.d.sync += cycle.eq(cycle + 1)
        m.d.comb += [Assume(~ResetSignal()), Assume(self.low <= self.high)]
        for name in self.signature.members:
            member, before = getattr(self, name), Signal.like(getattr(self, name), name=f"{name}_before")
            m.d.sync += before.eq(member)
            m.d.comb += getattr(dut, name).eq(member)
            with m.If(cycle != 0):
                m.d.comb += Assume(member == before)

        quotient = Signal(signed(self._bits + 1))
        remainder, divisor = Signal(65), Signal(65)
        m.d.comb += [
            quotient.eq(self.value >> self.shift),
            divisor.eq(1 << self.shift),
            remainder.eq(self.value.as_unsigned() & (divisor - 1)[:self._bits]),
        ]
        # Bits of a negative value above its width are ones, below the divisor too.
        above = Signal(65)
        m.d.comb += above.eq(Mux(self.value < 0, (divisor - 1) & ~((1 << self._bits) - 1), 0))
        twice = (remainder | above) << 1
        up = (twice > divisor) | ((twice == divisor) & quotient[0])
        rounded = quotient + up + self.zero_point
        expected = Mux(rounded < self.low, self.low, Mux(rounded > self.high, self.high, rounded))
        with m.If(cycle == RoundShift.LATENCY):
            m.d.comb += Assert(dut.y == expected)
        return m


@pytest.mark.parametrize("value_bits", [
    20, pytest.param(35, marks=[pytest.mark.slow, pytest.mark.nightly]), pytest.param(49, marks=pytest.mark.slow),
])
def test_round_shift_contract(tmp_path: Path, value_bits: int) -> None:
    prove(RoundShiftSpec(value_bits), tmp_path, mode="bmc", depth=RoundShift.LATENCY + 1)
