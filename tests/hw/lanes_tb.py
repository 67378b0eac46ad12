"""cocotb tests of Lanes."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from sim.golden.lanes import operands
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
P, Q = CONFIG.pixels, CONFIG.rows


@cocotb.test()
async def selects_and_pads(dut) -> None:
    """Any word, byte and mode in every cycle."""
    await start(dut)
    generator, expected = random.Random(5), None
    for _ in range(2000):
        words = [generator.randbytes(Q) for _ in range(P)]
        inside = [int(generator.random() < 0.7) for _ in range(P)]
        byte, pad_value = generator.randrange(Q), generator.randrange(-128, 128)
        mode = generator.choice(({"depthwise": 0, "broadcast": 0}, {"depthwise": 1, "broadcast": 0},
                                 {"depthwise": 0, "broadcast": 1}))  # fmt: skip
        for lane in range(P):
            getattr(dut, f"words__{lane}").value = int.from_bytes(words[lane], "little")
            getattr(dut, f"inside__{lane}").value = inside[lane]
        dut.byte.value, dut.pad_value.value = byte, pad_value
        dut.depthwise.value, dut.broadcast.value = mode["depthwise"], mode["broadcast"]
        await RisingEdge(dut.clk)
        got = [[getattr(dut, f"operands__{lane}__{row}").value for row in range(Q)] for lane in range(P)]
        if expected is not None:
            assert [[value.to_signed() for value in lane] for lane in got] == expected
        expected = operands(words, inside, byte, pad_value, **mode)
