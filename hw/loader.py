"""Input stream to memories."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.axi import AXI4Stream
from hw.config import DATA_BITS, AcceleratorConfig, beats
from hw.isa import Memory, memory_shape, program_shape
from hw.register_file import load_count_bits
from hw.tensor_walker import TensorWalker, byte_bits, descriptor_layout

WORD_MEMORIES = (Memory.WEIGHT, Memory.PARAMETER, Memory.BLOCK, Memory.TAP, Memory.TABLE)
_BEAT_BYTES = 4


class Loader(wiring.Component):
    """Fill a memory, or place a map, from the input stream.

    Beats of a word are gathered, lowest first, and written at once. The program alone is written beat by beat, at
    instruction * stride + beat (see isa.program_shape), so that its memory is 32 bits wide. Bytes of a map go one
    by one where the walker says; what is left of the last beat is dropped.

    Timing:
        One beat a cycle for words, one byte a cycle for maps. A write happens 1 cycle after its last beat or byte is
        taken. No beat is taken while idle.
        The four load_* inputs must be stable from `start` until `loading` falls.

    Members:
        i: In(AXI4Stream()). Contents; `tlast` is ignored.
        start: In(1). Begin; ignored while `loading`. Nothing to load ends at once, so does an unknown memory.
        load_memory: In(3). `isa.Memory`.
        load_address: In(load_count_bits). First word.
        load_count: In(load_count_bits). Number of words.
        load_tensor: In(descriptor_layout). Where a map goes.
        loading: Out(1). High from the cycle after `start` through that of the last write.
        <memory>_address, <memory>_data, <memory>_enable: Out. Write port of weight, parameter, block, tap and table.
            Table addresses are table * 256 + entry.
        program_address, program_data, program_enable: Out. Write port, 32 bits wide.
        tensor_address: Out(address_bits). Word of the activation memory.
        tensor_byte: Out(byte_bits). Byte of that word.
        tensor_data: Out(8). The byte.
        tensor_enable: Out(1). Write it.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        count_bits = load_count_bits(config)
        members = {
            "i": In(AXI4Stream()),
            "start": In(1),
            "load_memory": In(3),
            "load_address": In(count_bits),
            "load_count": In(count_bits),
            "load_tensor": In(descriptor_layout(config)),
            "loading": Out(1),
            "program_address": Out(ceil_log2(program_shape(config)[0])),
            "program_data": Out(32),
            "program_enable": Out(1),
            "tensor_address": Out(config.address_bits),
            "tensor_byte": Out(byte_bits(config)),
            "tensor_data": Out(DATA_BITS),
            "tensor_enable": Out(1),
        }
        for memory in WORD_MEMORIES:
            words, bits = memory_shape(config, memory)
            name = memory.name.lower()
            members |= {f"{name}_address": Out(ceil_log2(words)), f"{name}_data": Out(bits), f"{name}_enable": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words_ready, words_active = self._words(m)
        bytes_ready, bytes_active = self._bytes(m)
        m.d.comb += [
            self.i.tready.eq(words_ready | bytes_ready),
            self.loading.eq(words_active | bytes_active),
        ]
        return m

    def _words(self, m: Module) -> tuple[Value, Value]:
        """Gather beats into words. Returns (ready for a beat, active)."""
        config = self._config
        beats_of = {memory: beats(memory_shape(config, memory)[1]) for memory in (*WORD_MEMORIES, Memory.PROGRAM)}
        most = max(beats_of[memory] for memory in WORD_MEMORIES)
        address = Signal.like(self.load_address)
        words_left = Signal.like(self.load_count)
        beat = Signal(range(max(beats_of.values())))
        last_beat = Signal()
        is_program = self.load_memory == Memory.PROGRAM
        gathered = Signal(32 * most, reset_less=True)
        write = Signal()
        written_beat = Signal.like(beat)
        ends_word = Signal()
        take = words_left.any() & self.i.tvalid

        with m.Switch(self.load_memory):
            for memory, count in beats_of.items():
                with m.Case(memory):
                    m.d.comb += last_beat.eq(beat == count - 1)
        # The newest beat is on top, so a word of k beats is the k topmost beats.
        m.d.sync += [
            write.eq(take & (last_beat | is_program)),
            written_beat.eq(beat),
            ends_word.eq(last_beat),
        ]
        with m.If(take):
            m.d.sync += [gathered.eq(Cat(gathered[32:], self.i.tdata)), beat.eq(beat + 1)]
            with m.If(last_beat):
                m.d.sync += [beat.eq(0), words_left.eq(words_left - 1)]
        with m.If(write & ends_word):
            m.d.sync += address.eq(address + 1)
        with m.If(self.start & ~self.loading):
            m.d.sync += [beat.eq(0), address.eq(self.load_address)]
            with m.Switch(self.load_memory):
                with m.Case(*beats_of):
                    m.d.sync += words_left.eq(self.load_count)

        for memory in WORD_MEMORIES:
            name = memory.name.lower()
            m.d.comb += [
                getattr(self, f"{name}_address").eq(address),
                getattr(self, f"{name}_data").eq(gathered[32 * (most - beats_of[memory]):]),
                getattr(self, f"{name}_enable").eq(write & (self.load_memory == memory)),
            ]
        stride_bits = ceil_log2(program_shape(config)[1])
        m.d.comb += [
            self.program_address.eq(Cat(written_beat[:stride_bits], address)),
            self.program_data.eq(gathered[-32:]),
            self.program_enable.eq(write & is_program),
        ]
        return words_left.any(), words_left.any() | write

    def _bytes(self, m: Module) -> tuple[Value, Value]:
        """Place the bytes of a map. Returns (ready for a beat, active)."""
        m.submodules.walker = walker = TensorWalker(self._config)
        buffer = Signal(32, reset_less=True)
        bytes_left = Signal(range(_BEAT_BYTES + 1))
        place = Signal()
        ready = Signal()
        position = walker.o.payload
        m.d.comb += [
            walker.start.eq(self.start & ~self.loading & (self.load_memory == Memory.TENSOR)),
            walker.descriptor.eq(self.load_tensor),
            walker.o.ready.eq(bytes_left.any()),
            place.eq(walker.o.valid & walker.o.ready),
            ready.eq(walker.busy & (~bytes_left.any() | (place & (bytes_left == 1) & ~position.last))),
        ]
        with m.If(place):
            m.d.sync += [buffer.eq(buffer >> DATA_BITS), bytes_left.eq(Mux(position.last, 0, bytes_left - 1))]
        with m.If(ready & self.i.tvalid):
            m.d.sync += [buffer.eq(self.i.tdata), bytes_left.eq(_BEAT_BYTES)]
        m.d.sync += [
            self.tensor_address.eq(position.address),
            self.tensor_byte.eq(position.byte),
            self.tensor_data.eq(buffer[:DATA_BITS]),
            self.tensor_enable.eq(place),
        ]
        return ready, walker.busy | self.tensor_enable
