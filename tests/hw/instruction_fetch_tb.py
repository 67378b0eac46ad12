"""cocotb tests of InstructionFetch."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from hw.config import beats
from hw.isa import instruction_layout, program_shape
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
WIDTH = instruction_layout(CONFIG).width
FETCH_CYCLES = beats(WIDTH) + 3


@cocotb.test()
async def fetches_any_instruction(dut) -> None:
    """Each request is answered after the documented time, and the instruction stays until the next request."""
    dut.request.value = dut.write_enable.value = 0
    await start(dut)
    generator = random.Random(9)
    words, stride = program_shape(CONFIG)
    memory = [generator.getrandbits(32) for _ in range(words)]
    for address, beat in enumerate(memory):
        dut.write_address.value, dut.write_data.value, dut.write_enable.value = address, beat, 1
        await RisingEdge(dut.clk)
    dut.write_enable.value = 0
    for _ in range(60):
        pc = generator.randrange(CONFIG.instructions)
        dut.pc.value, dut.request.value = pc, 1
        await RisingEdge(dut.clk)
        dut.request.value, dut.pc.value = 0, generator.randrange(CONFIG.instructions)
        for _ in range(FETCH_CYCLES - 1):
            await RisingEdge(dut.clk)
            assert not int(dut.valid.value)
        expected = sum(memory[pc * stride + beat] << 32 * beat for beat in range(beats(WIDTH))) % (1 << WIDTH)
        for _ in range(generator.randrange(1, 5)):
            await RisingEdge(dut.clk)
            assert int(dut.valid.value)
            assert int(dut.instruction.value) == expected, f"instruction {pc}"
