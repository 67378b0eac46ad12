"""Register chains shared by the pipelined components."""

from amaranth import Const, Module, Mux, Signal, Value, signed


def delay(m: Module, value: Value, cycles: int, *, reset: bool = False, name: str = "delay") -> Value:
    """`value`, `cycles` cycles later.

    Args:
        m: Module that receives the registers.
        value: Any value; its signedness is kept.
        cycles: 0 returns `value` itself.
        reset: Clear the registers on reset; needed by valid bits, wasted on data.
        name: Prefix of the registers.
    """
    shape = value.shape()
    for index in range(cycles):
        register = Signal(shape, name=f"{name}_{index + 1}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


def partial_products(bits: Value, multiplicand: Value) -> list[Value]:
    """Terms whose sum is bits * multiplicand, `bits` two's complement; written out so that no DSP is inferred."""
    terms: list[Value] = []
    for position in range(len(bits)):
        term = Mux(bits[position], multiplicand, Const(0, multiplicand.shape())) << position
        terms.append(-term if position == len(bits) - 1 else term)
    return terms


def sum_tree(m: Module, terms: list[Value], width: int, levels: int) -> Value:
    """Signed sum of at most 2**levels terms modulo 2**width, one adder of two terms to a stage, `levels` cycles."""
    if len(terms) > 1 << levels:
        raise ValueError(f"{levels} levels add at most {1 << levels} terms, not {len(terms)}")
    for level in range(levels):
        pairs = [terms[index:index + 2] for index in range(0, len(terms), 2)]
        terms = []
        for index, pair in enumerate(pairs):
            value = pair[0] + pair[1] if len(pair) == 2 else pair[0]
            node = Signal(signed(min(len(value), width)), name=f"tree{level}_{index}", reset_less=True)
            m.d.sync += node.eq(value)
            terms.append(node)
    return terms[0]
