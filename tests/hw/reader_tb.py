"""cocotb tests of Reader, into cocotbext-axi's AXI4-Stream sink."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiStreamBus, AxiStreamSink

from hw.config import array_config
from hw.descriptor import TensorDescriptor
from sim.golden.tensor_walker import positions
from sim.stream import pauses, start
from tests.support.hardware import pack_descriptor, random_descriptor

CONFIG = array_config(int(os.environ["PIXELS"]), int(os.environ["ROWS"]))
LATENCY = int(os.environ["READ_LATENCY"])
LIMIT = 50_000


class Bench:
    """A sink, and a memory whose data is junk except `LATENCY` cycles after a request."""

    def __init__(self, dut, pause: float) -> None:
        self.dut, self._generator = dut, random.Random(7)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "o"), dut.clk, dut.rst)
        if pause:  # a generator would overrule a test that sets `sink.pause`
            self.sink.set_pause_generator(pauses(pause))
        self.words = [self._generator.getrandbits(CONFIG.word_bits) for _ in range(1 << CONFIG.address_bits)]
        cocotb.start_soon(self._memory())

    async def _memory(self) -> None:
        dut, waiting = self.dut, [None] * (LATENCY - 1)
        while True:
            await RisingEdge(dut.clk)
            waiting.append(int(dut.address.value) if int(dut.enable.value) else None)
            address = waiting.pop(0)
            junk = self._generator.getrandbits(CONFIG.word_bits)
            dut.data.value = junk if address is None else self.words[address]

    async def read(self, descriptor: TensorDescriptor) -> int:
        """Read and check one map; returns the cycles for which `reading` was high."""
        dut = self.dut
        dut.tensor.value = pack_descriptor(descriptor, CONFIG)
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        cycles = await self.wait()
        frame = self.sink.recv_nowait()
        expected = bytes(self.words[p.address] >> 8 * p.byte & 0xFF for p in positions(descriptor, CONFIG))
        assert bytes(frame.tdata) == expected + bytes(-len(expected) % 4), descriptor
        assert self.sink.empty()
        return cycles

    async def wait(self) -> int:
        for cycles in range(LIMIT):
            await RisingEdge(self.dut.clk)
            if not int(self.dut.reading.value):
                await RisingEdge(self.dut.clk)  # the sink sees the last beat now, or has seen it
                return cycles
        raise TimeoutError("reading did not fall")


async def begin(dut, pause: float) -> Bench:
    dut.start.value = 0
    bench = Bench(dut, pause)
    await start(dut)
    return bench


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.5, 0.9])
async def sends_every_byte_in_order(dut, pause: float) -> None:
    bench, generator = await begin(dut, pause), random.Random(0)
    for _ in range(12):
        await bench.read(random_descriptor(generator, CONFIG))


@cocotb.test()
async def takes_one_cycle_for_each_byte(dut) -> None:
    bench = await begin(dut, 0.0)
    descriptor = TensorDescriptor((0, 0, 0, 0), 60, 10, 10, 6, 8)
    assert await bench.read(descriptor) <= descriptor.size + LATENCY + 12


@cocotb.test()
async def long_back_pressure_loses_nothing(dut) -> None:
    bench = await begin(dut, 0.0)
    descriptor = TensorDescriptor((5, 0, 0, 0), 300, 20, 20, 10, 3)
    for beats in (0, 1, 5):
        bench.sink.pause = True
        task = cocotb.start_soon(bench.read(descriptor))
        for _ in range(200):
            await RisingEdge(dut.clk)
        for _ in range(beats):
            bench.sink.pause = False
            await RisingEdge(dut.clk)
            bench.sink.pause = True
            for _ in range(30):
                await RisingEdge(dut.clk)
        bench.sink.pause = False
        await task


@cocotb.test()
async def empty_map_sends_nothing(dut) -> None:
    bench = await begin(dut, 0.0)
    dut.tensor.value = 0
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    assert await bench.wait() == 0
    for _ in range(20):
        await RisingEdge(dut.clk)
        assert not int(dut.o_tvalid.value)
