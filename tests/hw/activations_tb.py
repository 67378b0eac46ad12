"""cocotb tests of Activations."""

import random
from collections import deque

import cocotb
from cocotb.triggers import RisingEdge

from hw.activations import Activations
from sim.golden.activations import ActivationMemory
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
P, D, WORDS = CONFIG.pixels, CONFIG.drain_lanes, CONFIG.activation_words


def writes(generator: random.Random, idle: float) -> list[tuple[int, int, int] | None]:
    """(address, data, mask) for each port, in different banks, or None."""
    banks = generator.sample(range(P), D)
    return [
        None if generator.random() < idle
        else (generator.randrange(WORDS // P) * P + bank, generator.getrandbits(CONFIG.word_bits),
              generator.getrandbits(CONFIG.rows))
        for bank in banks
    ]  # fmt: skip


def drive(dut, index: int, write: tuple[int, int, int] | None, generator: random.Random) -> None:
    junk = (generator.randrange(WORDS), generator.getrandbits(CONFIG.word_bits), (1 << CONFIG.rows) - 1)
    for name, value in zip(("address", "data", "mask"), write or junk, strict=True):
        getattr(dut, f"write{index}__{name}").value = value
    getattr(dut, f"write{index}__enable").value = int(write is not None)


async def fill(dut, memory: ActivationMemory, generator: random.Random) -> None:
    for address in range(0, WORDS, D):
        for index in range(D):
            write = (address + index, generator.getrandbits(CONFIG.word_bits), (1 << CONFIG.rows) - 1)
            drive(dut, index, write, generator)
            memory.write(*write)
        await RisingEdge(dut.clk)


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.6])
async def reads_consecutive_words_while_words_are_written(dut, idle: float) -> None:
    """A read sees the writes up to its own cycle; a word written in the next cycle is undefined."""
    for index in range(D):
        getattr(dut, f"write{index}__enable").value = 0
    await start(dut)
    generator, memory = random.Random(3), ActivationMemory(CONFIG)
    await fill(dut, memory, generator)
    expected: deque[list[int | None]] = deque()
    previous, checked = None, 0
    for _ in range(2000):
        address = generator.randrange(WORDS)
        dut.read_address.value = address
        now = writes(generator, idle)
        for index, write in enumerate(now):
            drive(dut, index, write, generator)
        await RisingEdge(dut.clk)
        if previous is not None:
            written = {write[0] for write in now if write is not None}
            words = memory.read(previous)
            expected.append([None if (previous + lane) % WORDS in written else w for lane, w in enumerate(words)])
        for write in now:
            if write is not None:
                memory.write(*write)
        previous = address
        if len(expected) == Activations.READ_LATENCY:
            words = expected.popleft()
            got = [int(getattr(dut, f"words__{lane}").value) for lane in range(P)]
            assert all(w is None or w == g for w, g in zip(words, got, strict=True)), f"{words} is not {got}"
            checked += sum(w is not None for w in words)
    assert checked > 1000 * P
