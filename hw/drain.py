"""From finished accumulators to words in memory: hold, requantize, second operand, table, write."""

from amaranth import Cat, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.activations import write_signature
from hw.config import DATA_BITS, MULTIPLIER_BITS, AcceleratorConfig
from hw.elementwise import Elementwise as ElementwiseUnit
from hw.isa import Elementwise, Memory, Mode, channel_layout, instruction_layout, memory_shape
from hw.memory import Memory as Ram
from hw.pipeline import delay
from hw.requantize import Requantize
from hw.sequencer import slot_layout, struct
from hw.table import Table
from hw.timing import DATA_STAGE, LANE_STAGE, OPERAND_STAGE, PRODUCT_STAGE, drain_cycles
from hw.walker import WriteWalker


class Drain(wiring.Component):
    """The second half of the pipeline; it works on one group while the array computes the next.

    Timing:
        `slot` is taken at DATA_STAGE, `words` at LANE_STAGE, `sums` at PRODUCT_STAGE. A group leaves in
        timing.drain_cycles; its results are written timing.post_cycles + 1 cycles later.
        `front` is copied when an instruction's first slot arrives, so the next one may be dispatched before.

    Members:
        front: In(instruction). The instruction of the slots that arrive.
        slot: In(slot_layout). See Sequencer.
        words: In(word_bits).array(P). Fetched words, for the second operand.
        sums: In(signed(acc_bits)).array(P, Q). Accumulators.
        parameter_address, parameter_data, parameter_enable: In. Write port of the requantization parameters.
        table_address, table_data, table_enable: In. Write port of the tables (of all rows at once).
        write0, write1: Out(write_signature). Results, D words per cycle.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        parameter_words, parameter_bits = memory_shape(config, Memory.PARAMETER)
        table_entries, _ = memory_shape(config, Memory.TABLE)
        ports = {f"write{index}": Out(write_signature(config)) for index in range(config.drain_lanes)}
        super().__init__({
            "front": In(struct(instruction_layout(config))),
            "slot": In(slot_layout(config)),
            "words": In(config.word_bits).array(config.pixels),
            "sums": In(signed(config.acc_bits)).array(config.pixels, config.rows),
            "parameter_address": In(ceil_log2(parameter_words)),
            "parameter_data": In(parameter_bits),
            "parameter_enable": In(1),
            "table_address": In(ceil_log2(table_entries)),
            "table_data": In(DATA_BITS),
            "table_enable": In(1),
            **ports,
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        back = Signal(self.front.shape(), reset_less=True)
        begins = Signal()
        m.d.sync += begins.eq(self.slot.group_start & self.slot.instruction_start)
        with m.If(self.slot.group_start & self.slot.instruction_start):
            m.d.sync += back.eq(self.front)

        stages = [self.slot]
        for index in range(DATA_STAGE, PRODUCT_STAGE):
            slot = Signal(slot_layout(config), name=f"slot{index + 1}")
            m.d.sync += slot.eq(stages[-1])
            stages.append(slot)
        at = {DATA_STAGE + index: slot for index, slot in enumerate(stages)}

        draining, last_cycle, block_end, held = self._hold(m, back, at)
        parameters, slopes = self._parameters(m, back, begins, at, draining)
        second = self._second(m, back, at, draining, slopes)
        requantizers, ended = self._requantize(m, back, draining, last_cycle, block_end, held, parameters)
        results, count, ended = self._finish(m, back, requantizers, ended, second)
        self._write(m, back, begins, results, count, ended)
        return m

    def _hold(self, m: Module, back: data.View, at: dict[int, data.View]) -> tuple[Signal, Signal, Signal, list]:
        """Copy the finished accumulators, then shift them out, D lanes or one lane per cycle."""
        config = self._config
        swap = at[PRODUCT_STAGE].last
        remaining, block_end, draining, last_cycle = Signal(range(config.pixels + 1)), Signal(), Signal(), Signal()
        connected = back.mode == Mode.FULLY_CONNECTED
        one_lane = connected | back.single_drain
        length = Signal.like(remaining)
        with m.Switch(Cat(connected, back.single_drain)):
            for index in range(4):
                fields = {"mode": Mode.FULLY_CONNECTED if index & 1 else Mode.CONV, "single_drain": index >> 1}
                with m.Case(index):
                    m.d.comb += length.eq(drain_cycles(config, fields))
        m.d.comb += [draining.eq(remaining != 0), last_cycle.eq(remaining == 1)]
        with m.If(draining):
            m.d.sync += remaining.eq(remaining - 1)
        with m.If(swap):
            m.d.sync += [remaining.eq(length), block_end.eq(at[PRODUCT_STAGE].block_end)]
        held = [
            [Signal(signed(config.acc_bits), name=f"held{lane}_{row}", reset_less=True) for row in range(config.rows)]
            for lane in range(config.pixels)
        ]
        step = config.drain_lanes
        with m.If(swap):
            for lane in range(config.pixels):
                m.d.sync += [held[lane][row].eq(self.sums[lane][row]) for row in range(config.rows)]
        with m.Elif(draining & one_lane):
            for lane in range(config.pixels - 1):
                m.d.sync += [held[lane][row].eq(held[lane + 1][row]) for row in range(config.rows)]
        with m.Elif(draining):
            for lane in range(config.pixels - step):
                m.d.sync += [held[lane][row].eq(held[lane + step][row]) for row in range(config.rows)]
        return draining, last_cycle, block_end, held

    def _parameters(
        self, m: Module, back: data.View, begins: Signal, at: dict[int, data.View], draining: Signal
    ) -> tuple[list[data.View], list[Signal]]:
        """The requantization parameters of the block (or, fully connected, of the lane) that drains, for each row."""
        config = self._config
        words, bits = memory_shape(config, Memory.PARAMETER)
        m.submodules.parameters = memory = Ram(bits, words, config.technology, output_register=True)
        connected, prelu = back.mode == Mode.FULLY_CONNECTED, back.elementwise == Elementwise.PRELU
        swaps = {stage: slot.last & slot.block_start for stage, slot in at.items()}
        address, lanes = Signal(ceil_log2(words)), Signal(range(config.block_lanes + 1))
        # Fully connected, the last lane's parameters are read until one cycle later.
        stage = {True: OPERAND_STAGE, False: LANE_STAGE}
        ends = {late: swaps[stage[late]] & ~at[stage[late]].instruction_start for late in stage}
        next_block = Mux(connected, ends[True], ends[False]) & ~back.parameter_shared
        stride = Mux(next_block, Mux(prelu, 2, 1), 0)
        with m.If(begins):
            m.d.sync += address.eq(back.parameter_base)
        with m.Else():
            m.d.sync += address.eq(address + stride + (lanes != 0))
        with m.If(swaps[OPERAND_STAGE] & connected):
            m.d.sync += lanes.eq(config.block_lanes - 1)
        with m.Elif(lanes != 0):
            m.d.sync += lanes.eq(lanes - 1)
        m.d.comb += [
            memory.write_address.eq(self.parameter_address),
            memory.write_data.eq(self.parameter_data),
            memory.write_enable.eq(self.parameter_enable),
            # The slopes of PRELU are in the word that follows; they are read first.
            memory.read_address.eq(address + (prelu & swaps[OPERAND_STAGE])),
        ]
        layout = struct(channel_layout())
        parameters = [Signal(layout, name=f"parameters{row}", reset_less=True) for row in range(config.rows)]
        slopes = [Signal(signed(MULTIPLIER_BITS), name=f"slope{row}", reset_less=True) for row in range(config.rows)]
        channels = [data.View(layout, memory.read_data.word_select(row, layout.size)) for row in range(config.rows)]
        # The sum of the lanes comes a cycle after the last lane, when the next block's accumulators may be here.
        swapped = Signal()
        m.d.sync += swapped.eq(swaps[PRODUCT_STAGE])
        with m.If(Mux(back.reduce, swapped, swaps[PRODUCT_STAGE] | (connected & draining))):
            m.d.sync += [parameters[row].eq(channels[row]) for row in range(config.rows)]
        with m.If(swaps[PRODUCT_STAGE - 1]):
            m.d.sync += [slopes[row].eq(channels[row].multiplier) for row in range(config.rows)]
        return parameters, slopes

    def _second(
        self, m: Module, back: data.View, at: dict[int, data.View], draining: Signal, slopes: list[Signal]
    ) -> list[Signal]:
        """Second operand (or slope) of the lane that drains, for each row, when its value leaves the requantizer."""
        config = self._config
        operands = [Signal(config.word_bits, name=f"operand{lane}", reset_less=True) for lane in range(config.pixels)]
        with m.If(at[LANE_STAGE].operand):
            for lane in range(config.pixels):
                m.d.sync += operands[lane].eq(Mux(back.operand_broadcast, self.words[0], self.words[lane]))
        with m.Elif(draining & (back.elementwise != Elementwise.NONE)):
            m.d.sync += [operands[lane].eq(operands[lane + 1]) for lane in range(config.pixels - 1)]
        second = []
        for row in range(config.rows):
            byte = operands[0].word_select(row, DATA_BITS).as_signed()
            value = Signal(signed(MULTIPLIER_BITS), name=f"second{row}")
            m.d.comb += value.eq(Mux(back.elementwise == Elementwise.PRELU, slopes[row], byte))
            # Only an instruction with a second operand moves these registers.
            with m.If(back.elementwise != Elementwise.NONE):
                second.append(delay(m, value, Requantize.LATENCY, name=f"second{row}"))
        return second

    def _requantize(
        self, m: Module, back: data.View, draining: Signal, last_cycle: Signal, block_end: Signal, held: list,
        parameters: list[data.View],
    ) -> tuple[list[list[Requantize]], Signal]:
        """D lanes of requantizers; `reduce` sums the lanes first and requantizes once."""
        config = self._config
        one_lane = back.single_drain | (back.mode == Mode.FULLY_CONNECTED)
        sums = [Signal(signed(config.acc_bits), name=f"reduced{row}", reset_less=True) for row in range(config.rows)]
        fresh, reduced, reduced_end = Signal(init=1), Signal(), Signal()
        with m.If(draining):
            m.d.sync += fresh.eq(last_cycle)
        with m.If(draining & back.reduce):
            for row in range(config.rows):
                lanes = held[0][row]
                for lane in range(1, config.drain_lanes):
                    lanes = lanes + Mux(one_lane, 0, held[lane][row])
                m.d.sync += sums[row].eq(Mux(fresh, 0, sums[row]) + lanes)
        m.d.sync += [reduced.eq(last_cycle & back.reduce), reduced_end.eq(last_cycle & back.reduce & block_end)]

        # An idle unit stands still: that saves power, and most of the time of a simulation.
        active = _in_flight(m, draining | reduced, Requantize.LATENCY)
        requantizers = []
        for port in range(config.drain_lanes):
            valid = draining & ~back.reduce & (~one_lane if port else 1)
            units = []
            for row in range(config.rows):
                unit = Requantize(config)
                m.submodules[f"requantize{port}_{row}"] = EnableInserter(active)(unit)
                m.d.comb += [
                    unit.i_valid.eq(valid | reduced if port == 0 else valid),
                    unit.acc.eq(Mux(back.reduce, sums[row], held[port][row]) if port == 0 else held[port][row]),
                    unit.multiplier.eq(parameters[row].multiplier),
                    unit.shift.eq(parameters[row].shift),
                    unit.offset.eq(parameters[row].offset),
                    unit.zero_point.eq(back.zero_point),
                    unit.low.eq(back.low),
                    unit.high.eq(back.high),
                ]
                units.append(unit)
            requantizers.append(units)
        ends = Signal()
        m.d.comb += ends.eq(Mux(back.reduce, reduced_end, last_cycle & block_end))
        return requantizers, delay(m, ends, Requantize.LATENCY, reset=True, name="requantized_end")

    def _finish(
        self, m: Module, back: data.View, requantizers: list[list[Requantize]], ended: Signal, second: list[Signal]
    ) -> tuple[list[Signal], Signal, Signal]:
        """Second operand and table, on the first drain lane only; the words to write."""
        config = self._config
        long = Signal()
        m.d.comb += long.eq((back.elementwise != Elementwise.NONE) | back.use_table)
        active = _in_flight(m, requantizers[0][0].o_valid & long, ElementwiseUnit.LATENCY)
        finished = []
        for row, unit in enumerate(requantizers[0]):
            elementwise = ElementwiseUnit(config)
            m.submodules[f"elementwise{row}"] = EnableInserter(active)(elementwise)
            m.submodules[f"table{row}"] = table = Table(config)
            m.d.comb += [
                elementwise.i_valid.eq(unit.o_valid & long),
                elementwise.a.eq(unit.y),
                elementwise.b.eq(second[row][:DATA_BITS].as_signed()),
                elementwise.slope.eq(second[row]),
                elementwise.operation.eq(back.elementwise),
                elementwise.multiplier_a.eq(back.multiplier_a),
                elementwise.multiplier_b.eq(back.multiplier_b),
                elementwise.shift.eq(back.shift),
                elementwise.zero_point_a.eq(back.zero_point_a),
                elementwise.zero_point_b.eq(back.zero_point_b),
                elementwise.zero_point_y.eq(back.zero_point_y),
                elementwise.low.eq(back.low_y),
                elementwise.high.eq(back.high_y),
                table.i_valid.eq(elementwise.o_valid),
                table.a.eq(elementwise.y),
                table.use_table.eq(back.use_table),
                table.index.eq(back.table_index),
                table.write_address.eq(self.table_address),
                table.write_data.eq(self.table_data),
                table.write_enable.eq(self.table_enable),
            ]
            finished.append(table)
        late = delay(m, ended, ElementwiseUnit.LATENCY + Table.LATENCY, reset=True, name="finished_end")
        words = [Signal(config.word_bits, name=f"result{port}") for port in range(config.drain_lanes)]
        for port, (word, units) in enumerate(zip(words, requantizers, strict=True)):
            short = Cat(unit.y for unit in units)
            m.d.comb += word.eq(Mux(long, Cat(t.y for t in finished), short) if port == 0 else short)
        count = Signal(2)
        valids = [units[0].o_valid for units in requantizers]
        m.d.comb += count.eq(Mux(long, finished[0].o_valid, sum(valids[1:], start=valids[0])))
        return words, count, Mux(long, late, ended)

    def _write(
        self, m: Module, back: data.View, begins: Signal, results: list[Signal], count: Signal, ended: Signal
    ) -> None:
        """Address the results and hand them to the memory, one cycle later."""
        config = self._config
        m.submodules.walker = walker = WriteWalker(config)
        # Positions of a fully connected layer are its output words; the reduced sum is position 0.
        m.d.comb += [walker.restart.eq(begins), walker.count.eq(count), walker.end_block.eq(ended)]
        for name in ("pitch", "columns", "rows", "drop_x", "drop_y", "out_base", "out_plane", "out_pitch", "out_step",
                     "out_phase_x", "out_phase_y", "phase_x", "phase_y"):
            m.d.comb += getattr(walker, name).eq(back[name])
        for index, word in enumerate(results):
            port = getattr(self, f"write{index}")
            m.d.sync += [
                port.enable.eq((count > index) & walker.keep[index]),
                port.address.eq(walker.address[index]),
                port.data.eq(word),
            ]
            m.d.comb += port.mask.eq((1 << config.rows) - 1)


def _in_flight(m: Module, valid: Value, latency: int) -> Signal:
    """Something valid is in a pipeline of this latency, or enters it."""
    passed, active = Signal(latency), Signal()
    m.d.sync += passed.eq(Cat(valid, passed))
    m.d.comb += active.eq(valid | passed.any())
    return active
