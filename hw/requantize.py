"""Accumulator to int8."""

from amaranth import Cat, Module, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import MULTIPLIER_BITS, OFFSET_BITS, SHIFT_BITS, AcceleratorConfig
from hw.multiplier import Multiplier
from hw.pipeline import delay, partial_products, sum_tree
from hw.rounding import RoundShift

_LOW_BITS = 18
_TREE_LEVELS = 4


class MultiplyAdd(wiring.Component):
    """total = acc * multiplier + offset, full width, with one DSP of 18 bits.

    acc = high_part * 2**18 + low_part: the DSP multiplies the 18 low bits, a tree of adders the few high ones, and
    the offset enters that tree. The sum has max(acc_bits + 17, 48) + 1 bits and never wraps.

    Timing:
        latency: 5 cycles (`MultiplyAdd.LATENCY`).
        initiation interval: 1 cycle; there is no stall and no reset.

    Members:
        acc: In(signed(acc_bits)). Accumulator.
        multiplier: In(signed(17)). Factor.
        offset: In(signed(48)). Summand.
        total: Out(signed(max(acc_bits + 17, 48) + 1)). Result.
    """

    LATENCY = _TREE_LEVELS + 1

    def __init__(self, config: AcceleratorConfig) -> None:
        self._technology = config.technology
        super().__init__({
            "acc": In(signed(config.acc_bits)),
            "multiplier": In(signed(MULTIPLIER_BITS)),
            "offset": In(signed(OFFSET_BITS)),
            "total": Out(signed(max(config.acc_bits + MULTIPLIER_BITS, OFFSET_BITS) + 1)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.multiply = multiply = Multiplier(
            unsigned(_LOW_BITS), signed(MULTIPLIER_BITS), self._technology
        )
        # Low part of the product: 3 cycles in the DSP, one more to meet the tree.
        m.d.comb += [multiply.a.eq(self.acc[:_LOW_BITS]), multiply.b.eq(self.multiplier)]
        low_product = delay(m, multiply.p, _TREE_LEVELS - Multiplier.LATENCY, name="low_product")

        # High part of the product and upper bits of the offset.
        high_terms = [self.offset[_LOW_BITS:].as_signed(), *partial_products(self.acc[_LOW_BITS:], self.multiplier)]
        high_sum = sum_tree(m, high_terms, len(self.total) - _LOW_BITS, _TREE_LEVELS)
        offset_low = delay(m, self.offset[:_LOW_BITS], _TREE_LEVELS, name="offset_low")

        total = Signal.like(self.total, reset_less=True)
        m.d.sync += total.eq(Cat(offset_low, high_sum).as_signed() + low_product)
        m.d.comb += self.total.eq(total)
        return m


class Requantize(wiring.Component):
    """Scale an accumulator by a fixed-point factor and round it to int8.

    y = clamp(zero_point + rhe((acc * multiplier + offset) / 2**shift), low, high), full product.

    Timing:
        latency: 11 cycles (`Requantize.LATENCY`).
        initiation interval: 1 cycle; there is no stall. Only `o_valid` is reset.
        `acc`, `multiplier`, `shift` and `offset` are sampled with `i_valid`; `zero_point`, `low` and `high` must be
        stable while anything is in flight.

    Members:
        i_valid: In(1). There is an accumulator this cycle.
        acc: In(signed(acc_bits)). Accumulator.
        multiplier: In(signed(17)). Numerator of the scale.
        shift: In(6). The scale's denominator is 2**shift.
        offset: In(signed(48)). Bias and input zero point, in units of 2**-shift.
        zero_point: In(signed(8)). Of the output.
        low: In(signed(8)). Smallest output.
        high: In(signed(8)). Largest output.
        o_valid: Out(1). `i_valid`, `LATENCY` cycles later.
        y: Out(signed(8)). Result.
    """

    LATENCY = MultiplyAdd.LATENCY + RoundShift.LATENCY

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "i_valid": In(1),
            "acc": In(signed(config.acc_bits)),
            "multiplier": In(signed(MULTIPLIER_BITS)),
            "shift": In(SHIFT_BITS),
            "offset": In(signed(OFFSET_BITS)),
            "zero_point": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "o_valid": Out(1),
            "y": Out(signed(8)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.scale = scale = MultiplyAdd(self._config)
        m.submodules.round = round_ = RoundShift(len(scale.total))
        m.d.comb += [
            scale.acc.eq(self.acc),
            scale.multiplier.eq(self.multiplier),
            scale.offset.eq(self.offset),
            round_.value.eq(scale.total),
            round_.shift.eq(delay(m, self.shift, MultiplyAdd.LATENCY, name="shift")),
            round_.zero_point.eq(self.zero_point),
            round_.low.eq(self.low),
            round_.high.eq(self.high),
            self.y.eq(round_.y),
            self.o_valid.eq(delay(m, self.i_valid, self.LATENCY, reset=True, name="valid")),
        ]
        return m
