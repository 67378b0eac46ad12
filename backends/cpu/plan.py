"""A layer graph becomes steps: kernels with their arguments, one arena and one block of constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backends import layers
from backends.base import DoesNotFitError
from backends.cpu import binary, kernels, memory, packing, tiles
from backends.cpu.kernels import Bounds, Kernel, Map
from backends.cpu.machine import Machine
from backends.cpu.tiles import Tile, Tileable
from backends.layers import LayerGraph, Pads, Tensor

_CHUNK_WORK, _MOST_CHUNKS, _LEAST_SHARED = 16_000, 16, 48_000
"""Vector instructions of a chunk (some microseconds), most chunks of a step, and instructions of a step worth sharing:
on a busy machine a thread that is interrupted within a chunk costs more than a small step."""


@dataclass(frozen=True)
class Border:
    """What surrounds a stored map: elements on each side, all of one stored value."""

    pads: Pads
    value: int


@dataclass(frozen=True)
class Place:
    """A stored map.

    Attributes:
        buffer: Name of its memory.
        shape: (channels, height, width).
        map: Strides in elements.
        origin: Of [0, 0, 0], in elements from the start of the buffer.
        border: Around it.
    """

    buffer: str
    shape: tuple[int, int, int]
    map: Map
    origin: int
    border: Border

    @property
    def is_packed(self) -> bool:
        """No gaps between rows."""
        return self.map.row == self.map.pixel * self.shape[2]

    @property
    def is_dense(self) -> bool:
        """No gaps between the pixels of a row."""
        return self.map.pixel == self.shape[0]


@dataclass(frozen=True)
class Call:
    """One run of a kernel.

    Attributes:
        input, second, output: (buffer, offset in elements); "@0" is the caller's pointer 0.
        weights, scales, table: Offsets in the constants, in bytes; -1 where the kernel has none.
        tiled: The layer's kernel with its default tile, and the tile that this call has; None where there is no choice.
    """

    kernel: Kernel
    input: tuple[str, int]
    output: tuple[str, int]
    second: tuple[str, int] | None = None
    weights: int = -1
    scales: int = -1
    table: int = -1
    tiled: tuple[Tileable, Tile] | None = None


@dataclass(frozen=True)
class Fill:
    """A border that a step writes before others read it."""

    place: Place


@dataclass(frozen=True)
class Step:
    """Calls that do not depend on each other; the next step waits for all of them.

    Attributes:
        work: About how many vector instructions, to know whether sharing it is worth the trouble.
    """

    layer: str
    calls: tuple[Call, ...]
    fills: tuple[Fill, ...] = ()
    work: int = 0

    @property
    def chunks(self) -> int:
        """Pieces that threads may take: each large beside the cost of taking it."""
        if self.work < _LEAST_SHARED:
            return 1
        units = max(call.kernel.units for call in self.calls)
        return max(1, min(units, _MOST_CHUNKS, self.work // _CHUNK_WORK))


@dataclass(frozen=True)
class Trace:
    """Where a layer's map is after its step: bytes of [0, 0, 0] in the arena, strides in elements."""

    step: int
    offset: int
    row: int
    pixel: int


@dataclass(frozen=True)
class Plan:
    """A network as it runs.

    Attributes:
        steps: Of the integer layers.
        enter, leave: For int8 and for float arguments: before and after them.
        arena: Memory of all maps.
        constants: Packed weights, scales and tables.
        weight_bytes: Of them, packed weights.
        alive: Bytes of the maps that are needed while a step runs, by its layer.
    """

    graph: LayerGraph
    machine: Machine
    steps: tuple[Step, ...]
    enter: tuple[Step, ...]
    leave: tuple[Step, ...]
    enter_float: tuple[Step, ...]
    leave_float: tuple[Step, ...]
    arena: memory.Arena
    constants: bytes
    weight_bytes: int
    places: dict[str, Place]
    alive: dict[str, int]

    def kernels(self) -> dict[Kernel, str]:
        """Every distinct kernel, and its function's name."""
        found: dict[Kernel, str] = {}
        for step in (*self.enter, *self.steps, *self.leave, *self.enter_float, *self.leave_float):
            for call in step.calls:
                found.setdefault(call.kernel, f"kernel{len(found)}")
        return found

    def traces(self) -> dict[str, Trace]:
        """Of every layer, by its name."""
        steps = {step.layer: index for index, step in enumerate(self.steps)}
        found = {}
        for layer in self.graph.layers:
            place = self.places[layer.output.name]
            offset = self.arena.offsets[place.buffer] + place.origin * self.machine.item_bytes
            found[layer.name] = Trace(steps[layer.name], offset, place.map.row, place.map.pixel)
        return found

    def tiles(self) -> dict[str, dict[Tileable, Tile]]:
        """Of every layer that has a choice: kernel with its default tile to the tile in use (groups may differ)."""
        chosen = {step.layer: dict(c.tiled for c in step.calls if c.tiled is not None) for step in self.steps}
        return {layer: tiled for layer, tiled in chosen.items() if tiled}

    def float_kernels(self) -> set[Kernel]:
        """Those that only a call with floats needs."""
        floats = {call.kernel for step in (*self.enter_float, *self.leave_float) for call in step.calls}
        return floats - {call.kernel for step in (*self.enter, *self.steps, *self.leave) for call in step.calls}


def make_plan(graph: LayerGraph, machine: Machine, chosen: Mapping[str, Tile] | None = None) -> Plan:
    """Choose layouts, kernels and memory.

    Args:
        graph: Of the network.
        machine: To plan for.
        chosen: Shape of a layer (see `tiles.shape_of`) to its tile; others get the tile of the formula.
    """
    return _Planner(graph, machine, chosen or {}).plan()


@dataclass
class _Constants:
    """The growing block of constants; equal ones are kept once."""

    align: int
    data: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)

    def add(self, values: NDArray[np.generic]) -> int:
        raw = np.ascontiguousarray(values).tobytes()
        if raw not in self.known:
            self.data += bytes(-len(self.data) % self.align)
            self.known[raw] = len(self.data)
            self.data += raw
        return self.known[raw]


class _Planner:
    def __init__(self, graph: LayerGraph, machine: Machine, chosen: Mapping[str, Tile]) -> None:
        self.graph, self.machine, self.bias, self.chosen = graph, machine, machine.bias, chosen
        self.constants = _Constants(machine.align)
        self.weight_bytes = 0
        self.places: dict[str, Place] = {}
        self.sizes: dict[str, int] = {}
        self.steps: list[Step] = []
        convs = (layer for layer in graph.layers if isinstance(layer, layers.Conv))
        self.binary = {layer.name for layer in convs if binary.is_binary(layer, graph)}

    def plan(self) -> Plan:
        for tensor in self.graph.tensors():
            self._place(tensor.name, tensor.shape, self._border(tensor))
        enter = tuple(self._enter(i, t, None) for i, t in enumerate(self.graph.inputs))
        enter_float = tuple(self._enter(i, t, t.scale) for i, t in enumerate(self.graph.inputs))
        for layer in self.graph.layers:
            self.steps.append(replace(self._step(layer), work=self._work(layer)))
        leave = tuple(self._leave(i, t, None) for i, t in enumerate(self.graph.outputs))
        leave_float = tuple(self._leave(i, t, t.scale) for i, t in enumerate(self.graph.outputs))
        steps = tuple(self.steps)
        lifetimes = self._lifetimes(enter, steps, leave)
        arena = memory.place(lifetimes, self.machine.align, self.machine.align)
        alive = {
            step.layer: sum(life.size for life in lifetimes.values() if life.first <= time <= life.last)
            for time, step in enumerate((*enter, *steps))
            if time >= len(enter)
        }
        if arena.size >= 1 << 30:
            raise DoesNotFitError(f"the maps need {arena.size:,} bytes; a kernel addresses {1 << 30:,}")
        return Plan(
            self.graph, self.machine, steps, enter, leave, enter_float, leave_float,
            arena, bytes(self.constants.data), self.weight_bytes, self.places, alive,
        )  # fmt: skip

    def _work(self, layer: layers.Layer) -> int:
        """Vector instructions: products, and about ten for each vector of results."""
        vectors = layer.output.size // self.machine.lanes
        products = binary.WORD // 3 if layer.name in self.binary else self.machine.dot.group  # of an instruction's lane
        return layers.macs(layer) // (self.machine.lanes * products) + 10 * vectors

    # Layout.

    def _border(self, tensor: Tensor) -> Border:
        """The largest that the readers need; a maximum pool over a map with another zero point makes a copy instead."""
        pads = (0, 0, 0, 0)
        for layer in self.graph.consumers(tensor):
            if layer.name in self.binary:
                continue
            if isinstance(layer, layers.Conv | layers.AveragePool) or (
                isinstance(layer, layers.MaxPool) and tensor.zero_point == -128
            ):
                pads = tuple(map(max, pads, needed_pads(layer)))  # type: ignore[assignment]
        return Border(pads, tensor.zero_point + self.bias)

    def _place(self, name: str, shape: tuple[int, int, int], border: Border) -> Place:
        channels, height, width = shape
        top, left, bottom, right = border.pads
        row = (width + max(left, right)) * channels  # what is right of one row is left of the next
        elements = (height + top + bottom) * row + min(left, right) * channels
        self.sizes[name] = elements * self.machine.item_bytes
        place = Place(name, shape, Map(row, channels), top * row + left * channels, border)
        self.places[name] = place
        return place

    def _lifetimes(self, *groups: tuple[Step, ...]) -> dict[str, memory.Lifetime]:
        spans: dict[str, tuple[int, int]] = {}
        time = 0
        for steps in groups:
            for step in steps:
                for call in step.calls:
                    for reference in (call.input, call.output, call.second):
                        if reference and not reference[0].startswith("@"):
                            first, _ = spans.get(reference[0], (time, time))
                            spans[reference[0]] = (first, time)
                time += 1
        return {name: memory.Lifetime(self.sizes[name], *span) for name, span in spans.items()}

    # Steps.

    def _enter(self, index: int, tensor: Tensor, scale: float | None) -> Step:
        place = self.places[tensor.name]
        channels, height, width = place.shape
        kernel = kernels.Enter(height, width, channels, place.map, scale, tensor.zero_point)
        if scale is None:
            kernel = replace(kernel, zero_point=0)
        work = 10 * tensor.size // self.machine.lanes
        return Step(tensor.name, (Call(kernel, (f"@{index}", 0), _at(place)),), self._fills(place), work)

    def _leave(self, index: int, tensor: Tensor, scale: float | None) -> Step:
        place = self.places[tensor.name]
        channels, height, width = place.shape
        kernel = kernels.Leave(height, width, channels, place.map, scale, 0 if scale is None else tensor.zero_point)
        return Step(tensor.name, (Call(kernel, _at(place), (f"@{index}", 0)),), work=tensor.size)

    def _fills(self, *places: Place) -> tuple[Fill, ...]:
        return tuple(Fill(place) for place in places if any(place.border.pads))

    def _step(self, layer: layers.Layer) -> Step:
        match layer:
            case layers.Conv():
                calls = tuple(self._conv(layer))
            case layers.MaxPool() | layers.AveragePool():
                calls = tuple(self._pool(layer))
            case layers.Concat():
                calls = tuple(self._concat(layer))
            case layers.Pad():
                calls = (self._pad(layer),)
                return Step(layer.name, calls, self._pad_fills(layer))
            case _:
                calls = (self._elementwise(layer),)
        return Step(layer.name, calls, self._fills(self.places[layer.output.name]))

    def _bounds(self, zero_point: int, low: int = -128, high: int = 127) -> Bounds:
        return Bounds(zero_point + self.bias, low + self.bias, high + self.bias)

    # Convolution.

    def _conv(self, layer: layers.Conv) -> Iterator[Call]:
        source, target = self.places[layer.input.name], self.places[layer.output.name]
        each, outputs = layer.weights.shape[1], len(layer.weights) // layer.groups
        if layer.is_depthwise:
            yield self._depthwise(layer, source, target)
            return
        if layer.name in self.binary:
            yield from self._xnor(layer, self._bits(layer.input), target)
            return
        for group in range(layer.groups):
            chosen = slice(group * outputs, (group + 1) * outputs)
            part = packing.Part(
                layer.weights[chosen], *packing.integers(layer.requantize, layer.weights, self.bias, chosen)
            )
            start = self._start(source, layer.pads) + group * each
            yield from self._dense(layer, part, source, start, target, group * outputs)

    def _start(self, place: Place, pads: Pads) -> int:
        """Of the window of output [0, 0]."""
        return place.origin - pads[0] * place.map.row - pads[1] * place.map.pixel

    def _dense(
        self, layer: layers.Conv, part: packing.Part, source: Place, start: int, target: Place, channel: int
    ) -> Iterator[Call]:
        _, height, width = layer.output.shape
        (kernel_h, kernel_w), (dilation_h, dilation_w) = layer.kernel, layer.dilations
        each, pixel, row = part.weights.shape[1], source.map.pixel, source.map.row
        weights = part.weights.transpose(0, 2, 3, 1)  # [out, ky, kx, c], as maps are stored
        step_row, step_column = layer.strides[0] * row, layer.strides[1] * pixel
        window = kernels.Window(kernel_h, dilation_h * row, kernel_w, dilation_w * pixel, each)
        if each == pixel and (dilation_w == 1 or kernel_w == 1):
            window = kernels.Window(kernel_h, dilation_h * row, 1, 0, kernel_w * each)
            if dilation_h == 1 and row == kernel_w * each:
                window = kernels.Window(1, 0, 1, 0, kernel_h * kernel_w * each)
        output = target.map
        if layer.kernel == (1, 1) and layer.strides == (1, 1) and source.is_packed and target.is_packed:
            height, width = 1, height * width
        shape = packing.tile(self.machine, len(part.weights), width)
        kernel = kernels.Conv(
            rows=height,
            columns=width,
            channels=len(part.weights),
            window=window,
            step_row=step_row,
            step_column=step_column,
            output=output,
            bounds=self._bounds(layer.requantize.zero_point, layer.requantize.low, layer.requantize.high),
            pixels=shape[0],
            vectors=shape[1],
            lanes=self.machine.lanes,
            by_channel=height == 1,
            is_wide=packing.is_wide(part, self.bias),
        )
        packed = packing.dense(self.machine, weights.reshape(len(weights), window.rows * window.columns, -1))
        thinned = packing.sparse(packed, _places(window, self.machine.dot.group))
        table = -1
        if thinned is not None:
            packed, table = thinned[0], self.constants.add(thinned[1])
            shape = packing.tile(self.machine, len(part.weights), width, most_vectors=1)
            kernel = kernels.SparseConv(**{**vars(kernel), "pixels": shape[0], "vectors": 1})
        if width // shape[0] > 1 and layer.output.shape[1] > 1:  # one long row: tiles become the units
            kernel = replace(kernel, by_channel=False)
        tiled = kernel, self._tile(kernel)
        kernel = tiles.with_tile(*tiled)
        self.weight_bytes += packed.nbytes
        held = self.constants.add(packed), self.constants.add(packing.scales(self.machine, part)), table
        begin = target.origin + channel
        full, rest = divmod(width, kernel.pixels)
        if height == 1 and not kernel.by_channel:
            rows = replace(
                kernel, rows=full, columns=kernel.pixels, step_row=kernel.pixels * step_column,
                output=Map(kernel.pixels * output.pixel, output.pixel),
            )  # fmt: skip
            yield Call(rows, (source.buffer, start), (target.buffer, begin), None, *held, tiled)
            if rest:
                last = replace(kernel, columns=rest, pixels=rest)
                done = full * kernel.pixels
                yield Call(
                    last,
                    (source.buffer, start + done * step_column),
                    (target.buffer, begin + done * output.pixel),
                    None,
                    *held,
                    tiled,
                )
            return
        yield Call(kernel, (source.buffer, start), (target.buffer, begin), None, *held, tiled)

    def _tile(self, kernel: Tileable) -> Tile:
        """That was chosen for the kernel's shape, or its own."""
        return self.chosen.get(tiles.shape_of(kernel), tiles.tile_of(kernel))

    def _bits(self, tensor: Tensor) -> Place:
        """The bits of a map of -1 and 1, with the border that their readers need; a step of its own, once."""
        name, size = f"{tensor.name} bits", 4 // self.machine.item_bytes
        if name in self.places:
            return self.places[name]
        source, pads = self.places[tensor.name], (0, 0, 0, 0)
        for layer in self.graph.consumers(tensor):
            if layer.name in self.binary:
                pads = tuple(map(max, pads, needed_pads(layer)))  # type: ignore[assignment]
        channels, height, width = tensor.shape
        place = self._place(name, (binary.words(channels) * size, height, width), Border(pads, 0))
        kernel = binary.Pack(height, width, channels, source.map, _in_words(place.map, size))
        call = Call(kernel, _at(source), _at(place))
        self.steps.append(Step(name, (call,), self._fills(place), tensor.size // self.machine.lanes))
        return place

    def _xnor(self, layer: layers.Conv, source: Place, target: Place) -> Iterator[Call]:
        size, words = 4 // self.machine.item_bytes, binary.words(layer.input.shape[0])
        step, start = _in_words(source.map, size), self._start(source, layer.pads)
        (kernel_h, kernel_w), (dilation_h, dilation_w) = layer.kernel, layer.dilations
        window = kernels.Window(kernel_h, dilation_h * step.row, kernel_w, dilation_w * step.pixel, words)
        if dilation_w == 1 or kernel_w == 1:
            window = kernels.Window(kernel_h, dilation_h * step.row, 1, 0, kernel_w * words)
        packed = binary.bits(self.machine, layer.weights.transpose(0, 2, 3, 1))
        weights = self.constants.add(packed)
        self.weight_bytes += packed.nbytes
        requantize, rows, columns = layer.requantize, *layer.strides
        for region in binary.regions(layer):
            part = binary.part(self.machine, layer, region)
            height, width = region.bottom - region.top, region.right - region.left
            steps, output = (rows * step.row, columns * step.pixel), target.map
            if height > width:  # tiles are along the longer side
                height, width, steps, output = width, height, steps[::-1], Map(output.pixel, output.row)
            shape = binary.tile(self.machine, len(layer.weights), width)
            kernel = binary.XnorConv(
                rows=height,
                columns=width,
                channels=len(layer.weights),
                window=window,
                step_row=steps[0],
                step_column=steps[1],
                output=output,
                bounds=self._bounds(requantize.zero_point, requantize.low, requantize.high),
                pixels=shape[0],
                vectors=shape[1],
                lanes=self.machine.lanes,
                by_channel=height == 1,
                is_wide=packing.is_wide(part, self.bias),
            )
            begin = start + region.top * rows * source.map.row + region.left * columns * source.map.pixel
            end = target.origin + region.top * target.map.row + region.left * target.map.pixel
            scales = self.constants.add(packing.scales(self.machine, part))
            yield Call(kernel, (source.buffer, begin), (target.buffer, end), weights=weights, scales=scales)

    def _depthwise(self, layer: layers.Conv, source: Place, target: Place) -> Call:
        channels, height, width = layer.output.shape
        requantize = layer.requantize
        part = packing.Part(layer.weights, *packing.integers(requantize, layer.weights, self.bias, slice(None)))
        kernel = kernels.Depthwise(
            rows=height,
            columns=width,
            channels=channels,
            kernel=layer.kernel,
            tap_row=layer.dilations[0] * source.map.row,
            tap_column=layer.dilations[1] * source.map.pixel,
            step_row=layer.strides[0] * source.map.row,
            step_column=layer.strides[1] * source.map.pixel,
            output=target.map,
            bounds=self._bounds(requantize.zero_point, requantize.low, requantize.high),
            pixels=packing.depthwise_pixels(self.machine, width),
            lanes=self.machine.lanes,
            is_wide=packing.is_wide(part, self.bias),
        )
        packed = packing.depthwise(self.machine, layer.weights)
        self.weight_bytes += packed.nbytes
        tiled = kernel, self._tile(kernel)
        return Call(
            tiles.with_tile(*tiled),
            (source.buffer, self._start(source, layer.pads)),
            _at(target),
            weights=self.constants.add(packed),
            scales=self.constants.add(packing.scales(self.machine, part)),
            tiled=tiled,
        )

    # Pools.

    def _pool(self, layer: layers.MaxPool | layers.AveragePool) -> Iterator[Call]:
        source, target = self.places[layer.input.name], self.places[layer.output.name]
        is_max = isinstance(layer, layers.MaxPool)
        if isinstance(layer, layers.MaxPool) and any(needed_pads(layer)) and layer.input.zero_point != -128:
            source = self._bordered_copy(layer, source)
        dilations = layer.dilations if isinstance(layer, layers.MaxPool) else (1, 1)
        start = self._start(source, layer.pads)
        for region in _regions(layer):
            multiplier, offset, is_wide = 0, 0, False
            bounds = self._bounds(layer.output.zero_point)
            if isinstance(layer, layers.AveragePool):
                bounds = self._bounds(layer.output.zero_point, layer.low, layer.high)
                taps = layer.kernel[0] * layer.kernel[1]
                multiplier, offset = region.multiplier, region.offset - self.bias * taps * region.multiplier
                is_wide = (abs(multiplier) * taps * 256 + abs(offset)) * 2.0**-region.shift > packing.NARROW
            step = (layer.strides[0] * source.map.row, layer.strides[1] * source.map.pixel)
            kernel = kernels.Pool(
                kind="max" if is_max else "average",
                rows=region.bottom - region.top,
                columns=region.right - region.left,
                channels=layer.output.shape[0],
                kernel=layer.kernel,
                tap_row=dilations[0] * source.map.row,
                tap_column=dilations[1] * source.map.pixel,
                step_row=step[0],
                step_column=step[1],
                output=target.map,
                bounds=bounds,
                multiplier=multiplier,
                offset=offset,
                shift=region.shift,
                is_wide=is_wide,
            )
            begin = start + region.top * step[0] + region.left * step[1]
            end = target.origin + region.top * target.map.row + region.left * target.map.pixel
            yield Call(kernel, (source.buffer, begin), (target.buffer, end))

    def _bordered_copy(self, layer: layers.MaxPool, source: Place) -> Place:
        """The input again, with a border of -128; a step of its own."""
        name = f"{layer.name} bordered"
        place = self._place(name, source.shape, Border(needed_pads(layer), self.bias - 128))
        call = self._map_call("copy", source, place, Bounds(0, 0, 0))
        self.steps.append(Step(name, (call,), self._fills(place)))
        return place

    # Elementwise.

    def _elementwise(self, layer: layers.Layer) -> Call:
        target = self.places[layer.output.name]
        zero = layer.output.zero_point
        match layer:
            case layers.Add() | layers.Mul():
                a, b = self.places[layer.a.name], self.places[layer.b.name]
                is_add = isinstance(layer, layers.Add)
                return self._map_call(
                    "add" if is_add else "multiply",
                    a,
                    target,
                    self._bounds(zero, layer.low, layer.high),
                    second=b,
                    zero_points=(layer.a.zero_point + self.bias, layer.b.zero_point + self.bias),
                    multipliers=(layer.multiplier_a, layer.multiplier_b)
                    if isinstance(layer, layers.Add)
                    else (layer.multiplier,),
                    shift=layer.shift,
                )
            case layers.Table():
                values = layer.table.astype(np.int32) + self.bias
                call = self._map_call("table", self.places[layer.input.name], target, Bounds(0, 0, 0))
                return replace(call, scales=self.constants.add(values))
            case layers.PRelu():
                call = self._map_call(
                    "prelu",
                    self.places[layer.input.name],
                    target,
                    self._bounds(zero),
                    zero_points=(layer.input.zero_point + self.bias,),
                    multipliers=(layer.multiplier,),
                    shift=layer.shift,
                    merge=False,
                )
                padded = np.zeros(len(layer.negative_multiplier) + 64, np.int32)
                padded[: len(layer.negative_multiplier)] = layer.negative_multiplier
                return replace(call, scales=self.constants.add(padded))
            case layers.Resize():
                source = self.places[layer.input.name]
                call = self._map_call("copy", source, target, Bounds(0, 0, 0), merge=layer.factors[1] == 1)
                return replace(call, kernel=replace(call.kernel, repeat=layer.factors))  # type: ignore[type-var]
        raise AssertionError(layer)

    def _concat(self, layer: layers.Concat) -> Iterator[Call]:
        target = self.places[layer.output.name]
        first = 0
        for part, multiplier, shift in zip(layer.parts, layer.multipliers, layer.shifts, strict=True):
            source = self.places[part.name]
            view = replace(target, shape=source.shape, origin=target.origin + first)
            if multiplier == 1 << shift and part.zero_point == layer.output.zero_point:
                yield self._map_call("copy", source, view, Bounds(0, 0, 0))
            else:
                yield self._map_call(
                    "scale",
                    source,
                    view,
                    self._bounds(layer.output.zero_point),
                    zero_points=(part.zero_point + self.bias,),
                    multipliers=(multiplier,),
                    shift=shift,
                )
            first += part.shape[0]

    def _pad(self, layer: layers.Pad) -> Call:
        source, target = self.places[layer.input.name], self.places[layer.output.name]
        begin = target.origin + layer.pads[0] * target.map.row + layer.pads[1] * target.map.pixel
        return self._map_call("copy", source, replace(target, shape=source.shape, origin=begin), Bounds(0, 0, 0))

    def _pad_fills(self, layer: layers.Pad) -> tuple[Fill, ...]:
        """The layer's own border is one inside the place's border."""
        place = self.places[layer.output.name]
        inner = replace(
            place,
            shape=layer.input.shape,
            origin=place.origin + layer.pads[0] * place.map.row + layer.pads[1] * place.map.pixel,
            border=Border(layer.pads, layer.value + self.bias),
        )
        return self._fills(place, inner)

    def _map_call(
        self,
        kind: str,
        source: Place,
        target: Place,
        bounds: Bounds,
        *,
        second: Place | None = None,
        zero_points: tuple[int, ...] = (),
        multipliers: tuple[int, ...] = (),
        shift: int = 0,
        merge: bool = True,
    ) -> Call:
        channels, height, width = target.shape
        is_broadcast = second is not None and second.shape != target.shape
        dense = [place for place in (source, target, second) if place is not None]
        if merge and not is_broadcast and all(place.is_dense for place in dense):
            channels, width = channels * width, 1
        kernel = kernels.Elementwise(
            kind,  # type: ignore[arg-type]
            height,
            width,
            channels,
            source.map,
            target.map,
            bounds,
            second=second.map if second else Map(0, 0),
            zero_points=zero_points,
            multipliers=multipliers,
            shift=shift,
            is_broadcast=is_broadcast,
        )
        return Call(kernel, _at(source), _at(target), _at(second) if second else None)


def _places(window: kernels.Window, group: int) -> NDArray[np.int64]:
    """Where the groups of each run are, from the window's origin: [run][group]."""
    rows = np.arange(window.rows)[:, None, None] * window.row_step
    columns = np.arange(window.columns)[None, :, None] * window.column_step
    return (rows + columns + np.arange(window.groups(group))[None, None, :] * group).reshape(-1, window.groups(group))


def needed_pads(layer: layers.Layer) -> Pads:
    """How far windows reach beyond the map: what a layer states may be more (ceil_mode) than any window reads."""
    if not isinstance(layer, layers.Conv | layers.MaxPool | layers.AveragePool):
        return (0, 0, 0, 0)
    dilations = (1, 1) if isinstance(layer, layers.AveragePool) else layer.dilations
    after = []
    for axis in range(2):
        reach = (layer.output.shape[1 + axis] - 1) * layer.strides[axis] + (layer.kernel[axis] - 1) * dilations[axis]
        after.append(max(0, reach + 1 - layer.pads[axis] - layer.input.shape[1 + axis]))
    return (layer.pads[0], layer.pads[1], after[0], after[1])


def _regions(layer: layers.MaxPool | layers.AveragePool) -> tuple[layers.PoolRegion, ...]:
    if isinstance(layer, layers.AveragePool):
        return layer.regions
    _, height, width = layer.output.shape
    return (layers.PoolRegion(0, 0, height, width, 0, 0, 0),)


def _in_words(strides: Map, size: int) -> Map:
    """Strides in activations, `size` of which are a word."""
    return Map(strides.row // size, strides.pixel // size)


def _at(place: Place) -> tuple[str, int]:
    return place.buffer, place.origin
