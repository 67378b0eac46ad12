"""Builds and runs bundles of the CPU target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.cpu import backend
from backends.cpu.machine import Machine
from backends.cpu.plan import make_plan
from backends.layers import LayerGraph


def differences(graph: LayerGraph, inputs: dict[str, NDArray[np.int8]], on: Machine, folder: Path) -> list[str]:
    """Sentences about what differs, of every layer and of whole runs."""
    plan = make_plan(graph, on)
    backend.write(plan, folder)
    library = backend.load(folder, graph, threads=2)
    try:
        return [str(difference) for difference in backend.compare(library, folder, graph, inputs).differences]
    finally:
        library.close()
