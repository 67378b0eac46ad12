"""Proof of AddressGenerator: any taps, any weight stream, against the loop of hw.isa done in one cycle."""

from pathlib import Path

import pytest
from amaranth import Module, Mux, ResetSignal, Signal
from amaranth.hdl import Assert, Assume
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In

from hw.addresses import AddressGenerator
from hw.config import AcceleratorConfig
from hw.isa import tap_layout
from hw.pipeline import delay
from hw.sequencer import struct
from hw.timing import ADDRESS_STAGE, META_STAGE, TAP_STAGE
from tests.support.hardware import prove

pytestmark = pytest.mark.formal

CONFIG = AcceleratorConfig(2, 2, drain_lanes=1, block_lanes=1, activation_words=4, tap_words=2, coordinate_bits=4)
LATENCY = ADDRESS_STAGE - META_STAGE
BLOCKS = 8
"""Blocks of a stream that are looked at; both taps and a change of channel group are among them."""


class AddressGeneratorSpec(wiring.Component):
    """The taps are written first; then blocks or pauses come in any order."""

    def __init__(self) -> None:
        layout = tap_layout(CONFIG)
        super().__init__({
            "taps": In(layout.width).array(CONFIG.tap_words),
            "weight": In(1), "first": In(1), "delta": In(6), "end_tap": In(1), "base": In(CONFIG.address_bits),
            "tap_base": In(1), "in_plane": In(CONFIG.address_bits),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = AddressGenerator(CONFIG)
        cycle = Signal(range(BLOCKS + LATENCY + 8))
        loading = cycle < CONFIG.tap_words
        m.d.sync += cycle.eq(cycle + 1)
        m.d.comb += [
            Assume(~ResetSignal()),
            *(getattr(dut, name).eq(getattr(self, name))
              for name in ("first", "delta", "end_tap", "base", "tap_base", "in_plane")),
            dut.weight.eq(self.weight & ~loading),
            dut.tap_enable.eq(loading), dut.tap_address.eq(cycle), dut.tap_data.eq(Mux(cycle[0], *self.taps[::-1])),
        ]  # fmt: skip
        self._hold(m, cycle, [*self.taps, self.tap_base, self.in_plane])
        weight = dut.weight
        started = Signal()
        with m.If(weight):
            m.d.sync += started.eq(1)
            m.d.comb += Assume(started | self.first)

        channel, tap = Signal(CONFIG.channel_bits), Signal()
        here_channel, here_tap = Signal.like(channel), Signal.like(tap)
        fields = data.View(struct(tap_layout(CONFIG)), Mux(here_tap, self.taps[1], self.taps[0]))
        k, address, byte = Signal(CONFIG.channel_bits), Signal(CONFIG.address_bits), Signal()
        m.d.comb += [
            here_channel.eq(Mux(self.first, 0, channel) + self.delta),
            here_tap.eq(Mux(self.first, self.tap_base, tap)),
            k.eq(fields.channel + here_channel),
            address.eq(self.base),
        ]
        with m.If(weight):
            m.d.sync += [channel.eq(Mux(self.end_tap, 0, here_channel + 1)), tap.eq(here_tap + self.end_tap)]
            m.d.comb += [
                address.eq(self.base + fields.offset + (k // CONFIG.rows) * self.in_plane),
                byte.eq(k % CONFIG.rows),
            ]
        late_tap = delay(m, here_tap, TAP_STAGE - META_STAGE, name="late_tap")
        late_weight = delay(m, weight, TAP_STAGE - META_STAGE, reset=True, name="late_weight")
        late_address, late_byte = delay(m, address, LATENCY, name="address"), delay(m, byte, LATENCY, name="byte")
        with m.If(cycle >= CONFIG.tap_words + LATENCY):
            m.d.comb += [Assert(dut.address == late_address), Assert(dut.byte == late_byte)]
        with m.If(late_weight):
            m.d.comb += Assert(dut.tap.as_value() == Mux(late_tap, self.taps[1], self.taps[0]))
        return m

    def _hold(self, m: Module, cycle: Signal, values: list[Signal]) -> None:
        """Inputs that an instruction holds still."""
        for index, value in enumerate(values):
            before = Signal.like(value, name=f"before{index}")
            m.d.sync += before.eq(value)
            with m.If(cycle != 0):
                m.d.comb += Assume(before == value)


def test_address_generator_contract(tmp_path: Path) -> None:
    prove(AddressGeneratorSpec(), tmp_path, mode="bmc", depth=CONFIG.tap_words + LATENCY + BLOCKS)
