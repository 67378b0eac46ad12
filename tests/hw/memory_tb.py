"""cocotb tests of Memory."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge

from sim.stream import start

WIDTH, DEPTH = int(os.environ["WIDTH"]), int(os.environ["DEPTH"])
GRANULES, LATENCY = int(os.environ["GRANULES"]), int(os.environ["LATENCY"])
GRANULE_BITS = WIDTH // GRANULES


def merge(old: int, new: int, enable: int) -> int:
    mask = sum(((1 << GRANULE_BITS) - 1) << i * GRANULE_BITS for i in range(GRANULES) if enable >> i & 1)
    return old & ~mask | new & mask


@cocotb.test()
async def reads_what_was_written(dut) -> None:
    """Random reads and partial writes in every cycle, never of one address; the first pass writes every word."""
    await start(dut)
    generator = random.Random(0)
    contents: dict[int, int] = {}
    expected: list[int | None] = [None] * LATENCY
    order = list(range(DEPTH))
    generator.shuffle(order)
    checked = 0
    for cycle in range(DEPTH + 3000):
        first_pass = cycle < DEPTH
        write = order[cycle] if first_pass else generator.randrange(DEPTH)
        enable = (1 << GRANULES) - 1 if first_pass else generator.getrandbits(GRANULES)
        data = generator.getrandbits(WIDTH)
        read = generator.choice(order[:cycle]) if 0 < cycle < DEPTH else generator.randrange(DEPTH)
        known = read in contents and read != write
        expected.append(contents[read] if known else None)
        dut.write_address.value, dut.write_data.value, dut.write_enable.value = write, data, enable
        dut.read_address.value = read
        await RisingEdge(dut.clk)
        if (word := expected.pop(0)) is not None:
            assert int(dut.read_data.value) == word, f"cycle {cycle}"
            checked += 1
        contents[write] = merge(contents.get(write, 0), data, enable)
    assert checked > 2500
