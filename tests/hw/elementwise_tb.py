"""cocotb tests of Elementwise."""

import random
from dataclasses import asdict

import cocotb

from hw.elementwise import Elementwise
from hw.isa import Elementwise as Operation
from sim.golden.elementwise import ElementwiseConfig, elementwise
from sim.stream import start
from tests.support.hardware import run_pipeline


def _signed(generator: random.Random, bits: int) -> int:
    return generator.randrange(-(1 << bits - 1), 1 << bits - 1)


def config(generator: random.Random, operation: Operation) -> ElementwiseConfig:
    """Scales as a compiler picks them, so that most results are inside int8; one of four is anything."""
    if generator.random() < 0.25:
        low, high = sorted((_signed(generator, 8), _signed(generator, 8)))
        shift, multipliers = generator.randrange(64), [_signed(generator, 17), _signed(generator, 17)]
    else:
        low, high = -128, 127
        shift = 22 if operation == Operation.MUL else 16
        multipliers = [generator.choice((-1, 1)) * generator.randrange(1 << 13, 1 << 15) for _ in range(2)]
        if generator.random() < 0.3:  # powers of two make ties
            multipliers = [1 << 13, -(1 << 14)]
    points = [_signed(generator, 8) for _ in range(3)]
    return ElementwiseConfig(operation, *multipliers, shift, *points, low, high)


def samples(generator: random.Random, count: int) -> list[dict[str, int]]:
    return [
        {"a": _signed(generator, 8), "b": _signed(generator, 8), "slope": _signed(generator, 17)}
        for _ in range(count)
    ]


async def check(dut, fields: ElementwiseConfig, inputs: list[dict[str, int]], idle: float) -> list[int]:
    for name, value in asdict(fields).items():
        getattr(dut, name).value = int(value)
    results = await run_pipeline(dut, inputs, "y", Elementwise.LATENCY, idle=idle)
    assert results == [elementwise(**s, config=fields) for s in inputs], fields
    return results


@cocotb.test()
@cocotb.parametrize(operation=list(Operation))
async def matches_golden(dut, operation: Operation) -> None:
    await start(dut)
    generator = random.Random(int(operation))
    inside = 0
    for _ in range(30):
        fields = config(generator, operation)
        results = await check(dut, fields, samples(generator, 100), 0.2)
        inside += sum(-128 < y < 127 for y in results)
    assert inside > 900  # saturation hides faults


@cocotb.test()
async def adds_the_corners_of_int8(dut) -> None:
    await start(dut)
    corners = [{"a": a, "b": b, "slope": 0} for a in (-128, -1, 0, 127) for b in (-128, 0, 1, 127)]
    for point in (-128, 127):
        for multiplier in (-(1 << 16), (1 << 16) - 1):
            for operation in Operation:
                fields = ElementwiseConfig(operation, multiplier, multiplier, 17, point, -point - 1, 0)
                await check(dut, fields, corners, 0.0)
