"""One hardware multiplier: registered, behavioural or an ECP5 DSP block."""

from amaranth import ClockSignal, Const, Instance, Module, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import TECHNOLOGIES, ConfigError
from hw.pipeline import delay

OPERAND_BITS = 18
PRODUCT_BITS = 36


class Multiplier(wiring.Component):
    """Product of two operands of at most 18 bits each, signed or not.

    p = a * b, full width. With technology "ecp5" it is one MULT18X18D with its input, pipeline and output registers
    enabled, because nextpnr models neither a slow unregistered DSP well nor infers the registers; with "generic" it
    is the same three registers around `*`.

    Timing:
        latency: 3 cycles (`Multiplier.LATENCY`).
        initiation interval: 1 cycle; there is no stall and no reset.

    Members:
        a: In(a_shape). First operand.
        b: In(b_shape). Second operand.
        p: Out(signed or unsigned, sum of the widths; signed if an operand is). Product.
    """

    LATENCY = 3

    def __init__(self, a_shape: Shape, b_shape: Shape, technology: str = "generic") -> None:
        a_shape, b_shape = Shape.cast(a_shape), Shape.cast(b_shape)
        for name, shape in (("a", a_shape), ("b", b_shape)):
            if not 1 <= shape.width <= OPERAND_BITS:
                raise ConfigError(f"operand {name} must have 1 to {OPERAND_BITS} bits, not {shape.width}")
        if technology not in TECHNOLOGIES:
            raise ConfigError(f"technology must be one of {', '.join(TECHNOLOGIES)}, not {technology!r}")
        self._technology = technology
        width = a_shape.width + b_shape.width
        p_shape = signed(width) if a_shape.signed or b_shape.signed else unsigned(width)
        super().__init__({"a": In(a_shape), "b": In(b_shape), "p": Out(p_shape)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self._technology == "ecp5":
            self._ecp5(m)
        else:
            self._generic(m)
        return m

    def _generic(self, m: Module) -> None:
        a, b = delay(m, self.a, 1, name="a"), delay(m, self.b, 1, name="b")
        pipeline = Signal.like(self.p, reset_less=True)
        m.d.sync += pipeline.eq(a * b)
        m.d.comb += self.p.eq(delay(m, pipeline, 1, name="p"))

    def _ecp5(self, m: Module) -> None:
        a = Signal(_operand(self.a))
        b = Signal(_operand(self.b))
        product = Signal(PRODUCT_BITS)
        m.d.comb += [a.eq(self.a), b.eq(self.b), self.p.eq(product)]
        ports: dict[str, object] = {}
        for index in range(OPERAND_BITS):
            ports[f"i_A{index}"], ports[f"i_B{index}"] = a[index], b[index]
        for index in range(PRODUCT_BITS):
            ports[f"o_P{index}"] = product[index]
        # SOURCEB_MODE is left out: nextpnr accepts any value and ecppack then fails without a word.
        m.submodules.dsp = Instance(
            "MULT18X18D",
            p_REG_INPUTA_CLK="CLK0", p_REG_INPUTA_CE="CE0", p_REG_INPUTA_RST="RST0",
            p_REG_INPUTB_CLK="CLK0", p_REG_INPUTB_CE="CE0", p_REG_INPUTB_RST="RST0",
            p_REG_PIPELINE_CLK="CLK0", p_REG_PIPELINE_CE="CE0", p_REG_PIPELINE_RST="RST0",
            p_REG_OUTPUT_CLK="CLK0", p_REG_OUTPUT_CE="CE0", p_REG_OUTPUT_RST="RST0",
            i_CLK0=ClockSignal(), i_CE0=Const(1), i_RST0=Const(0),
            i_SIGNEDA=Const(self.a.shape().signed), i_SIGNEDB=Const(self.b.shape().signed),
            i_SOURCEA=Const(0), i_SOURCEB=Const(0),
            **ports,
        )


def _operand(value: Signal) -> Shape:
    """18 bits that extend `value` by its own sign rule."""
    return signed(OPERAND_BITS) if value.shape().signed else unsigned(OPERAND_BITS)
