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
    def index(self) -> str:
        """Type of loop counters and addresses."""
        return "int32" if self.triple.startswith(("arm", "thumb")) else "int64"

    @property
    def bias(self) -> int:
        """Added to an int8 value where it is stored."""
        return 128 if self.activation == "uint8" else 0

    @property
    def scale(self) -> str:
        """Type of stored scales."""
        return "float64" if self.has_float64 else "int32"

    @property
    def align(self) -> int:
        """Of maps and constants, in bytes; and what vectors may read beyond an end."""
        return max(8, 4 * self.lanes) if self.lanes > 1 else 4

    @property
    def is_linux(self) -> bool:
        return "linux" in self.triple

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


CHECKED = {
    "sse4.1": (1, 0, "c", 19),
    "sse4.2": (1, 0, "c", 20),
    "popcnt": (1, 0, "c", 23),
    "movbe": (1, 0, "c", 22),
    "fma": (1, 0, "c", 12),
    "avx": (1, 0, "c", 28),
    "f16c": (1, 0, "c", 29),
    "bmi": (7, 0, "b", 3),
    "avx2": (7, 0, "b", 5),
    "bmi2": (7, 0, "b", 8),
    "avx512f": (7, 0, "b", 16),
    "avx512dq": (7, 0, "b", 17),
    "avx512ifma": (7, 0, "b", 21),
    "avx512cd": (7, 0, "b", 28),
    "avx512bw": (7, 0, "b", 30),
    "avx512vl": (7, 0, "b", 31),
    "avx512vbmi": (7, 0, "c", 1),
    "avx512vbmi2": (7, 0, "c", 6),
    "gfni": (7, 0, "c", 8),
    "vaes": (7, 0, "c", 9),
    "vpclmulqdq": (7, 0, "c", 10),
    "avx512vnni": (7, 0, "c", 11),
    "avx512bitalg": (7, 0, "c", 12),
    "avx512vpopcntdq": (7, 0, "c", 14),
    "avx512fp16": (7, 0, "d", 23),
    "avxvnni": (7, 1, "a", 4),
    "avx512bf16": (7, 1, "a", 5),
    "lzcnt": (0x80000001, 0, "c", 5),
}
"""x86 features that a bundle asks its processor for when it is loaded: leaf, subleaf, register and bit of CPUID."""


HWCAP = {"dotprod": 1 << 20, "neon": 1 << 12, "vfpv4": 1 << 16}
"""Bits of Linux's AT_HWCAP for what ARM programs ask at their start."""


def x86(cpu: str, has: frozenset[str], features: tuple[str, ...] = ()) -> Machine:
    """The best kernels for an x86-64 processor.

    Args:
        cpu: LLVM's name.
        has: LLVM features that it has.
        features: What to tell LLVM besides, such as "-avx512f" where a virtual machine hides it.
    """
    triple = "x86_64-unknown-linux-gnu"
    needed = tuple(name for name in CHECKED if name in has)
    if {"avx512vnni", "avx512bw", "avx512vl", "avx512dq"} <= has:
        return Machine(triple, cpu, features, 16, 32, Dot.VPDPBUSD, "uint8", "int8", requires=needed)
    if {"avx2", "fma", "avxvnni"} <= has:
        return Machine(triple, cpu, features, 8, 16, Dot.VPDPBUSD, "uint8", "int8", requires=needed)
    if {"avx2", "fma"} <= has:
        return Machine(triple, cpu, features, 8, 16, Dot.PMADDWD, "int16", "int16", requires=needed)
    return Machine(triple, cpu, features, 4, 16, Dot.MULTIPLY, "int16", "int16", requires=needed)


def arm(cpu: str, triple: str, has: frozenset[str]) -> Machine:
    """The best kernels for an ARM processor; has: LLVM features that it has."""
    if triple.startswith("aarch64"):
        if "dotprod" in has:
            return Machine(triple, cpu, (), 4, 32, Dot.SDOT, "int8", "int8", requires=("dotprod",))
        return Machine(triple, cpu, (), 4, 32, Dot.MULTIPLY, "int8", "int8")
    if "linux" in triple:
        needed = ("neon", "vfpv4")
        return Machine(
            triple, cpu, ("+neon",), 4, 16, Dot.MULTIPLY, "int8", "int8", float_abi="hard", requires=needed
        )
    abi = "hard" if triple.endswith("hf") else "soft"
    return Machine(triple, cpu, (), 1, 10, Dot.MULTIPLY, "int8", "int8", has_float64=False, float_abi=abi)
