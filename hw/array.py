"""The P x Q array: one multiplier and one accumulator for each lane and row."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import DATA_BITS, AcceleratorConfig
from hw.multiplier import Multiplier
from hw.timing import OPERAND_STAGE, PRODUCT_STAGE


class Array(wiring.Component):
    """Output-stationary outer product: lane l of row r accumulates operands[l][r] * weights[l][r].

    Timing:
        Operands and weights are taken at OPERAND_STAGE, the flags at PRODUCT_STAGE; `sums` is combinational from
        there: it is the accumulators' next value, complete when the last product of a group arrives.
        Initiation interval 1 cycle.

    Members:
        operands: In(signed(8)).array(P, Q). Activations.
        weights: In(signed(8)).array(P, Q). Weights.
        accumulate: In(1). The products of this cycle count.
        first: In(1). They start a new sum.
        maximum: In(1). Keep the largest product instead of the sum.
        sums: Out(signed(acc_bits)).array(P, Q). Accumulators including this cycle.
    """

    LATENCY = PRODUCT_STAGE - OPERAND_STAGE

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        shape = config.pixels, config.rows
        super().__init__({
            "operands": In(signed(DATA_BITS)).array(*shape),
            "weights": In(signed(DATA_BITS)).array(*shape),
            "accumulate": In(1),
            "first": In(1),
            "maximum": In(1),
            "sums": Out(signed(config.acc_bits)).array(*shape),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        for lane in range(config.pixels):
            for row in range(config.rows):
                multiplier = Multiplier(signed(DATA_BITS), signed(DATA_BITS), config.technology)
                m.submodules[f"multiplier{lane}_{row}"] = multiplier
                m.d.comb += [multiplier.a.eq(self.operands[lane][row]), multiplier.b.eq(self.weights[lane][row])]
                total = Signal(signed(config.acc_bits), name=f"acc{lane}_{row}", reset_less=True)
                combined = Mux(self.maximum, Mux(multiplier.p > total, multiplier.p, total), multiplier.p + total)
                following = self.sums[lane][row]
                m.d.comb += following.eq(total)
                with m.If(self.accumulate):
                    m.d.comb += following.eq(Mux(self.first, multiplier.p, combined))
                    m.d.sync += total.eq(following)
        return m
