"""Unary functions of an int8 value, by table."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import DATA_BITS, AcceleratorConfig
from hw.memory import Memory
from hw.pipeline import delay

ENTRIES = 256


class Table(wiring.Component):
    """The tables of one row, and the way around them.

    y = TABLE[index][a + 128] if `use_table` else a.

    Timing:
        latency: 3 cycles (`Table.LATENCY`), with and without table.
        initiation interval: 1 cycle; there is no stall. Only `o_valid` is reset.
        `use_table` and `index` must be stable while anything is in flight.

    Members:
        i_valid: In(1). There is a value this cycle.
        a: In(signed(8)). Argument.
        use_table: In(1). Look `a` up, instead of passing it on.
        index: In(width of instruction field table_index). Which table.
        write_address: In(address of table_words * 256 entries). Table * 256 + argument + 128.
        write_data: In(8). Entry to store.
        write_enable: In(1). Store it.
        o_valid: Out(1). `i_valid`, `LATENCY` cycles later.
        y: Out(signed(8)). Result.
    """

    LATENCY = 3

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        index_bits = max(1, (config.table_words - 1).bit_length())
        super().__init__({
            "i_valid": In(1),
            "a": In(signed(DATA_BITS)),
            "use_table": In(1),
            "index": In(index_bits),
            "write_address": In(index_bits + DATA_BITS),
            "write_data": In(DATA_BITS),
            "write_enable": In(1),
            "o_valid": Out(1),
            "y": Out(signed(DATA_BITS)),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        m.submodules.memory = memory = Memory(
            DATA_BITS, ENTRIES * config.table_words, config.technology, output_register=True
        )
        offset_binary = Cat(self.a[:-1], ~self.a[-1])  # a + 128
        bypass = delay(m, self.a, memory.latency, name="bypass")
        result = Signal.like(self.y, reset_less=True)
        m.d.sync += result.eq(Mux(self.use_table, memory.read_data, bypass))
        m.d.comb += [
            memory.read_address.eq(Cat(offset_binary, self.index)),
            memory.write_address.eq(self.write_address),
            memory.write_data.eq(self.write_data),
            memory.write_enable.eq(self.write_enable),
            self.y.eq(result),
            self.o_valid.eq(delay(m, self.i_valid, self.LATENCY, reset=True, name="valid")),
        ]
        return m
