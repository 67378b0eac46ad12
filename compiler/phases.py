"""Phases of an inference: host and accelerator take turns, and each node runs in the first turn in which it can.

Phase 0 is the host's, phase 1 the accelerator's first run, phase 2 the host's again, and so on: even phases are the
host's, odd ones are entries into the accelerator. A value that is made in a phase can be read in it and in later ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

import onnx_ir as ir

from compiler.operators import dynamic_inputs


class Side(IntEnum):
    """Who runs a node; the value is the parity of its phases."""

    HOST = 0
    ACCELERATOR = 1


Sides = Mapping[ir.Node, Side | None]
"""None: either."""


def first_phase(start: int, side: Side | None) -> int:
    """The first phase from `start` on in which `side` runs."""
    return start if side is None or start % 2 == side else start + 1


def earliest(nodes: Sequence[ir.Node], sides: Sides) -> dict[ir.Node, int]:
    """The first phase in which each node can run; `nodes` in topological order.

    Where all sides are fixed, no other order enters the accelerator fewer times: the last phase counts the turns on the
    longest path through the network, and every order must take those.
    """
    found: dict[ir.Node, int] = {}
    for node in nodes:
        found[node] = first_phase(ready(node, found), sides[node])
    return found


def ready(node: ir.Node, phases: Mapping[ir.Node, int]) -> int:
    """The phase in which the last operand of a node is made."""
    return max((phases[producer] for producer in producers(node)), default=0)


def latest(nodes: Sequence[ir.Node], sides: Sides, last: int) -> dict[ir.Node, int]:
    """The last phase in which each node can run so that the network is done in phase `last`."""
    found: dict[ir.Node, int] = {}
    for node in reversed(nodes):
        end = min((found[reader] for reader in readers(node)), default=last)
        side = sides[node]
        found[node] = end if side is None or end % 2 == side else end - 1
    return found


def entries(phases: Iterable[int]) -> int:
    """How often the accelerator is entered."""
    return (max(phases, default=0) + 1) // 2


def producers(node: ir.Node) -> list[ir.Node]:
    """The nodes that make what a node reads, without those that make constants."""
    return [producer for value in dynamic_inputs(node) if (producer := value.producer()) is not None]


def readers(node: ir.Node) -> list[ir.Node]:
    """The nodes that read what a node makes."""
    return [reader for value in node.outputs for reader in value.consumers()]
