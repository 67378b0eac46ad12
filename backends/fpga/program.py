"""All phases in a row: a LayerGraph becomes a Program."""

from __future__ import annotations

from dataclasses import dataclass

from backends.fpga.allocate import allocate, peak_words
from backends.fpga.assemble import assemble
from backends.fpga.fold import Operation, flatten_inputs, fold
from backends.fpga.layout import Layouts, plan
from backends.fpga.schedule import Options, schedule
from backends.fpga.steps import Step
from backends.layers import LayerGraph
from hw.config import AcceleratorConfig
from sim.program import InstructionInfo, LayerInfo, Program


@dataclass(frozen=True, eq=False)
class Plan:
    """A scheduled graph that has no addresses yet.

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


def build_program(graph: LayerGraph, config: AcceleratorConfig, options: Options | None = None) -> Program:
    """Compile a graph for an accelerator.

    Raises:
        DoesNotFitError: The accelerator's memories or fields are too small; it names the layer.
    """
    return place(make_plan(graph, config, options), config)


def place(planned: Plan, config: AcceleratorConfig) -> Program:
    """Give a plan its addresses, and pack its images."""
    maps = planned.layouts.maps
    bases = allocate(planned.graph, planned.operations, maps, config)
    steps = [step for group in planned.steps for step in group]
    descriptors = {name: maps[name].descriptor(base, config.rows) for name, base in bases.items()}
    layers, pc = [], 0
    for op, group in zip(planned.operations, planned.steps, strict=True):
        layers.append(LayerInfo(op.name, pc, pc + len(group), op.output.name, descriptors[op.output.name]))
        pc += len(group)
    return Program(
        config=config,
        images=assemble(steps, bases, config),
        instructions=tuple(InstructionInfo(pc, step.operation, step.cycles) for pc, step in enumerate(steps)),
        layers=tuple(layers),
        inputs={t.name: descriptors[t.name] for t in planned.graph.inputs},
        outputs={t.name: descriptors[t.name] for t in planned.graph.outputs},
    )
