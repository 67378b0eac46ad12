"""What processors can do, as far as the kernels depend on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Dot(Enum):
    """How a vector of int32 accumulators takes products; the value is how many neighbours it sums at once."""

    VPDPBUSD = "vpdpbusd"
    """x86 VNNI: 4 products of uint8 activations and int8 weights."""
    PMADDWD = "pmaddwd"
    """x86 AVX2: 2 products of int16; exact on the whole range, which pmaddubsw is not: it saturates."""
    SDOT = "sdot"
    """ARM dotprod: 4 products of int8."""
    MULTIPLY = "multiply"
    """One product, in whatever way LLVM finds best."""

    @property
    def group(self) -> int:
        return {"vpdpbusd": 4, "pmaddwd": 2, "sdot": 4, "multiply": 1}[self.value]


@dataclass(frozen=True)
class Machine:
    """A processor.

    Attributes:
        triple, cpu, features: As LLVM names them.
        lanes: int32 lanes of a vector.
        registers: Vector registers.
        dot: Its instruction for sums of products.
        activation: Type that maps are stored in: what `dot` multiplies.
        weight: Type that weights are stored in.
        has_float64: Whether exact rescaling is done in float64 (else in int64).
        float_abi: "hard" or "" where there is no choice.
    """

    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    dot: Dot
    activation: str
    weight: str
    has_float64: bool = True
    float_abi: str = ""
    requires: tuple[str, ...] = field(default=())

    @property
    def bias(self) -> int:
        """Added to an int8 value where it is stored."""
        return 128 if self.activation == "uint8" else 0

    @property
    def item_bytes(self) -> int:
        """Of an activation."""
        return 2 if self.activation == "int16" else 1

    @property
    def weight_bytes(self) -> int:
        return 2 if self.weight == "int16" else 1

    @property
    def vector_bytes(self) -> int:
        return 4 * self.lanes


def x86(cpu: str, has: frozenset[str]) -> Machine:
    """The best kernels for a set of LLVM features."""
    triple = "x86_64-unknown-linux-gnu"
    if {"avx512vnni", "avx512bw", "avx512vl", "avx512dq"} <= has:
        needed = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")
        return Machine(triple, cpu, (), 16, 32, Dot.VPDPBUSD, "uint8", "int8", requires=needed)
    if "avx2" in has and "fma" in has:
        return Machine(triple, cpu, (), 8, 16, Dot.PMADDWD, "int16", "int16", requires=("avx2", "fma"))
    return Machine(triple, cpu, (), 4, 16, Dot.MULTIPLY, "int16", "int16", requires=("sse2",))
