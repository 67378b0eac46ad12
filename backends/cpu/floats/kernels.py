"""The float32 kernels, each a frozen description that writes its own TIR; equal descriptions share one function.

A function is `void k(input, second, output, weights, bias, begin, end)` and does its units `begin` to `end`. Outputs
are stored [n, y, x, channel] without gaps. No kernel copies its input into a padded one: taps that lie outside are left
out, by the limits of the loop over kernel rows, and by tiles at both ends of a row that are written for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from backends.cpu import tir
from backends.cpu.kernels import across, store_part
from backends.cpu.machine import Machine
from backends.cpu.tir import Expr, Writer

_FEW = 8
"""Loops over kernel columns up to this many turns are written out."""
_Range = tuple[Expr, ...]
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class Strides:
    """Where [n, y, x, c] is in memory, in elements."""

    image: int
    row: int
    pixel: int
    channel: int


@dataclass(frozen=True)
class Window:
    """How outputs read a map.

    Attributes:
        size: (height, width) of the input.
        kernel, strides, dilations: (y, x).
        pads: (top, left).
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]

    def column(self, x: int, tap: int) -> int:
        """Input column of a tap; it may lie outside."""
        return x * self.strides[1] - self.pads[1] + tap * self.dilations[1]

    def is_inside(self, x: int, tap: int) -> bool:
        return 0 <= self.column(x, tap) < self.size[1]

    def rows(self, y: Expr, count: int) -> tuple[Expr, Expr]:
        """First kernel row inside the map and the first one behind it, for output row y of `count`."""
        return _inside(y, count, 0, self)

    def columns(self, x: Expr, count: int) -> tuple[Expr, Expr]:
        """Likewise for columns."""
        return _inside(x, count, 1, self)


def _inside(at: Expr, count: int, axis: int, window: Window) -> tuple[Expr, Expr]:
    size, kernel, step = window.size[axis], window.kernel[axis], window.strides[axis]
    dilation, pad = window.dilations[axis], window.pads[axis]
    first: Expr = 0
    if pad:
        first = tir.smallest(tir.largest(pad - at * step, 0) + (dilation - 1), (kernel - 1) * dilation + dilation)
        first = _divided(first, dilation)
    stop: Expr = kernel
    if (count - 1) * step - pad + (kernel - 1) * dilation >= size:
        stop = _divided(tir.largest(size + pad - at * step, 0) + (dilation - 1), dilation)
        stop = tir.smallest(stop, kernel)
    return first, stop


def _divided(value: Expr, divisor: int) -> Expr:
    """Of what is not negative."""
    return value if divisor == 1 else tir.quotient(value, divisor)


@dataclass(frozen=True)
class Finish:
    """What happens to a sum before it is stored.

    Attributes:
        low, high: Bounds; None is no bound.
        has_second: A map of the output's layout is added before that.
    """

    low: float | None = None
    high: float | None = None
    has_second: bool = False

    def apply(self, value: Expr) -> Expr:
        lanes = tir.lanes_of(value)
        if self.low is not None:
            value = tir.largest(value, tir.constant(self.low, "float32", lanes))
        if self.high is not None:
            value = tir.smallest(value, tir.constant(self.high, "float32", lanes))
        return value


@dataclass
class _Frame:
    w: Writer
    input: Expr
    second: Expr
    output: Expr
    weights: Expr
    bias: Expr
    begin: Expr
    end: Expr


def _frame(name: str, machine: Machine) -> _Frame:
    w = Writer(name, machine.index)
    source, second, output, weights, bias = (
        w.pointer(role, "float32") for role in ("input", "second", "output", "weights", "bias")
    )
    return _Frame(w, source, second, output, weights, bias, w.integer("begin"), w.integer("end"))


@dataclass(frozen=True)
class Tile:
    """Output pixels side by side that are computed together."""

    first: int
    pixels: int


def _tiles(columns: int, pixels: int) -> list[Tile]:
    return [Tile(first, min(pixels, columns - first)) for first in range(0, columns, pixels)]


def _runs(tiles: list[Tile], window: Window) -> Iterator[list[Tile]]:
    """Neighbouring tiles that the same code can do: all of their taps are inside."""

    def kind(tile: Tile) -> tuple[int, ...]:
        taps = range(window.kernel[1])
        inside = all(window.is_inside(tile.first + p, t) for p in range(tile.pixels) for t in taps)
        return (tile.pixels,) if inside else (-1, tile.first)

    for _, run in groupby(tiles, key=kind):
        yield list(run)


def _tap_groups(window: Window, tile: Tile, inside: bool) -> list[tuple[int, int, list[int]]]:
    """Neighbouring taps that the same pixels of a tile have: (first tap, count, pixels)."""
    if inside:
        return [(0, window.kernel[1], list(range(tile.pixels)))]
    has = [[p for p in range(tile.pixels) if window.is_inside(tile.first + p, t)] for t in range(window.kernel[1])]
    groups = []
    for pixels, taps in groupby(range(window.kernel[1]), key=lambda t: has[t]):
        run = list(taps)
        if pixels:
            groups.append((run[0], len(run), pixels))
    return groups


def _each_tile(w: Writer, columns: int, pixels: int, window: Window) -> Iterator[tuple[Expr, Tile, bool]]:
    """(first column, an example tile, whether every tap is inside)."""
    for run in _runs(_tiles(columns, pixels), window):
        example = run[0]
        taps = range(window.kernel[1])
        inside = all(window.is_inside(example.first + p, t) for p in range(example.pixels) for t in taps)
        if len(run) == 1:
            yield example.first, example, inside
        else:
            with w.loop(0, len(run)) as index:
                yield w.let(index * example.pixels + example.first), example, inside


@dataclass(frozen=True)
class Conv:
    """Convolution, and GEMM as the convolution of one pixel: tiles of `pixels` x `vectors` accumulators.

    Weights: for each group and each block of `vectors` vectors [tap y][tap x][channel][vector][lane]; bias: [group]
    [vector][lane].

    Attributes:
        images, rows, columns: Of the output.
        inputs, outputs: Channels of one group.
        groups: Of channels.
        source: Strides of the input.
    """

    images: int
    rows: int
    columns: int
    inputs: int
    outputs: int
    groups: int
    window: Window
    source: Strides
    finish: Finish
    pixels: int
    vectors: int
    lanes: int

    @property
    def all_vectors(self) -> int:
        return -(-self.outputs // self.lanes)

    @property
    def blocks(self) -> int:
        """Of one group."""
        return -(-self.all_vectors // self.vectors)

    @property
    def units(self) -> int:
        return self.groups * self.blocks * self.images * self.rows

    @property
    def work(self) -> int:
        """In multiply-accumulates of a dense convolution."""
        return self.macs

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        return self.images * self.rows * self.columns * self.groups * self.outputs * self.taps

    @property
    def taps(self) -> int:
        return self.window.kernel[0] * self.window.kernel[1] * self.inputs

    def write(self, name: str, machine: Machine) -> Expr:
        f = _frame(name, machine)
        w = f.w
        lines = self.images * self.rows
        full, rest = divmod(self.all_vectors, self.vectors)
        if self.outputs % self.lanes and not rest:
            full, rest = full - 1, self.vectors
        with w.loop(f.begin, f.end) as unit:
            block = w.let(tir.quotient(unit, lines))
            line = w.let(tir.remainder(unit, lines))
            group = w.let(tir.quotient(block, self.blocks)) if self.groups > 1 else 0
            within = w.let(tir.remainder(block, self.blocks)) if self.groups > 1 else block
            if full and rest:
                with w.when(within < full):
                    self._line(f, group, within, line, self.vectors, is_last=False)
                with w.when(within >= full):
                    self._line(f, group, full, line, rest, is_last=True)
            else:
                self._line(f, group, within, line, self.vectors if full else rest, is_last=not full)
        return f.w.function()

    def _line(self, f: _Frame, group: Expr, block: Expr, line: Expr, vectors: int, *, is_last: bool) -> None:
        w = f.w
        image = w.let(tir.quotient(line, self.rows)) if self.images > 1 else 0
        y = w.let(tir.remainder(line, self.rows)) if self.images > 1 else line
        first, stop = self.window.rows(y, self.rows)
        first, stop = (w.let(v) if not isinstance(v, int) else v for v in (first, stop))
        group_size = self.all_vectors * self.lanes
        weights = w.let(group * (group_size * self.taps) + block * (self.vectors * self.lanes * self.taps))
        bias = w.let(group * group_size + block * (self.vectors * self.lanes))
        channel = group * self.outputs + block * (self.vectors * self.lanes)
        all_channels = self.groups * self.outputs
        target = w.let(line * (self.columns * all_channels) + channel)
        top = y * self.window.strides[0] - self.window.pads[0]
        source = w.let(
            image * self.source.image + top * self.source.row + group * (self.inputs * self.source.channel)
        )
        kept = self.outputs - (self.all_vectors - 1) * self.lanes if is_last else self.lanes
        for x, tile, inside in _each_tile(w, self.columns, self.pixels, self.window):
            acc = w.local(tile.pixels * vectors * self.lanes, "float32")
            starts = [w.let(tir.load(f.bias, bias + v * self.lanes, self.lanes)) for v in range(vectors)]
            for p in range(tile.pixels):
                for v in range(vectors):
                    w.store(acc, (p * vectors + v) * self.lanes, starts[v])
            with w.loop(first, stop) as ky:
                row = w.let(source + ky * (self.window.dilations[0] * self.source.row))
                self._taps(f, acc, row, x, tile, inside, weights, ky, vectors)
            for p in range(tile.pixels):
                for v in range(vectors):
                    place = target + (x + p) * all_channels + v * self.lanes
                    value = tir.load(acc, (p * vectors + v) * self.lanes, self.lanes)
                    count = kept if v == vectors - 1 else self.lanes
                    if self.finish.has_second:
                        value = value + tir.load_part(f.second, place, self.lanes, count)
                    store_part(w, f.output, place, w.let(self.finish.apply(value)), count)

    def _taps(
        self, f: _Frame, acc: Expr, row: Expr, x: Expr, tile: Tile, inside: bool, weights: Expr, ky: Expr, vectors: int
    ) -> None:
        """One kernel row."""
        w, window = f.w, self.window
        size = vectors * self.lanes
        weights = w.let(weights + ky * (window.kernel[1] * self.inputs * size))
        step = window.strides[1] * self.source.pixel
        is_run = self.source.channel == 1 and self.source.pixel == self.inputs and window.dilations[1] == 1
        start = w.let(row + (x * window.strides[1] - window.pads[1]) * self.source.pixel)
        for first, count, pixels in _tap_groups(window, tile, inside):
            if is_run:
                at = start + first * self.inputs
                place = weights + first * (self.inputs * size)
                for k in w.unrolled(count * self.inputs, 4):
                    self._products(f, acc, at + k, step, pixels, place + k * size, vectors)
                continue
            for index in w.unrolled(count, 1):  # a loop: LLVM makes slow code of many loads at fixed distances
                kx = first + index
                at = start + kx * (window.dilations[1] * self.source.pixel)
                for c in w.unrolled(self.inputs, 4):
                    place = weights + (kx * self.inputs + c) * size
                    self._products(f, acc, at + c * self.source.channel, step, pixels, place, vectors)

    def _products(
        self, f: _Frame, acc: Expr, at: Expr, step: int, pixels: list[int], weights: Expr, vectors: int
    ) -> None:
        w, lanes = f.w, self.lanes
        values = [w.let(tir.load(f.weights, weights + v * lanes, lanes)) for v in range(vectors)]
        for p in pixels:
            taken = w.let(tir.spread(tir.load(f.input, at + p * step), lanes))
            for v in range(vectors):
                place = (p * vectors + v) * lanes
                w.store(acc, place, tir.multiply_add(taken, values[v], tir.load(acc, place, lanes)))


@dataclass(frozen=True)
class Depthwise:
    """Each channel on its own, input and output [n, y, x, c]; vectors of channels, tiles of pixels.

    Weights: [vector][tap y][tap x][lane]; bias: [vector][lane].
    """

    images: int
    rows: int
    columns: int
    channels: int
    window: Window
    finish: Finish
    pixels: int
    lanes: int

    @property
    def work(self) -> int:
        """In multiply-accumulates of a dense convolution: these are limited by loads."""
        return 3 * self.macs

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        taps = self.window.kernel[0] * self.window.kernel[1]
        return self.images * self.rows * self.columns * self.channels * taps

    @property
    def units(self) -> int:
        return self.images * self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = _frame(name, machine)
        full, rest = divmod(self.channels, self.lanes)
        with f.w.loop(f.begin, f.end) as line:
            for vector in f.w.unrolled(full, 1):
                self._line(f, line, vector, self.lanes)
            if rest:
                self._line(f, line, full, rest)
        return f.w.function()

    def _line(self, f: _Frame, line: Expr, vector: Expr, kept: int) -> None:
        w, window, lanes = f.w, self.window, self.lanes
        image = w.let(tir.quotient(line, self.rows)) if self.images > 1 else 0
        y = w.let(tir.remainder(line, self.rows)) if self.images > 1 else line
        first, stop = window.rows(y, self.rows)
        row_size = window.size[1] * self.channels
        top = image * window.size[0] + y * window.strides[0] - window.pads[0]
        source = w.let(top * row_size + vector * lanes)
        target = w.let(line * (self.columns * self.channels) + vector * lanes)
        taps = window.kernel[0] * window.kernel[1]
        start = w.let(tir.load(f.bias, vector * lanes, lanes))
        for x, tile, inside in _each_tile(w, self.columns, self.pixels, window):
            acc = w.local(tile.pixels * lanes, "float32")
            for p in range(tile.pixels):
                w.store(acc, p * lanes, start)
            left = w.let(source + (x * window.strides[1] - window.pads[1]) * self.channels)
            with w.loop(first, stop) as ky:
                row = w.let(left + ky * (window.dilations[0] * row_size))
                kernel = w.let((vector * taps + ky * window.kernel[1]) * lanes)
                for kx in w.unrolled(window.kernel[1], _FEW) if inside else range(window.kernel[1]):
                    weights = w.let(tir.load(f.weights, kernel + kx * lanes, lanes))
                    for p in range(tile.pixels):
                        if inside or window.is_inside(tile.first + p, kx):
                            place = row + (p * window.strides[1] + kx * window.dilations[1]) * self.channels
                            taken = tir.load_part(f.input, place, lanes, kept)
                            total = tir.multiply_add(taken, weights, tir.load(acc, p * lanes, lanes))
                            w.store(acc, p * lanes, total)
            for p in range(tile.pixels):
                place = target + (x + p) * self.channels
                value = tir.load(acc, p * lanes, lanes)
                if self.finish.has_second:
                    value = value + tir.load_part(f.second, place, lanes, kept)
                store_part(w, f.output, place, w.let(self.finish.apply(value)), kept)


@dataclass(frozen=True)
class Pool:
    """Maximum or mean over a window, input and output [n, y, x, c].

    Attributes:
        counts_pads: The mean divides by taps in the padding, too.
        padded: (height, width) of the input with its padding: what lies beyond (ceil_mode) is never counted.
    """

    kind: Literal["max", "average"]
    images: int
    rows: int
    columns: int
    channels: int
    window: Window
    counts_pads: bool
    padded: tuple[int, int]
    lanes: int

    @property
    def work(self) -> int:
        """Elements read, several times, as multiply-accumulates are cheaper."""
        taps = self.window.kernel[0] * self.window.kernel[1]
        return 4 * self.images * self.rows * self.columns * self.channels * taps

    @property
    def units(self) -> int:
        return self.images * self.rows

    def write(self, name: str, machine: Machine) -> Expr:
        f = _frame(name, machine)
        w, window = f.w, self.window
        with w.loop(f.begin, f.end) as line:
            image = w.let(tir.quotient(line, self.rows)) if self.images > 1 else 0
            y = w.let(tir.remainder(line, self.rows)) if self.images > 1 else line
            rows = tuple(w.let(v) if not isinstance(v, int) else v for v in window.rows(y, self.rows))
            top = w.let(image * window.size[0] + y * window.strides[0] - window.pads[0])
            with w.loop(0, self.columns) as x:
                columns = tuple(w.let(v) if not isinstance(v, int) else v for v in window.columns(x, self.columns))
                scale = None if self.kind == "max" else w.let(self._scale(y, x, rows, columns))
                left = w.let(x * window.strides[1] - window.pads[1])
                origin = w.let((top * window.size[1] + left) * self.channels)
                target = w.let((line * self.columns + x) * self.channels)
                self._channels(f, origin, target, rows, columns, scale)
        return f.w.function()

    def _channels(
        self, f: _Frame, origin: Expr, target: Expr, rows: _Range, columns: _Range, scale: Expr
    ) -> None:
        """One output position."""

        def some(c: Expr, lanes: int) -> None:
            self._one(f, origin + c, target + c, rows, columns, scale, lanes)

        across(f.w, self.channels, self.lanes, some)

    def _scale(self, y: Expr, x: Expr, rows: _Range, columns: _Range) -> Expr:
        window = self.window
        if self.counts_pads:
            inside = Window(self.padded, window.kernel, window.strides, window.dilations, (0, 0))
            rows, columns = inside.rows(y, self.rows), inside.columns(x, self.columns)
        count = (rows[1] - rows[0]) * (columns[1] - columns[0])
        if isinstance(count, int):
            return tir.constant(1 / count, "float32")
        return tir.constant(1, "float32") / tir.cast(count, "float32")

    def _one(
        self, f: _Frame, origin: Expr, target: Expr, rows: _Range, columns: _Range, scale: Expr, n: int
    ) -> None:
        w, window = f.w, self.window
        acc = w.local(n, "float32")
        w.store(acc, 0, tir.constant(_LOWEST if self.kind == "max" else 0, "float32", n))
        with w.loop(*rows) as ky:
            row = w.let(origin + ky * (window.dilations[0] * window.size[1] * self.channels))
            with w.loop(*columns) as kx:
                taken = tir.load(f.input, row + kx * (window.dilations[1] * self.channels), n)
                held = tir.load(acc, 0, n)
                w.store(acc, 0, tir.largest(held, taken) if self.kind == "max" else held + taken)
        value = tir.load(acc, 0, n)
        w.store(f.output, target, value if scale is None else value * tir.spread(scale, n))
