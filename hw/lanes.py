"""What each lane multiplies: its word or byte of the fetched vector, or the pad value outside the map."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import DATA_BITS, AcceleratorConfig


class Lanes(wiring.Component):
    """Selects and pads the operands of the P lanes.

    Timing:
        latency: 1 cycle from `words`, `byte` and `inside` to `operands`; initiation interval: 1 cycle.

    Members:
        words: In(word_bits).array(P). Fetched words in lane order.
        inside: In(1).array(P). The lane's position is inside the tap's bounds.
        byte: In(log2 Q). Input channel within the word.
        depthwise: In(1). Row r takes byte r; otherwise all rows take `byte`.
        broadcast: In(1). All lanes take lane 0's byte.
        pad_value: In(signed(8)). For lanes that are outside.
        operands: Out(signed(8)).array(P, Q). Operand of each lane and row.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "words": In(config.word_bits).array(config.pixels),
            "inside": In(1).array(config.pixels),
            "byte": In(max(1, config.row_bits)),
            "depthwise": In(1),
            "broadcast": In(1),
            "pad_value": In(signed(DATA_BITS)),
            "operands": Out(signed(DATA_BITS)).array(config.pixels, config.rows),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        depthwise = Signal(reset_less=True)
        m.d.sync += depthwise.eq(self.depthwise)
        broadcast_byte = self._byte(self.words[0])
        for lane in range(config.pixels):
            byte = Signal(signed(DATA_BITS), name=f"byte{lane}", reset_less=True)
            word = Signal(config.word_bits, name=f"word{lane}", reset_less=True)
            inside = self.inside[lane] | self.broadcast
            chosen = Mux(self.broadcast, broadcast_byte, self._byte(self.words[lane]))
            m.d.sync += byte.eq(Mux(inside, chosen, self.pad_value))
            with m.If(self.depthwise):
                padding = self.pad_value.as_unsigned().replicate(config.rows)
                m.d.sync += word.eq(Mux(inside, self.words[lane], padding))
            for row in range(config.rows):
                own = word.word_select(row, DATA_BITS)
                m.d.comb += self.operands[lane][row].eq(Mux(depthwise, own, byte))
        return m

    def _byte(self, word: Signal) -> Signal:
        return word.word_select(self.byte, DATA_BITS) if self._config.row_bits else word
