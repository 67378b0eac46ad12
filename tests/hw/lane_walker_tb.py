"""cocotb tests of LaneWalker."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from sim.golden.walker import lane_positions
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
WALK_CYCLES = CONFIG.pixels // CONFIG.drain_lanes
LIMIT = 1 << CONFIG.coordinate_bits


async def walk(dut, generator: random.Random, pitch: int, idle: float) -> int:
    """Walk random blocks of groups from a restart on, checked in every cycle; returns how many groups were shown."""
    dut.pitch.value, dut.restart.value = pitch, 1
    await RisingEdge(dut.clk)
    dut.restart.value = 0
    shown, following, age, groups = None, 0, 1, 0
    for _ in range(200):
        ends = (following + 2) * CONFIG.pixels > pitch * LIMIT or generator.random() < 0.1
        advance = age >= WALK_CYCLES and generator.random() >= idle
        dut.advance.value, dut.last.value = int(advance), int(ends)
        await RisingEdge(dut.clk)
        if shown is not None:
            lanes = range(CONFIG.pixels)
            got = [(int(getattr(dut, f"x__{i}").value), int(getattr(dut, f"y__{i}").value)) for i in lanes]
            assert got == lane_positions(CONFIG, shown, pitch), f"pitch {pitch}, group {shown}"
        if advance:
            shown, following, groups = following, 0 if ends else following + 1, groups + 1
        age = 1 if advance else age + 1
    dut.advance.value = 0
    for _ in range(WALK_CYCLES):
        await RisingEdge(dut.clk)
    return groups


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.5])
async def positions_are_quotient_and_remainder(dut, idle: float) -> None:
    dut.restart.value = dut.advance.value = dut.last.value = dut.pitch.value = 0
    await start(dut)
    generator = random.Random(1)
    groups = 0
    for pitch in (1, 2, 3, 4, 5, 7, 8, 11, 30, LIMIT - 1):
        groups += await walk(dut, generator, pitch, idle)
    assert groups > 200
