"""cocotb tests of Multiplier."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge

from hw.multiplier import Multiplier
from sim.stream import start

A_BITS, B_BITS = int(os.environ["A_BITS"]), int(os.environ["B_BITS"])
A_SIGNED, B_SIGNED = int(os.environ["A_SIGNED"]), int(os.environ["B_SIGNED"])


def operands(bits: int, signed: int, generator: random.Random) -> list[int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return [low, low + 1, -1 if signed else 0, 0, 1, high - 1, high, *(generator.randint(low, high) for _ in range(40))]


@cocotb.test()
async def multiplies_any_pair_in_three_cycles(dut) -> None:
    await start(dut)
    generator = random.Random(0)
    pairs = [(a, b) for a in operands(A_BITS, A_SIGNED, generator) for b in operands(B_BITS, B_SIGNED, generator)]
    generator.shuffle(pairs)
    for index in range(len(pairs) + Multiplier.LATENCY):
        dut.a.value, dut.b.value = pairs[min(index, len(pairs) - 1)]
        await RisingEdge(dut.clk)
        if index >= Multiplier.LATENCY:
            a, b = pairs[index - Multiplier.LATENCY]
            assert int(dut.p.value) == a * b % (1 << A_BITS + B_BITS), (a, b)
