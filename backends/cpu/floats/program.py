"""A float network as it runs: functions with their arguments, one arena and one block of constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.cpu import memory
from backends.cpu.machine import Machine


@dataclass(frozen=True)
class Tensor:
    """An input or output of the network."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """In memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class At:
    """Where an argument is: "arena", "constants", "in" or "out"; a buffer's name, an offset in bytes, or a number."""

    where: str
    what: str | int


@dataclass(frozen=True)
class Call:
    """One run of a function.

    Attributes:
        units: That it has; a run does some of them.
        chunks: Into how many the units are cut, for threads.
    """

    function: str
    arguments: tuple[At | None, ...]
    units: int
    chunks: int


@dataclass(frozen=True)
class Program:
    """A network as it runs.

    Attributes:
        calls: In order.
        copies: Outputs that are another value, or an input, as it is: (from, output's number, bytes).
        functions: Name to what writes it.
        constants: Weights and whatever else does not change.
        macs: Of our own kernels.
    """

    machine: Machine
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    copies: tuple[tuple[At, int, int], ...]
    functions: Mapping[str, Any]
    arena: memory.Arena
    constants: bytes
    macs: int
