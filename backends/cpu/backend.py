"""The CPU target as a backend: a layer graph becomes a shared library that equals the reference bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.base import Build, Estimate, Tensors
from backends.cpu import codegen, emulation, shared, static, tiles
from backends.cpu.machine import CHECKED, Dot, Machine, arm, x86
from backends.cpu.plan import Plan, Trace, make_plan
from backends.cpu.shared import Library
from backends.layers import Layer, LayerGraph, macs
from backends.reference import interpreter

BUNDLE = "bundle.json"


class BundleError(ValueError):
    """A folder of a CPU target that is incomplete or damaged."""


_X86 = "x86_64-unknown-linux-gnu"
_ARM = {"arm64": ("aarch64-linux-gnu", "cortex-a72"), "armv7": ("armv7l-linux-gnueabihf", "cortex-a7")}
_CORTEX_M = {
    "cortex-m3": "thumbv7m-none-eabi",
    "cortex-m4": "thumbv7em-none-eabihf",
    "cortex-m7": "thumbv7em-none-eabihf",
    "cortex-m33": "thumbv8m.main-none-eabihf",
    "cortex-m55": "thumbv8.1m.main-none-eabihf",
    "cortex-m85": "thumbv8.1m.main-none-eabihf",
}
TARGETS = ("cpu", *_ARM, "cortex-m")


def machine(cpu: str | None, target: str = "cpu") -> Machine:
    """The processor of that name; without one this processor, or the usual one of the target.

    Raises:
        MissingExtraError: The code generator is not installed.
        ValueError: LLVM does not know the processor.
    """
    codegen.check_installed()
    if target == "cortex-m":
        chosen = cpu or "cortex-m4"
        if chosen not in _CORTEX_M:
            error = ValueError(f"--mcpu: no Cortex-M is called {chosen!r}")
            error.add_note(f"remedy: choose one of {', '.join(_CORTEX_M)}")
            raise error
        return arm(chosen, _CORTEX_M[chosen], codegen.features(_CORTEX_M[chosen], chosen))
    if target in _ARM:
        triple, usual = _ARM[target]
        return arm(cpu or usual, triple, codegen.features(triple, cpu or usual))
    if cpu not in (None, "native"):
        return x86(str(cpu), codegen.features(_X86, str(cpu)))
    name, has = codegen.native_cpu()
    hidden = (codegen.features(_X86, name) - has) & frozenset(CHECKED)
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
        graph = self._graphs[build.folder]
        if not is_shared(self.machine):
            return emulation.run(self.machine, build.folder / "example", graph, inputs)
        library = load(build.folder, graph)
        try:
            return library.run(inputs)
        finally:
            library.close()


def write(plan: Plan, folder: Path) -> dict[str, int]:
    """Write a bundle into an existing folder: a shared library for x86, else a runtime-free static one.

    Returns:
        Bytes by what they hold.
    """
    name = plan.graph.name
    found = bytes_of(plan)
    if is_shared(plan.machine):
        library = shared.build(plan, name, folder)
    else:
        library = static.build(plan, name, folder)
        size = static.size(plan, name, folder)
        found |= {"text_bytes": size.text, "rodata_bytes": size.rodata, "flash_bytes": size.text + size.rodata}
        static.link_example(plan.machine, name, folder)
    facts = {
        "library": library.name,
        "prefix": shared.prefix_of(name),
        "machine": asdict(plan.machine) | {"dot": plan.machine.dot.value},
        "bytes": found,
        "tiles": tiles_of(plan),
        "traces": {layer: asdict(trace) for layer, trace in plan.traces().items()},
    }
    (folder / BUNDLE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return found


def tiles_of(plan: Plan) -> dict[str, str]:
    """Layer to its tile, as pixels x vectors of channels; what the formula would have taken where that is another."""
    found = {}
    for layer, tiled in plan.tiles().items():
        texts = []
        for kernel, tile in tiled.items():
            usual = tiles.tile_of(kernel)
            texts.append(str(tile) if tile == usual else f"{tile} (default {usual})")
        found[layer] = ", ".join(dict.fromkeys(texts))
    return found


def bytes_of(plan: Plan) -> dict[str, int]:
    """What is known before anything is built."""
    return {
        "arena_bytes": plan.arena.size,
        "constant_bytes": len(plan.constants),
        "weight_bytes": plan.weight_bytes,
    }


def is_shared(machine: Machine) -> bool:
    """Whether a bundle is a shared library that Python can call."""
    return machine.triple == _X86


def read_facts(folder: Path) -> dict:
    """bundle.json.

    Raises:
        BundleError: It is missing or damaged.
    """
    try:
        return json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE} cannot be read: {error}") from error


def library_of(folder: Path, facts: Mapping) -> Path:
    """The library that the facts of a bundle name.

    Raises:
        BundleError: It is missing.
    """
    path: Path = folder / facts["library"]
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    return path


def load(folder: Path, graph: LayerGraph, *, threads: int = 1) -> Library:
    """The library of a bundle.

    Raises:
        BundleError: It is missing or damaged.
        WrongProcessorError: It was built for another processor.
    """
    facts = read_facts(folder)
    path = library_of(folder, facts)
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


def compare(library: Library, folder: Path, graph: LayerGraph, inputs: Mapping[str, NDArray[np.int8]]) -> Verdict:
    """Every map after its layer, then the outputs of whole runs, with the reference.

    Args:
        library: Of the bundle in `folder`, which says where the maps are.
        graph: The integers that it stands for.
        inputs: int8 [N, C, H, W] by tensor name.
    """
    facts = read_facts(folder)
    built_for = machine_of(facts)
    expected = interpreter.run(graph, inputs, keep="all")
    count = len(next(iter(inputs.values())))
    samples = [[np.ascontiguousarray(inputs[t.name][i]) for t in graph.inputs] for i in range(count)]
    found: list[Difference] = []
    elements = 0
    for layer in graph.layers:
        where = Trace(**facts["traces"][layer.name])
        got = np.stack([library.trace(sample, where, layer.output, built_for) for sample in samples])
        elements += got.size
        found += _difference(layer.name, expected[layer.output.name], got)
    for name, got in library.run(inputs).items():
        elements += got.size
        found += _difference(f"output {name}, whole run", expected[name], got)
    return Verdict(len(graph.layers), elements, tuple(found))


def compare_emulated(folder: Path, graph: LayerGraph, inputs: Mapping[str, NDArray[np.int8]]) -> Verdict:
    """The outputs of the example program of a runtime-free bundle under qemu, with the reference.

    Raises:
        EmulatorMissingError, EmulationError: It cannot be run here.
    """
    expected = interpreter.run(graph, inputs)
    got = emulation.run(machine_of(read_facts(folder)), folder / "example", graph, inputs)
    found = [d for name in expected for d in _difference(f"output {name}", expected[name], got[name])]
    return Verdict(len(graph.layers), sum(values.size for values in got.values()), tuple(found))


def _difference(layer: str, expected: NDArray[np.int8], got: NDArray[np.int8]) -> list[Difference]:
    wrong = np.argwhere(expected != got)
    if not len(wrong):
        return []
    index = tuple(map(int, wrong[0]))
    return [Difference(layer, index, int(expected[index]), int(got[index]), len(wrong))]
