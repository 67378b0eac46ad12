"""cocotb tests of Array."""

import random
from collections import deque

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from hw.array import Array
from sim.golden.array import Accumulators
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
SHAPE = CONFIG.pixels, CONFIG.rows


def drive(dut, name: str, values: np.ndarray) -> None:
    for (lane, row), value in np.ndenumerate(values):
        getattr(dut, f"{name}__{lane}__{row}").value = int(value)


@cocotb.test()
@cocotb.parametrize(maximum=[0, 1], idle=[0.0, 0.4])
async def accumulates_products(dut, maximum: int, idle: float) -> None:
    """Groups of random length; the last ones are long enough for the accumulators to wrap."""
    dut.accumulate.value = dut.first.value = 0
    await start(dut)
    dut.maximum.value = maximum
    rng, generator, golden = np.random.default_rng(6), random.Random(6), Accumulators(CONFIG)
    products: deque = deque([None] * Array.LATENCY)
    remaining = 0
    for cycle in range(800):
        low = -128 if cycle < 600 else 120
        operands, weights = (rng.integers(low, 128, SHAPE).astype(np.int8) for _ in range(2))
        drive(dut, "operands", operands)
        drive(dut, "weights", weights)
        products.append((operands, weights))
        accumulate, first = cycle > Array.LATENCY and generator.random() >= idle, remaining == 0
        dut.accumulate.value = int(accumulate)
        dut.first.value = int(first) if accumulate else generator.getrandbits(1)
        arrived = products.popleft()
        if accumulate:
            remaining = generator.choice((0, 3, 20)) if first and cycle < 600 else remaining - 1
            if first and cycle >= 600:
                remaining = 200
            golden.step(*arrived, first=first, maximum=bool(maximum))
        await RisingEdge(dut.clk)
        if golden.sums is not None:
            for (lane, row), value in np.ndenumerate(golden.sums):
                assert getattr(dut, f"sums__{lane}__{row}").value.to_signed() == value, f"cycle {cycle}"
