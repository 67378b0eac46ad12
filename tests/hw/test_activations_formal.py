"""Proofs of Rotator and Activations' bank arithmetic: every amount, every word."""

from pathlib import Path

import pytest
from amaranth import Array, Module, ResetSignal, Signal
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.activations import Rotator
from tests.support.hardware import prove

pytestmark = pytest.mark.formal

WIDTH = 3


class RotatorSpec(wiring.Component):
    """New words and a new amount in every cycle; each output word is the one of LATENCY cycles before."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        super().__init__({"amount": In((pixels - 1).bit_length()), "words": In(WIDTH).array(pixels)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = Rotator(self._pixels, WIDTH)
        m.d.comb += [Assume(~ResetSignal()), dut.amount.eq(self.amount)]
        amount, words = self.amount, list(self.words)
        for index, word in enumerate(words):
            m.d.comb += dut.i[index].eq(word)
        for age in range(1, Rotator.LATENCY + 1):
            before_amount, before_words = amount, words
            amount = Signal.like(self.amount, name=f"amount{age}")
            words = [Signal(WIDTH, name=f"word{index}_{age}") for index in range(self._pixels)]
            m.d.sync += [amount.eq(before_amount), *(w.eq(b) for w, b in zip(words, before_words, strict=True))]
        cycle = Signal(range(Rotator.LATENCY + 1))
        with m.If(cycle != Rotator.LATENCY):
            m.d.sync += cycle.eq(cycle + 1)
        with m.Else():
            for lane in range(self._pixels):
                bank = Signal(range(self._pixels), name=f"bank{lane}")  # its width is the modulus
                m.d.comb += [bank.eq(lane + amount), Assert(dut.o[lane] == Array(words)[bank])]
        return m


@pytest.mark.parametrize("pixels", [2, 4, 8])
def test_rotator_contract(tmp_path: Path, pixels: int) -> None:
    prove(RotatorSpec(pixels), tmp_path, mode="prove", depth=2 * Rotator.LATENCY + 1)
