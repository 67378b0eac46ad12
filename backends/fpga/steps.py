"""What the schedule consists of: instructions whose tensors have no address yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.fpga.fold import Operation
from backends.fpga.streams import Stream
from backends.layers import Add, Mul, Pair, PRelu
from hw.isa import Elementwise

INT8 = (-128, 127)


@dataclass(frozen=True)
class Tap:
    """A tap before addresses: `offset` words from the base of `tensor`; see hw.isa for the rest."""

    tensor: str
    offset: int
    channel: int
    x: Pair
    y: Pair


@dataclass(frozen=True, eq=False)
class Parameters:
    """Requantization of each channel, int64 [channels] each; PRELU adds slopes.

    A single channel stands for all channels of the step.
    """

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    offset: NDArray[np.int64]
    slope: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One instruction without addresses.

    Attributes:
        operation: Name of the operation that it belongs to.
        fields: Instruction fields that need no address.
        source: Tensor that `in_base` points at.
        target: (tensor, word offset) of the first result.
        operand: (tensor, word offset) of the second operand.
        taps: In the order of the streams.
        streams: For each block of output channels, or one for all of them.
        parameters: For each output channel, or one channel for all.
        table: int8 [256], or None.
        cycles: Exact length.
    """

    operation: str
    fields: Mapping[str, int]
    source: str
    target: tuple[str, int]
    taps: tuple[Tap, ...]
    streams: tuple[Stream, ...]
    parameters: Parameters
    operand: tuple[str, int] | None = None
    table: NDArray[np.int8] | None = None
    cycles: int = 0


def post_fields(operation: Operation) -> dict[str, int]:
    """Instruction fields of the elementwise operation and the table."""
    fields = {"use_table": int(operation.table is not None), "elementwise": int(Elementwise.NONE)}
    layer, first = operation.pointwise, operation.result
    if layer is None:
        return fields
    second = operation.operand
    fields |= {
        "shift": layer.shift,
        "zero_point_a": first.zero_point,
        "zero_point_b": 0 if second is None else second.zero_point,
        "zero_point_y": layer.output.zero_point,
        "low_y": INT8[0] if isinstance(layer, PRelu) else layer.low,
        "high_y": INT8[1] if isinstance(layer, PRelu) else layer.high,
        "operand_broadcast": int(operation.broadcast),
    }
    match layer:
        case Add():
            a, b = layer.multiplier_a, layer.multiplier_b
            a, b = (b, a) if operation.swapped else (a, b)
            return fields | {"elementwise": int(Elementwise.ADD), "multiplier_a": a, "multiplier_b": b}
        case Mul():
            return fields | {"elementwise": int(Elementwise.MUL), "multiplier_b": layer.multiplier}
        case PRelu():
            return fields | {"elementwise": int(Elementwise.PRELU), "multiplier_a": layer.multiplier}
