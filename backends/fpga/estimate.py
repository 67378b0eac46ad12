"""What a planned network costs: exact cycles, whether or not it fits the memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.base import Estimate
from backends.fpga.program import Plan
from backends.layers import macs
from hw.config import AcceleratorConfig
from hw.multiplier import OPERAND_BITS
from hw.timing import program_cycles


@dataclass(frozen=True)
class OperationCost:
    """One operation.

    Attributes:
        name: Of the operation; its last layer.
        layers: Names of the layers that it stands for.
        tensor: That it stores.
        cycles: Of its instructions, each from its dispatch to its last write; neighbours overlap by a few cycles.
        instructions: How many.
        macs: Dense multiply-accumulates.
        activation_bytes: Alive while it runs.
        multipliers: That work: array lanes times rows that have an output channel.
    """

    name: str
    layers: tuple[str, ...]
    tensor: str
    cycles: int
    instructions: int
    macs: int
    activation_bytes: int
    multipliers: int


def operation_costs(plan: Plan, config: AcceleratorConfig) -> tuple[OperationCost, ...]:
    """One row for each operation, in order of execution."""
    work = {layer.name: macs(layer) for layer in plan.graph.layers}
    return tuple(
        OperationCost(
            op.name,
            op.layers,
            op.output.name,
            sum(step.cycles for step in steps),
            len(steps),
            sum(work[name] for name in op.layers),
            words * config.rows,
            config.pixels * min(config.rows, op.output.shape[0]),
        )
        for op, steps, words in zip(plan.operations, plan.steps, plan.peak_words, strict=True)
    )


def estimate(plans: Sequence[Plan], config: AcceleratorConfig) -> Estimate:
    """The whole network, all its entries. Weight bytes are those of the streams as stored, without their flags."""
    steps = [[step for group in plan.steps for step in group] for plan in plans]
    distinct = {s.to_bytes(): s.weights.size for entry in steps for step in entry for s in step.streams}
    return Estimate(
        macs=sum(macs(layer) for plan in plans for layer in plan.graph.layers),
        weight_bytes=sum(distinct.values()),
        cycles=sum(program_cycles(config, [step.cycles for step in entry]) for entry in steps if entry),
        multipliers=multipliers(config),
    )


def multipliers(config: AcceleratorConfig) -> int:
    """Hardware multipliers of the whole accelerator: array, requantizers, second operands, and the plane address."""
    array = config.pixels * config.rows
    requantizers = config.drain_lanes * config.rows
    return array + requantizers + config.rows + -(-config.address_bits // OPERAND_BITS)
