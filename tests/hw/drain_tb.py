"""cocotb tests of Drain: instructions one after the other, as closely as the sequencer issues them."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import cocotb
from cocotb.triggers import RisingEdge

from hw.isa import Elementwise, Mode, channel_layout, instruction_layout
from hw.sequencer import slot_layout
from hw.timing import DATA_STAGE, LANE_STAGE, PRODUCT_STAGE, gap_cycles, start_cycles
from sim.golden.drain import Group, Write, drain
from sim.golden.sequencer import slots
from sim.stream import start
from tests.support.shapes import from_environment
from tests.support.walks import random_walk

CONFIG = from_environment()
P, Q, D = CONFIG.pixels, CONFIG.rows, CONFIG.drain_lanes
INSTRUCTION, CHANNEL = instruction_layout(CONFIG), channel_layout()
FLAGS = list(slot_layout(CONFIG).members)
Fields = dict[str, int]


@dataclass
class Script:
    """Pins by cycle, and the writes that must come of them by (cycle, port)."""

    fronts: dict[int, int] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    sums: dict[int, Sequence[Sequence[int]]] = field(default_factory=dict)
    words: dict[int, Sequence[Sequence[int]]] = field(default_factory=dict)
    writes: dict[tuple[int, int], Write] = field(default_factory=dict)
    causes: dict[tuple[int, int], str] = field(default_factory=dict)
    end: int = 0


def random_instruction(generator: random.Random) -> Fields:
    fields = INSTRUCTION.unpack(generator.getrandbits(INSTRUCTION.width))
    fields["mode"] = generator.choice(list(Mode))
    connected = fields["mode"] == Mode.FULLY_CONNECTED
    fields["elementwise"] = generator.choice((0, 0, *Elementwise))
    if connected:
        fields["elementwise"] = generator.choice((Elementwise.NONE, Elementwise.ADD, Elementwise.MUL))
    fields["reduce"] = int(not connected and not fields["elementwise"] and generator.random() < 0.3)
    if connected or fields["elementwise"] or fields["use_table"]:
        fields["single_drain"] = 1
    once = connected or fields["reduce"]
    fields["blocks"], fields["groups"] = generator.randrange(1, 4), 1 if once else generator.randrange(1, 5)
    fields["table_index"] = generator.randrange(CONFIG.table_words)
    if connected:
        fields["parameter_shared"] = 0
    words = fields["blocks"] * (CONFIG.block_lanes if connected else 2)
    fields["parameter_base"] = generator.randrange(CONFIG.parameter_words - words + 1)
    _scale(generator, fields)
    return fields | asdict(random_walk(generator, CONFIG, CONFIG.block_lanes if connected else 1))


def _scale(generator: random.Random, fields: Fields) -> None:
    """Bounds and scales such that most results are inside int8."""
    fields["zero_point"], fields["zero_point_y"] = (generator.randrange(-20, 20) for _ in range(2))
    for suffix in ("", "_y"):
        fields[f"low{suffix}"], fields[f"high{suffix}"] = generator.randrange(-128, -80), generator.randrange(80, 128)
    fields["multiplier_a"], fields["multiplier_b"] = (generator.randrange(-(1 << 15), 1 << 15) for _ in range(2))
    fields["shift"] = 22 if fields["elementwise"] == Elementwise.MUL else 16


def random_channel(generator: random.Random) -> Fields:
    multiplier = generator.choice((-1, 1)) * generator.randrange(1 << 14, 1 << 16)
    return {"multiplier": multiplier, "shift": generator.randrange(26, 30), "offset": _signed(generator, 32)}


def _signed(generator: random.Random, bits: int) -> int:
    return generator.randrange(-(1 << bits - 1), 1 << bits - 1)


def bytes_of(generator: random.Random) -> list[list[int]]:
    return [[_signed(generator, 8) for _ in range(Q)] for _ in range(P)]


def sums_of(generator: random.Random) -> list[list[int]]:
    return [[_signed(generator, CONFIG.acc_bits) for _ in range(Q)] for _ in range(P)]


def write_script(
    generator: random.Random, program: list[Fields], parameters: list[list[Fields]], table: Sequence[int]
) -> Script:
    """The program's slots at the sequencer's pace, with random accumulators and operands."""
    script, first = Script(), start_cycles(CONFIG)
    for fields in program:
        script.fronts[first + 1 - start_cycles(CONFIG)] = INSTRUCTION.pack(**fields)
        streams = [{"start": 0, "count": generator.randrange(1, 7)} for _ in range(fields["blocks"])]
        block = group = cycle = 0
        operands = bytes_of(generator)
        for cycle, slot in enumerate(slots(CONFIG, fields, streams), first):
            script.slots[cycle + DATA_STAGE] = sum(int(getattr(slot, name)) << i for i, name in enumerate(FLAGS))
            if slot.operand:
                script.words[cycle + LANE_STAGE] = operands
            if slot.last:
                arrived = Group(block, group, sums_of(generator), operands)
                script.sums[cycle + PRODUCT_STAGE] = arrived.sums
                for write in drain(CONFIG, fields, arrived, parameters, table):
                    script.writes[cycle + write.cycle, write.port] = write
                    script.causes[cycle + write.cycle, write.port] = f"block {block}, group {group} of {fields}"
                block, group = (block + 1, 0) if slot.block_end else (block, group + 1)
                operands = bytes_of(generator)
        first = cycle + gap_cycles(CONFIG, fields) + start_cycles(CONFIG)
    script.end = first + 60
    return script


async def load(dut, parameters: list[list[Fields]], table: Sequence[int]) -> None:
    for address, word in enumerate(parameters):
        packed = sum(CHANNEL.pack(**channel) << row * CHANNEL.width for row, channel in enumerate(word))
        dut.parameter_address.value, dut.parameter_data.value, dut.parameter_enable.value = address, packed, 1
        await RisingEdge(dut.clk)
    dut.parameter_enable.value = 0
    for address, byte in enumerate(table):
        dut.table_address.value, dut.table_data.value, dut.table_enable.value = address, byte, 1
        await RisingEdge(dut.clk)
    dut.table_enable.value = 0


def drive(dut, script: Script, cycle: int, generator: random.Random) -> None:
    """The pins of a cycle; what nobody may look at is junk."""
    if (front := script.fronts.get(cycle)) is not None:
        dut.front.value = front
    dut.slot.value = script.slots.get(cycle, 0)
    sums = script.sums.get(cycle) or sums_of(generator)
    words = script.words.get(cycle) or bytes_of(generator)
    for lane in range(P):
        getattr(dut, f"words__{lane}").value = sum((byte & 0xFF) << 8 * row for row, byte in enumerate(words[lane]))
        for row in range(Q):
            getattr(dut, f"sums__{lane}__{row}").value = sums[lane][row]


def check(dut, script: Script, cycle: int, seen: dict[str, int]) -> None:
    for port in range(D):
        expected = script.writes.get((cycle, port))
        assert int(getattr(dut, f"write{port}__enable").value) == (expected is not None), f"cycle {cycle}, port {port}"
        if expected is not None:
            got = int(getattr(dut, f"write{port}__address").value), int(getattr(dut, f"write{port}__data").value)
            assert got == (expected.address, expected.word), f"cycle {cycle}: {script.causes[cycle, port]}"
            assert int(getattr(dut, f"write{port}__mask").value) == (1 << Q) - 1
            seen["writes"] += 1
            seen["saturated"] += sum(expected.word >> 8 * row & 0xFF in (0x7F, 0x80) for row in range(Q))


@cocotb.test()
async def writes_every_result_in_its_cycle(dut) -> None:
    for name in ("slot", "parameter_enable", "table_enable"):
        getattr(dut, name).value = 0
    await start(dut)
    generator = random.Random(10)
    parameters = [[random_channel(generator) for _ in range(Q)] for _ in range(CONFIG.parameter_words)]
    table = [generator.getrandbits(8) for _ in range(256 * CONFIG.table_words)]
    await load(dut, parameters, table)
    seen: dict[str, int] = defaultdict(int)
    for _ in range(4):
        program = [random_instruction(generator) for _ in range(20)]
        script = write_script(generator, program, parameters, table)
        for cycle in range(script.end):
            drive(dut, script, cycle, generator)
            await RisingEdge(dut.clk)
            check(dut, script, cycle, seen)
    assert seen["writes"] > 200
    assert seen["saturated"] < seen["writes"] * Q / 4
