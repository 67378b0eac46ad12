"""Divide by a power of two, round half to even, add the zero point, clamp to int8."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import SHIFT_BITS
from hw.pipeline import delay

_COARSE, _MIDDLE = 16, 4
_SATURATED_BITS = 9


class RoundShift(wiring.Component):
    """The last steps of every requantization.

    y = clamp(zero_point + rhe(value / 2**shift), low, high), exact for every value and every shift of 0 to 63.

    The shifter keeps one bit below the point and a sticky bit that gathers all lower ones; it works by 16, 4 and 1
    in one stage each. The quotient saturates to 9 bits before it is rounded: a zero point moves it by at most 128,
    so anything beyond clamps to low or high all the same.

    Timing:
        latency: 6 cycles (`RoundShift.LATENCY`).
        initiation interval: 1 cycle; there is no stall and no reset.
        `zero_point`, `low` and `high` must be stable while values are in flight; `shift` travels with its value.

    Members:
        value: In(signed(value_bits)). Number to divide.
        shift: In(6). Exponent of the divisor.
        zero_point: In(signed(8)). Added after rounding.
        low: In(signed(8)). Smallest result; must not exceed `high`.
        high: In(signed(8)). Largest result.
        y: Out(signed(8)). Result.
    """

    LATENCY = 6

    def __init__(self, value_bits: int) -> None:
        super().__init__({
            "value": In(signed(value_bits)),
            "shift": In(SHIFT_BITS),
            "zero_point": In(signed(8)),
            "low": In(signed(8)),
            "high": In(signed(8)),
            "y": Out(signed(8)),
        })

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shift = self.shift
        fixed = Signal(signed(len(self.value) + 1))  # one bit below the point
        m.d.comb += fixed.eq(Cat(0, self.value))

        # Stage 1: by 0, 16, 32 or 48. The ORs of 16 dropped bits are registered apart to keep the stage short.
        coarse, lost = _shift_right(m, fixed, shift[4:6], _COARSE, "coarse")
        shift = delay(m, shift, 1, name="shift_coarse")

        # Stage 2: by 0, 4, 8 or 12.
        sticky_coarse = Signal(reset_less=True)
        m.d.sync += sticky_coarse.eq(_any_lost(lost, shift[4:6]))
        middle, lost = _shift_right(m, coarse, shift[2:4], _MIDDLE, "middle")
        shift = delay(m, shift, 1, name="shift_middle")

        # Stage 3: by 0, 1, 2 or 3.
        sticky_middle = Signal(reset_less=True)
        m.d.sync += sticky_middle.eq(sticky_coarse | _any_lost(lost, shift[2:4]))
        fine, lost = _shift_right(m, middle, shift[0:2], 1, "fine")
        shift = delay(m, shift, 1, name="shift_fine")

        # Stage 4: saturate, decide the rounding.
        quotient = Signal(signed(_SATURATED_BITS), reset_less=True)
        round_up = Signal(reset_less=True)
        half, odd = fine[0], fine[1]
        m.d.sync += [
            quotient.eq(_saturate(fine[1:].as_signed(), _SATURATED_BITS)),
            round_up.eq(half & (odd | sticky_middle | _any_lost(lost, shift[0:2]))),
        ]

        # Stage 5: round and add the zero point.
        rounded = Signal(signed(_SATURATED_BITS + 2), reset_less=True)
        m.d.sync += rounded.eq(quotient + self.zero_point + round_up)

        # Stage 6: clamp.
        m.d.sync += self.y.eq(Mux(rounded < self.low, self.low, Mux(rounded > self.high, self.high, rounded)))
        return m


def _shift_right(m: Module, value: Value, amount: Value, unit: int, name: str) -> tuple[Signal, list[Signal]]:
    """Register value >> (amount * unit), and the OR of each `unit` bits below 1, 2 and 3 units."""
    shifted = Signal(value.shape(), name=name, reset_less=True)
    signed_value = value.as_signed()
    with m.Switch(amount):
        for index in range(4):
            with m.Case(index):
                m.d.sync += shifted.eq(signed_value >> (index * unit))
    lost = []
    for index in range(3):
        chunk = Signal(name=f"{name}_lost{index}", reset_less=True)
        # Bits above the top are copies of the sign; a slice beyond the width would drop them.
        bits = [value[min(bit, len(value) - 1)] for bit in range(index * unit, (index + 1) * unit)]
        m.d.sync += chunk.eq(Cat(bits).any())
        lost.append(chunk)
    return shifted, lost


def _any_lost(lost: list[Signal], amount: Value) -> Value:
    """Was a one shifted out, given the shift amount in units."""
    return (lost[0] & (amount != 0)) | (lost[1] & amount[1]) | (lost[2] & (amount == 3))


def _saturate(value: Value, bits: int) -> Value:
    top = value[bits - 1:]
    fits = top.all() | ~top.any()
    sign = value[-1]
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(fits, value[:bits], limit).as_signed()
