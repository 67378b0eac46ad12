"""What every backend shares: the protocol, what a build leaves behind, and the errors of this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.layers import Layer, LayerGraph

Tensors = dict[str, NDArray[np.int8]]
"""int8 [N, C, H, W] by tensor name."""


@dataclass(frozen=True)
class Unsupported:
    """A node that the target cannot execute where it stands."""

    node: str
    op: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.op}): {self.reason}"


class UnsupportedOpError(ValueError):
    """One or more nodes have no kernel on the target. All of them are listed.

    Attributes:
        nodes: Every offending node, in graph order.
    """

    def __init__(self, nodes: tuple[Unsupported, ...]) -> None:
        self.nodes = nodes
        super().__init__("\n".join(str(node) for node in nodes))
        for remedy in dict.fromkeys(node.remedy for node in nodes if node.remedy):
            self.add_note(f"remedy: {remedy}")


class DoesNotFitError(ValueError):
    """A layer needs more memory, or a larger field, than the target has. The message names layer, need and limit."""


@dataclass(frozen=True)
class Capabilities:
    """What arithmetic a target has; storage that is finer is expanded to it.

    Attributes:
        weight_bits: Widths of symmetric weights that it multiplies, or expands exactly to what it multiplies.
        activation_bits: Widths of activations.
        channels: Output channels are best a multiple of this.
    """

    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    channels: int = 1


@dataclass(frozen=True)
class Estimate:
    """What one inference costs before anything is built.

    Attributes:
        macs: Multiply-accumulates for one sample, as executed.
        cycles: Clock cycles, or None where the target has no schedule.
        weight_bytes: Bytes of weights as stored.
        multipliers: Hardware multipliers, or None.
    """

    macs: int
    weight_bytes: int
    cycles: int | None = None
    multipliers: int | None = None


@dataclass(frozen=True)
class Build:
    """What a backend made."""

    target: str
    folder: Path
    files: tuple[Path, ...]
    estimate: Estimate


class Backend(Protocol):
    """Turns a layer graph into something that runs."""

    @property
    def name(self) -> str:
        """Of the target."""
        ...

    def why_not(self, layer: Layer) -> str | None:
        """Why the target cannot execute the layer, or None."""
        ...

    def build(self, graph: LayerGraph, folder: Path) -> Build:
        """Write the artefact into an existing empty folder."""
        ...

    def run(self, build: Build, inputs: Mapping[str, NDArray[np.int8]]) -> Tensors:
        """Execute on int8 [N, C, H, W] inputs; the graph's outputs."""
        ...


def raise_unsupported(backend: Backend, layers: Sequence[Layer]) -> None:
    """Raise one UnsupportedOpError for all layers that the backend cannot execute."""
    found = [(layer, backend.why_not(layer)) for layer in layers]
    bad = tuple(Unsupported(layer.name, type(layer).__name__, reason) for layer, reason in found if reason)
    if bad:
        raise UnsupportedOpError(bad)
