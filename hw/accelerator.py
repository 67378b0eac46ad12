"""The accelerator: host ports, sequencer, activation memory, array and drain, in one pipeline."""

from dataclasses import replace

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from hw import verilog
from hw.activations import Activations
from hw.addresses import AddressGenerator
from hw.array import Array
from hw.axi import AXI4Lite, AXI4Stream
from hw.config import DATA_BITS, AcceleratorConfig
from hw.delay_line import DelayLine
from hw.drain import Drain
from hw.isa import Memory, Mode, memory_shape, weight_block_layout
from hw.lanes import Lanes
from hw.loader import Loader
from hw.memory import RAM_VERILOG
from hw.memory import Memory as Ram
from hw.pipeline import delay
from hw.reader import Reader
from hw.register_file import RegisterFile
from hw.registers import ADDRESS_BITS
from hw.sequencer import Sequencer, slot_layout, struct
from hw.timing import (
    ADDRESS_STAGE,
    DATA_STAGE,
    LANE_STAGE,
    META_STAGE,
    OPERAND_STAGE,
    POSITION_STAGE,
    PRODUCT_STAGE,
    TAP_STAGE,
    WEIGHT_STAGE,
)
from hw.walker import LaneWalker

TOP = "accelerator"
"""Name of the Verilog module."""


class Accelerator(wiring.Component):
    """A P x Q outer-product engine for quantized networks; isa.py says what it computes, registers.py how to drive it.

    Timing:
        see timing.py. Cycles depend on the program alone, never on data.

    Members:
        s_axil: In(AXI4Lite). Registers.
        s_axis: In(AXI4Stream). Memory images and input maps.
        m_axis: Out(AXI4Stream). Output maps.
        irq: Out(1). The last run has ended.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "s_axil": In(AXI4Lite(ADDRESS_BITS)),
            "s_axis": In(AXI4Stream()),
            "m_axis": Out(AXI4Stream()),
            "irq": Out(1),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        m.submodules.registers = registers = RegisterFile(config)
        m.submodules.loader = loader = Loader(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.addresses = addresses = AddressGenerator(config)
        m.submodules.activations = activations = Activations(config)
        m.submodules.array = array = Array(config)
        m.submodules.drain = drain = Drain(config)
        m.submodules.reader = reader = Reader(config, Activations.READ_LATENCY + 1)

        self._host(m, registers, loader, sequencer, reader)
        self._memory_loads(m, loader, sequencer, addresses, drain)
        slots = self._slots(m, sequencer)
        weights = self._weights(m, sequencer, loader, addresses, slots)
        self._reads(m, sequencer, addresses, activations, reader, slots)
        self._writes(m, loader, activations, drain)
        self._lanes(m, sequencer, addresses, activations, array, slots)
        for lane in range(config.pixels):
            m.d.comb += [array.weights[lane][row].eq(weights[lane][row]) for row in range(config.rows)]
            m.d.comb += [drain.sums[lane][row].eq(array.sums[lane][row]) for row in range(config.rows)]
            m.d.comb += drain.words[lane].eq(activations.words[lane])
        m.d.comb += [
            array.accumulate.eq(slots[PRODUCT_STAGE].weight),
            array.first.eq(slots[PRODUCT_STAGE].first),
            array.maximum.eq(sequencer.front.maximum),
            drain.front.eq(sequencer.front),
            drain.slot.eq(slots[DATA_STAGE]),
        ]
        return m

    def _host(
        self, m: Module, registers: RegisterFile, loader: Loader, sequencer: Sequencer, reader: Reader
    ) -> None:
        connect(m, flipped(self.s_axil), registers.axil)
        connect(m, flipped(self.s_axis), loader.i)
        connect(m, reader.o, flipped(self.m_axis))
        m.d.comb += [
            sequencer.start.eq(registers.start),
            sequencer.pc_start.eq(registers.pc_start),
            sequencer.pc_end.eq(registers.pc_end),
            sequencer.counter_index.eq(registers.counter_index),
            registers.counter_value.eq(sequencer.counter_value),
            registers.cycles.eq(sequencer.cycles),
            registers.busy.eq(sequencer.busy),
            registers.done.eq(sequencer.done),
            registers.loading.eq(loader.loading),
            registers.reading.eq(reader.reading),
            self.irq.eq(sequencer.done),
            loader.start.eq(registers.load_start),
            loader.load_memory.eq(registers.load_memory),
            loader.load_address.eq(registers.load_address),
            loader.load_count.eq(registers.load_count),
            loader.load_tensor.eq(registers.load_tensor),
            reader.start.eq(registers.read_start),
            reader.tensor.eq(registers.read_tensor),
        ]

    def _memory_loads(
        self, m: Module, loader: Loader, sequencer: Sequencer, addresses: AddressGenerator, drain: Drain
    ) -> None:
        owners = {"program": sequencer, "block": sequencer, "tap": addresses, "parameter": drain, "table": drain}
        for name, owner in owners.items():
            for port in ("address", "data", "enable"):
                m.d.comb += getattr(owner, f"{name}_{port}").eq(getattr(loader, f"{name}_{port}"))

    def _slots(self, m: Module, sequencer: Sequencer) -> dict[int, data.View]:
        """The slot at each stage of the pipeline."""
        layout = slot_layout(self._config)
        slots = {0: sequencer.slot}
        for stage in range(1, PRODUCT_STAGE + 1):
            slots[stage] = Signal(layout, name=f"slot{stage}")
            m.d.sync += slots[stage].eq(slots[stage - 1])
        return slots

    def _weights(
        self, m: Module, sequencer: Sequencer, loader: Loader, addresses: AddressGenerator,
        slots: dict[int, data.View],
    ) -> list[list[Signal]]:
        """Fetch a weight word; its delta and end_tap go ahead to the addresses, its weights meet the activations."""
        config = self._config
        words, bits = memory_shape(config, Memory.WEIGHT)
        block_layout = struct(weight_block_layout(config))
        block_bits = (config.block_lanes - 1).bit_length()
        m.submodules.weights = memory = Ram(bits, words, config.technology, output_register=True)
        m.d.comb += [
            memory.write_address.eq(loader.weight_address),
            memory.write_data.eq(loader.weight_data),
            memory.write_enable.eq(loader.weight_enable),
            memory.read_address.eq(sequencer.weight_address >> block_bits),
        ]
        blocks = [
            data.View(block_layout, memory.read_data.word_select(index, block_layout.size))
            for index in range(config.block_lanes)
        ]
        index = delay(m, sequencer.weight_address[:block_bits], WEIGHT_STAGE, name="index") if block_bits else Const(0)
        delta, end_tap = Signal.like(addresses.delta), Signal()
        with m.Switch(index):
            for number, block in enumerate(blocks):
                with m.Case(number):
                    m.d.sync += [delta.eq(block.delta), end_tap.eq(block.end_tap)]
        m.d.comb += [
            addresses.weight.eq(slots[META_STAGE].weight),
            addresses.first.eq(slots[META_STAGE].first),
            addresses.delta.eq(delta),
            addresses.end_tap.eq(end_tap),
        ]

        weight_bits = DATA_BITS * config.rows
        m.submodules.line = line = DelayLine(weight_bits * config.block_lanes, LANE_STAGE - WEIGHT_STAGE)
        m.d.comb += line.i.eq(Cat(block.as_value()[:weight_bits] for block in blocks))
        late = delay(m, index, LANE_STAGE - WEIGHT_STAGE, name="late_index") if block_bits else Const(0)
        connected = sequencer.front.mode == Mode.FULLY_CONNECTED
        shared = Signal(weight_bits, reset_less=True)
        m.d.sync += shared.eq(line.o.word_select(late, weight_bits))
        selected: list[list[Signal]] = []
        for lane in range(config.pixels):
            block = shared
            if lane < config.block_lanes:
                own = Signal(weight_bits, name=f"weights{lane}", reset_less=True)
                with m.If(connected):
                    m.d.sync += own.eq(line.o.word_select(lane, weight_bits))
                block = Signal(weight_bits, name=f"lane_weights{lane}")
                m.d.comb += block.eq(Mux(connected, own, shared))
            selected.append([block.word_select(row, DATA_BITS) for row in range(config.rows)])
        return selected

    def _reads(
        self, m: Module, sequencer: Sequencer, addresses: AddressGenerator, activations: Activations, reader: Reader,
        slots: dict[int, data.View],
    ) -> None:
        """Vector reads of the array; the host's reader uses lane 0 of them when nothing runs."""
        m.d.comb += [
            addresses.base.eq(delay(m, sequencer.base, META_STAGE, name="base")),
            addresses.tap_base.eq(sequencer.front.tap_base),
            addresses.in_plane.eq(sequencer.front.in_plane),
        ]
        reading = Signal(len(reader.address), reset_less=True)
        m.d.sync += reading.eq(reader.address)
        m.d.comb += [
            activations.read_address.eq(Mux(reader.reading, reading, addresses.address)),
            reader.data.eq(activations.words[0]),
        ]

    def _writes(self, m: Module, loader: Loader, activations: Activations, drain: Drain) -> None:
        """Results; the loader writes bytes through the first port when nothing runs."""
        config = self._config
        for index in range(1, config.drain_lanes):
            connect(m, getattr(drain, f"write{index}"), getattr(activations, f"write{index}"))
        port, result = activations.write0, drain.write0
        m.d.comb += [
            port.enable.eq(result.enable | loader.tensor_enable),
            port.address.eq(Mux(loader.tensor_enable, loader.tensor_address, result.address)),
            port.data.eq(Mux(loader.tensor_enable, loader.tensor_data.replicate(config.rows), result.data)),
            port.mask.eq(Mux(loader.tensor_enable, 1 << loader.tensor_byte, result.mask)),
        ]

    def _lanes(
        self, m: Module, sequencer: Sequencer, addresses: AddressGenerator, activations: Activations, array: Array,
        slots: dict[int, data.View],
    ) -> None:
        """Compare each lane's position with the tap's bounds, select and pad its operands."""
        config, front = self._config, sequencer.front
        m.submodules.walker = walker = LaneWalker(config)
        m.submodules.lanes = lanes = Lanes(config)
        advance = slots[POSITION_STAGE - 1]
        m.d.comb += [
            walker.pitch.eq(front.pitch),
            walker.restart.eq(sequencer.dispatched),
            walker.advance.eq(advance.group_start),
            walker.last.eq(advance.block_end),
            lanes.byte.eq(delay(m, addresses.byte, LANE_STAGE - ADDRESS_STAGE, name="byte")),
            lanes.depthwise.eq(front.mode == Mode.DEPTHWISE),
            lanes.broadcast.eq(front.mode == Mode.FULLY_CONNECTED),
            lanes.pad_value.eq(front.pad_value),
        ]
        bounds = {
            name: delay(m, addresses.tap[name], POSITION_STAGE - TAP_STAGE, name=name)
            for name in ("x_low", "x_high", "y_low", "y_high")
        }
        for lane in range(config.pixels):
            x, y = walker.x[lane], walker.y[lane]
            inside = Signal(name=f"inside{lane}", reset_less=True)
            m.d.sync += inside.eq(
                (x >= bounds["x_low"]) & (x < bounds["x_high"]) & (y >= bounds["y_low"]) & (y < bounds["y_high"])
            )
            m.d.comb += [lanes.inside[lane].eq(inside), lanes.words[lane].eq(activations.words[lane])]
            m.d.comb += [array.operands[lane][row].eq(lanes.operands[lane][row]) for row in range(config.rows)]


assert OPERAND_STAGE == LANE_STAGE + 1, "Lanes takes one cycle"


def to_verilog(config: AcceleratorConfig) -> str:
    """The accelerator as one Verilog file, top level module `accelerator`."""
    if config.technology == "generic":
        config = replace(config, technology="verilog")
    text = verilog.to_verilog(Accelerator(config), TOP)
    return text + (RAM_VERILOG if config.technology == "verilog" else "")
