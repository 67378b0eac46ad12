"""cocotb tests of DelayLine."""

import os
import random
from collections import deque

import cocotb
from cocotb.triggers import RisingEdge

from sim.stream import start

WIDTH, CYCLES = int(os.environ["WIDTH"]), int(os.environ["CYCLES"])


@cocotb.test()
async def delays_every_value(dut) -> None:
    await start(dut)
    generator = random.Random(7)
    values: deque[int] = deque()
    for _ in range(500):
        value = generator.getrandbits(WIDTH)
        dut.i.value = value
        await RisingEdge(dut.clk)
        if len(values) == CYCLES:
            assert int(dut.o.value) == values.popleft()
        values.append(value)
