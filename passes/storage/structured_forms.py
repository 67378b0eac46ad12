"""Stored forms of layers whose weights repeat: block-circulant matrices, and filters that are others turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.solvers.circulant import Blocks
from passes.solvers.symmetry import orientations, oriented


@dataclass(frozen=True, eq=False)
class CirculantBlocks:
    """Every group of the layer is block-circulant, or Toeplitz: one block of rows + channels - 1.

    Attributes:
        blocks: The form of each group.
        parameters: int8 [groups, block rows, parameters of a block row].
    """

    blocks: Blocks
    parameters: NDArray[np.int8]
    form = "circulant"

    def __post_init__(self) -> None:
        expected = (self.blocks.down, self.blocks.row_parameters)
        if self.parameters.shape[1:] != expected:
            raise ValueError(f"parameters {list(self.parameters.shape)} of a form that has {list(expected)} in a group")

    def codes(self) -> NDArray[np.int32]:
        return np.stack([self.blocks.expand(group) for group in self.parameters]).astype(np.int32)


@dataclass(frozen=True, eq=False)
class SharedFilters:
    """Every filter is one of a few, turned, mirrored or negated.

    Attributes:
        filters: int8 [leaders, channels, *kernel].
        leader: Which of them, uint16 [groups, rows].
        orientation: What it becomes, bits of passes.solvers.symmetry, uint8 [groups, rows].
    """

    filters: NDArray[np.int8]
    leader: NDArray[np.uint16]
    orientation: NDArray[np.uint8]
    form = "shared filters"

    def __post_init__(self) -> None:
        if self.leader.size and int(self.leader.max()) >= len(self.filters):
            raise ValueError(f"filter {self.leader.max()} of {len(self.filters)}")
        known = set(orientations(self.filters.shape[2:]))
        if wrong := {int(o) & 7 for o in self.orientation.ravel()} - known:
            raise ValueError(f"a kernel {list(self.filters.shape[2:])} cannot be turned by {min(wrong)}")

    def codes(self) -> NDArray[np.int32]:
        rows = [
            oriented(self.filters[leader].astype(np.int32), int(orientation)).reshape(-1)
            for leader, orientation in zip(self.leader.ravel(), self.orientation.ravel())
        ]
        return np.array(rows, np.int32).reshape(*self.leader.shape, -1)
