"""Second phase: how each tensor lies in the activation memory. This is the only owner of layouts.

Rules:
    - An axis that a layer reads with even stride is split by parity (polyphase); other layers read such a tensor in
      one sweep for each parity, so no layer ever needs a copy in another layout.
    - The pitch covers the widest walk over the tensor.
    - A second operand is read at the array's own positions: it has the phases and the pitch of the array's input.
    - Phases of a network input with few channels are packed as further channels when all readers are convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.fpga.fold import Operation, is_whole_map
from backends.fpga.geometry import Walk, conflicts, sweeps
from backends.layers import AveragePool, Concat, Conv, LayerGraph, MaxPool, Pad, Pair, Resize, Tensor
from hw.config import AcceleratorConfig
from hw.descriptor import TensorDescriptor

TAP_CHANNELS = 64
"""A tap can start at channels below this."""


@dataclass(frozen=True)
class MapLayout:
    """Placement of a tensor relative to its base.

    Channel c of pixel (y, x) is byte c % Q of word c // Q * plane + row(y) + column(x); packed phases add
    their number times the channels to c instead of a word offset.

    Attributes:
        tensor: What is placed.
        phases: (py, px), 1 where the axis is split by parity.
        phase_steps: (phase_y, phase_x), words from phase 0 to phase 1; 0 when packed.
        pitch: Words from one row of a phase to the next.
        plane: Words from one group of Q channels to the next.
        words: Extent.
        packed: Phases are further channels.
    """

    tensor: Tensor
    phases: Pair
    phase_steps: Pair
    pitch: int
    plane: int
    words: int
    packed: bool = False

    def row(self, y: int) -> int:
        """Word offset of a row."""
        return (y & self.phases[0]) * self.phase_steps[0] + (y >> self.phases[0]) * self.pitch

    def column(self, x: int) -> int:
        """Word offset of a column."""
        return (x & self.phases[1]) * self.phase_steps[1] + (x >> self.phases[1])

    def channel(self, y: int, x: int) -> int:
        """Channel at which a pixel's own channel 0 is stored."""
        if not self.packed:
            return 0
        return self.tensor.shape[0] * ((y & self.phases[0]) * (1 + self.phases[1]) + (x & self.phases[1]))

    def descriptor(self, base: int, rows: int) -> TensorDescriptor:
        """What the host needs to send or receive the tensor."""
        channels, height, width = self.tensor.shape
        bases, byte = [0] * 4, [0] * 4
        for y in range(1 + self.phases[0]):
            for x in range(1 + self.phases[1]):
                channel = self.channel(y, x)
                phase = y * self.phase_steps[0] + x * self.phase_steps[1]
                bases[2 * y + x] = base + phase + channel // rows * self.plane
                byte[2 * y + x] = channel % rows
        phases = 2 * self.phases[0] + self.phases[1]
        return TensorDescriptor(_four(bases), self.plane, self.pitch, width, height, channels, _four(byte), phases)


def _four(values: list[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d


@dataclass(frozen=True)
class Layouts:
    """The layout of every stored tensor, or the operations that must not be fused for one to exist."""

    maps: Mapping[str, MapLayout]
    unfuse: frozenset[str] = frozenset()


def plan(graph: LayerGraph, operations: tuple[Operation, ...], config: AcceleratorConfig) -> Layouts:
    """Choose a layout for each stored tensor."""
    phases = _phases(graph, operations)
    if unfuse := frozenset(op.name for op in operations if _operand_misplaced(op, phases)):
        return Layouts({}, unfuse)
    pitches = _pitches(graph, operations, phases)
    maps: dict[str, MapLayout] = {}
    for tensor in graph.inputs:
        packed = _can_pack(tensor, graph, phases[tensor.name], config)
        maps[tensor.name] = _map_layout(tensor, phases[tensor.name], pitches[tensor.name], config, packed=packed)
    for op in operations:
        tensor = op.output
        plain = _map_layout(tensor, phases[tensor.name], pitches[tensor.name], config)
        maps[tensor.name] = _without_conflicts(op, plain, maps, config)
    return Layouts(maps)


def strides_of(operation: Operation) -> Pair:
    """Of the walk over the source."""
    return operation.base.strides if isinstance(operation.base, Conv | MaxPool | AveragePool) else (1, 1)


def grid_of(operation: Operation) -> Pair:
    """(height, width) of what one set of walks computes; a Resize repeats it."""
    base = operation.base
    return base.input.shape[1:] if isinstance(base, Resize) else operation.output.shape[1:]


def reads_positions(operation: Operation) -> bool:
    """False for operations that read single pixels or whole maps, whatever the pitch."""
    base = operation.base
    if isinstance(base, AveragePool):
        return not base.is_global
    return not (isinstance(base, Conv) and is_whole_map(base))


def whole_walk(operation: Operation, layout: MapLayout) -> Iterator[Walk]:
    """The walks of an operation that is not split into tiles."""
    strides, grid = strides_of(operation), grid_of(operation)
    for y in sweeps(0, grid[0], strides[0], layout.phases[0]):
        for x in sweeps(0, grid[1], strides[1], layout.phases[1]):
            yield Walk(y, x, layout.pitch)


class _Classes:
    """Disjoint sets of tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        parent = self._parent.get(name, name)
        return name if parent == name else self.find(parent)

    def join(self, a: str, b: str) -> None:
        self._parent[self.find(a)] = self.find(b)


def _stored(graph: LayerGraph, operations: tuple[Operation, ...]) -> tuple[Tensor, ...]:
    return (*graph.inputs, *(op.output for op in operations))


def _aligned(operation: Operation) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of tensors that the array and the post-processor read at the same positions."""
    source = operation.sources[0]
    if operation.operand is not None and not operation.broadcast and reads_positions(operation):
        yield source, operation.operand
    if isinstance(operation.base, Concat):
        for part in operation.sources[1:]:
            yield source, part


def _phases(graph: LayerGraph, operations: tuple[Operation, ...]) -> dict[str, Pair]:
    """(py, px) of every stored tensor: what even strides want, spread over tensors that must agree."""
    tensors = _stored(graph, operations)
    split = {t.name: [0, 0] for t in tensors}
    classes = (_Classes(), _Classes())
    for op in operations:
        for axis in (0, 1):
            stride, count = strides_of(op)[axis], grid_of(op)[axis]
            if stride % 2 == 0 and count > 1 and reads_positions(op):
                split[op.sources[0].name][axis] = 1
            if stride == 1:
                for a, b in _aligned(op):
                    classes[axis].join(a.name, b.name)
    for axis in (0, 1):
        wanted = {classes[axis].find(t.name) for t in tensors if split[t.name][axis]}
        for tensor in tensors:
            split[tensor.name][axis] = int(classes[axis].find(tensor.name) in wanted)
    return {name: (y, x) for name, (y, x) in split.items()}


def _operand_misplaced(op: Operation, phases: Mapping[str, Pair]) -> bool:
    """Whether a fused operation's second operand cannot be read at the array's positions."""
    if op.operand is None or op.broadcast or not reads_positions(op):
        return False
    for axis in (0, 1):
        stride, count = strides_of(op)[axis], grid_of(op)[axis]
        source, operand = phases[op.sources[0].name][axis], phases[op.operand.name][axis]
        fits = stride == 1 or (stride == 2 and source == 1 and operand == 0)
        if count > 1 and not fits:
            return True
    return False


def _pitches(graph: LayerGraph, operations: tuple[Operation, ...], phases: Mapping[str, Pair]) -> dict[str, int]:
    """Pitch of every stored tensor: its own width and the widest walk over it, equal where tensors must agree."""
    tensors, classes = _stored(graph, operations), _Classes()
    widths = {t.name: -(-t.shape[2] // (1 + phases[t.name][1])) for t in tensors}
    for op in operations:
        for a, b in _aligned(op):
            classes.join(a.name, b.name)
        if reads_positions(op):
            for source in op.sources:
                found = sweeps(0, grid_of(op)[1], strides_of(op)[1], phases[source.name][1])
                widths[source.name] = max(widths[source.name], *(sweep.size for sweep in found))
    widest: dict[str, int] = {}
    for tensor in tensors:
        key = classes.find(tensor.name)
        widest[key] = max(widest.get(key, 0), widths[tensor.name])
    return {t.name: widest[classes.find(t.name)] for t in tensors}


def _can_pack(tensor: Tensor, graph: LayerGraph, phases: Pair, config: AcceleratorConfig) -> bool:
    """Whether phases as channels save words, and every reader can select them."""
    count = (1 + phases[0]) * (1 + phases[1])
    channels = tensor.shape[0]
    groups = -(-channels // config.rows)
    saves = -(-channels * count // config.rows) < groups * count
    dense = all(isinstance(layer, Conv) and not layer.is_depthwise for layer in graph.consumers(tensor))
    return saves and dense and (count - 1) * channels < TAP_CHANNELS


def _map_layout(
    tensor: Tensor, phases: Pair, pitch: int, config: AcceleratorConfig, *, packed: bool = False, spare: Pair = (0, 0)
) -> MapLayout:
    """Phases one after another, each with all its channel groups; `spare` words lie between (rows, columns) phases."""
    channels, height, _ = tensor.shape
    plane = pitch * -(-height // (1 + phases[0]))
    if packed:
        count = (1 + phases[0]) * (1 + phases[1])
        words = -(-channels * count // config.rows) * plane
        return MapLayout(tensor, phases, (0, 0), pitch, plane, words, packed=True)
    size = _channel_groups(tensor, config) * plane
    phase_x = size + spare[1] if phases[1] else 0
    half = phase_x + size
    phase_y = half + spare[0] if phases[0] else 0
    return MapLayout(tensor, phases, (phase_y, phase_x), pitch, plane, phase_y + half)


def _channel_groups(tensor: Tensor, config: AcceleratorConfig) -> int:
    """Words for each pixel; fully connected layers write whole weight words' worth of them."""
    groups = -(-tensor.shape[0] // config.rows)
    if tensor.shape[1:] == (1, 1) and groups > config.block_lanes:
        return -(-groups // config.block_lanes) * config.block_lanes
    return groups


def _without_conflicts(
    op: Operation, plain: MapLayout, maps: Mapping[str, MapLayout], config: AcceleratorConfig
) -> MapLayout:
    """Move the phases apart until two lanes can be drained in each cycle, if that is possible."""
    if not any(plain.phases) or not reads_positions(op) or isinstance(op.base, Pad | Concat | Resize):
        return plain
    walks = list(whole_walk(op, maps[op.sources[0].name]))
    spares = [(y, x) for y in range(config.pixels) for x in range(config.pixels)]
    for spare in sorted(spares, key=lambda s: 2 * s[1] + s[0]):
        y, x = spare
        if (y and not plain.phases[0]) or (x and not plain.phases[1]):
            continue
        layout = _map_layout(plain.tensor, plain.phases, plain.pitch, config, spare=(y, x))
        if not any(conflicts(walk, *offsets(walk, layout), config.pixels) for walk in walks):
            return layout
    return plain


def offsets(
    walk: Walk, layout: MapLayout, spread: Pair = (1, 1), shift: Pair = (0, 0)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Word offsets of the rows and columns that a walk computes: outputs times `spread` plus `shift`."""
    rows = [layout.row(y * spread[0] + shift[0]) for y in walk.y.outputs]
    columns = [layout.column(x * spread[1] + shift[1]) for x in walk.x.outputs]
    return np.array(rows, np.int64), np.array(columns, np.int64)
