"""cocotb tests of Loader, fed by cocotbext-axi's AXI4-Stream source."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiStreamBus, AxiStreamSource

from hw.config import array_config, beats
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.loader import WORD_MEMORIES
from sim.golden.loader import Writes, byte_writes, word_writes
from sim.program import pack_words
from sim.stream import pauses, start
from tests.support.hardware import pack_descriptor, random_descriptor

CONFIG = array_config(int(os.environ["PIXELS"]), int(os.environ["ROWS"]))
LIMIT = 5000


class Bench:
    """A source, and a record of what is written where."""

    def __init__(self, dut, pause: float) -> None:
        self.dut = dut
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "i"), dut.clk, dut.rst)
        self.source.set_pause_generator(pauses(pause))
        self.writes: dict[Memory, Writes] = {memory: {} for memory in Memory}

    async def load(self, data: bytes, **inputs: int) -> int:
        """Run one load of `data` to its end; returns the cycles for which `loading` was high."""
        await self.source.send(data)
        return await self.load_sent(**inputs)

    async def load_sent(self, **inputs: int) -> int:
        """Run one load, of data that is in the source already, to its end."""
        dut = self.dut
        for writes in self.writes.values():
            writes.clear()
        for name, value in inputs.items():
            getattr(dut, name).value = value
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for cycles in range(LIMIT):
            await RisingEdge(dut.clk)
            self._record()
            if not int(dut.loading.value):
                return cycles
        raise TimeoutError("loading did not fall")

    def _record(self) -> None:
        dut = self.dut
        for memory in (*WORD_MEMORIES, Memory.PROGRAM):
            name = memory.name.lower()
            if int(getattr(dut, f"{name}_enable").value):
                address, word = getattr(dut, f"{name}_address"), getattr(dut, f"{name}_data")
                self.writes[memory][int(address.value),] = int(word.value)
                assert int(dut.loading.value), "a write came after loading fell"
        if int(dut.tensor_enable.value):
            place = int(dut.tensor_address.value), int(dut.tensor_byte.value) if CONFIG.rows > 1 else 0
            self.writes[Memory.TENSOR][place] = int(dut.tensor_data.value)
            assert int(dut.loading.value), "a write came after loading fell"

    def check(self, memory: Memory, expected: Writes) -> None:
        assert self.writes == {other: expected if other == memory else {} for other in Memory}


async def begin(dut, pause: float) -> Bench:
    dut.start.value = 0
    bench = Bench(dut, pause)
    await start(dut)
    return bench


async def load_words(bench: Bench, memory: Memory, count: int, generator: random.Random) -> int:
    depth, bits = memory_shape(CONFIG, memory)
    address = generator.choice((0, depth - count, generator.randrange(depth - count + 1)))
    words = [generator.getrandbits(bits) for _ in range(count)]
    cycles = await bench.load(pack_words(words, bits), load_memory=memory, load_address=address, load_count=count)
    bench.check(memory, word_writes(CONFIG, memory, address, words))
    assert bench.source.empty()
    return cycles


async def load_map(bench: Bench, generator: random.Random) -> None:
    descriptor = random_descriptor(generator, CONFIG)
    data = generator.randbytes(descriptor.size)
    padding = generator.randbytes(-descriptor.size % 4)
    await bench.load(data + padding, load_memory=Memory.TENSOR, load_tensor=pack_descriptor(descriptor, CONFIG))
    bench.check(Memory.TENSOR, byte_writes(CONFIG, descriptor, data))
    assert bench.source.empty()


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.5])
async def fills_memories_and_maps_in_any_order(dut, pause: float) -> None:
    bench, generator = await begin(dut, pause), random.Random(0)
    for memory in [*Memory] * 4:
        if memory == Memory.TENSOR:
            await load_map(bench, generator)
        else:
            await load_words(bench, memory, generator.randrange(1, 7), generator)


@cocotb.test()
async def takes_only_its_own_beats(dut) -> None:
    bench, generator = await begin(dut, 0.0), random.Random(2)
    maps = [random_descriptor(generator, CONFIG) for _ in range(12)]
    maps[3] = TensorDescriptor((7, 0, 0, 0), 9, 2, 2, 2, 1)  # whole beats
    contents = [generator.randbytes(descriptor.size) for descriptor in maps]
    words = [generator.getrandbits(memory_shape(CONFIG, Memory.TAP)[1]) for _ in maps]
    for data, word in zip(contents, words):
        await bench.source.send(data + bytes(-len(data) % 4))
        await bench.source.send(pack_words([word], memory_shape(CONFIG, Memory.TAP)[1]))
    for descriptor, data, word in zip(maps, contents, words):
        await bench.load_sent(load_memory=Memory.TENSOR, load_tensor=pack_descriptor(descriptor, CONFIG))
        bench.check(Memory.TENSOR, byte_writes(CONFIG, descriptor, data))
        await bench.load_sent(load_memory=Memory.TAP, load_address=3, load_count=1)
        bench.check(Memory.TAP, word_writes(CONFIG, Memory.TAP, 3, [word]))


@cocotb.test()
async def takes_one_beat_a_cycle(dut) -> None:
    bench, generator = await begin(dut, 0.0), random.Random(1)
    for memory in (Memory.WEIGHT, Memory.TABLE, Memory.PROGRAM):
        size = 12 * beats(memory_shape(CONFIG, memory)[1])
        assert size <= await load_words(bench, memory, 12, generator) <= size + 4


@cocotb.test()
async def nothing_to_load_ends_at_once(dut) -> None:
    bench = await begin(dut, 0.0)
    for memory in (Memory.WEIGHT, Memory.PROGRAM, 7):
        count = 3 if memory == 7 else 0
        assert await bench.load(b"", load_memory=memory, load_address=1, load_count=count) == 0
    assert await bench.load(b"", load_memory=Memory.TENSOR, load_tensor=0) == 0
    assert not any(bench.writes.values())


@cocotb.test()
async def takes_nothing_while_idle(dut) -> None:
    bench = await begin(dut, 0.0)
    await bench.source.send(bytes(16))
    for _ in range(20):
        await RisingEdge(dut.clk)
        assert not int(dut.i_tready.value)
