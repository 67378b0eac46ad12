"""Proof of the Reader's credit rule: no byte is requested that the queue has no room for."""

from pathlib import Path

import pytest
from amaranth import Module, ResetSignal, Signal
from amaranth.hdl import Assert, Assume
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In

from hw.config import AcceleratorConfig
from hw.reader import Reader
from tests.support.hardware import prove

pytestmark = [pytest.mark.formal, pytest.mark.slow]

CONFIG = AcceleratorConfig(2, 1, drain_lanes=1, block_lanes=1, activation_words=128, coordinate_bits=7)


class ReaderSpec(wiring.Component):
    """One map of 120 bytes is sent to a receiver that is ready when it likes; the queue must take every beat."""

    def __init__(self, read_latency: int) -> None:
        self._read_latency = read_latency
        super().__init__({"ready": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        queues: list[fifo.SyncFIFOBuffered] = []

        class Watched(fifo.SyncFIFOBuffered):
            def __init__(self, **arguments: int) -> None:
                super().__init__(**arguments)
                queues.append(self)

        original, fifo.SyncFIFOBuffered = fifo.SyncFIFOBuffered, Watched
        try:
            reader = Reader(CONFIG, self._read_latency)
            inner = reader.elaborate(platform)
        finally:
            fifo.SyncFIFOBuffered = original
        m.submodules.reader = inner
        started = Signal()
        m.d.sync += started.eq(1)
        m.d.comb += [
            Assume(~ResetSignal()),
            reader.start.eq(~started),
            reader.tensor.plane.eq(1), reader.tensor.pitch.eq(60),
            reader.tensor.width.eq(60), reader.tensor.height.eq(2), reader.tensor.channels.eq(1),
            reader.o.tready.eq(self.ready),
            Assert(~queues[0].w_en | queues[0].w_rdy),
        ]  # fmt: skip
        return m


@pytest.mark.parametrize("read_latency", [pytest.param(1, marks=pytest.mark.nightly), 6])  # the accelerator's is 6
def test_the_queue_never_overflows(read_latency: int, tmp_path: Path) -> None:
    on_the_way = (read_latency + 2) // 4 + 3
    filled = 4 * 4 * on_the_way  # cycles to fill the queue, a byte each, before anything could overflow
    prove(ReaderSpec(read_latency), tmp_path, mode="bmc", depth=filled + read_latency + 16)
