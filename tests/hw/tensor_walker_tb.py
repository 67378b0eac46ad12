"""cocotb tests of TensorWalker."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge

from hw.config import array_config
from hw.descriptor import TensorDescriptor
from hw.tensor_walker import TensorWalker, position_layout
from sim.golden.tensor_walker import Position, positions
from sim.stream import Pins, StreamMonitor, StreamSink, pauses, start
from tests.support.hardware import pack_descriptor, random_descriptor

CONFIG = array_config(int(os.environ["PIXELS"]), int(os.environ["ROWS"]))


def decode(payload: int) -> Position:
    fields = position_layout(CONFIG).from_bits(payload)
    return Position(fields.address, fields.byte, bool(fields.last))


async def walk(dut, descriptor: TensorDescriptor, sink: StreamSink) -> list[Position]:
    dut.descriptor.value = pack_descriptor(descriptor, CONFIG)
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    return [decode(payload) for payload in await sink.receive(descriptor.size)]


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.5], lazy=[False, True])
async def visits_every_byte_in_order(dut, pause: float, lazy: bool) -> None:
    await start(dut)
    generator = random.Random(0)
    sink = StreamSink(Pins.of(dut, "o"), pauses(pause), lazy=lazy)
    StreamMonitor(Pins.of(dut, "o"))
    for _ in range(25):
        descriptor = random_descriptor(generator, CONFIG)
        assert await walk(dut, descriptor, sink) == positions(descriptor, CONFIG), descriptor
        await RisingEdge(dut.clk)
        assert int(dut.busy.value) == 0


@cocotb.test()
async def takes_one_cycle_for_each_byte(dut) -> None:
    await start(dut)
    dut.o__ready.value = 1
    descriptor = TensorDescriptor((0, 40, 80, 120), 200, 3, 5, 6, 7, phases=3)
    dut.descriptor.value = pack_descriptor(descriptor, CONFIG)
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    length = descriptor.size + TensorWalker.LATENCY - 1
    for cycle in range(1, length + 3):
        await RisingEdge(dut.clk)
        assert int(dut.busy.value) == (cycle <= length), cycle
        assert int(dut.o__valid.value) == (TensorWalker.LATENCY <= cycle <= length), cycle


@cocotb.test()
async def empty_map_ends_at_once(dut) -> None:
    await start(dut)
    dut.o__ready.value = 1
    dut.descriptor.value = pack_descriptor(TensorDescriptor((0,) * 4, 0, 0, 1, 1, 1), CONFIG) & 0
    dut.start.value = 1
    for _ in range(8):
        await RisingEdge(dut.clk)
        dut.start.value = 0
        assert not int(dut.busy.value)
        assert not int(dut.o__valid.value)
