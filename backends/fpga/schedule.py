"""Third phase: operations to steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backends.base import DoesNotFitError
from backends.fpga.fold import Operation, is_whole_map
from backends.fpga.geometry import Affine, Walk, conflicts, fit, sweeps
from backends.fpga.layout import MapLayout, grid_of, offsets, strides_of
from backends.fpga.steps import Parameters, Step, Tap, post_fields
from backends.fpga.streams import (
    Stream,
    dense_streams,
    depthwise_streams,
    one_hot_streams,
    ones_stream,
    wide_streams,
    without_empty_taps,
)
from backends.layers import AveragePool, Concat, Conv, MaxPool, Pad, Pair, PRelu, Resize, Tensor
from hw.config import AcceleratorConfig
from hw.isa import Mode
from hw.timing import instruction_cycles

STEP_LIMIT = 15
"""Largest `out_step`, `drop_x` and `drop_y`."""


@dataclass(frozen=True)
class Options:
    """How to schedule.

    Attributes:
        dense: Store and execute zero weights like any others.
        tile_rows: Most output rows of one instruction; 0 sets no limit.
    """

    dense: bool = False
    tile_rows: int = 0


@dataclass(frozen=True, eq=False)
class _Kernel:
    """What the array does at every position of a walk.

    Attributes:
        mode: Of the array.
        taps: (tensor, y, x) relative to the walk's source position, one for each stream tap.
        streams: As in Step.
        parameters: As in Step.
        zero_point, low, high: Of the requantization.
        pad_value: Of positions outside the map.
        maximum: Keep the largest product instead of the sum.
        spread: Outputs per walked output (Resize).
        target_words: Word offset of the results' first channel.
    """

    mode: Mode
    taps: tuple[tuple[Tensor, int, int], ...]
    streams: tuple[Stream, ...]
    parameters: Parameters
    zero_point: int = 0
    low: int = -128
    high: int = 127
    pad_value: int = 0
    maximum: bool = False
    spread: Pair = (1, 1)
    target_words: int = 0
    channels: int = 0


def schedule(
    operation: Operation, layouts: Mapping[str, MapLayout], config: AcceleratorConfig, options: Options
) -> tuple[Step, ...]:
    """The instructions of one operation.

    Raises:
        DoesNotFitError: A field of the instruction is too narrow.
    """
    scheduler = _Scheduler(operation, layouts, config, options)
    return tuple(scheduler.steps())


@dataclass(frozen=True)
class _Scheduler:
    """One operation and what its steps depend on."""

    operation: Operation
    layouts: Mapping[str, MapLayout]
    config: AcceleratorConfig
    options: Options
    post: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "post", post_fields(self.operation))

    @property
    def output(self) -> MapLayout:
        return self.layouts[self.operation.output.name]

    def steps(self) -> Iterator[Step]:
        """Dispatch on what feeds the array."""
        match self.operation.base:
            case Conv() as layer:
                yield from self._conv(layer)
            case AveragePool() as layer if layer.is_global:
                yield self._global_pool(layer)
            case AveragePool() as layer:
                yield from self._average_pool(layer)
            case MaxPool() as layer:
                yield from self._walks(self._max_pool(layer), ((0, 0), grid_of(self.operation)))
            case Concat() as layer:
                yield from self._concat(layer)
            case Resize() as layer:
                kernel = replace(self._copy(layer.input), spread=layer.factors)
                yield from self._walks(kernel, ((0, 0), grid_of(self.operation)))
            case Pad() as layer:
                yield from self._walks(self._padded(layer), ((0, 0), grid_of(self.operation)))
            case Tensor() as tensor:
                yield from self._walks(self._copy(tensor), ((0, 0), grid_of(self.operation)))

    # What the array does.

    def _conv(self, layer: Conv) -> tuple[Step, ...]:
        whole = ((0, 0), grid_of(self.operation))
        steps = tuple(self._walks(self._conv_kernel(layer), whole))
        if not is_whole_map(layer):
            return steps
        if not self._can_be_wide():
            return steps
        wide = self._fully_connected(layer)
        return (wide,) if wide.cycles < sum(step.cycles for step in steps) else steps

    def _conv_kernel(self, layer: Conv) -> _Kernel:
        mode, config = Mode.CONV, self.config
        if layer.is_depthwise:
            mode = Mode.DEPTHWISE
            streams = depthwise_streams(layer.weights.reshape(len(layer.weights), -1), config.rows)
            taps = tuple(range(layer.weights[0].size))
            if not self.options.dense:
                streams, taps = without_empty_taps(streams)
        else:
            streams, taps = dense_streams(layer, config.rows, keep_zeros=self.options.dense)
        r = layer.requantize
        return _Kernel(
            mode,
            tuple((layer.input, *tap) for tap in _kernel_taps(layer.kernel, layer.dilations, layer.pads, taps)),
            streams,
            self._with_slope(r.multiplier, r.shift, r.offset),
            zero_point=r.zero_point,
            low=r.low,
            high=r.high,
            pad_value=layer.input.zero_point,
            channels=len(layer.weights),
        )

    def _max_pool(self, layer: MaxPool) -> _Kernel:
        taps = _kernel_taps(layer.kernel, layer.dilations, layer.pads)
        return replace(
            self._copy(layer.input),
            taps=tuple((layer.input, *tap) for tap in taps),
            streams=ones_stream(len(taps), self.config.rows),
            pad_value=-128,
            maximum=True,
        )

    def _average_pool(self, layer: AveragePool) -> Iterator[Step]:
        taps = _kernel_taps(layer.kernel, (1, 1), layer.pads)
        for region in layer.regions:
            kernel = _Kernel(
                Mode.DEPTHWISE,
                tuple((layer.input, *tap) for tap in taps),
                ones_stream(len(taps), self.config.rows),
                self._with_slope(*_scalars(region.multiplier, region.shift, region.offset)),
                zero_point=layer.output.zero_point,
                low=layer.low,
                high=layer.high,
                pad_value=layer.input.zero_point,
                channels=layer.output.shape[0],
            )
            yield from self._walks(kernel, ((region.top, region.left), (region.bottom, region.right)))

    def _copy(self, tensor: Tensor) -> _Kernel:
        """Every value passes through unchanged."""
        return _Kernel(
            Mode.DEPTHWISE,
            ((tensor, 0, 0),),
            ones_stream(1, self.config.rows),
            self._with_slope(*_scalars(1, 0, 0)),
            channels=tensor.shape[0],
        )

    def _padded(self, layer: Pad) -> _Kernel:
        top, left = layer.pads[:2]
        return replace(self._copy(layer.input), taps=((layer.input, -top, -left),), pad_value=layer.value)

    def _concat(self, layer: Concat) -> tuple[Step, ...]:
        """Copies where parts begin at a word, or one convolution with one-hot weights: the faster."""
        whole = ((0, 0), grid_of(self.operation))
        dense = tuple(self._walks(self._one_hot(layer), whole)) if len(layer.parts) > 1 else ()
        if not _parts_aligned(layer, self.config.rows):
            return dense
        copies = tuple(step for kernel in self._part_copies(layer) for step in self._walks(kernel, whole))
        faster = not dense or sum(s.cycles for s in copies) <= sum(s.cycles for s in dense)
        return copies if faster else dense

    def _part_copies(self, layer: Concat) -> Iterator[_Kernel]:
        group = 0
        for part, multiplier, shift in zip(layer.parts, layer.multipliers, layer.shifts, strict=True):
            yield replace(
                self._copy(part),
                parameters=Parameters(*_scalars(multiplier, shift, -part.zero_point * multiplier)),
                zero_point=layer.output.zero_point,
                target_words=group * self.output.plane,
            )
            group += part.shape[0] // self.config.rows

    def _one_hot(self, layer: Concat) -> _Kernel:
        sizes = [part.shape[0] for part in layer.parts]
        scale = [
            np.repeat(np.array(values, np.int64), sizes)
            for values in (
                layer.multipliers,
                layer.shifts,
                [-p.zero_point * m for p, m in zip(layer.parts, layer.multipliers, strict=True)],
            )
        ]
        return _Kernel(
            Mode.CONV,
            tuple((part, 0, 0) for part in layer.parts),
            one_hot_streams(sizes, self.config.rows),
            Parameters(*scale),
            zero_point=layer.output.zero_point,
            channels=sum(sizes),
        )

    # Instructions that are no walk.

    def _global_pool(self, layer: AveragePool) -> Step:
        """All pixels in as few fetches as their runs of consecutive words allow; lanes are summed at the end."""
        config, layout = self.config, self.layouts[layer.input.name]
        taps = tuple(
            Tap(layer.input.name, start, 0, (0, length), (0, 1)) for start, length in _pixel_runs(layout, config.pixels)
        )
        region = layer.regions[0]
        fields = {
            "mode": int(Mode.DEPTHWISE),
            "reduce": 1,
            "zero_point": layer.output.zero_point,
            "low": layer.low,
            "high": layer.high,
            "groups": 1,
            "pitch": config.pixels,
            "columns": config.pixels,
            "rows": 1,
            "in_plane": layout.plane,
            "block_step": layout.plane,
        }
        parameters = Parameters(*_scalars(region.multiplier, region.shift, region.offset))
        streams = ones_stream(len(taps), config.rows)
        return self._step(fields, layer.input, 0, taps, streams, parameters, layer.output.shape[0])

    def _can_be_wide(self) -> bool:
        """Lanes of a fully connected layer write a word each, and read one word of the operand each."""
        operand = self.operation.operand
        aligned = operand is None or self.layouts[operand.name].plane == 1
        return aligned and self.output.plane <= STEP_LIMIT

    def _fully_connected(self, layer: Conv) -> Step:
        config, layout = self.config, self.layouts[layer.input.name]
        streams, kept = wide_streams(layer, config.rows, config.block_lanes, keep_zeros=self.options.dense)
        size = (1 << config.coordinate_bits) - 1
        taps = tuple(
            Tap(layer.input.name, layout.row(y) + layout.column(x), layout.channel(y, x), (0, size), (0, size))
            for y, x in (divmod(tap, layer.kernel[1]) for tap in kept)
        )
        r = layer.requantize
        groups = -(-len(layer.weights) // config.rows)
        lanes = min(groups, config.block_lanes)
        fields = {
            "mode": int(Mode.FULLY_CONNECTED),
            "zero_point": r.zero_point,
            "low": r.low,
            "high": r.high,
            "pad_value": layer.input.zero_point,
            "groups": 1,
            "pitch": config.pixels,
            "columns": lanes,
            "rows": 1,
            "in_plane": layout.plane,
            "out_plane": config.block_lanes * self.output.plane,
            "out_step": self.output.plane,
            "single_drain": 1,
        }
        if self.operation.operand is not None:
            fields["operand_plane"] = config.block_lanes * self.layouts[self.operation.operand.name].plane
        channels = len(streams) * config.block_lanes * config.rows
        parameters = _extended(self._with_slope(r.multiplier, r.shift, r.offset), channels)
        return self._step(fields, layer.input, 0, taps, streams, parameters, len(layer.weights), blocks=len(streams))

    # Walks.

    def _walks(self, kernel: _Kernel, region: tuple[Pair, Pair]) -> Iterator[Step]:
        """One step for each tile, each parity, and each repetition of a Resize."""
        for tile in self._tiles(region):
            for walk in self._walks_of(kernel, tile):
                for shift_y in range(kernel.spread[0]):
                    for shift_x in range(kernel.spread[1]):
                        yield self._walk_step(kernel, walk, (shift_y, shift_x))

    def _walks_of(self, kernel: _Kernel, region: tuple[Pair, Pair]) -> Iterator[Walk]:
        (top, left), (bottom, right) = region
        source, strides = self.layouts[kernel.taps[0][0].name], strides_of(self.operation)
        for y in sweeps(top, bottom, strides[0], source.phases[0]):
            for x in sweeps(left, right, strides[1], source.phases[1]):
                yield Walk(y, x, source.pitch)

    def _tiles(self, region: tuple[Pair, Pair]) -> Iterator[tuple[Pair, Pair]]:
        """Row tiles of a region that `tile_rows` and the width of coordinates allow."""
        (top, left), (bottom, right) = region
        largest = max(1, ((1 << self.config.coordinate_bits) - 2) // strides_of(self.operation)[0])
        rows = min(self.options.tile_rows or largest, largest)
        for first in range(top, bottom, rows):
            yield (first, left), (min(first + rows, bottom), right)

    def _walk_step(self, kernel: _Kernel, walk: Walk, shift: Pair) -> Step:
        source = kernel.taps[0][0]
        layout = self.layouts[source.name]
        rows, columns = offsets(walk, self.output, kernel.spread, shift)
        y, x = self._fit(rows, 1 << self.config.address_bits), self._fit(columns, STEP_LIMIT)
        single = self._has_long_post or (
            self.config.drain_lanes > 1 and conflicts(walk, rows, columns, self.config.pixels)
        )
        fields = {
            "mode": int(kernel.mode),
            "maximum": int(kernel.maximum),
            "single_drain": int(single),
            "pad_value": kernel.pad_value,
            "zero_point": kernel.zero_point,
            "low": kernel.low,
            "high": kernel.high,
            "groups": walk.groups(self.config.pixels),
            "in_plane": layout.plane,
            "block_step": layout.plane if kernel.mode == Mode.DEPTHWISE else 0,
            "pitch": walk.pitch,
            "columns": walk.x.size,
            "rows": walk.y.size,
            "drop_x": walk.x.drop,
            "drop_y": walk.y.drop,
            **_writer_fields(y, x),
        }
        taps = tuple(self._tap(tensor, walk, ty, tx) for tensor, ty, tx in kernel.taps)
        start = y.start + x.start + kernel.target_words
        operand = self._operand_start(walk)
        return self._step(
            fields, source, start, taps, kernel.streams, kernel.parameters, kernel.channels, operand=operand
        )

    def _tap(self, tensor: Tensor, walk: Walk, ty: int, tx: int) -> Tap:
        layout = self.layouts[tensor.name]
        _, height, width = tensor.shape
        y, x = walk.y.source(ty), walk.x.source(tx)
        return Tap(
            tensor.name,
            layout.row(y) + layout.column(x),
            layout.channel(y, x),
            walk.x.bounds(tx, width),
            walk.y.bounds(ty, height),
        )

    def _operand_start(self, walk: Walk) -> int:
        """Word of the second operand at position 0, which must lie as the array's positions do."""
        operand = self.operation.operand
        if operand is None or self.operation.broadcast:
            return 0
        rows, columns = offsets(walk, self.layouts[operand.name])
        expected = rows[0] + np.arange(walk.y.count) * walk.y.drop * walk.pitch
        assert np.array_equal(rows, expected), self.operation.name
        expected = columns[0] + np.arange(walk.x.count) * walk.x.drop
        assert np.array_equal(columns, expected), self.operation.name
        return int(rows[0] + columns[0])

    def _fit(self, addresses: NDArray[np.int64], step_limit: int) -> Affine:
        try:
            return fit(addresses.tolist(), step_limit)
        except ValueError as error:
            raise DoesNotFitError(f"layer '{self.operation.name}': {error}") from error

    @property
    def _has_long_post(self) -> bool:
        """Elementwise units and tables serve one lane per cycle."""
        return bool(self.post["elementwise"] or self.post["use_table"])

    # The common end.

    def _step(
        self,
        fields: Mapping[str, int],
        source: Tensor,
        start: int,
        taps: tuple[Tap, ...],
        streams: tuple[Stream, ...],
        parameters: Parameters,
        channels: int,
        *,
        operand: int = 0,
        blocks: int = 0,
    ) -> Step:
        blocks = blocks or -(-channels // self.config.rows)
        every = {
            "out_plane": self.output.plane,
            "drop_x": 1,
            "drop_y": 1,
            "blocks": blocks,
            "block_shared": int(len(streams) == 1),
            **self.post,
        }
        if self.operation.operand is not None:
            every["operand_plane"] = self.layouts[self.operation.operand.name].plane
        every |= dict(fields)
        _check_coordinates(self.operation, every, self.config)
        counts = [stream.count for stream in streams] * (blocks if len(streams) == 1 else 1)
        return Step(
            self.operation.name,
            every,
            source.name,
            (self.operation.output.name, start),
            taps,
            streams,
            parameters,
            None if self.operation.operand is None else (self.operation.operand.name, operand),
            None if self.operation.table is None else self.operation.table.table,
            instruction_cycles(self.config, _complete(every), counts),
        )

    def _with_slope(
        self, multiplier: NDArray[np.int64], shift: NDArray[np.int64], offset: NDArray[np.int64]
    ) -> Parameters:
        """Parameters, with the slopes of a PRelu; both for each channel, or one for all."""
        if not isinstance(self.operation.pointwise, PRelu):
            return Parameters(multiplier, shift, offset)
        slope = self.operation.pointwise.negative_multiplier
        if len(slope) > 1 and np.all(slope == slope[0]):
            slope = slope[:1]
        shape = np.broadcast_shapes(multiplier.shape, slope.shape)
        return Parameters(*(np.broadcast_to(v, shape) for v in (multiplier, shift, offset, slope)))


def _writer_fields(y: Affine, x: Affine) -> dict[str, int]:
    return {
        "out_phase_y": y.phases,
        "out_phase_x": x.phases,
        "phase_y": y.phase,
        "phase_x": x.phase,
        "out_pitch": y.step,
        "out_step": x.step,
    }


def _complete(fields: Mapping[str, int]) -> dict[str, int]:
    """With the zeros that packing implies, which the cycle model reads."""
    return {"reduce": 0, "single_drain": 0, "elementwise": 0, "use_table": 0, **fields}


def _kernel_taps(kernel: Pair, dilations: Pair, pads: tuple[int, ...], kept: tuple[int, ...] = ()) -> list[Pair]:
    """(y, x) of each kernel tap relative to the window's first input position inside the pads."""
    every = range(kernel[0] * kernel[1])
    return [
        (tap // kernel[1] * dilations[0] - pads[0], tap % kernel[1] * dilations[1] - pads[1]) for tap in kept or every
    ]


def _scalars(multiplier: int, shift: int, offset: int) -> tuple[NDArray[np.int64], ...]:
    return tuple(np.array([value], np.int64) for value in (multiplier, shift, offset))


def _extended(parameters: Parameters, channels: int) -> Parameters:
    """Zeros for the channels that only fill the last weight word; there are no slopes."""
    if len(parameters.multiplier) == 1:
        return parameters
    extra = (0, channels - len(parameters.multiplier))
    return Parameters(
        np.pad(parameters.multiplier, extra), np.pad(parameters.shift, extra), np.pad(parameters.offset, extra)
    )


def _parts_aligned(layer: Concat, rows: int) -> bool:
    return all(part.shape[0] % rows == 0 for part in layer.parts[:-1])


def _pixel_runs(layout: MapLayout, pixels: int) -> list[Pair]:
    """(first word, length) of runs of at most P consecutive words that cover a map's pixels once."""
    _, height, width = layout.tensor.shape
    words = np.sort([layout.row(y) + layout.column(x) for y in range(height) for x in range(width)])
    runs = np.split(words, np.flatnonzero(np.diff(words) != 1) + 1)
    return [(int(run[i]), min(pixels, len(run) - i)) for run in runs for i in range(0, len(run), pixels)]


def _check_coordinates(operation: Operation, fields: Mapping[str, int], config: AcceleratorConfig) -> None:
    limit = (1 << config.coordinate_bits) - 1
    for name in ("pitch", "columns", "rows"):
        if fields[name] > limit:
            error = DoesNotFitError(
                f"layer '{operation.name}': needs {name} of {fields[name]}, the accelerator counts to {limit}"
            )
            error.add_note(f"remedy: generate the accelerator with coordinate_bits={fields[name].bit_length()}")
            raise error
    for name in ("drop_x", "drop_y", "out_step"):
        if fields.get(name, 0) > STEP_LIMIT:
            raise DoesNotFitError(f"layer '{operation.name}': {name} of {fields[name]} is more than {STEP_LIMIT}")
