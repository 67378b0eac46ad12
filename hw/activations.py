"""The activation memory: P banks of words, read as P consecutive words, written D words at a time."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import AcceleratorConfig
from hw.memory import Memory
from hw.pipeline import delay
from hw.timing import BANK_STAGE, LANE_STAGE, MEMORY_LATENCY


def write_signature(config: AcceleratorConfig) -> wiring.Signature:
    """One word write; `mask` has a bit for each byte."""
    return wiring.Signature({
        "enable": Out(1),
        "address": Out(config.address_bits),
        "data": Out(config.word_bits),
        "mask": Out(config.rows),
    })


class Rotator(wiring.Component):
    """Words from bank order to lane order: lane l takes word (l + amount) % P.

    The two low bits of the amount rotate first, the others in a second stage.

    Timing:
        latency: 2 cycles; initiation interval: 1 cycle.

    Members:
        amount: In(log2 P). Bank of lane 0.
        i: In(width).array(P). Word of each bank.
        o: Out(width).array(P). Word of each lane.
    """

    LATENCY = 2

    def __init__(self, pixels: int, width: int) -> None:
        self._pixels = pixels
        super().__init__({
            "amount": In((pixels - 1).bit_length()),
            "i": In(width).array(pixels),
            "o": Out(width).array(pixels),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fine_bits = min(2, len(self.amount))
        middle = [Signal(len(word), name=f"middle{lane}", reset_less=True) for lane, word in enumerate(self.o)]
        self._rotate(m, self.i, middle, self.amount[:fine_bits], 1)
        coarse = delay(m, self.amount[fine_bits:], 1, name="coarse") if len(self.amount) > fine_bits else None
        if coarse is None:
            m.d.sync += [o.eq(word) for o, word in zip(self.o, middle, strict=True)]
        else:
            self._rotate(m, middle, self.o, coarse, 1 << fine_bits)
        return m

    def _rotate(self, m: Module, source: list[Signal], target: list[Signal], amount: Value, unit: int) -> None:
        with m.Switch(amount):
            for index in range(1 << len(amount)):
                with m.Case(index):
                    for lane in range(self._pixels):
                        m.d.sync += target[lane].eq(source[(lane + index * unit) % self._pixels])


class Activations(wiring.Component):
    """Banked memory: word a is in bank a % P, row a // P, so any P consecutive words are in different banks.

    Timing:
        read: `words` shows words read_address + l of lane l, LANE_STAGE - BANK_STAGE + 1 cycles later.
        write: stored at the end of the cycle; the words written in one cycle must be in different banks.

    Members:
        read_address: In(address_bits). Word of lane 0.
        words: Out(word_bits).array(P). One word for each lane.
        write0, write1: In(write_signature). D word writes.
    """

    READ_LATENCY = LANE_STAGE - BANK_STAGE + 1

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        ports = {f"write{index}": In(write_signature(config)) for index in range(config.drain_lanes)}
        super().__init__({
            "read_address": In(config.address_bits),
            "words": Out(config.word_bits).array(config.pixels),
            **ports,
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        bits = config.pixel_bits
        row, first = self.read_address[bits:], self.read_address[:bits]
        m.submodules.rotator = rotator = Rotator(config.pixels, config.word_bits)
        first_delayed = delay(m, first, MEMORY_LATENCY + 1, name="first")
        m.d.comb += [rotator.amount.eq(first_delayed), *(w.eq(o) for w, o in zip(self.words, rotator.o, strict=True))]
        writes = [getattr(self, f"write{index}") for index in range(config.drain_lanes)]
        for bank in range(config.pixels):
            memory = Memory(config.word_bits, config.bank_depth, config.technology, granularity=8, output_register=True)
            m.submodules[f"bank{bank}"] = memory
            # A bank below lane 0's holds the word of the next row.
            bank_row = Signal(len(row), name=f"row{bank}", reset_less=True)
            m.d.sync += bank_row.eq(row + (first > bank))
            m.d.comb += [memory.read_address.eq(bank_row), rotator.i[bank].eq(memory.read_data)]
            hits = [Signal(name=f"hit{bank}_{index}") for index in range(len(writes))]
            for hit, port in zip(hits, writes, strict=True):
                m.d.comb += hit.eq(port.enable & (port.address[:bits] == bank))
            chosen = writes[-1]
            address, word, mask = chosen.address[bits:], chosen.data, chosen.mask
            for hit, port in zip(hits[:-1], writes[:-1], strict=True):
                address, word = Mux(hit, port.address[bits:], address), Mux(hit, port.data, word)
                mask = Mux(hit, port.mask, mask)
            m.d.comb += [
                memory.write_address.eq(address),
                memory.write_data.eq(word),
                memory.write_enable.eq(Mux(Cat(hits).any(), mask, 0)),
            ]
        return m
