"""All phases in a row: a LayerGraph, or several that the host enters in turn, become a Program."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from backends.base import DoesNotFitError
from backends.fpga.allocate import allocate, needed_words, peak_words
from backends.fpga.assemble import Section, assemble
from backends.fpga.fold import Operation, flatten_inputs, fold
from backends.fpga.layout import Layouts, plan
from backends.fpga.schedule import Options, schedule
from backends.fpga.steps import Step
from backends.layers import LayerGraph
from hw.config import AcceleratorConfig
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from sim.program import Entry, InstructionInfo, LayerInfo, Program

_ROOMY = 1 << 20
"""Words of a memory that is large enough to find out what is needed."""
MEMORY_NAMES = {
    Memory.WEIGHT: "weights",
    Memory.PARAMETER: "parameters",
    Memory.BLOCK: "blocks",
    Memory.TAP: "taps",
    Memory.TABLE: "tables",
    Memory.PROGRAM: "instructions",
}
"""Names of the memories in reports and in the option --memory."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A scheduled graph that has no addresses yet: one entry of a program.

    Attributes:
        graph: With input maps as they are stored.
        operations: In order of execution.
        layouts: Of every stored tensor.
        steps: For each operation, its instructions.
        peak_words: For each operation, activation words alive while it runs.
    """

    graph: LayerGraph
    operations: tuple[Operation, ...]
    layouts: Layouts
    steps: tuple[tuple[Step, ...], ...]
    peak_words: tuple[int, ...]


def make_plan(graph: LayerGraph, config: AcceleratorConfig, options: Options | None = None) -> Plan:
    """Fold, lay out and schedule; exact cycles, whether or not the memories are large enough."""
    graph = flatten_inputs(graph)
    unfused: frozenset[str] = frozenset()
    while True:
        operations = fold(graph, unfused)
        layouts = plan(graph, operations, config)
        if not layouts.unfuse:
            break
        unfused |= layouts.unfuse
    steps = tuple(schedule(op, layouts.maps, config, options or Options()) for op in operations)
    return Plan(graph, operations, layouts, steps, peak_words(graph, operations, layouts.maps))


def build_program(
    graph: LayerGraph | Sequence[LayerGraph], config: AcceleratorConfig, options: Options | None = None
) -> Program:
    """Compile a graph for an accelerator, or several that the host enters one after the other.

    Raises:
        DoesNotFitError: The accelerator's memories or fields are too small; it names the layer.
    """
    graphs = [graph] if isinstance(graph, LayerGraph) else graph
    return place([make_plan(graph, config, options) for graph in graphs], config)


def place(plans: Sequence[Plan], config: AcceleratorConfig) -> Program:
    """Give plans their addresses, and pack the images that they share.

    The plans are entries of one program. Each has the activation memory to itself; equal weights, parameters, taps and
    tables are stored once for all of them.

    Raises:
        DoesNotFitError: It names the first layer that does not fit, and all memories that must grow.
    """
    try:
        return _place(plans, config)
    except DoesNotFitError as error:
        if sizes := _lacking(plans, config):
            told = ",".join(f"{name}={size}" for name, size in sizes.items())
            error.add_note(f"remedy: --memory {told} (as it is, or added to yours), or a smaller network or input")
        raise


def _lacking(plans: Sequence[Plan], config: AcceleratorConfig) -> dict[str, int]:
    """Sizes that --memory must name so that the plans fit: activations and weights in bytes, others in words."""
    needed = max(needed_words(plan.graph, plan.operations, plan.layouts.maps) for plan in plans)
    needed = -(-needed // config.pixels) * config.pixels
    sizes = {"activations": needed * config.word_bits // 8} if needed > config.activation_words else {}
    roomy = replace(
        config,
        activation_words=max(needed, config.activation_words),
        weight_words=_ROOMY,
        parameter_words=_ROOMY,
        block_words=_ROOMY,
        tap_words=_ROOMY,
        table_words=_ROOMY,
        instructions=_ROOMY,
    )
    try:
        images = _place(plans, roomy).images
    except DoesNotFitError:  # a field is too narrow: no memory helps
        return {}
    for memory, name in MEMORY_NAMES.items():
        depth, bits = memory_shape(config, memory)
        words = len(images[memory])
        if words > depth:
            per_size = {Memory.WEIGHT: bits / 8, Memory.TABLE: 1 / 256}.get(memory, 1)
            sizes[name] = math.ceil(words * per_size)
    return sizes


def _place(plans: Sequence[Plan], config: AcceleratorConfig) -> Program:
    sections: list[Section] = []
    layers: list[LayerInfo] = []
    entries: list[Entry] = []
    for planned in plans:
        maps, start = planned.layouts.maps, sum(len(section.steps) for section in sections)
        bases = allocate(planned.graph, planned.operations, maps, config)
        places = {name: maps[name].descriptor(base, config.rows) for name, base in bases.items()}
        sections.append(Section(tuple(step for group in planned.steps for step in group), bases))
        layers += _layers(planned, places, start)
        inputs, outputs = ({t.name: places[t.name] for t in ts} for ts in (planned.graph.inputs, planned.graph.outputs))
        entries.append(Entry(start, start + len(sections[-1].steps), inputs, outputs))
    steps = [step for section in sections for step in section.steps]
    return Program(
        config=config,
        images=assemble(sections, config),
        instructions=tuple(InstructionInfo(pc, step.operation, step.cycles) for pc, step in enumerate(steps)),
        layers=tuple(layers),
        entries=tuple(entries),
    )


def _layers(planned: Plan, places: Mapping[str, TensorDescriptor], pc: int) -> Iterator[LayerInfo]:
    """The layers of an entry that begins at instruction `pc`."""
    for op, group in zip(planned.operations, planned.steps, strict=True):
        yield LayerInfo(op.name, pc, pc + len(group), op.output.name, places[op.output.name])
        pc += len(group)
