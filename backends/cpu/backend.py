"""The CPU target as a backend: a layer graph becomes a shared library that equals the reference bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.base import Build, Estimate, Tensors
from backends.cpu import codegen, shared
from backends.cpu.machine import CHECKED, Dot, Machine, x86
from backends.cpu.plan import Plan, make_plan
from backends.cpu.shared import Library
from backends.layers import Layer, LayerGraph, macs
from backends.reference import interpreter

BUNDLE = "bundle.json"


class BundleError(ValueError):
    """A folder of a CPU target that is incomplete or damaged."""


def machine(cpu: str | None) -> Machine:
    """The x86-64 processor of that name, or this one.

    Raises:
        MissingExtraError: The code generator is not installed.
        ValueError: LLVM does not know the processor.
    """
    codegen.check_installed()
    triple = "x86_64-unknown-linux-gnu"
    if cpu not in (None, "native"):
        return x86(str(cpu), codegen.features(triple, str(cpu)))
    name, has = codegen.native_cpu()
    hidden = (codegen.features(triple, name) - has) & frozenset(CHECKED)
    return x86(name, has, tuple(f"-{feature}" for feature in sorted(hidden)))


@dataclass(frozen=True)
class CpuBackend:
    """Kernels for one processor."""

    machine: Machine
    name: str = "cpu"
    _graphs: dict[Path, LayerGraph] = field(default_factory=dict, repr=False, compare=False)

    def why_not(self, layer: Layer) -> str | None:
        """None: every kind of layer has a kernel."""
        return None

    def build(self, graph: LayerGraph, folder: Path) -> Build:
        """Write sources, objects and the shared library."""
        plan = make_plan(graph, self.machine)
        write(plan, folder)
        self._graphs[folder] = graph
        work = sum(map(macs, graph.layers))
        files = tuple(sorted(folder.iterdir()))
        return Build(self.name, folder, files, Estimate(macs=work, weight_bytes=plan.weight_bytes))

    def run(self, build: Build, inputs: Mapping[str, NDArray[np.int8]]) -> Tensors:
        """Execute on int8 [N, C, H, W] inputs."""
        library = load(build.folder, self._graphs[build.folder])
        try:
            return library.run(inputs)
        finally:
            library.close()


def write(plan: Plan, folder: Path) -> Path:
    """Write a bundle into an existing folder; its library."""
    library = shared.build(plan, plan.graph.name, folder)
    facts = {
        "library": library.name,
        "prefix": shared.prefix_of(plan.graph.name),
        "machine": asdict(plan.machine) | {"dot": plan.machine.dot.value},
        "arena_bytes": plan.arena.size,
        "constant_bytes": len(plan.constants),
        "library_bytes": library.stat().st_size,
    }
    (folder / BUNDLE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return library


def read_facts(folder: Path) -> dict:
    """bundle.json.

    Raises:
        BundleError: It is missing or damaged.
    """
    try:
        return json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE} cannot be read: {error}") from error


def load(folder: Path, graph: LayerGraph, *, threads: int = 1) -> Library:
    """The library of a bundle.

    Raises:
        BundleError: It is missing or damaged.
        WrongProcessorError: It was built for another processor.
    """
    facts = read_facts(folder)
    path = folder / facts["library"]
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    return Library(path, facts["prefix"], graph.inputs, graph.outputs, threads=threads)


def machine_of(facts: Mapping) -> Machine:
    """That a bundle was built for."""
    stored = dict(facts["machine"])
    stored |= {"dot": Dot(stored["dot"]), "features": tuple(stored["features"]), "requires": tuple(stored["requires"])}
    return Machine(**stored)


@dataclass(frozen=True)
class Difference:
    """The first element of a map that is not the reference's; `index` is its (sample, channel, y, x)."""

    layer: str
    index: tuple[int, ...]
    expected: int
    got: int
    count: int

    def __str__(self) -> str:
        return (
            f"layer {self.layer!r}: element {list(self.index)} is {self.got}, the reference has {self.expected} "
            f"({self.count} elements differ)"
        )


@dataclass(frozen=True)
class Verdict:
    """What was compared."""

    layers: int
    elements: int
    differences: tuple[Difference, ...]


def compare(library: Library, plan: Plan, inputs: Mapping[str, NDArray[np.int8]]) -> Verdict:
    """Every map after its layer, then the outputs of whole runs, with the reference."""
    graph = plan.graph
    expected = interpreter.run(graph, inputs, keep="all")
    steps = {step.layer: index for index, step in enumerate(plan.steps)}
    found: list[Difference] = []
    elements = 0
    for layer in graph.layers:
        name = layer.output.name
        got = np.stack([
            library.trace([np.ascontiguousarray(inputs[t.name][i]) for t in graph.inputs], steps[layer.name], name, plan)
            for i in range(len(expected[name]))
        ])  # fmt: skip
        elements += got.size
        found += _difference(layer.name, expected[name], got)
    for name, got in library.run(inputs).items():
        elements += got.size
        found += _difference(f"output {name}, whole run", expected[name], got)
    return Verdict(len(graph.layers), elements, tuple(found))


def _difference(layer: str, expected: NDArray[np.int8], got: NDArray[np.int8]) -> list[Difference]:
    wrong = np.argwhere(expected != got)
    if not len(wrong):
        return []
    index = tuple(map(int, wrong[0]))
    return [Difference(layer, index, int(expected[index]), int(got[index]), len(wrong))]
