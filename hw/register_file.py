"""The register file: an AXI4-Lite subordinate that starts, describes and watches everything else."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.axi import OKAY, AXI4Lite
from hw.config import ABI_VERSION, AcceleratorConfig
from hw.isa import Memory, memory_shape
from hw.registers import ADDRESS_BITS, ID_VALUE, Register, StatusBit
from hw.tensor_walker import PHASES, descriptor_layout

_START, _CLEAR = 0, 1


def load_count_bits(config: AcceleratorConfig) -> int:
    """Width of a number of words of any memory."""
    return max(ceil_log2(memory_shape(config, memory)[0] + 1) for memory in Memory if memory != Memory.TENSOR)


class RegisterFile(wiring.Component):
    """Registers of `registers.py` behind AXI4-Lite.

    Writable registers read back what they hold; bits beyond a field's width are dropped, and `wstrb` is respected.
    A write that starts something, or clears the error, needs its byte 0 enabled. Unknown addresses read 0 and
    ignore writes; every response is OKAY. Address bits 0 and 1 are ignored.

    Timing:
        A write takes 2 cycles after both address and data have arrived, in either order; a read takes 2.
        Start pulses are high in the one cycle in which the write happens, before `bvalid`.

    Members:
        axil: In(AXI4Lite(8)). The host.
        start: Out(1). Run [pc_start, pc_end). Like `load_start` and `read_start`, only while nothing is active.
        pc_start: Out(instruction address). First instruction.
        pc_end: Out(number of instructions). One past the last.
        counter_index: Out(instruction address). Whose cycles `counter_value` must show.
        load_start: Out(1). Fill a memory.
        load_memory: Out(3). `isa.Memory`.
        load_address: Out(load_count_bits). First word.
        load_count: Out(load_count_bits). Number of words.
        load_tensor: Out(descriptor_layout). Where an input goes.
        read_start: Out(1). Send a map.
        read_tensor: Out(descriptor_layout). Where it is.
        busy: In(1). A program runs; must rise in the cycle after `start`, as the two below after their pulses.
        loading: In(1). A memory is being filled.
        reading: In(1). A map is being sent.
        done: In(1). The last run has ended.
        cycles: In(32). Its length.
        counter_value: In(32). Cycles of instruction `counter_index`, at most 1 cycle later.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        instruction_bits = ceil_log2(config.instructions)
        count_bits = load_count_bits(config)
        super().__init__({
            "axil": In(AXI4Lite(ADDRESS_BITS)),
            "start": Out(1),
            "pc_start": Out(instruction_bits),
            "pc_end": Out(ceil_log2(config.instructions + 1)),
            "counter_index": Out(instruction_bits),
            "load_start": Out(1),
            "load_memory": Out(3),
            "load_address": Out(count_bits),
            "load_count": Out(count_bits),
            "load_tensor": Out(descriptor_layout(config)),
            "read_start": Out(1),
            "read_tensor": Out(descriptor_layout(config)),
            "busy": In(1),
            "loading": In(1),
            "reading": In(1),
            "done": In(1),
            "cycles": In(32),
            "counter_value": In(32),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        writable = self._writable()
        error = Signal()

        # Writes: address and data wait for each other.
        axil = self.axil
        write = Signal()
        address = Signal(ADDRESS_BITS)
        data = Signal(32)
        strobes = Signal(4)
        have_address = Signal()
        have_data = Signal()
        m.d.comb += [
            axil.awready.eq(~have_address),
            axil.wready.eq(~have_data),
            axil.bresp.eq(OKAY),
            write.eq(have_address & have_data & ~axil.bvalid),
        ]
        with m.If(axil.awvalid & axil.awready):
            m.d.sync += [address.eq(axil.awaddr), have_address.eq(1)]
        with m.If(axil.wvalid & axil.wready):
            m.d.sync += [data.eq(axil.wdata), strobes.eq(axil.wstrb), have_data.eq(1)]
        with m.If(axil.bready):
            m.d.sync += axil.bvalid.eq(0)
        with m.If(write):
            m.d.sync += [axil.bvalid.eq(1), have_address.eq(0), have_data.eq(0)]
            with m.Switch(address[2:]):
                for register, value in writable.items():
                    with m.Case(register >> 2):
                        m.d.sync += value.eq(_merge(value, data, strobes))

        self._commands(m, write & strobes[0], address, data, error)
        self._reads(m, writable, error)
        return m

    def _commands(self, m: Module, write: Value, address: Value, data: Value, error: Signal) -> None:
        """Start pulses, refused while anything is active."""
        active = self.busy | self.loading | self.reading
        with m.Switch(address[2:]):
            for register, pulse in (
                (Register.CONTROL, self.start),
                (Register.LOAD_START, self.load_start),
                (Register.READ_START, self.read_start),
            ):
                with m.Case(register >> 2):
                    with m.If(write & data[_START]):
                        m.d.comb += pulse.eq(~active)
                        with m.If(active):
                            m.d.sync += error.eq(1)
                    if register == Register.CONTROL:
                        with m.If(write & data[_CLEAR]):
                            m.d.sync += error.eq(0)

    def _reads(self, m: Module, writable: dict[int, Value], error: Value) -> None:
        axil = self.axil
        address = Signal(ADDRESS_BITS)
        have_address = Signal()
        value = Signal(32)
        status = Signal(len(StatusBit))
        m.d.comb += [
            axil.arready.eq(~have_address & ~axil.rvalid),
            axil.rresp.eq(OKAY),
            status[StatusBit.BUSY].eq(self.busy),
            status[StatusBit.DONE].eq(self.done),
            status[StatusBit.LOADING].eq(self.loading),
            status[StatusBit.READING].eq(self.reading),
            status[StatusBit.ERROR].eq(error),
        ]
        readable: dict[int, Value] = {
            Register.ID: Const(ID_VALUE, 32),
            Register.ABI_VERSION: Const(ABI_VERSION, 32),
            Register.CONFIG_ID: Const(self._config.config_id, 32),
            Register.STATUS: status,
            Register.CYCLES: self.cycles,
            Register.COUNTER_VALUE: self.counter_value,
            **writable,
        }
        with m.Switch(address[2:]):
            for register, source in readable.items():
                with m.Case(register >> 2):
                    m.d.comb += value.eq(source)
        with m.If(axil.arvalid & axil.arready):
            m.d.sync += [address.eq(axil.araddr), have_address.eq(1)]
        with m.If(axil.rready):
            m.d.sync += axil.rvalid.eq(0)
        with m.If(have_address):
            m.d.sync += [have_address.eq(0), axil.rvalid.eq(1), axil.rdata.eq(value)]

    def _writable(self) -> dict[int, Value]:
        """Byte address of each plain register -> the output that holds it."""
        registers: dict[int, Value] = {
            Register.PC_START: self.pc_start,
            Register.PC_END: self.pc_end,
            Register.COUNTER_INDEX: self.counter_index,
            Register.LOAD_MEMORY: self.load_memory,
            Register.LOAD_ADDRESS: self.load_address,
            Register.LOAD_COUNT: self.load_count,
        }
        for tensor, base in ((self.load_tensor, Register.IN_BASE_0), (self.read_tensor, Register.OUT_BASE_0)):
            block = base - Register.IN_BASE_0
            for phase in range(PHASES):
                registers[Register.IN_BASE_0 + block + 4 * phase] = tensor.base[phase]
                registers[Register.IN_BYTE_0 + block + 4 * phase] = tensor.byte[phase]
            for name in ("plane", "pitch", "width", "height", "channels", "phases"):
                registers[Register[f"IN_{name.upper()}"] + block] = getattr(tensor, name)
        return registers


def _merge(old: Value, new: Value, strobes: Value) -> Value:
    """`old` with the bytes of `new` that `strobes` enables."""
    bits = Cat(old, Const(0, 32 - len(old)))
    return Cat(Mux(strobes[i], new[8 * i:8 * i + 8], bits[8 * i:8 * i + 8]) for i in range(4))
