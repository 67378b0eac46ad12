"""The sequencer: fetches tile instructions and issues their slots, one per cycle, without ever waiting for data."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.config import AcceleratorConfig
from hw.config import beats as beats_of
from hw.isa import Elementwise, Layout, Memory, Mode, block_layout, instruction_layout, memory_shape, program_shape
from hw.memory import Memory as Ram
from hw.pipeline import delay
from hw.timing import MEMORY_LATENCY, gap_cycles, minimum_slots, overlap_cycles, start_cycles

BEAT_BITS = 32
COUNTER_BITS = 32


def struct(layout: Layout) -> data.StructLayout:
    """The hardware view of a packed word."""
    return data.StructLayout({f.name: signed(f.width) if f.signed else f.width for f in layout.fields})


def slot_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What a slot does, as it travels down the pipeline."""
    return data.StructLayout({
        "weight": 1,  # a weight block is consumed
        "operand": 1,  # the group's second operand is read
        "group_start": 1,  # first slot of a group, also when it is idle
        "first": 1,  # first weight block of a group
        "last": 1,  # last slot of a group: its accumulators are complete
        "block_start": 1,  # in the first group of a block
        "block_end": 1,  # in the last group of a block
        "instruction_start": 1,  # in the first group of the first block
    })


class Sequencer(wiring.Component):
    """Runs instructions [pc_start, pc_end).

    While an instruction runs, the next is fetched; it is dispatched so early that its first read of the activation
    memory comes right after the last write of the one before. Idle slots at the start of a group make room for the
    drain of the group before, so nothing downstream ever stalls and cycles do not depend on data.

    Timing:
        see timing.py; `front` is valid from the cycle after a dispatch until the next one.

    Members:
        start: In(1). Begin at `pc_start`; only when not busy.
        pc_start, pc_end: In. Range of instructions.
        program_address, program_data, program_enable: In. Write port of the program memory, in 32-bit beats.
        block_address, block_data, block_enable: In. Write port of the weight stream table.
        front: Out(instruction). The instruction whose slots are issued.
        dispatched: Out(1). `front` is new in this cycle.
        slot: Out(slot_layout). The slot of this cycle; all zero when there is none.
        weight_address: Out(block_address_bits). Of the slot's weight block.
        base: Out(address_bits). Word of lane 0 before the tap is added; the operand's word in an operand slot.
        busy: Out(1). A program runs.
        done: Out(1). The last program has ended; cleared by `start`.
        cycles: Out(32). From `start` to the end of the last write.
        counter_index: In. Which instruction `counter_value` shows.
        counter_value: Out(32). Its cycles in the last run.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        pc_bits = ceil_log2(config.instructions)
        words, _ = program_shape(config)
        block_words, block_bits = memory_shape(config, Memory.BLOCK)
        super().__init__({
            "start": In(1),
            "pc_start": In(pc_bits),
            "pc_end": In(ceil_log2(config.instructions + 1)),
            "program_address": In(ceil_log2(words)),
            "program_data": In(BEAT_BITS),
            "program_enable": In(1),
            "block_address": In(ceil_log2(block_words)),
            "block_data": In(block_bits),
            "block_enable": In(1),
            "front": Out(struct(instruction_layout(config))),
            "dispatched": Out(1),
            "slot": Out(slot_layout(config)),
            "weight_address": Out(config.block_address_bits),
            "base": Out(config.address_bits),
            "busy": Out(1),
            "done": Out(1),
            "cycles": Out(COUNTER_BITS),
            "counter_index": In(pc_bits),
            "counter_value": Out(COUNTER_BITS),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        instructions = Signal(range(config.instructions + 1))  # dispatched so far, as a program counter
        wait, elapsed = Signal(range(256)), Signal(COUNTER_BITS)
        over = Signal()  # the instruction is over but for what the next may overlap
        m.submodules.fetch = fetch = InstructionFetch(config)
        m.submodules.issue = issue = SlotIssue(config)
        m.submodules.counters = counters = Ram(COUNTER_BITS, config.instructions, config.technology)
        first_slot = start_cycles(config) - 1

        m.d.comb += [
            fetch.write_address.eq(self.program_address),
            fetch.write_data.eq(self.program_data),
            fetch.write_enable.eq(self.program_enable),
            fetch.pc.eq(instructions),
            issue.block_address.eq(self.block_address),
            issue.block_data.eq(self.block_data),
            issue.block_enable.eq(self.block_enable),
            issue.front.eq(self.front),
            self.slot.eq(issue.slot),
            self.weight_address.eq(issue.weight_address),
            self.base.eq(issue.base),
            counters.read_address.eq(self.counter_index),
            self.counter_value.eq(counters.read_data),
            # An instruction's cycles run to its last write; `over` comes that much earlier.
            counters.write_address.eq(instructions - 1),
            counters.write_data.eq(elapsed + 1 + overlap_cycles(config)),
            counters.write_enable.eq(over),
        ]
        m.d.sync += [self.dispatched.eq(0), elapsed.eq(elapsed + 1), wait.eq(wait - 1)]
        with m.If(self.busy):
            m.d.sync += self.cycles.eq(self.cycles + 1)

        def dispatch() -> None:
            m.d.comb += [fetch.request.eq(instructions + 1 != self.pc_end), fetch.pc.eq(instructions + 1)]
            m.d.comb += issue.load.eq(1)
            m.d.sync += [
                self.front.eq(fetch.instruction),
                self.dispatched.eq(1),
                instructions.eq(instructions + 1),
                elapsed.eq(0),
                wait.eq(first_slot - 1),
            ]
            m.next = "START"

        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.d.sync += [self.done.eq(0), self.busy.eq(1), self.cycles.eq(0), instructions.eq(self.pc_start)]
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.comb += fetch.request.eq(1)
                with m.If(instructions >= self.pc_end):
                    m.next = "END"
                with m.Else():
                    m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(fetch.valid):
                    dispatch()
            with m.State("START"):
                with m.If(wait == 0):
                    m.d.comb += issue.begin.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(issue.end):
                    m.d.sync += wait.eq(issue.gap - 1)
                    m.next = "GAP"
            with m.State("GAP"):
                with m.If(wait == 0):
                    m.d.comb += over.eq(1)
                    with m.If(instructions != self.pc_end):
                        dispatch()
                    with m.Else():
                        m.d.sync += wait.eq(overlap_cycles(config) - 1)
                        m.next = "FINISH"
            with m.State("FINISH"):
                with m.If(wait == 0):
                    m.next = "END"
            with m.State("END"):
                m.d.sync += [self.done.eq(1), self.busy.eq(0), self.cycles.eq(self.cycles)]
                m.next = "IDLE"
        return m


class InstructionFetch(wiring.Component):
    """Program memory and the instruction that was fetched from it.

    Timing:
        `valid` rises (beats of an instruction) + 3 cycles after `request`, long before any instruction ends.

    Members:
        write_address, write_data, write_enable: In. Write port of the program memory, in 32-bit beats.
        request: In(1). Fetch the instruction at `pc`.
        pc: In. Instruction to fetch; only with `request`.
        valid: Out(1). `instruction` is the requested one.
        instruction: Out(instruction). Stable until the next request.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        words, _ = program_shape(config)
        super().__init__({
            "write_address": In(ceil_log2(words)),
            "write_data": In(BEAT_BITS),
            "write_enable": In(1),
            "request": In(1),
            "pc": In(range(config.instructions + 1)),
            "valid": Out(1),
            "instruction": Out(struct(instruction_layout(config))),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        (words, stride), width = program_shape(config), instruction_layout(config).width
        beats = beats_of(width)
        m.submodules.memory = memory = Ram(BEAT_BITS, words, config.technology, output_register=True)
        collected = Signal(beats * BEAT_BITS, reset_less=True)
        address = Signal(ceil_log2(words))
        remaining, arriving = Signal(range(beats + 1)), Signal()
        pending = delay(m, remaining != 0, MEMORY_LATENCY - 1, reset=True, name="pending")  # more beats arrive
        m.d.comb += [
            memory.write_address.eq(self.write_address),
            memory.write_data.eq(self.write_data),
            memory.write_enable.eq(self.write_enable),
            memory.read_address.eq(address),
            arriving.eq(delay(m, remaining != 0, MEMORY_LATENCY, reset=True, name="arriving")),
            self.instruction.eq(collected[:width]),
        ]
        with m.If(self.request):
            m.d.sync += [address.eq(self.pc << (stride.bit_length() - 1)), remaining.eq(beats), self.valid.eq(0)]
        with m.Elif(remaining != 0):
            m.d.sync += [address.eq(address + 1), remaining.eq(remaining - 1)]
        with m.If(arriving):
            m.d.sync += collected.eq(Cat(collected[BEAT_BITS:], memory.read_data))
            m.d.sync += self.valid.eq(~pending & ~self.request)
        return m


class SlotIssue(wiring.Component):
    """The loops of one instruction: blocks of output channels, groups of positions, slots.

    Timing:
        `load` (with the dispatch) is followed, at least 5 cycles later, by `begin`; the first slot is issued in the
        cycle after `begin`, `end` is high with the last one.

    Members:
        block_address, block_data, block_enable: In. Write port of the weight stream table.
        front: In(instruction). Valid from the cycle after `load`.
        load: In(1). A new instruction is being dispatched.
        begin: In(1). Issue it from the next cycle on.
        end: Out(1). This slot is its last.
        gap: Out. Cycles from `end` to the next dispatch.
        slot, weight_address, base: Out. See Sequencer.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        block_words, block_bits = memory_shape(config, Memory.BLOCK)
        super().__init__({
            "block_address": In(ceil_log2(block_words)),
            "block_data": In(block_bits),
            "block_enable": In(1),
            "front": In(struct(instruction_layout(config))),
            "load": In(1),
            "begin": In(1),
            "end": Out(1),
            "gap": Out(8),
            "slot": Out(slot_layout(config)),
            "weight_address": Out(config.block_address_bits),
            "base": Out(config.address_bits),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        front, slot = self.front, self.slot
        least = self._constants(m)
        operand, next_start, next_work, next_slots, advance_block = self._streams(m, least)

        running = Signal()
        block, group = Signal.like(front.blocks), Signal.like(front.groups)  # still to come after this one
        start, work = Signal.like(next_start), Signal.like(next_work)
        slots, remaining = Signal.like(next_slots), Signal.like(next_slots)
        first_group, first_block = Signal(), Signal()
        block_base, group_base = Signal(config.address_bits), Signal(config.address_bits)
        operand_block, operand_group = Signal(config.address_bits), Signal(config.address_bits)
        address = Signal.like(self.weight_address)
        step = Mux(front.mode == Mode.FULLY_CONNECTED, config.block_lanes, 1)

        works = remaining < work
        last = remaining == 0
        m.d.comb += [
            slot.operand.eq(running & operand & last),
            slot.weight.eq(running & works & ~(operand & last)),
            slot.group_start.eq(running & (remaining == slots - 1)),
            slot.first.eq(running & (remaining == work - 1)),
            slot.last.eq(running & last),
            slot.block_start.eq(running & first_group),
            slot.block_end.eq(running & (group == 0)),
            slot.instruction_start.eq(running & first_group & first_block),
            self.weight_address.eq(address),
            self.base.eq(Mux(slot.operand, operand_group, group_base)),
            self.end.eq(running & last & (group == 0) & (block == 0)),
            advance_block.eq(self.begin | (running & last & (group == 0))),
        ]
        with m.If(running):
            m.d.sync += remaining.eq(remaining - 1)
            with m.If(slot.weight):
                m.d.sync += address.eq(address + step)
            with m.If(last):
                m.d.sync += [
                    remaining.eq(slots - 1),
                    address.eq(start),
                    group.eq(group - 1),
                    group_base.eq(group_base + config.pixels),
                    first_group.eq(0),
                ]
                with m.If(~front.operand_broadcast):
                    m.d.sync += operand_group.eq(operand_group + config.pixels)
        with m.If(advance_block):
            m.d.sync += [
                start.eq(next_start), address.eq(next_start), work.eq(next_work),
                slots.eq(next_slots), remaining.eq(next_slots - 1),
                group.eq(front.groups - 1), first_group.eq(1),
            ]
            with m.If(self.begin):
                m.d.sync += [
                    running.eq(1), block.eq(front.blocks - 1), first_block.eq(1),
                    block_base.eq(front.in_base), group_base.eq(front.in_base),
                    operand_block.eq(front.operand_base), operand_group.eq(front.operand_base),
                ]
            with m.Else():
                m.d.sync += [
                    running.eq(block != 0), block.eq(block - 1), first_block.eq(0),
                    block_base.eq(block_base + front.block_step),
                    group_base.eq(block_base + front.block_step),
                    operand_block.eq(operand_block + front.operand_plane),
                    operand_group.eq(operand_block + front.operand_plane),
                ]
        return m

    def _constants(self, m: Module) -> Signal:
        """Least slots of a group and `gap`, by the kind of instruction: the numbers of timing.py."""
        config, front = self._config, self.front
        least = Signal(range(256))
        connected = front.mode == Mode.FULLY_CONNECTED
        kind = Cat(connected, front.single_drain, front.reduce, front.use_table, front.elementwise != Elementwise.NONE)
        with m.Switch(kind):
            for index in range(32):
                fields = {
                    "mode": Mode.FULLY_CONNECTED if index & 1 else Mode.CONV,
                    "single_drain": index >> 1 & 1,
                    "reduce": index >> 2 & 1,
                    "use_table": index >> 3 & 1,
                    "elementwise": Elementwise.PRELU if index >> 4 & 1 else Elementwise.NONE,
                }
                with m.Case(index):
                    m.d.comb += [least.eq(minimum_slots(config, fields)), self.gap.eq(gap_cycles(config, fields))]
        return least

    def _streams(self, m: Module, least: Signal) -> tuple[Value, Value, Value, Value, Signal]:
        """Prefetch the weight stream of the next block of output channels."""
        config, front = self._config, self.front
        words, bits = memory_shape(config, Memory.BLOCK)
        m.submodules.blocks = memory = Ram(bits, words, config.technology, output_register=True)
        stream = data.View(struct(block_layout(config)), memory.read_data)
        address, advance = Signal(ceil_log2(words)), Signal()
        operand = (front.elementwise == Elementwise.ADD) | (front.elementwise == Elementwise.MUL)
        work = Signal(config.count_bits + 1)
        m.d.comb += [
            memory.write_address.eq(self.block_address),
            memory.write_data.eq(self.block_data),
            memory.write_enable.eq(self.block_enable),
            work.eq(stream.count + operand),
            memory.read_address.eq(address),
        ]
        loaded = Signal()  # `front` is new: its first stream is wanted
        m.d.sync += loaded.eq(self.load)
        with m.If(loaded):
            m.d.sync += address.eq(front.block_base)
        with m.Elif(advance & ~front.block_shared):
            m.d.sync += address.eq(address + 1)
        next_start, next_work = Signal.like(stream.start), Signal.like(work)
        next_slots = Signal(max(len(work), 9))
        m.d.sync += [next_start.eq(stream.start), next_work.eq(work), next_slots.eq(Mux(work > least, work, least))]
        return operand, next_start, next_work, next_slots, advance
