"""cocotb tests of Table."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge

from hw.table import ENTRIES, Table
from sim.golden.table import look_up
from sim.stream import start
from tests.support.hardware import run_pipeline

TABLES = int(os.environ["TABLES"])


async def fill(dut) -> list[int]:
    generator = random.Random(3)
    entries = [generator.randrange(256) for _ in range(TABLES * ENTRIES)]
    dut.write_enable.value = 1
    for address, entry in enumerate(entries):
        dut.write_address.value, dut.write_data.value = address, entry
        await RisingEdge(dut.clk)
    dut.write_enable.value = 0
    return entries


@cocotb.test()
@cocotb.parametrize(use_table=[False, True])
async def matches_golden_for_every_argument(dut, use_table: bool) -> None:
    await start(dut)
    entries = await fill(dut)
    dut.use_table.value = int(use_table)
    for index in range(TABLES):
        dut.index.value = index
        inputs = [{"a": a} for a in random.Random(index).sample(range(-128, 128), 256)]
        results = await run_pipeline(dut, inputs, "y", Table.LATENCY, idle=0.1, seed=index)
        assert results == [look_up(entries, s["a"], use_table=use_table, index=index) for s in inputs]
