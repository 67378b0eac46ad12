"""Exact cycle counts of the accelerator, and the pipeline stages they come from.

A slot enters the pipeline at stage 0 (the cycle in which the weight memory sees its address) and is at stage k, k
cycles later. The numbers below are the stages at which something becomes valid; the RTL is built from them.
"""

from collections.abc import Mapping, Sequence

from hw.config import AcceleratorConfig
from hw.elementwise import Elementwise as ElementwiseUnit
from hw.isa import Elementwise, Mode, instruction_layout
from hw.multiplier import Multiplier
from hw.requantize import Requantize
from hw.table import Table

MEMORY_LATENCY = 2
"""Of every memory: a registered address inside the block and a registered output."""

WEIGHT_STAGE = MEMORY_LATENCY
META_STAGE = WEIGHT_STAGE + 1
TAP_ADDRESS_STAGE = META_STAGE + 1
TAP_STAGE = TAP_ADDRESS_STAGE + MEMORY_LATENCY
CHANNEL_STAGE = TAP_STAGE + 1
PLANE_STAGE = CHANNEL_STAGE + Multiplier.LATENCY
ADDRESS_STAGE = PLANE_STAGE + 1
BANK_STAGE = ADDRESS_STAGE + 1
DATA_STAGE = BANK_STAGE + MEMORY_LATENCY
ROTATE_STAGES = 2
LANE_STAGE = DATA_STAGE + ROTATE_STAGES
OPERAND_STAGE = LANE_STAGE + 1
PRODUCT_STAGE = OPERAND_STAGE + Multiplier.LATENCY
HOLD_STAGE = PRODUCT_STAGE + 1

POSITION_STAGE = LANE_STAGE - 1
"""The positions of a group's lanes are compared with the tap's bounds here."""

MIN_SLOTS = 5
"""Cycles in which the next weight stream's start and count are fetched and prepared."""

_DISPATCH_TO_SLOT = 6
_OPERAND_HOLD = HOLD_STAGE - OPERAND_STAGE


def start_cycles(config: AcceleratorConfig) -> int:
    """From the dispatch of an instruction to its first slot: fetch a stream's start, walk the first group's lanes."""
    return max(_DISPATCH_TO_SLOT, config.pixels // config.drain_lanes + 2 - POSITION_STAGE)


def overlap_cycles(config: AcceleratorConfig) -> int:
    """By how much an instruction's dispatch may precede the end of the one before: up to its first activation read."""
    return start_cycles(config) + BANK_STAGE


def drain_cycles(config: AcceleratorConfig, fields: Mapping[str, int]) -> int:
    """Cycles in which one group leaves the accumulators."""
    if fields["mode"] == Mode.FULLY_CONNECTED:
        return config.block_lanes
    return config.pixels if fields["single_drain"] else config.pixels // config.drain_lanes


def has_operand(fields: Mapping[str, int]) -> bool:
    """A second operand is read once for each group."""
    return fields["elementwise"] in (Elementwise.ADD, Elementwise.MUL)


def minimum_slots(config: AcceleratorConfig, fields: Mapping[str, int]) -> int:
    """Least slots of a group, whatever its weight stream: the drain of the group before must be over."""
    hold = _OPERAND_HOLD if fields["elementwise"] else 0
    return max(MIN_SLOTS, drain_cycles(config, fields) + hold)


def post_cycles(fields: Mapping[str, int]) -> int:
    """From a drained accumulator to the write of its result."""
    long = bool(fields["elementwise"] or fields["use_table"])
    tail = ElementwiseUnit.LATENCY + Table.LATENCY if long else 0
    return Requantize.LATENCY + tail + (1 if fields["reduce"] else 0)


def gap_cycles(config: AcceleratorConfig, fields: Mapping[str, int]) -> int:
    """From the last slot of an instruction to the dispatch of the next."""
    last_write = HOLD_STAGE + drain_cycles(config, fields) + post_cycles(fields)
    return max(PRODUCT_STAGE, last_write + 1 - overlap_cycles(config))


def instruction_cycles(config: AcceleratorConfig, fields: Mapping[str, int], counts: Sequence[int]) -> int:
    """From an instruction's dispatch to the end of its last write; what the accelerator's counters show.

    Args:
        config: The accelerator.
        fields: The instruction.
        counts: Slots of the weight stream of each block of output channels, before the operand's.
    """
    least, operand = minimum_slots(config, fields), int(has_operand(fields))
    slots = fields["groups"] * sum(max(count + operand, least) for count in counts)
    return start_cycles(config) + slots - 1 + gap_cycles(config, fields) + overlap_cycles(config)


def program_cycles(config: AcceleratorConfig, instructions: Sequence[int]) -> int:
    """From the start register to done, for consecutive instructions of these lengths; the CYCLES register."""
    overlap = overlap_cycles(config)
    return fetch_cycles(config) + sum(instructions) - overlap * (len(instructions) - 1)


def fetch_cycles(config: AcceleratorConfig) -> int:
    """From the start register to the first dispatch."""
    return -(-instruction_layout(config).width // 32) + MEMORY_LATENCY + 2
