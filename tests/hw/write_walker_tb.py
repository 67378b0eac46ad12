"""cocotb tests of WriteWalker."""

import random
from dataclasses import asdict

import cocotb
from cocotb.triggers import RisingEdge

from sim.golden.walker import Walk, result
from sim.stream import start
from tests.support.shapes import from_environment
from tests.support.walks import random_walk

CONFIG = from_environment()
D = CONFIG.drain_lanes


async def check_block(dut, generator: random.Random, walk: Walk, block: int, positions: int, idle: float) -> int:
    """Consume the positions of a block at a random pace; returns how many were kept."""
    n = kept = 0
    while n < positions:
        count = 0 if generator.random() < idle else generator.choice((1, D))
        count = min(count, positions - n)
        dut.count.value = count
        dut.end_block.value = int(n + count == positions) if count else generator.getrandbits(1)
        await RisingEdge(dut.clk)
        keep = int(dut.keep.value)
        for lane in range(D):
            expected = result(CONFIG, walk, block, n + lane)
            assert keep >> lane & 1 == (expected is not None), f"{walk}: block {block}, position {n + lane}"
            if expected is not None:
                assert int(getattr(dut, f"address__{lane}").value) == expected, f"{walk}: position {n + lane}"
                kept += lane < count
        n += count
    return kept


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.4])
async def keeps_and_places_results(dut, idle: float) -> None:
    dut.restart.value = dut.count.value = dut.end_block.value = 0
    await start(dut)
    generator = random.Random(2)
    kept = 0
    for _ in range(60):
        walk = random_walk(generator, CONFIG)
        for name, value in asdict(walk).items():
            getattr(dut, name).value = value
        dut.restart.value, dut.count.value = 1, 0
        await RisingEdge(dut.clk)
        dut.restart.value = 0
        # Long blocks go on below the last row, until the row wraps.
        positions = generator.randrange(1, min(40 * walk.pitch, 300))
        for block in range(3):
            kept += await check_block(dut, generator, walk, block, positions, idle)
    assert kept > 500
