"""Where the cycles, words and bytes of a program go: the rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.fpga.program import MEMORY_NAMES
from backends.layers import Conv, Layer, LayerGraph, macs
from compiler.report import LayerRow, MapEntry, MemoryUse, utilisation
from hw.config import DATA_BITS
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from sim.program import Program


@dataclass(frozen=True)
class Step:
    """What runs between two stored tensors.

    Attributes:
        name: Of the step.
        layers: Names of the layers that it stands for, in order.
        tensor: That it stores.
        cycles, instructions: Of the accelerator; None and 0 where the target has no schedule.
        activation_bytes: Alive while it runs; None where nothing is allocated.
        multipliers: Of the array that work in it.
    """

    name: str
    layers: tuple[str, ...]
    tensor: str
    cycles: int | None = None
    instructions: int = 0
    activation_bytes: int | None = None
    multipliers: int | None = None


def steps_of(graph: LayerGraph) -> tuple[Step, ...]:
    """Every layer alone, for a target that fuses nothing."""
    return tuple(Step(layer.name, (layer.name,), layer.output.name) for layer in graph.layers)


def layer_rows(
    graph: LayerGraph, steps: Sequence[Step], macs_per_cycle: int | None, sqnr: Mapping[str, float]
) -> tuple[LayerRow, ...]:
    """One row for each step; `sqnr` is dB by tensor name."""
    layers = {layer.name: layer for layer in graph.layers}
    return tuple(
        _row(step, [layers[name] for name in step.layers], macs_per_cycle, sqnr.get(step.tensor)) for step in steps
    )


def _row(step: Step, layers: list[Layer], macs_per_cycle: int | None, sqnr: float | None) -> LayerRow:
    work = sum(macs(layer) for layer in layers)
    return LayerRow(
        name=step.name,
        kind="+".join(_kind(layer) for layer in layers),
        shape=layers[-1].output.shape,
        macs=work,
        cycles=step.cycles,
        utilisation=utilisation(work, step.cycles, macs_per_cycle),
        weight_bytes=sum(weight_bytes(layer) for layer in layers),
        instructions=step.instructions,
        activation_bytes=step.activation_bytes,
        multipliers=step.multipliers,
        sqnr_db=sqnr,
    )


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
    sent = [place for entry in program.entries for place in entry.inputs.values()]
    places = [*sent, *(layer.descriptor for layer in program.layers)]
    used = max((_extent(place, config.rows)[1] for place in places), default=0)
    uses = [MemoryUse("activations", used, config.activation_words, DATA_BITS * config.rows)]
    for memory in Memory:
        if memory is not Memory.TENSOR:
            words, bits = memory_shape(config, memory)
            uses.append(MemoryUse(MEMORY_NAMES[memory], len(program.images.get(memory, ())), words, bits))
    return tuple(uses)


def activation_map(
    graph: LayerGraph, steps: Sequence[Sequence[Step]], program: Program
) -> tuple[MapEntry, ...]:
    """Every stored tensor of every entry: its words, and the steps from its first write to its last read."""
    layers = {layer.name: layer for layer in graph.layers}
    total, first = sum(map(len, steps)), 0
    found: list[MapEntry] = []
    for entry, own in zip(program.entries, steps, strict=True):
        end = first + len(own)
        start, stop = (first if first else -1), (end - 1 if end < total else total)
        entries = {name: _entry(name, place, start, program) for name, place in entry.inputs.items()}
        places = {layer.tensor: layer.descriptor for layer in program.layers_of(entry)}
        for index, step in enumerate(own, start=first):
            for tensor in {t.name for name in step.layers for t in layers[name].inputs} & set(entries):
                entries[tensor] = replace(entries[tensor], last=index)
            entries[step.tensor] = _entry(step.tensor, places[step.tensor], index, program)
        for name in entry.outputs:
            entries[name] = replace(entries[name], last=stop)
        found += entries.values()
        first = end
    return tuple(found)


def _entry(name: str, place: TensorDescriptor, step: int, program: Program) -> MapEntry:
    first, end = _extent(place, program.config.rows)
    return MapEntry(name, first, end - first, step, step)


def _extent(place: TensorDescriptor, rows: int) -> tuple[int, int]:
    """First word of a tensor, and one past its last."""
    words = place.addresses(rows)[0]
    return int(np.min(words)), int(np.max(words)) + 1
