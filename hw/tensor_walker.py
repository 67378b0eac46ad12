"""The bytes of a map in NCHW order, as addresses."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.config import AcceleratorConfig

PHASES = 4
CHANNEL_BITS = 16


def descriptor_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A tensor descriptor as the register file holds it; see registers.py.

    Fields: base[4], byte[4], plane, pitch, width, height, channels, phases (bit 0: px, bit 1: py).
    """
    return data.StructLayout({
        "base": data.ArrayLayout(config.address_bits, PHASES),
        "byte": data.ArrayLayout(byte_bits(config), PHASES),
        "plane": config.address_bits,
        "pitch": config.address_bits,
        "width": config.coordinate_bits,
        "height": config.coordinate_bits,
        "channels": CHANNEL_BITS,
        "phases": 2,
    })


def position_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Where one byte of the map is: word address, byte of that word; `last` of the map."""
    return data.StructLayout({"address": config.address_bits, "byte": byte_bits(config), "last": 1})


def byte_bits(config: AcceleratorConfig) -> int:
    """Width of a byte index; 1 even where a word is one byte."""
    return max(1, config.row_bits)


class TensorWalker(wiring.Component):
    """Walk a map of channels x height x width bytes through its plane layout.

    Counters and adders only: each phase keeps a pointer to its current channel, and all share the offset of the row.

    Timing:
        latency: 3 cycles from `start` to the first position (`TensorWalker.LATENCY`).
        initiation interval: 1 cycle; everything waits while `o` is not accepted.
        `descriptor` must be stable from `start` until `busy` falls.

    Members:
        start: In(1). Begin; ignored while `busy`. A map without bytes ends at once and has no positions.
        descriptor: In(descriptor_layout(config)). The map.
        busy: Out(1). High from the cycle after `start` until the last position is accepted.
        o: Out(stream.Signature(position_layout(config))). Positions in NCHW order.
    """

    LATENCY = 3

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "start": In(1),
            "descriptor": In(descriptor_layout(config)),
            "busy": Out(1),
            "o": Out(stream.Signature(position_layout(config))),
        })

    def elaborate(self, platform: object) -> Module:
        m, config, shape = Module(), self._config, self.descriptor
        advance = Signal()
        walking = Signal()
        staged = Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            self.busy.eq(walking | staged | self.o.valid),
        ]

        # Counters.
        x = Signal(config.coordinate_bits)
        y = Signal(config.coordinate_bits)
        channel = Signal(CHANNEL_BITS)
        row_offset = Signal(config.address_bits)
        words = [Signal(config.address_bits, name=f"word{phase}") for phase in range(PHASES)]
        bytes_ = [Signal(range(config.rows), name=f"byte{phase}") for phase in range(PHASES)]
        last_x = Signal()
        last_y = Signal()
        last_channel = Signal()
        m.d.comb += [
            last_x.eq(x + 1 == shape.width),
            last_y.eq(y + 1 == shape.height),
            last_channel.eq(channel + 1 == shape.channels),
        ]
        with m.If(walking & advance):
            m.d.sync += x.eq(x + 1)
            with m.If(last_x):
                m.d.sync += [x.eq(0), y.eq(y + 1)]
                with m.If(~shape.phases[1] | y[0]):
                    m.d.sync += row_offset.eq(row_offset + shape.pitch)
                with m.If(last_y):
                    m.d.sync += [y.eq(0), row_offset.eq(0), channel.eq(channel + 1)]
                    for word, byte in zip(words, bytes_, strict=True):
                        _next_channel(m, word, byte, shape.plane, config.rows)
                    with m.If(last_channel):
                        m.d.sync += walking.eq(0)

        with m.If(self.start & ~self.busy):
            m.d.sync += [
                walking.eq((shape.width != 0) & (shape.height != 0) & (shape.channels != 0)),
                Cat(x, y, channel, row_offset).eq(0),
            ]
            for phase in range(PHASES):
                m.d.sync += [words[phase].eq(shape.base[phase]), bytes_[phase].eq(shape.byte[phase])]

        self._address(m, advance, walking, staged, x, y, row_offset, words, bytes_, last_x & last_y & last_channel)
        return m

    def _address(
        self,
        m: Module,
        advance: Value,
        walking: Value,
        staged: Signal,
        x: Value,
        y: Value,
        row_offset: Value,
        words: list[Signal],
        bytes_: list[Signal],
        last: Value,
    ) -> None:
        """Two adders, one stage each: row + column, then channel."""
        px, py = self.descriptor.phases[0], self.descriptor.phases[1]
        phase = Cat(x[0] & px, y[0] & py)
        within = Signal(self._config.address_bits)
        word = Signal(self._config.address_bits)
        byte = Signal(range(self._config.rows))
        last_staged = Signal()
        position = self.o.payload
        with m.If(advance):
            m.d.sync += [
                staged.eq(walking),
                within.eq(row_offset + Mux(px, x >> 1, x)),
                last_staged.eq(last),
                self.o.valid.eq(staged),
                position.address.eq(word + within),
                position.byte.eq(byte),
                position.last.eq(last_staged),
            ]
            with m.Switch(phase):
                for index in range(PHASES):
                    with m.Case(index):
                        m.d.sync += [word.eq(words[index]), byte.eq(bytes_[index])]


def _next_channel(m: Module, word: Signal, byte: Signal, plane: Value, rows: int) -> None:
    """The next byte of the word, or the first byte of the next plane."""
    with m.If(byte == rows - 1):
        m.d.sync += [byte.eq(0), word.eq(word + plane)]
    with m.Else():
        m.d.sync += byte.eq(byte + 1)
