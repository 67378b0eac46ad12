"""The integer kernels, each a frozen description that writes its own TIR; equal descriptions share one function.

Maps are stored [y, x, channel] with `machine.bias` added to every value, so a kernel's zero points and bounds have it
added, too. A function is `void k(input, second, output, weights, scales, begin, end)` and does its units `begin` to
`end`: rows of the output, or blocks of channels. Units may be shared among threads.

Exactness. An accumulator is an int32 sum. Rescaling is float64: acc * M + B is an integer below 2**53, so
acc * (M / 2**S) + B / 2**S is that integer divided by a power of two and exact, fused or not. Adding 1.5 * 2**52 then
rounds half to even and leaves the integer in the low bits. Elementwise sums are below 2**26 and are rounded in int32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from backends.cpu import tir
from backends.cpu.machine import Dot, Machine
from backends.cpu.tir import Expr, Writer

_MAGIC64 = float(3 << 51)
_MAGIC32, _MAGIC32_BITS = float(3 << 22), 0x4B400000
_FEW = 4
"""Loops up to this many turns are written out."""


@dataclass(frozen=True)
class Map:
    """Where elements of a stored map are, in elements: [y, x, c] at y * row + x * pixel + c."""

    row: int
    pixel: int


@dataclass(frozen=True)
class Bounds:
    """The last step of every kernel: add the zero point, clamp; all three with the machine's bias."""

    zero_point: int
    low: int
    high: int


class Kernel(Protocol):
    """A description of a function."""

    @property
    def units(self) -> int:
        """Independent pieces of work."""

    def write(self, name: str, machine: Machine) -> Expr:
        """The PrimFunc."""


@dataclass
class Frame:
    """The parameters that every kernel has."""

    w: Writer
    machine: Machine
    input: Expr
    second: Expr
    output: Expr
    weights: Expr
    scales: Expr
    begin: Expr
    end: Expr


def frame(
    name: str,
    machine: Machine,
    *,
    source: str = "",
    second: str = "",
    target: str = "",
    weights: str = "",
    scales: str = "",
) -> Frame:
    w = Writer(name, machine.index)
    act = machine.activation
    return Frame(
        w,
        machine,
        w.pointer("input", source or act),
        w.pointer("second", second or act),
        w.pointer("output", target or act),
        w.pointer("weights", weights or machine.weight),
        w.pointer("scales", scales or machine.scale),
        w.integer("begin"),
        w.integer("end"),
    )


# Convolution


@dataclass(frozen=True)
class Window:
    """What one output element reads: `rows` x `columns` runs of `length` neighbouring elements.

    Where the pixels of a kernel row are neighbours in memory, a run is the whole kernel row.
    """

    rows: int
    row_step: int
    columns: int
    column_step: int
    length: int

    def groups(self, group: int) -> int:
        """Steps of the dot instruction for one run; the weights of what is beyond its end are 0."""
        return -(-self.length // group)


@dataclass(frozen=True)
class Conv:
    """Dense convolution: tiles of `pixels` x `vectors` accumulators.

    Weights: [vector of output channels][run][group][lane][element of the group]; scales: [vector][M, B][lane].

    Attributes:
        rows, columns, channels: Of the output.
        step_row, step_column: From one output element to the next, in the input.
        by_channel: Units are blocks of channels instead of rows.
    """

    rows: int
    columns: int
    channels: int
    window: Window
    step_row: int
    step_column: int
    output: Map
    bounds: Bounds
    pixels: int
    vectors: int
    lanes: int
    by_channel: bool
    is_wide: bool = False

    @property
    def units(self) -> int:
        return -(-self.channels // (self.lanes * self.vectors)) if self.by_channel else self.rows

    def _frame(self, name: str, machine: Machine) -> Frame:
        return frame(name, machine)

    def write(self, name: str, machine: Machine) -> Expr:
        f = self._frame(name, machine)
        count = -(-self.channels // self.lanes)
        full, rest = divmod(count, self.vectors)
        if self.channels % self.lanes and not rest:  # the last vector is partial: written out on its own
            full, rest = full - 1, self.vectors
        if self.by_channel:
            self._blocks_by_unit(f, full, rest)
        else:
            with f.w.loop(f.begin, f.end) as y:
                self._blocks(f, y, full, rest)
        return f.w.function()

    def _blocks(self, f: Frame, y: Expr, full: int, rest: int) -> None:
        if full:
            for block in f.w.unrolled(full, 1):
                self._row(f, y, block * self.vectors, self.vectors, is_last=False)
        if rest:
            self._row(f, y, full * self.vectors, rest, is_last=True)

    def _blocks_by_unit(self, f: Frame, full: int, rest: int) -> None:
        with f.w.loop(0, self.rows) as y:
            if full:
                stop = tir.smallest(f.end, full) if rest else f.end
                with f.w.loop(f.begin, stop) as block:
                    self._row(f, y, block * self.vectors, self.vectors, is_last=False)
            if rest:
                with f.w.loop(tir.largest(f.begin, tir.constant(full, f.machine.index)), f.end):
                    self._row(f, y, full * self.vectors, rest, is_last=True)

    def _row(self, f: Frame, y: Expr, first: Expr, vectors: int, *, is_last: bool) -> None:
        """All tiles of one output row and one block of channels."""
        full, rest = divmod(self.columns, self.pixels)
        for tile in f.w.unrolled(full, 1):
            self._tile(f, y, tile * self.pixels, self.pixels, first, vectors, is_last=is_last)
        if rest:
            self._tile(f, y, full * self.pixels, rest, first, vectors, is_last=is_last)

    def _tile(
        self, f: Frame, y: Expr, x: Expr, pixels: int, first: Expr, vectors: int, *, is_last: bool
    ) -> None:
        w, lanes = f.w, self.lanes
        acc = w.local(pixels * vectors * lanes, "int32")
        for i in range(pixels * vectors):
            w.store(acc, i * lanes, tir.constant(0, "int32", lanes))
        origin = w.let(y * self.step_row + x * self.step_column) if not _both_zero(y, x) else 0
        self._sums(f, acc, origin, pixels, first, vectors)
        channels = self.channels - (-(-self.channels // lanes) - 1) * lanes if is_last else lanes
        for v in range(vectors):
            scale = scales_of(f, first + v, lanes)
            kept = channels if v == vectors - 1 else lanes
            for p in range(pixels):
                value = tir.load(acc, (p * vectors + v) * lanes, lanes)
                code = rescaled(w, value, scale, self.bounds, f.machine, is_wide=self.is_wide)
                place = y * self.output.row + (x + p) * self.output.pixel + (first + v) * lanes
                store_part(w, f.output, place, code, kept)

    def _sums(self, f: Frame, acc: Expr, origin: Expr, pixels: int, first: Expr, vectors: int) -> None:
        w, lanes, group = f.w, self.lanes, f.machine.dot.group
        window, steps = self.window, self.window.groups(f.machine.dot.group)
        size = lanes * group
        per_vector = window.rows * window.columns * steps * size
        for ky in w.unrolled(window.rows, 1):
            for kx in w.unrolled(window.columns, 1):
                run = (ky * window.columns + kx) * steps
                start = origin + ky * window.row_step + kx * window.column_step
                for k in w.unrolled(steps, 1):
                    values = [
                        w.let(tir.load(f.weights, (first + v) * per_vector + (run + k) * size, size))
                        for v in range(vectors)
                    ]
                    for p in range(pixels):
                        taken = w.let(activations(f, start + p * self.step_column + k * group, lanes))
                        for v in range(vectors):
                            place = (p * vectors + v) * lanes
                            w.store(acc, place, dot(f.machine, tir.load(acc, place, lanes), taken, values[v]))


@dataclass(frozen=True)
class SparseConv(Conv):
    """A Conv of one vector a tile whose blocks of zeros (one group of inputs x one vector of outputs) are left out.

    Weights: [block][lane][element of the group]. The second argument is a table of int32: where each vector's blocks
    begin, one more for the end, then each block's place in the input, from the window's origin.
    """

    def _frame(self, name: str, machine: Machine) -> Frame:
        return frame(name, machine, second="int32")

    def _sums(self, f: Frame, acc: Expr, origin: Expr, pixels: int, first: Expr, vectors: int) -> None:
        w, lanes = f.w, self.lanes
        size, count = lanes * f.machine.dot.group, -(-self.channels // lanes)
        begin, end = (w.let(tir.cast(tir.load(f.second, first + i), f.machine.index)) for i in (0, 1))
        with w.loop(begin, end) as block:
            start = w.let(origin + tir.cast(tir.load(f.second, block + (count + 1)), f.machine.index))
            weights = w.let(tir.load(f.weights, block * size, size))
            for p in range(pixels):
                taken = w.let(activations(f, start + p * self.step_column, lanes))
                w.store(acc, p * lanes, dot(f.machine, tir.load(acc, p * lanes, lanes), taken, weights))


def _both_zero(y: Expr, x: Expr) -> bool:
    return isinstance(y, int) and isinstance(x, int) and y == x == 0


def activations(f: Frame, place: Expr, lanes: int) -> Expr:
    """One group of neighbouring activations, in every lane."""
    match f.machine.dot:
        case Dot.VPDPBUSD | Dot.SDOT:
            word = f.w.let(tir.reinterpret(tir.load(f.input, place, 4), "int32"))
            return tir.reinterpret(tir.spread(word, lanes), f"int8x{4 * lanes}")
        case Dot.PMADDWD:
            word = f.w.let(tir.reinterpret(tir.load(f.input, place, 2), "int32"))
            return tir.reinterpret(tir.spread(word, lanes), f"int16x{2 * lanes}")
        case Dot.MULTIPLY:
            return tir.spread(tir.cast(tir.load(f.input, place), "int32"), lanes)


def dot(machine: Machine, acc: Expr, taken: Expr, weights: Expr) -> Expr:
    """acc plus the sums of products of each lane."""
    lanes = tir.lanes_of(acc)
    kind = f"int32x{lanes}"
    match machine.dot:
        case Dot.VPDPBUSD:
            return tir.intrinsic(kind, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc, taken, weights)
        case Dot.PMADDWD:
            return acc + tir.intrinsic(kind, "llvm.x86.avx2.pmadd.wd", taken, weights)
        case Dot.SDOT:
            return tir.intrinsic(kind, "llvm.aarch64.neon.sdot", acc, weights, taken)
        case Dot.MULTIPLY:
            return acc + tir.cast(weights, "int32") * taken


@dataclass(frozen=True)
class Scale:
    """acc * multiplier + offset over 2**shift: float64 with the power of two already in both, else int64."""

    multiplier: Expr
    offset: Expr
    shift: Expr = None


def scales_of(f: Frame, vector: Expr, lanes: int) -> Scale:
    """Of a vector of channels, as `packing.scales` lays them out."""
    w = f.w
    if f.machine.has_float64:
        places = (vector * 2 * lanes, vector * 2 * lanes + lanes)
        multiplier, offset = (w.let(tir.load(f.scales, place, lanes)) for place in places)
        return Scale(multiplier, offset)
    word, low, high = (w.let(tir.load(f.scales, vector * 3 + i)) for i in range(3))
    offset = (tir.cast(high, "int64") << tir.constant(32, "int64")) | tir.cast(tir.cast(low, "uint32"), "int64")
    shift = tir.cast(word & tir.constant(63, "int32"), "int64")
    return Scale(w.let(tir.cast(word >> tir.constant(6, "int32"), "int64")), w.let(offset), w.let(shift))


def constant_scale(machine: Machine, multiplier: int, offset: int, shift: int, lanes: int) -> Scale:
    """The same numbers for every channel."""
    if machine.has_float64:
        values = (multiplier * 2.0**-shift, offset * 2.0**-shift)
        return Scale(*(tir.constant(value, "float64", lanes) for value in values))
    if shift == 0:  # so that there is a half
        multiplier, offset, shift = 2 * multiplier, 2 * offset, 1
    return Scale(*(tir.constant(v, "int64", lanes) for v in (multiplier, offset + (1 << shift >> 1), shift)))


def rescaled(
    w: Writer, acc: Expr, scale: Scale, bounds: Bounds, machine: Machine, *, is_wide: bool = False
) -> Expr:
    """int32 accumulators to stored activations."""
    if not machine.has_float64:
        return _rescaled_in_integers(w, acc, scale, bounds, machine)

    def exact(first: int, count: int) -> Expr:
        a, s, o = (tir.part(value, first, count) for value in (acc, scale.multiplier, scale.offset))
        return tir.intrinsic(tir.dtype_of(s), "llvm.fmuladd", tir.cast(a, "float64"), s, o)

    return rounded(w, exact, tir.lanes_of(acc), bounds, machine, is_wide=is_wide)


def _rescaled_in_integers(w: Writer, acc: Expr, scale: Scale, bounds: Bounds, machine: Machine) -> Expr:
    """The offset has half of 2**shift in it: the shift rounds half up, and an exact half is then made even."""
    lanes = tir.lanes_of(acc)
    total = w.let(tir.cast(acc, "int64") * scale.multiplier + scale.offset)
    one, zero = tir.constant(1, "int64", lanes), tir.constant(0, "int64", lanes)
    most = tir.constant(1 << 20, "int64", lanes)
    up = w.let(tir.cast(tir.clamp(total >> scale.shift, zero - most, most), "int32"))
    is_half = (total & ((one << scale.shift) - one)) < one
    even = tir.select(is_half, up & tir.constant(-2, "int32", lanes), up)
    return bounded(w, even, bounds, machine)


def rounded(
    w: Writer,
    exact: Callable[[int, int], Expr],
    lanes: int,
    bounds: Bounds,
    machine: Machine,
    *,
    is_wide: bool = False,
) -> Expr:
    """float64 to stored activations, half to even; exact(first, count) is some of the lanes.

    Two vectors of float64 make one of int32: every second element of their bits.
    """
    parts = [(0, lanes)] if lanes < 4 else [(0, lanes // 2), (lanes // 2, lanes // 2)]
    words = [_low_words(exact(first, count), is_wide=is_wide) for first, count in parts]
    value = tir.shuffled(words, list(range(0, 2 * lanes, 2))) if lanes > 1 else words[0]
    return bounded(w, value, bounds, machine)


def _low_words(exact: Expr, *, is_wide: bool) -> Expr:
    """Rounded float64 as int32, each beside a word without meaning; one lane alone."""
    lanes = tir.lanes_of(exact)
    if is_wide:  # beyond int32: bring it near the bounds first, which changes no result
        low, high = (tir.constant(v, "float64", lanes) for v in (-(1 << 20), 1 << 20))
        exact = tir.clamp(exact, low, high)
    shifted = exact + tir.constant(_MAGIC64, "float64", lanes)
    if lanes == 1:
        return tir.cast(tir.reinterpret(shifted, "int64"), "int32")
    return tir.reinterpret(shifted, f"int32x{2 * lanes}")


def bounded(w: Writer, value: Expr, bounds: Bounds, machine: Machine) -> Expr:
    """Rounded int32 to stored activations."""
    lanes = tir.lanes_of(value)
    total = value + tir.constant(bounds.zero_point, "int32", lanes) if bounds.zero_point else value
    low, high = (tir.constant(v, "int32", lanes) for v in (bounds.low, bounds.high))
    return w.let(tir.cast(tir.clamp(total, low, high), machine.activation))


def store_part(w: Writer, buffer: Expr, place: Expr, value: Expr, count: int) -> None:
    """The first `count` lanes, in pieces of powers of two: nothing is written beyond them."""
    if count == tir.lanes_of(value):
        w.store(buffer, place, value)
        return
    done = 0
    for size in (32, 16, 8, 4, 2, 1):
        if size <= count - done:
            w.store(buffer, place + done, tir.part(value, done, size))
            done += size


# Depthwise convolution


@dataclass(frozen=True)
class Depthwise:
    """Each channel on its own; vectors of channels, tiles of pixels.

    Kernel rows are summed in groups, as the dot instruction does. Weights: [vector of channels][group of kernel rows]
    [kernel column][lane][row of the group]; scales as in Conv.
    """

    rows: int
    columns: int
    channels: int
    kernel: tuple[int, int]
    tap_row: int
    tap_column: int
    step_row: int
    step_column: int
    output: Map
    bounds: Bounds
    pixels: int
    lanes: int
    is_wide: bool = False

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = frame(name, machine)
        full, rest = divmod(self.channels, self.lanes)
        with f.w.loop(f.begin, f.end) as y:
            for vector in f.w.unrolled(full, 1):
                self._row(f, y, vector, self.lanes)
            if rest:
                self._row(f, y, full, rest)
        return f.w.function()

    def _row(self, f: Frame, y: Expr, vector: Expr, kept: int) -> None:
        full, rest = divmod(self.columns, self.pixels)
        for tile in f.w.unrolled(full, 1):
            self._tile(f, y, tile * self.pixels, self.pixels, vector, kept)
        if rest:
            self._tile(f, y, full * self.pixels, rest, vector, kept)

    def _tile(self, f: Frame, y: Expr, x: Expr, pixels: int, vector: Expr, kept: int) -> None:
        w, lanes, group = f.w, self.lanes, f.machine.dot.group
        taps = -(-self.kernel[0] // group) * self.kernel[1]
        acc: list[Expr] = [tir.constant(0, "int32", lanes)] * pixels
        origin = w.let(y * self.step_row + x * self.step_column + vector * lanes)
        for first in range(0, self.kernel[0], group):
            rows = range(first, min(first + group, self.kernel[0]))
            weights = [
                w.let(tir.load(f.weights, (vector * taps + first // group * self.kernel[1] + kx) * size, size))
                for size in (lanes * group,)
                for kx in range(self.kernel[1])
            ]
            for column, uses in self._columns(pixels).items():
                places = [origin + (ky * self.tap_row + column) for ky in rows]
                taken = w.let(interleaved(f, [w.let(tir.load(f.input, place, lanes)) for place in places]))
                for p, kx in uses:
                    acc[p] = w.let(dot(f.machine, acc[p], taken, weights[kx]))
        scale = scales_of(f, vector, lanes)
        for p in range(pixels):
            code = rescaled(w, acc[p], scale, self.bounds, f.machine, is_wide=self.is_wide)
            place = y * self.output.row + (x + p) * self.output.pixel + vector * lanes
            store_part(w, f.output, place, code, kept)

    def _columns(self, pixels: int) -> dict[int, list[tuple[int, int]]]:
        """Input columns of a tile, in elements from its origin, to the (pixel, kernel column) pairs that read them."""
        found: dict[int, list[tuple[int, int]]] = {}
        for p in range(pixels):
            for kx in range(self.kernel[1]):
                found.setdefault(p * self.step_column + kx * self.tap_column, []).append((p, kx))
        return dict(sorted(found.items()))


def interleaved(f: Frame, rows: list[Expr]) -> Expr:
    """Up to a group of vectors, as the dot instruction takes them: element i of each is beside the others'."""
    group, lanes = f.machine.dot.group, tir.lanes_of(rows[0])
    if group == 1:
        return tir.cast(rows[0], "int32")
    if len(rows) == 1:  # widening is the same, and one instruction
        wide = tir.cast(rows[0], "int32")
        return tir.reinterpret(wide, f"{signed(f.machine)}x{group * lanes}")
    filled = [*rows, *[rows[-1]] * (group - len(rows))]  # the weights of the repeated ones are 0
    mixed = tir.shuffled(filled, [row * lanes + lane for lane in range(lanes) for row in range(group)])
    return tir.reinterpret(mixed, f"{signed(f.machine)}x{group * lanes}")


def signed(machine: Machine) -> str:
    """Element type of a dot instruction's operands, as LLVM declares them."""
    return "int16" if machine.activation == "int16" else "int8"


# Pools


@dataclass(frozen=True)
class Pool:
    """Maximum or rescaled sum over a window, for a rectangle of output positions.

    Attributes:
        multiplier, offset, shift: Of the average; without meaning for the maximum.
    """

    kind: Literal["max", "average"]
    rows: int
    columns: int
    channels: int
    kernel: tuple[int, int]
    tap_row: int
    tap_column: int
    step_row: int
    step_column: int
    output: Map
    bounds: Bounds
    multiplier: int = 0
    offset: int = 0
    shift: int = 0
    is_wide: bool = False

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = frame(name, machine)
        with f.w.loop(f.begin, f.end) as y:
            for x in f.w.unrolled(self.columns, 1):
                across(f.w, self.channels, machine.lanes, partial(self._one, f, y, x))
        return f.w.function()

    def _one(self, f: Frame, y: Expr, x: Expr, c: Expr, lanes: int) -> None:
        w, is_max = f.w, self.kind == "max"
        kind = f.machine.activation if is_max else "int32"
        acc = w.local(lanes, kind)
        w.store(acc, 0, tir.constant(self.bounds.low if is_max else 0, kind, lanes))
        origin = y * self.step_row + x * self.step_column + c
        for ky in w.unrolled(self.kernel[0], 1):
            for kx in w.unrolled(self.kernel[1], 1):
                taken = tir.load(f.input, origin + ky * self.tap_row + kx * self.tap_column, lanes)
                held = tir.load(acc, 0, lanes)
                w.store(acc, 0, tir.largest(held, taken) if is_max else held + tir.cast(taken, "int32"))
        value = tir.load(acc, 0, lanes)
        if not is_max:
            scale = constant_scale(f.machine, self.multiplier, self.offset, self.shift, lanes)
            value = rescaled(w, value, scale, self.bounds, f.machine, is_wide=self.is_wide)
        w.store(f.output, y * self.output.row + x * self.output.pixel + c, value)


# Elementwise


@dataclass(frozen=True)
class Elementwise:
    """Something on every element of one map, or of two.

    Attributes:
        zero_points: Of the inputs, with the machine's bias.
        multipliers: "scale": (M,); "add": (M_a, M_b); "multiply": (M,); "prelu": (M,), the channels' own in `weights`.
        is_broadcast: The second map has one position.
    """

    kind: Literal["scale", "add", "multiply", "prelu", "table", "copy"]
    rows: int
    columns: int
    channels: int
    input: Map
    output: Map
    bounds: Bounds
    second: Map = Map(0, 0)
    zero_points: tuple[int, ...] = ()
    multipliers: tuple[int, ...] = ()
    shift: int = 0
    is_broadcast: bool = False
    repeat: tuple[int, int] = (1, 1)

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = frame(name, machine, scales="int32" if self.kind in ("prelu", "table") else "")
        lanes = 1 if self.kind == "table" else 4 * machine.lanes if self.kind == "copy" else machine.lanes
        with f.w.loop(f.begin, f.end) as y:
            for x in f.w.unrolled(self.columns, 1):
                source = y // self.repeat[0] * self.input.row + x // self.repeat[1] * self.input.pixel
                target = y * self.output.row + x * self.output.pixel
                second = 0 if self.is_broadcast else y * self.second.row + x * self.second.pixel

                def one(c: Expr, n: int, source=source, target=target, second=second) -> None:  # type: ignore[no-untyped-def]
                    value = self._value(f, source + c, second + c, c, n)
                    f.w.store(f.output, target + c, value)

                across(f.w, self.channels, lanes, one)
        return f.w.function()

    def _value(self, f: Frame, source: Expr, second: Expr, c: Expr, lanes: int) -> Expr:
        if self.kind == "copy":
            return tir.load(f.input, source, lanes)
        a = f.w.let(tir.cast(tir.load(f.input, source, lanes), "int32"))
        if self.kind == "table":
            return tir.cast(tir.load(f.scales, a + (128 - f.machine.bias)), f.machine.activation)
        a = self._centred(a, 0)
        match self.kind:
            case "scale":
                total = a * self._multiplier(0, lanes)
            case "add":
                b = self._centred(tir.cast(tir.load(f.second, second, lanes), "int32"), 1)
                total = a * self._multiplier(0, lanes) + b * self._multiplier(1, lanes)
            case "prelu":
                a = f.w.let(a)
                slope = tir.select(
                    a >= tir.constant(0, "int32", lanes), self._multiplier(0, lanes), tir.load(f.scales, c, lanes)
                )
                total = a * slope
            case _:
                b = self._centred(tir.cast(tir.load(f.second, second, lanes), "int32"), 1)
                scale = constant_scale(f.machine, self.multipliers[0], 0, self.shift, lanes)
                return rescaled(f.w, f.w.let(a * b), scale, self.bounds, f.machine)
        return bounded(f.w, shifted(f.w, total, self.shift), self.bounds, f.machine)

    def _centred(self, value: Expr, index: int) -> Expr:
        zero = self.zero_points[index]
        return value - tir.constant(zero, "int32", tir.lanes_of(value)) if zero else value

    def _multiplier(self, index: int, lanes: int) -> Expr:
        return tir.constant(self.multipliers[index], "int32", lanes)


def shifted(w: Writer, total: Expr, shift: int) -> Expr:
    """total / 2**shift, half to even, for |total| <= 2**26."""
    lanes = tir.lanes_of(total)
    if shift == 0:
        return total
    if shift > 27:
        return tir.constant(0, "int32", lanes)
    total = w.let(total)
    amount, one = tir.constant(shift, "int32", lanes), tir.constant(1, "int32", lanes)
    odd = (total >> amount) & one
    return (total + (odd + tir.constant((1 << (shift - 1)) - 1, "int32", lanes))) >> amount


def across(w: Writer, count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """body(first, lanes) over `count` neighbours: vectors, then smaller ones for the rest."""
    full = count // lanes
    for index in w.unrolled(full, 1):
        body(index * lanes, lanes)
    done = full * lanes
    while done < count:
        lanes //= 2
        if lanes <= count - done:
            body(done, lanes)
            done += lanes


# Between the caller's maps [channel, y, x] and stored ones


@dataclass(frozen=True)
class Enter:
    """int8 or float32 [c, y, x] to a stored map; floats are quantized by division, half to even."""

    rows: int
    columns: int
    channels: int
    output: Map
    scale: float | None
    zero_point: int

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = frame(name, machine, source="int8" if self.scale is None else "float32")
        lanes = machine.lanes if self.channels <= _FEW else 1
        with f.w.loop(f.begin, f.end) as y:
            across(f.w, self.columns, lanes, partial(self._pixels, f, y))
        return f.w.function()

    def _pixels(self, f: Frame, y: Expr, x: Expr, lanes: int) -> None:
        place = y * self.output.row + x * self.output.pixel
        if self.channels > _FEW:
            with f.w.loop(0, self.channels) as c:
                f.w.store(f.output, place + c, self._codes(f, c, y, x, lanes))
            return
        codes = [f.w.let(self._codes(f, c, y, x, lanes)) for c in range(self.channels)]
        if self.output.pixel == self.channels:
            order = [c * lanes + i for i in range(lanes) for c in range(self.channels)]
            count = lanes * self.channels
            mixed = codes[0] if count == lanes else f.w.let(tir.shuffled(codes, order))
            store_part(f.w, f.output, place, mixed, count) if count & (count - 1) else f.w.store(f.output, place, mixed)
            return
        for c, code in enumerate(codes):
            for i in range(lanes):
                f.w.store(f.output, place + i * self.output.pixel + c, tir.part(code, i, 1) if lanes > 1 else code)

    def _codes(self, f: Frame, c: Expr, y: Expr, x: Expr, lanes: int) -> Expr:
        raw = tir.load(f.input, (c * self.rows + y) * self.columns + x, lanes)
        bias = f.machine.bias
        if self.scale is None:
            return tir.cast(tir.cast(raw, "int32") + tir.constant(bias, "int32", lanes), f.machine.activation)
        low, high = (tir.constant(v, "float32", lanes) for v in (-1024, 1024))
        steps = tir.clamp(raw / tir.constant(self.scale, "float32", lanes), low, high)
        bits = tir.reinterpret(steps + tir.constant(_MAGIC32, "float32", lanes), "int32" + (f"x{lanes}" * (lanes > 1)))
        bounds = Bounds(self.zero_point + bias - _MAGIC32_BITS, bias - 128, bias + 127)
        return bounded(f.w, bits, bounds, f.machine)


@dataclass(frozen=True)
class Leave:
    """A stored map to int8 or float32 [c, y, x]."""

    rows: int
    columns: int
    channels: int
    input: Map
    scale: float | None
    zero_point: int

    @property
    def units(self) -> int:
        return self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = frame(name, machine, target="int8" if self.scale is None else "float32")
        is_vector, is_line = self.rows == self.columns == 1, self.channels == self.input.pixel == 1
        with f.w.loop(f.begin, f.end) as y:
            if is_vector or is_line:  # neighbours stay neighbours
                count, source = max(self.channels, self.columns), y * self.input.row
                across(f.w, count, machine.lanes, lambda i, n: self._store(f, source + i, y * count + i, n))
            else:
                with f.w.loop(0, self.channels) as c, f.w.loop(0, self.columns) as x:
                    source = y * self.input.row + x * self.input.pixel + c
                    self._store(f, source, (c * self.rows + y) * self.columns + x, 1)
        return f.w.function()

    def _store(self, f: Frame, source: Expr, target: Expr, lanes: int) -> None:
        code = tir.cast(tir.load(f.input, source, lanes), "int32")
        zero = f.machine.bias + (0 if self.scale is None else self.zero_point)
        centred = code - tir.constant(zero, "int32", lanes) if zero else code
        if self.scale is None:
            value = tir.cast(centred, "int8")
        else:
            value = tir.cast(centred, "float32") * tir.constant(self.scale, "float32", lanes)
        f.w.store(f.output, target, value)
