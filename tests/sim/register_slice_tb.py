"""cocotb tests of the stream agents on register_slice.v."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from sim.stream import Pins, StreamMonitor, StreamSink, StreamSource, pauses, signed, start

PAYLOADS = random.Random(7).choices(range(-128, 128), k=60)


async def transfer(dut, source_pause: float, sink_pause: float, *, lazy: bool = False) -> StreamMonitor:
    await start(dut)
    source = StreamSource(Pins.of(dut, "i"), pauses(source_pause, 1))
    sink = StreamSink(Pins.of(dut, "o"), pauses(sink_pause, 2), lazy=lazy)
    StreamMonitor(Pins.of(dut, "i"))
    monitor = StreamMonitor(Pins.of(dut, "o"))
    cocotb.start_soon(source.send(PAYLOADS))
    received = await sink.receive(len(PAYLOADS), max_cycles=2000)
    assert [signed(value, 8) for value in received] == [~payload for payload in PAYLOADS]
    await RisingEdge(dut.clk)  # the monitor sees the last transfer in the same cycle as the sink, or after
    assert monitor.transfers == received
    return monitor


@cocotb.test()
async def one_payload_a_cycle_without_pauses(dut) -> None:
    monitor = await transfer(dut, 0, 0)
    assert monitor.cycles[-1] - monitor.cycles[0] == len(PAYLOADS) - 1


@cocotb.test()
async def payloads_arrive_in_order_under_back_pressure(dut) -> None:
    monitor = await transfer(dut, 0.4, 0.6)
    assert monitor.cycles[-1] - monitor.cycles[0] > 1.5 * len(PAYLOADS)


@cocotb.test()
async def valid_does_not_wait_for_ready(dut) -> None:
    await transfer(dut, 0.1, 0.1, lazy=True)
