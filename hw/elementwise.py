"""Second operand of the post-processor: Add, Mul and PRelu of one int8 value."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import MULTIPLIER_BITS, SHIFT_BITS, AcceleratorConfig
from hw.isa import Elementwise as Operation
from hw.multiplier import Multiplier
from hw.pipeline import delay, partial_products, sum_tree
from hw.rounding import RoundShift

_DIFFERENCE_BITS = 9
_TREE_LEVELS = 4
_MULTIPLICAND_BITS = MULTIPLIER_BITS
_FIRST_BITS = _DIFFERENCE_BITS + _MULTIPLICAND_BITS


class Elementwise(wiring.Component):
    """Combine a requantized value with an operand, one rounding.

    With a' = a - zero_point_a and b' = b - zero_point_b:

        NONE:  y = a
        ADD:   y = clamp(zero_point_y + rhe((a' * multiplier_a + b' * multiplier_b) / 2**shift), low, high)
        MUL:   y = clamp(zero_point_y + rhe(a' * b' * multiplier_b / 2**shift), low, high)
        PRELU: y = clamp(zero_point_y + rhe(a' * (multiplier_a if a' >= 0 else slope) / 2**shift), low, high)

    The first product (by multiplier_a, slope or b') is an adder tree of 9 partial products; the second (by
    multiplier_b) is the only DSP.

    Timing:
        latency: 16 cycles (`Elementwise.LATENCY`), whatever the operation.
        initiation interval: 1 cycle; there is no stall. Only `o_valid` is reset.
        `a`, `b` and `slope` are sampled with `i_valid`; everything else must be stable while anything is in flight.

    Members:
        i_valid: In(1). There is a value this cycle.
        a: In(signed(8)). Value.
        b: In(signed(8)). Second operand.
        slope: In(signed(17)). Multiplier of negative values (PRELU).
        operation: In(2). `isa.Elementwise`.
        multiplier_a: In(signed(17)). Scale of `a`.
        multiplier_b: In(signed(17)). Scale of `b`, or of the product (MUL).
        shift: In(6). Both scales are divided by 2**shift.
        zero_point_a: In(signed(8)). Of `a`.
        zero_point_b: In(signed(8)). Of `b`.
        zero_point_y: In(signed(8)). Of the result.
        low: In(signed(8)). Smallest result.
        high: In(signed(8)). Largest result.
        o_valid: Out(1). `i_valid`, `LATENCY` cycles later.
        y: Out(signed(8)). Result.
    """

    LATENCY = 2 + _TREE_LEVELS + Multiplier.LATENCY + 1 + RoundShift.LATENCY

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "i_valid": In(1),
            "a": In(signed(8)),
            "b": In(signed(8)),
            "slope": In(signed(MULTIPLIER_BITS)),
            "operation": In(2),
            "multiplier_a": In(signed(MULTIPLIER_BITS)),
            "multiplier_b": In(signed(MULTIPLIER_BITS)),
            "shift": In(SHIFT_BITS),
            "zero_point_a": In(signed(8)),
            "zero_point_b": In(signed(8)),
            "zero_point_y": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "o_valid": Out(1),
            "y": Out(signed(8)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        none, mul = self.operation == Operation.NONE, self.operation == Operation.MUL
        prelu = self.operation == Operation.PRELU

        # Stage 1: differences. NONE is (a - 0) * 1 / 2**0 between -128 and 127.
        a = Signal(signed(_DIFFERENCE_BITS), reset_less=True)
        b = Signal(signed(_DIFFERENCE_BITS), reset_less=True)
        slope = delay(m, self.slope, 1, name="slope")
        m.d.sync += [a.eq(self.a - Mux(none, 0, self.zero_point_a)), b.eq(self.b - self.zero_point_b)]

        # Stage 2: what to multiply `a` by.
        multiplicand = Signal(signed(_MULTIPLICAND_BITS), reset_less=True)
        with m.If(none):
            m.d.sync += multiplicand.eq(1)
        with m.Elif(mul):
            m.d.sync += multiplicand.eq(b)
        with m.Elif(prelu & (a < 0)):
            m.d.sync += multiplicand.eq(slope)
        with m.Else():
            m.d.sync += multiplicand.eq(self.multiplier_a)
        a, b = delay(m, a, 1, name="a"), delay(m, b, 1 + _TREE_LEVELS, name="b")

        # Stages 3 to 6: first product. |a' * b'| <= 255**2 fits 17 bits.
        first = sum_tree(m, partial_products(a, multiplicand), _FIRST_BITS, _TREE_LEVELS)

        # Stages 7 to 9: second product.
        m.submodules.multiply = multiply = Multiplier(
            signed(_MULTIPLICAND_BITS), signed(MULTIPLIER_BITS), self._config.technology
        )
        m.d.comb += [
            multiply.a.eq(Mux(mul, first[:_MULTIPLICAND_BITS].as_signed(), b)),
            multiply.b.eq(self.multiplier_b),
        ]
        first = delay(m, first, Multiplier.LATENCY, name="first")

        # Stage 10: sum.
        m.submodules.round = round_ = RoundShift(_MULTIPLICAND_BITS + MULTIPLIER_BITS + 1)
        total = Signal.like(round_.value, reset_less=True)
        use_first, use_second = ~mul, mul | (self.operation == Operation.ADD)
        m.d.sync += total.eq(Mux(use_first, first, 0) + Mux(use_second, multiply.p, 0))

        # Stages 11 to 16: round, clamp.
        m.d.comb += [
            round_.value.eq(total),
            round_.shift.eq(Mux(none, 0, self.shift)),
            round_.zero_point.eq(Mux(none, 0, self.zero_point_y)),
            round_.low.eq(Mux(none, -128, self.low)),
            round_.high.eq(Mux(none, 127, self.high)),
            self.y.eq(round_.y),
            self.o_valid.eq(delay(m, self.i_valid, self.LATENCY, reset=True, name="valid")),
        ]
        return m
