"""cocotb tests of Requantize."""

import os
import random

import cocotb

from hw.requantize import Requantize
from sim.golden.requantize import requantize
from sim.stream import start
from tests.support.hardware import run_pipeline

ACC_BITS = int(os.environ["ACC_BITS"])


def sample(generator: random.Random) -> dict[str, int]:
    """Three of four land within or near int8, and half of those within one unit of a tie; the rest is anything."""
    acc = _signed(generator, generator.randint(2, ACC_BITS))
    multiplier, shift = _signed(generator, generator.randint(2, 17)), generator.randrange(64)
    offset = _signed(generator, generator.randint(2, 48))
    if generator.random() < 0.75:
        shift = generator.randint(1, 39)
        quotient, fraction = generator.randint(-140, 140), generator.choice((0, generator.randrange(1 << shift)))
        numerator = (quotient << shift) + (fraction or (1 << shift - 1) + generator.randint(-1, 1))
        offset = numerator - acc * multiplier
        if not -(1 << 47) <= offset < 1 << 47:
            return sample(generator)
    return {"acc": acc, "multiplier": multiplier, "shift": shift, "offset": offset}


def _signed(generator: random.Random, bits: int) -> int:
    return generator.randrange(-(1 << bits - 1), 1 << bits - 1)


async def check(dut, idle: float, output: dict[str, int], samples: list[dict[str, int]]) -> list[int]:
    for name, value in output.items():
        getattr(dut, name).value = value
    results = await run_pipeline(dut, samples, "y", Requantize.LATENCY, idle=idle)
    assert results == [requantize(**s, **output) for s in samples]
    return results


@cocotb.test()
async def matches_golden_near_ties(dut) -> None:
    await start(dut)
    generator = random.Random(1)
    samples = [sample(generator) for _ in range(3000)]
    results = await check(dut, 0.2, {"zero_point": 0, "low": -128, "high": 127}, samples)
    assert sum(-128 < y < 127 for y in results) > 1500  # saturation hides faults


@cocotb.test()
async def matches_golden_with_any_zero_point_and_bounds(dut) -> None:
    await start(dut)
    generator = random.Random(2)
    for zero_point, low, high in ((-128, -128, 127), (127, -128, 127), (-128, -128, 20), (3, 3, 99), (5, -7, -7)):
        samples = [sample(generator) for _ in range(300)]
        await check(dut, 0.0, {"zero_point": zero_point, "low": low, "high": high}, samples)


@cocotb.test()
async def matches_golden_at_the_extremes(dut) -> None:
    await start(dut)
    ends = {"acc": ACC_BITS, "multiplier": 17, "offset": 48}
    samples = [{"shift": shift} for shift in range(64)]
    for name, bits in ends.items():
        samples = [s | {name: value} for s in samples for value in (-(1 << bits - 1), 0, (1 << bits - 1) - 1)]
    await check(dut, 0.0, {"zero_point": 0, "low": -128, "high": 127}, samples)
