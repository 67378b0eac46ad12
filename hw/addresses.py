"""From a weight block's place in its stream to the activation word that it multiplies."""

from amaranth import Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.config import DELTA_BITS, AcceleratorConfig
from hw.isa import Memory, memory_shape, tap_layout
from hw.memory import Memory as Ram
from hw.multiplier import OPERAND_BITS, Multiplier
from hw.pipeline import delay
from hw.sequencer import struct
from hw.timing import ADDRESS_STAGE, CHANNEL_STAGE, META_STAGE, TAP_ADDRESS_STAGE, TAP_STAGE


class AddressGenerator(wiring.Component):
    """Walks the taps and channels of a weight stream.

    channel += delta;  k = TAP[tap].channel + channel;  address = base + TAP[tap].offset + (k // Q) * in_plane

    Timing:
        Inputs are taken at META_STAGE; `address` and `byte` are valid at ADDRESS_STAGE, the tap's bounds at
        TAP_STAGE. Initiation interval 1 cycle.

    Members:
        weight: In(1). A weight block passes.
        first: In(1). It is the first of its group.
        delta: In(6). Input channels skipped before it.
        end_tap: In(1). The next block belongs to the next tap.
        base: In(address_bits). Word of lane 0 for offset 0.
        tap_base: In. First tap of the instruction.
        in_plane: In(address_bits). Words from one group of Q input channels to the next.
        tap_address, tap_data, tap_enable: In. Write port of the tap memory.
        address: Out(address_bits). Word of lane 0; `base` itself when no weight passes.
        byte: Out(log2 Q). Byte of the word.
        tap: Out(tap_layout). Tap of the block; its bounds are wanted.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        words, bits = memory_shape(config, Memory.TAP)
        super().__init__({
            "weight": In(1),
            "first": In(1),
            "delta": In(DELTA_BITS),
            "end_tap": In(1),
            "base": In(config.address_bits),
            "tap_base": In(ceil_log2(words)),
            "in_plane": In(config.address_bits),
            "tap_address": In(ceil_log2(words)),
            "tap_data": In(bits),
            "tap_enable": In(1),
            "address": Out(config.address_bits),
            "byte": Out(max(1, config.row_bits)),
            "tap": Out(struct(tap_layout(config))),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        words, bits = memory_shape(config, Memory.TAP)
        m.submodules.taps = taps = Ram(bits, words, config.technology, output_register=True)
        m.d.comb += [
            taps.write_address.eq(self.tap_address),
            taps.write_data.eq(self.tap_data),
            taps.write_enable.eq(self.tap_enable),
        ]

        # META_STAGE: where this block is; TAP_ADDRESS_STAGE: its tap's address.
        channel_now, tap_now = Signal(config.channel_bits), Signal(ceil_log2(words))
        channel_next, tap_next = Signal.like(channel_now), Signal.like(tap_now)
        channel, tap_address = Signal.like(channel_now), Signal.like(tap_now)
        m.d.comb += [
            channel_now.eq(Mux(self.first, 0, channel_next) + self.delta),
            tap_now.eq(Mux(self.first, self.tap_base, tap_next)),
            taps.read_address.eq(tap_address),
            self.tap.eq(taps.read_data),
        ]
        with m.If(self.weight):
            m.d.sync += [
                channel_next.eq(Mux(self.end_tap, 0, channel_now + 1)),
                tap_next.eq(tap_now + self.end_tap),
            ]
        m.d.sync += [channel.eq(channel_now), tap_address.eq(tap_now)]

        # TAP_STAGE: add the tap; CHANNEL_STAGE: multiply the plane; ADDRESS_STAGE: sum.
        weight = delay(m, self.weight, TAP_STAGE - META_STAGE, name="weight")
        base = delay(m, self.base, TAP_STAGE - META_STAGE, name="base")
        at_tap = delay(m, channel, TAP_STAGE - TAP_ADDRESS_STAGE, name="channel")
        k = Signal(config.channel_bits, reset_less=True)
        start = Signal(config.address_bits, reset_less=True)
        m.d.sync += [
            k.eq(Mux(weight, self.tap.channel + at_tap, 0)),
            start.eq(base + Mux(weight, self.tap.offset, 0)),
        ]
        start = delay(m, start, Multiplier.LATENCY, name="start")
        m.d.sync += self.address.eq(start + self._planes(m, k >> config.row_bits))
        if config.row_bits:
            m.d.comb += self.byte.eq(delay(m, k[: config.row_bits], ADDRESS_STAGE - CHANNEL_STAGE, name="byte"))
        return m

    def _planes(self, m: Module, planes: Value) -> Value:
        """planes * in_plane, Multiplier.LATENCY cycles later; a large memory's addresses need a second multiplier."""
        config = self._config
        plane_bits = max(1, config.channel_bits - config.row_bits)
        total: Value = Const(0)
        for low in range(0, config.address_bits, OPERAND_BITS):
            part = self.in_plane[low:low + OPERAND_BITS]
            product = Multiplier(unsigned(plane_bits), unsigned(len(part)), config.technology)
            m.submodules[f"plane{low}"] = product
            m.d.comb += [product.a.eq(planes), product.b.eq(part)]
            total = total + (product.p << low)
        return total
