"""An artefact's CPU bundle: run on samples, and judged by the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.cpu import backend
from backends.cpu.plan import make_plan
from backends.layers import LayerGraph
from compiler import artefact
from compiler.host import Floats, HostError, session
from compiler.lowering import Cut
from compiler.report import VerifyFacts
from compiler.simulation import Maps, with_random
from compiler.stored import Stored

_SHOWN = 8


def verify(folder: Path, graph: LayerGraph, samples: Maps, *, random: int) -> VerifyFacts:
    """Compare the library of an artefact with the reference: every map after its layer, then whole runs.

    Raises:
        BundleError: The bundle is damaged.
        WrongProcessorError: It cannot run here.
    """
    bundle = folder / artefact.CPU
    inputs = with_random(graph, samples, random)
    plan = make_plan(graph, backend.machine_of(backend.read_facts(bundle)))
    library = backend.load(bundle, graph, threads=2)
    try:
        verdict = backend.compare(library, plan, inputs)
    finally:
        library.close()
    return VerifyFacts(
        inputs=len(next(iter(inputs.values()))),
        random_inputs=random,
        elements=verdict.elements,
        layers=verdict.layers,
        mismatches=sum(difference.count for difference in verdict.differences),
        instructions=0,
        cycle_mismatches=0,
        cycles=0,
        differences=tuple(map(str, verdict.differences[:_SHOWN])),
    )


class Session:
    """A network of a CPU target, ready to run: numpy in, numpy out.

    Args:
        opened: An artefact.
        threads: Of the kernels, and of what onnxruntime runs around them.

    Raises:
        BundleError, WrongProcessorError: It cannot be loaded.
    """

    def __init__(self, opened: Stored, *, threads: int = 1) -> None:
        lowered = opened.lowered
        self._graph, self._ins, self._outs = lowered.graph, lowered.inputs, lowered.outputs
        self._library = backend.load(opened.folder / artefact.CPU, lowered.graph, threads=threads)
        self._head, self._tail = session(lowered.head, threads), session(lowered.tail, threads)
        self._shapes = {str(v.name): tuple(d if isinstance(d, int) else 1 for d in v.shape or ())
                        for v in opened.quantized.graph.inputs}  # fmt: skip
        self._names = [str(value.name) for value in opened.quantized.graph.outputs]
        self._fed = {} if self._tail is None else {node.name for node in self._tail.get_inputs()}
        self._tail_names = [] if self._tail is None else [node.name for node in self._tail.get_outputs()]
        self._sources = {cut.tensor.name: cut for cut in lowered.inputs}

    def close(self) -> None:
        """Stop its threads."""
        self._library.close()

    def run(self, samples: Mapping[str, NDArray[np.float32]]) -> Floats:
        """One sample.

        Args:
            samples: float32 by network input, with a batch axis of 1.

        Returns:
            float32 by network output.

        Raises:
            HostError: An input is missing, or of another shape or type, or has a value that is not a number.
        """
        values: Floats = {name: self._checked(name, shape, samples) for name, shape in self._shapes.items()}
        if self._head is not None:
            names = [node.name for node in self._head.get_outputs()]
            fed = {node.name: values[node.name] for node in self._head.get_inputs()}
            values.update(zip(names, self._head.run(names, fed), strict=True))
        inputs = [_map_of(self._sources[t.name], values) for t in self._graph.inputs]
        maps = [np.empty(tensor.shape, np.float32) for tensor in self._graph.outputs]
        self._library.infer(inputs, maps)
        by_name = {tensor.name: made for tensor, made in zip(self._graph.outputs, maps, strict=True)}
        for cut in self._outs:
            flat = by_name[cut.tensor.name]
            order = cut.view.order
            values[cut.value] = (flat if order is None else flat.reshape(-1)[order]).reshape(cut.view.shape)
        if self._tail is not None:
            fed = {name: values[name] for name in self._fed}
            values.update(zip(self._tail_names, self._tail.run(self._tail_names, fed), strict=True))
        return {name: values[name] for name in self._names}

    def _checked(self, name: str, shape: tuple[int, ...], samples: Mapping[str, NDArray]) -> NDArray[np.float32]:
        if name not in samples:
            raise HostError(f"input '{name}' is missing; given: {sorted(samples)}")
        value = samples[name]
        if value.dtype != np.float32 or value.shape != shape:
            raise HostError(f"input '{name}': expected float32 {list(shape)}, got {value.dtype} {list(value.shape)}")
        if np.isnan(value.max(initial=0)):
            raise HostError(f"input '{name}' has a value that is not a number")
        return value


def _map_of(cut: Cut, values: Floats) -> NDArray[np.float32]:
    """The value of a cut as a contiguous float32 [C, H, W]."""
    value = values[cut.value]
    if cut.view.order is None:
        return np.ascontiguousarray(value.reshape(cut.view.chw))
    placed = np.empty(int(np.prod(cut.view.chw)), np.float32)
    placed[cut.view.order.ravel()] = value.reshape(-1)
    return placed.reshape(cut.view.chw)
