"""cocotb tests of AddressGenerator."""

import random
from collections import deque

import cocotb
from cocotb.triggers import RisingEdge

from hw.isa import tap_layout
from hw.timing import ADDRESS_STAGE, META_STAGE, TAP_STAGE
from sim.golden.addresses import TapWalk
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
LAYOUT = tap_layout(CONFIG)
ADDRESS_LATENCY, TAP_LATENCY = ADDRESS_STAGE - META_STAGE, TAP_STAGE - META_STAGE


async def load_taps(dut, generator: random.Random) -> list[dict[str, int]]:
    taps = []
    for address in range(CONFIG.tap_words):
        word = generator.getrandbits(LAYOUT.width)
        dut.tap_address.value, dut.tap_data.value, dut.tap_enable.value = address, word, 1
        await RisingEdge(dut.clk)
        taps.append(LAYOUT.unpack(word))
    dut.tap_enable.value = 0
    return taps


async def instruction(dut, generator: random.Random, taps: list[dict[str, int]], idle: float) -> int:
    """Groups of one instruction, and its last address; returns how many weight blocks passed."""
    walk = TapWalk(CONFIG, taps, generator.randrange(CONFIG.tap_words), generator.randrange(CONFIG.activation_words))
    dut.tap_base.value, dut.in_plane.value = walk.tap_base, walk.in_plane
    addresses: deque = deque([None] * ADDRESS_LATENCY)
    bounds: deque = deque([None] * TAP_LATENCY)
    blocks, remaining = 0, 0
    for cycle in range(120 + ADDRESS_LATENCY):
        weight = cycle < 120 and generator.random() >= idle
        base, delta, end_tap = generator.randrange(CONFIG.activation_words), _delta(generator), generator.randrange(2)
        first = weight and remaining == 0
        dut.weight.value, dut.base.value, dut.delta.value, dut.end_tap.value = int(weight), base, delta, end_tap
        dut.first.value = int(first) if weight else generator.getrandbits(1)
        if weight:
            address, byte, tap = walk.step(first, delta, end_tap, base)
            addresses.append((address, byte))
            bounds.append(tap)
            remaining = generator.randrange(20) if first else remaining - 1
            blocks += 1
        else:
            addresses.append((base, 0))
            bounds.append(None)
        await RisingEdge(dut.clk)
        if (tap := bounds.popleft()) is not None:
            got = LAYOUT.unpack(int(dut.tap.value))
            assert got == tap
        if (pair := addresses.popleft()) is not None:
            got_pair = int(dut.address.value), int(dut.byte.value)
            assert got_pair == pair, f"cycle {cycle}: {got_pair} instead of {pair}"
    return blocks


def _delta(generator: random.Random) -> int:
    return 0 if generator.random() < 0.6 else generator.randrange(64)


@cocotb.test()
@cocotb.parametrize(idle=[0.0, 0.4])
async def addresses_follow_taps_and_channels(dut, idle: float) -> None:
    for name in ("weight", "first", "delta", "end_tap", "base", "tap_base", "in_plane", "tap_enable"):
        getattr(dut, name).value = 0
    await start(dut)
    generator = random.Random(4)
    taps = await load_taps(dut, generator)
    blocks = 0
    for _ in range(15):
        blocks += await instruction(dut, generator, taps, idle)
    assert blocks > 1000
