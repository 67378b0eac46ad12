"""A long delay of a wide value, in a small memory instead of registers."""

from amaranth import Module, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


class DelayLine(wiring.Component):
    """A circular buffer that is written and read in every cycle.

    Timing:
        latency: `cycles`, 2 or more; initiation interval: 1 cycle.

    Members:
        i: In(width). Value.
        o: Out(width). The value `cycles` cycles ago; undefined in the first `cycles` cycles after power-up.
    """

    def __init__(self, width: int, cycles: int) -> None:
        if cycles < 2:
            raise ValueError(f"cycles must be at least 2, not {cycles}")
        self._cycles = cycles
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = 1 << ceil_log2(self._cycles)
        m.submodules.buffer = buffer = memory.Memory(shape=unsigned(len(self.i)), depth=depth, init=[])
        write, read = buffer.write_port(), buffer.read_port(transparent_for=())
        pointer = Signal(range(depth))
        m.d.sync += pointer.eq(pointer + 1)
        m.d.comb += [
            write.addr.eq(pointer), write.data.eq(self.i), write.en.eq(1),
            # The read port registers its address: what it reads now comes out in the next cycle.
            read.addr.eq(pointer - (self._cycles - 1)),
            self.o.eq(read.data),
        ]
        return m
