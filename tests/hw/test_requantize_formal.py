"""Proof of MultiplyAdd; with that of RoundShift it covers Requantize.

A 24 x 17 bit product is beyond a solver, so acc * multiplier is written as it is by algebra: with
acc = high * 2**18 + low it is high * multiplier * 2**18 + low * multiplier. The second product is registered as the
component does, so that yosys merges both into one cell and the solver need not open it.
"""

from pathlib import Path

import pytest
from amaranth import Module, ResetSignal, Signal, signed
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.config import AcceleratorConfig
from hw.pipeline import delay
from hw.requantize import MultiplyAdd
from tests.support.hardware import prove

pytestmark = pytest.mark.formal


class MultiplyAddSpec(wiring.Component):
    """Holds arbitrary inputs still, and compares the first result with the formula."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._dut = MultiplyAdd(config)
        members = self._dut.signature.members
        super().__init__({name: In(members[name].shape) for name in ("acc", "multiplier", "offset")})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = self._dut
        cycle = Signal(range(MultiplyAdd.LATENCY + 2))
        m.d.sync += cycle.eq(cycle + 1)
        m.d.comb += Assume(~ResetSignal())
        for name in self.signature.members:
            member = getattr(self, name)
            before = Signal.like(member, name=f"{name}_before")
            m.d.sync += before.eq(member)
            m.d.comb += getattr(dut, name).eq(member)
            with m.If(cycle != 0):
                m.d.comb += Assume(member == before)
        low, high = self.acc[:18], self.acc[18:].as_signed()
        low_product = Signal(signed(35), reset_less=True)
        m.d.sync += low_product.eq(delay(m, low, 1) * delay(m, self.multiplier, 1))
        low_product = delay(m, low_product, MultiplyAdd.LATENCY - 2)
        expected = low_product + (((high * self.multiplier) << 18) + self.offset)
        with m.If(cycle == MultiplyAdd.LATENCY):
            m.d.comb += Assert(dut.total == expected)
        return m


@pytest.mark.parametrize("acc_bits", [20, pytest.param(22, marks=[pytest.mark.slow, pytest.mark.nightly])])
def test_multiply_add_contract(tmp_path: Path, acc_bits: int) -> None:
    prove(MultiplyAddSpec(AcceleratorConfig(acc_bits=acc_bits)), tmp_path, mode="bmc", depth=MultiplyAdd.LATENCY + 1)
