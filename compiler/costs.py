"""Where the cycles, words and bytes of a program go: the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.layers import Conv, Layer, LayerGraph, Shape, macs
from compiler.report import LayerRow, MapEntry, MemoryUse, utilisation
from hw.config import DATA_BITS
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from sim.program import Program

COPY = "Copy"


@dataclass(frozen=True)
class Step:
    """What runs between two stored tensors.

    Attributes:
        name: Of the step.
        tensor: That it stores.
        cycles: One number for each instruction; empty where the target has no schedule.
    """

    name: str
    tensor: str
    cycles: tuple[int, ...] = ()


def steps_of(program: Program) -> tuple[Step, ...]:
    """The layers of a program, in order of execution."""
    cycles = [instruction.cycles or 0 for instruction in program.instructions]
    return tuple(Step(layer.name, layer.tensor, tuple(cycles[layer.pc_start : layer.pc_end])) for layer in program.layers)


def layer_rows(
    graph: LayerGraph, steps: Sequence[Step] = (), macs_per_cycle: int | None = None, sqnr: Mapping[str, float] | None = None
) -> tuple[LayerRow, ...]:
    """One row for each step; without steps, one for each layer.

    Args:
        sqnr: dB by tensor name.
    """
    steps = steps or [Step(layer.name, layer.output.name) for layer in graph.layers]
    members = _members(graph, steps)
    shapes = {tensor.name: tensor.shape for tensor in graph.tensors()}
    seen: set[str] = set()
    rows = []
    for step in steps:
        layers = [] if step.tensor in seen else members[step.tensor]
        seen.add(step.tensor)
        rows.append(_row(step, layers, shapes[step.tensor], macs_per_cycle, (sqnr or {}).get(step.tensor)))
    return tuple(rows)


def _row(step: Step, layers: list[Layer], shape: Shape, macs_per_cycle: int | None, sqnr: float | None) -> LayerRow:
    work = sum(macs(layer) for layer in layers)
    cycles = sum(step.cycles) if step.cycles else None
    return LayerRow(
        name=step.name,
        kind="+".join(_kind(layer) for layer in layers) or COPY,
        shape=shape,
        macs=work,
        cycles=cycles,
        utilisation=utilisation(work, cycles, macs_per_cycle),
        weight_bytes=sum(weight_bytes(layer) for layer in layers),
        instructions=len(step.cycles),
        sqnr_db=sqnr if layers else None,
    )


def _members(graph: LayerGraph, steps: Sequence[Step]) -> dict[str, list[Layer]]:
    """The layers that each stored tensor needs: its own, and those before it whose tensor is not stored."""
    stored: dict[str, list[Layer]] = {step.tensor: [] for step in steps}
    for layer in graph.layers:
        stored.setdefault(_stored_by(graph, layer, stored), []).append(layer)
    return stored


def _stored_by(graph: LayerGraph, layer: Layer, stored: Mapping[str, list[Layer]]) -> str:
    while layer.output.name not in stored:
        consumers = graph.consumers(layer.output)
        if not consumers:
            break
        layer = consumers[0]
    return layer.output.name


def _kind(layer: Layer) -> str:
    if not isinstance(layer, Conv):
        return type(layer).__name__
    if layer.is_depthwise:
        return "Depthwise"
    return "FullyConnected" if layer.output.shape[1:] == (1, 1) and layer.kernel == layer.input.shape[1:] else "Conv"


def weight_bytes(layer: Layer) -> int:
    """Dense int8 weights."""
    return int(layer.weights.size) if isinstance(layer, Conv) else 0


def memory_uses(program: Program) -> tuple[MemoryUse, ...]:
    """Words of every memory of the accelerator."""
    config = program.config
    places = [*program.inputs.values(), *(layer.descriptor for layer in program.layers)]
    used = max((_extent(place, config.rows)[1] for place in places), default=0)
    uses = [MemoryUse("activations", used, config.activation_words, DATA_BITS * config.rows)]
    for memory in Memory:
        if memory is not Memory.TENSOR:
            words, bits = memory_shape(config, memory)
            uses.append(MemoryUse(_PLURAL[memory], len(program.images.get(memory, ())), words, bits))
    return tuple(uses)


_PLURAL = {
    Memory.WEIGHT: "weights",
    Memory.PARAMETER: "parameters",
    Memory.BLOCK: "blocks",
    Memory.TAP: "taps",
    Memory.TABLE: "tables",
    Memory.PROGRAM: "instructions",
}


def activation_map(graph: LayerGraph, program: Program) -> tuple[MapEntry, ...]:
    """Every stored tensor: its words, and the steps from its first write to its last read."""
    steps = steps_of(program)
    members = _members(graph, steps)
    entries: dict[str, MapEntry] = {}
    for name, place in program.inputs.items():
        entries[name] = _entry(name, place, -1, program)
    copies: list[MapEntry] = []
    for index, layer in enumerate(program.layers):
        if layer.tensor in entries:  # a copy in another layout
            copies.append(_entry(layer.name, layer.descriptor, index, program))
            continue
        entries[layer.tensor] = _entry(layer.tensor, layer.descriptor, index, program)
        for tensor in {t.name for member in members[layer.tensor] for t in member.inputs} & set(entries):
            entries[tensor] = replace(entries[tensor], last=index)
    for name in program.outputs:
        if name in entries:
            entries[name] = replace(entries[name], last=len(steps))
    return (*entries.values(), *copies)


def _entry(name: str, place: TensorDescriptor, step: int, program: Program) -> MapEntry:
    first, end = _extent(place, program.config.rows)
    return MapEntry(name, first, end - first, step, step)


def _extent(place: TensorDescriptor, rows: int) -> tuple[int, int]:
    """First word of a tensor, and one past its last."""
    words = place.addresses(rows)[0]
    return int(np.min(words)), int(np.max(words)) + 1
