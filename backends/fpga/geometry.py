"""Coordinates: which outputs one instruction computes, where their inputs are, and where the results go.

The array walks an input map position by position. A *sweep* is one such walk over one axis. An axis split by parity
(phases = 1) moves two input rows with each step, so a layer of odd stride needs two sweeps, one for outputs of each
parity; a layer of even stride needs one. What the stride asks beyond that, the writer drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sweep:
    """One axis of an instruction.

    Attributes:
        first: First output coordinate.
        step: From one output to the next.
        count: Outputs.
        drop: Positions of the walk for each output.
        stride: Of the layer.
        phases: 1 when the input axis is split by parity.
    """

    first: int
    step: int
    count: int
    drop: int
    stride: int
    phases: int

    @property
    def size(self) -> int:
        """Positions from the first to the last kept one."""
        return (self.count - 1) * self.drop + 1

    @property
    def outputs(self) -> range:
        """Output coordinates, in order."""
        return range(self.first, self.first + self.count * self.step, self.step)

    def source(self, tap: int) -> int:
        """Input coordinate that position 0 reads for a tap; negative in the padding."""
        return self.first * self.stride + tap

    def bounds(self, tap: int, length: int) -> tuple[int, int]:
        """Positions [low, high) whose input coordinate is in [0, length)."""
        source, unit = self.source(tap), 1 << self.phases
        low, high = -(source // unit), -((source - length) // unit)
        low = min(max(low, 0), self.size)
        return low, min(max(high, low), self.size)


def sweeps(start: int, stop: int, stride: int, phases: int) -> tuple[Sweep, ...]:
    """The walks that compute outputs [start, stop) of an axis."""
    step = 2 if phases and stride % 2 else 1
    drop = stride * step >> phases
    runs = ((first, len(range(first, stop, step))) for first in range(start, min(start + step, stop)))
    # a single output drops nothing, whatever the stride
    return tuple(Sweep(first, step, count, drop if count > 1 else 1, stride, phases) for first, count in runs)


@dataclass(frozen=True)
class Affine:
    """Addresses of an arithmetic run of coordinates: start + (i & phases) * phase + (i >> phases) * step."""

    start: int
    phases: int
    phase: int
    step: int


def fit(addresses: Sequence[int], step_limit: int) -> Affine:
    """Describe addresses as the writer makes them, with 0 <= step <= step_limit; `phase` may be negative.

    Raises:
        ValueError: They are not of that form.
    """
    values = np.asarray(addresses)
    i = np.arange(len(values))
    start = int(values[0])
    for phases in (0, 1):
        step = int(values[1 << phases] - start) if len(values) > 1 << phases else 0
        phase = int(values[1] - start) if phases and len(values) > 1 else 0
        affine = np.array_equal(values, start + (i & phases) * phase + (i >> phases) * step)
        if affine and 0 <= step <= step_limit:
            return Affine(start, phases, phase, step)
    raise ValueError(f"addresses {values[:4].tolist()}... are not affine with steps up to {step_limit}")


@dataclass(frozen=True)
class Walk:
    """Two sweeps: the positions of one instruction."""

    y: Sweep
    x: Sweep
    pitch: int

    def groups(self, pixels: int) -> int:
        """Groups of P positions."""
        return -(-((self.y.size - 1) * self.pitch + self.x.size) // pixels)

    def kept(self, pixels: int) -> NDArray[np.int64]:
        """Output index of each position in row-major order of the sweeps' outputs, -1 where dropped: [groups * P]."""
        y, x = np.divmod(np.arange(self.groups(pixels) * pixels), self.pitch)
        inside = (y < self.y.size) & (x < self.x.size) & (y % self.y.drop == 0) & (x % self.x.drop == 0)
        return np.where(inside, y // self.y.drop * self.x.count + x // self.x.drop, -1)


def conflicts(walk: Walk, rows: NDArray[np.int64], columns: NDArray[np.int64], pixels: int) -> bool:
    """Whether two lanes drained in one cycle would write to one bank.

    Args:
        walk: The positions.
        rows: Word offset of each output row, [y.count].
        columns: Word offset of each output column, [x.count].
        pixels: P.
    """
    kept = walk.kept(pixels).reshape(-1, 2)
    kept = kept[(kept >= 0).all(axis=1)]
    banks = (rows[:, None] + columns[None, :]).reshape(-1)[kept] % pixels
    return bool(np.any(banks[:, 0] == banks[:, 1]))
