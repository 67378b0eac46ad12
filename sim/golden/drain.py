"""Golden model of Drain: what one group of accumulators leaves in memory, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from hw.config import AcceleratorConfig
from hw.isa import Elementwise, Mode
from hw.timing import HOLD_STAGE, drain_cycles, post_cycles
from sim.golden.elementwise import ElementwiseConfig, elementwise
from sim.golden.requantize import requantize
from sim.golden.table import look_up
from sim.golden.walker import Walk, result

Fields = Mapping[str, int]


@dataclass(frozen=True)
class Group:
    """One group of one block, when its last slot is issued.

    Attributes:
        block, group: Its place in the instruction.
        sums: Accumulators of each lane and row.
        operands: Q bytes (int8) of the second operand of each lane.
    """

    block: int
    group: int
    sums: Sequence[Sequence[int]]
    operands: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Write:
    """A word that is written `cycle` cycles after the group's last slot was issued, through a port."""

    cycle: int
    port: int
    address: int
    word: int


def drain(
    config: AcceleratorConfig, instruction: Fields, group: Group, parameters: Sequence[Sequence[Fields]],
    table: Sequence[int],
) -> list[Write]:
    """Every word that the group writes.

    Args:
        config: The accelerator.
        instruction: Its fields; with `reduce` it has one group, in a fully connected layer too.
        group: What arrives.
        parameters: Fields of each channel of each parameter word.
        table: Bytes of the tables.
    """
    walk = Walk(**{f.name: instruction[f.name] for f in fields(Walk)})
    connected = instruction["mode"] == Mode.FULLY_CONNECTED
    lanes = list(group.sums[: config.block_lanes] if connected else group.sums)
    cycles, post = drain_cycles(config, instruction), post_cycles(instruction)
    abreast = len(lanes) // cycles
    if instruction["reduce"]:
        lanes = [[_wrap(sum(column), config.acc_bits) for column in zip(*lanes, strict=True)]]
    writes = []
    for lane, sums in enumerate(lanes):
        n = lane if connected else group.group * config.pixels + lane
        address = result(config, walk, group.block, n)
        if address is not None:
            last = cycles - 1 if instruction["reduce"] else lane // abreast
            word = _word(config, instruction, group, lane, sums, parameters, table)
            writes.append(Write(HOLD_STAGE + last + 1 + post, lane % abreast, address, word))
    return writes


def _word(
    config: AcceleratorConfig, instruction: Fields, group: Group, lane: int, sums: Sequence[int],
    parameters: Sequence[Sequence[Fields]], table: Sequence[int],
) -> int:
    size = 2 if instruction["elementwise"] == Elementwise.PRELU else 1
    index = group.block * size
    if instruction["mode"] == Mode.FULLY_CONNECTED:
        index = group.block * config.block_lanes + lane
    if instruction["parameter_shared"]:
        index = 0
    index += instruction["parameter_base"]
    own, slopes = parameters[index], parameters[(index + 1) % len(parameters)]
    operand = group.operands[0 if instruction["operand_broadcast"] else lane]
    word = 0
    for row, acc in enumerate(sums):
        value = requantize(
            acc, **own[row], zero_point=instruction["zero_point"], low=instruction["low"], high=instruction["high"]
        )
        value = elementwise(value, operand[row], slopes[row]["multiplier"], _elementwise_config(instruction))
        value = look_up(
            table, value, use_table=bool(instruction["use_table"]), index=instruction["table_index"]
        )
        word |= (value & 0xFF) << 8 * row
    return word


def _elementwise_config(instruction: Fields) -> ElementwiseConfig:
    names = ("multiplier_a", "multiplier_b", "shift", "zero_point_a", "zero_point_b", "zero_point_y")
    bounds = {"low": instruction["low_y"], "high": instruction["high_y"]}
    return ElementwiseConfig(instruction["elementwise"], **{name: instruction[name] for name in names}, **bounds)


def _wrap(value: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half
