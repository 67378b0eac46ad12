"""Golden model of the sequencer: the slots of an instruction, in order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hw.config import AcceleratorConfig
from hw.isa import Mode
from hw.timing import has_operand, minimum_slots


@dataclass(frozen=True)
class Slot:
    """One cycle of the pipeline; see hw.sequencer.slot_layout.

    `weight_address` is None unless a weight is consumed.
    """

    weight: bool
    operand: bool
    group_start: bool
    first: bool
    last: bool
    block_start: bool
    block_end: bool
    instruction_start: bool
    weight_address: int | None
    base: int


def slots(
    config: AcceleratorConfig, fields: Mapping[str, int], streams: Sequence[Mapping[str, int]]
) -> Iterator[Slot]:
    """Slots of an instruction whose block b of output channels has the weight stream streams[b]."""
    operand, least = has_operand(fields), minimum_slots(config, fields)
    for block, stream in enumerate(streams):
        length = max(stream["count"] + operand, least)
        idle = length - stream["count"] - operand
        for group in range(fields["groups"]):
            for index in range(length):
                yield _slot(config, fields, stream["start"], block, group, index, idle, length)


def _slot(
    config: AcceleratorConfig, fields: Mapping[str, int], start: int, block: int, group: int, index: int, idle: int,
    length: int,
) -> Slot:
    last = index == length - 1
    second = last and has_operand(fields)
    weight = index >= idle and not second
    step = config.block_lanes if fields["mode"] == Mode.FULLY_CONNECTED else 1
    base = fields["in_base"] + block * fields["block_step"] + group * config.pixels
    if second:
        base = fields["operand_base"] + block * fields["operand_plane"]
        base += 0 if fields["operand_broadcast"] else group * config.pixels
    return Slot(
        weight=weight,
        operand=second,
        group_start=index == 0,
        first=index == idle,
        last=last,
        block_start=group == 0,
        block_end=group == fields["groups"] - 1,
        instruction_start=group == 0 and block == 0,
        weight_address=(start + (index - idle) * step) % (1 << config.block_address_bits) if weight else None,
        base=base % (1 << config.address_bits),
    )
