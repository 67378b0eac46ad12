"""cocotb tests of Sequencer: slots, addresses and cycles of random programs."""

import random
from collections.abc import Mapping, Sequence

import cocotb
from cocotb.triggers import RisingEdge

from hw.isa import Elementwise, Mode, block_layout, instruction_layout, program_shape
from hw.sequencer import slot_layout
from hw.timing import instruction_cycles, overlap_cycles, program_cycles, start_cycles
from sim.golden.sequencer import Slot, slots
from sim.stream import start
from tests.support.shapes import from_environment

CONFIG = from_environment()
INSTRUCTION, BLOCK = instruction_layout(CONFIG), block_layout(CONFIG)
FLAGS = list(slot_layout(CONFIG).members)
LIMIT = 20_000
Fields = dict[str, int]


def random_instruction(generator: random.Random) -> Fields:
    fields = INSTRUCTION.unpack(generator.getrandbits(INSTRUCTION.width))
    fields["mode"] = generator.choice(list(Mode))
    fields["elementwise"] = generator.choice((0, 0, *Elementwise))
    connected = fields["mode"] == Mode.FULLY_CONNECTED
    if connected or fields["elementwise"] or fields["use_table"]:
        fields["single_drain"] = 1
    fields["blocks"], fields["groups"] = generator.randrange(1, 4), 1 if connected else generator.randrange(1, 5)
    fields["block_base"] = generator.randrange(CONFIG.block_words - 3)
    return fields


def streams_of(fields: Fields, table: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    steps = [0 if fields["block_shared"] else block for block in range(fields["blocks"])]
    return [table[fields["block_base"] + step] for step in steps]


async def load(dut, program: list[Fields], table: list[Fields]) -> None:
    _, stride = program_shape(CONFIG)
    for pc, fields in enumerate(program):
        word = INSTRUCTION.pack(**fields)
        for beat in range(stride):
            dut.program_address.value = pc * stride + beat
            dut.program_data.value = word >> 32 * beat & 0xFFFFFFFF
            dut.program_enable.value = 1
            await RisingEdge(dut.clk)
    dut.program_enable.value = 0
    for address, entry in enumerate(table):
        dut.block_address.value, dut.block_data.value, dut.block_enable.value = address, BLOCK.pack(**entry), 1
        await RisingEdge(dut.clk)
    dut.block_enable.value = 0


class Run:
    """What the pins showed in each cycle from a start to done."""

    def __init__(self) -> None:
        self.slots: list[tuple[int, int, int]] = []  # flags, weight address, base
        self.dispatched: list[int] = []
        self.fronts: list[int] = []

    async def record(self, dut, pc_start: int, pc_end: int) -> None:
        dut.pc_start.value, dut.pc_end.value, dut.start.value = pc_start, pc_end, 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        for cycle in range(LIMIT):
            await RisingEdge(dut.clk)
            if int(dut.done.value):
                assert not int(dut.busy.value)
                return
            assert int(dut.busy.value)
            self.slots.append((int(dut.slot.value), int(dut.weight_address.value), int(dut.base.value)))
            if int(dut.dispatched.value):
                self.dispatched.append(cycle)
                self.fronts.append(int(dut.front.value))
        raise TimeoutError("not done")


def check_slot(got: tuple[int, int, int], slot: Slot) -> None:
    flags, weight_address, base = got
    assert {name: flags >> i & 1 for i, name in enumerate(FLAGS)} == {name: int(getattr(slot, name)) for name in FLAGS}
    if slot.weight:
        assert weight_address == slot.weight_address
    if slot.weight or slot.operand:
        assert base == slot.base


def check_run(run: Run, program: Sequence[Fields], table: list[Fields]) -> list[int]:
    """Compare every cycle with the golden slots at their exact place; returns each instruction's cycles."""
    assert run.fronts == [INSTRUCTION.pack(**fields) for fields in program]
    lengths = []
    expected: dict[int, Slot] = {}
    for index, fields in enumerate(program):
        streams = streams_of(fields, table)
        lengths.append(instruction_cycles(CONFIG, fields, [s["count"] for s in streams]))
        if index + 1 < len(program):
            assert run.dispatched[index + 1] - run.dispatched[index] == lengths[-1] - overlap_cycles(CONFIG)
        first = run.dispatched[index] - 1 + start_cycles(CONFIG)
        expected.update(enumerate(slots(CONFIG, fields, streams), first))
    for cycle, got in enumerate(run.slots):
        if cycle in expected:
            check_slot(got, expected[cycle])
        else:
            assert got[0] == 0, f"a slot in cycle {cycle}, where there is none"
    return lengths


@cocotb.test()
async def issues_every_slot_in_its_cycle(dut) -> None:
    for name in ("start", "program_enable", "block_enable", "counter_index"):
        getattr(dut, name).value = 0
    await start(dut)
    generator = random.Random(8)
    for _ in range(12):
        program = [random_instruction(generator) for _ in range(CONFIG.instructions)]
        table = [{"start": generator.getrandbits(CONFIG.block_address_bits), "count": generator.randrange(1, 20)}
                 for _ in range(CONFIG.block_words)]  # fmt: skip
        await load(dut, program, table)
        pc_start = generator.randrange(3)
        pc_end = generator.choice((CONFIG.instructions, generator.randrange(pc_start + 1, CONFIG.instructions + 1)))
        run = Run()
        await run.record(dut, pc_start, pc_end)
        lengths = check_run(run, program[pc_start:pc_end], table)
        assert int(dut.cycles.value) == program_cycles(CONFIG, lengths)
        for pc, length in enumerate(lengths, pc_start):
            dut.counter_index.value = pc
            for _ in range(3):
                await RisingEdge(dut.clk)
            assert int(dut.counter_value.value) == length, f"instruction {pc}"


@cocotb.test()
async def an_empty_range_ends_at_once(dut) -> None:
    for name in ("start", "program_enable", "block_enable", "counter_index"):
        getattr(dut, name).value = 0
    await start(dut)
    run = Run()
    await run.record(dut, 2, 2)
    assert not run.dispatched
    assert not any(flags for flags, _, _ in run.slots)
