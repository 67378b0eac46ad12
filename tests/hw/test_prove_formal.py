"""Proofs can fail: what tests.support.hardware.prove says of a component whose counter reaches 3 in cycle 3."""

from pathlib import Path

import pytest
from amaranth import Module, ResetSignal, Signal
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from tests.support.hardware import prove

pytestmark = pytest.mark.formal


class CounterSpec(wiring.Component):
    """Counts the cycles in which `enable` is high, and claims never to reach `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        super().__init__({"enable": In(1)})

    def elaborate(self, platform: object) -> Module:
        m, count = Module(), Signal(4)
        m.d.comb += [Assume(~ResetSignal()), Assert(count != self._limit)]
        with m.If(self.enable & (count != 3)):
            m.d.sync += count.eq(count + 1)
        return m


def test_false_claim_is_refuted_in_the_cycle_in_which_it_fails(tmp_path: Path) -> None:
    prove(CounterSpec(3), tmp_path, mode="bmc", depth=3)
    with pytest.raises(AssertionError, match="BMC failed"):
        prove(CounterSpec(3), tmp_path, mode="bmc", depth=4)


def test_claim_that_needs_more_than_induction_is_not_taken_for_proven(tmp_path: Path) -> None:
    """From count = 4, which is never reached, one step leads to 5."""
    with pytest.raises(AssertionError, match="UNKNOWN"):
        prove(CounterSpec(5), tmp_path, mode="prove", depth=1)
