"""Activation memory to output stream."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out

from hw.axi import AXI4Stream
from hw.config import DATA_BITS, AcceleratorConfig
from hw.pipeline import delay
from hw.tensor_walker import TensorWalker, descriptor_layout

_BEAT_BYTES = 4


class Reader(wiring.Component):
    """Send a map, in NCHW order, 4 bytes to a beat.

    A byte is requested only while a FIFO has room for everything on the way, so back-pressure loses nothing.

    Timing:
        One byte a cycle; `data` must be the word requested `read_latency` cycles before, whatever happens between.
        `tensor` must be stable from `start` until `reading` falls.

    Members:
        start: In(1). Begin; ignored while `reading`. A map without bytes ends at once and sends no beat.
        tensor: In(descriptor_layout(config)). The map.
        reading: Out(1). High from the cycle after `start` until the last beat is accepted.
        address: Out(address_bits). Word to read.
        enable: Out(1). `address` counts.
        data: In(word_bits). Word requested `read_latency` cycles ago.
        o: Out(AXI4Stream()). Bytes; the last beat is padded with zeros and has `tlast`.
    """

    def __init__(self, config: AcceleratorConfig, read_latency: int) -> None:
        if read_latency < 1:
            raise ValueError(f"read_latency must be at least 1, not {read_latency}")
        self._config, self._read_latency = config, read_latency
        super().__init__({
            "start": In(1),
            "tensor": In(descriptor_layout(config)),
            "reading": Out(1),
            "address": Out(config.address_bits),
            "enable": Out(1),
            "data": In(config.word_bits),
            "o": Out(AXI4Stream()),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Beats that may still arrive after `room` falls: bytes on the way, the beat being gathered, the FIFO's lag.
        on_the_way = (self._read_latency + 2) // _BEAT_BYTES + 3
        m.submodules.walker = walker = TensorWalker(self._config)
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(width=33, depth=4 * on_the_way)
        room = Signal()
        sending = Signal()
        position = walker.o.payload
        m.d.sync += room.eq(queue.level <= queue.depth - on_the_way)
        m.d.comb += [
            walker.start.eq(self.start & ~self.reading),
            walker.descriptor.eq(self.tensor),
            walker.o.ready.eq(room),
            self.address.eq(position.address),
            self.enable.eq(walker.o.valid & room),
            self.o.tvalid.eq(queue.r_rdy),
            Cat(self.o.tdata, self.o.tlast).eq(queue.r_data),
            queue.r_en.eq(self.o.tready),
            self.reading.eq(walker.busy | sending),
        ]
        # From the first byte requested until the last beat is gone.
        with m.If(self.enable):
            m.d.sync += sending.eq(1)
        with m.Elif(self.o.tvalid & self.o.tready & self.o.tlast):
            m.d.sync += sending.eq(0)

        valid = delay(m, self.enable, self._read_latency, reset=True, name="valid")
        last = delay(m, position.last, self._read_latency, name="last")
        byte = delay(m, position.byte, self._read_latency, name="byte")
        self._pack(m, queue, valid, last, self.data.word_select(byte, DATA_BITS))
        return m

    def _pack(self, m: Module, queue: fifo.SyncFIFOBuffered, valid: Value, last: Value, byte: Value) -> None:
        """Gather bytes into a beat and queue it."""
        # Byte select is a stage of its own.
        selected = Signal(DATA_BITS, reset_less=True)
        selected_valid = Signal()
        selected_last = Signal()
        m.d.sync += [selected.eq(byte), selected_valid.eq(valid), selected_last.eq(last)]

        beat = Signal(32)
        lane = Signal(range(_BEAT_BYTES))
        full = Signal()
        full_last = Signal()
        m.d.comb += [queue.w_data.eq(Cat(beat, full_last)), queue.w_en.eq(full)]
        m.d.sync += [full.eq(selected_valid & (selected_last | (lane == _BEAT_BYTES - 1))), full_last.eq(selected_last)]
        with m.If(selected_valid):
            m.d.sync += lane.eq(Mux(selected_last, 0, lane + 1))
            for index in range(_BEAT_BYTES):
                here = beat.word_select(index, DATA_BITS)
                with m.If(lane == index):
                    m.d.sync += here.eq(selected)
                with m.Elif(lane == 0):
                    m.d.sync += here.eq(0)
