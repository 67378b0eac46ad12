"""An artefact's CPU bundle: run on samples, and judged by the reference."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends.cpu import backend, emulation
from backends.cpu.floats import library as float_library
from backends.cpu.machine import Machine
from backends.layers import LayerGraph
from backends.reference import interpreter
from compiler import artefact
from compiler.host import Floats, HostError, session
from compiler.lowering import Lowered
from compiler.report import VerifyFacts
from compiler.segments import Cut, Segment
from compiler.simulation import Maps, with_random
from compiler.stored import Stored
from passes.graph import constant, shape_of

"""Folders of compiled float parts."""
_SHOWN = 8


def verify(folder: Path, lowered: Lowered, samples: Maps, *, random: int) -> VerifyFacts:
    """Compare the libraries of an artefact with the reference: every map after its layer, then whole runs.

    Args:
        folder: The artefact.
        lowered: Its network.
        samples: int8 [N, C, H, W] of everything that the host sends, by tensor name.
        random: So many random inputs besides.

    Raises:
        BundleError: A bundle is damaged.
        WrongProcessorError: It cannot run here.
    """
    known = with_random(lowered.graph, samples, random)
    inputs, verdicts = len(next(iter(known.values()))), []
    for segment, bundle in zip(lowered.segments, bundles_of(folder, lowered), strict=True):
        own = {tensor.name: known[tensor.name] for tensor in segment.graph.inputs}
        verdicts.append(_verdict(segment.graph, bundle, own))
        known |= interpreter.run(segment.graph, own)
    differences = [difference for verdict in verdicts for difference in verdict.differences]
    return VerifyFacts(
        inputs=inputs,
        random_inputs=random,
        elements=sum(verdict.elements for verdict in verdicts),
        layers=sum(verdict.layers for verdict in verdicts),
        mismatches=sum(difference.count for difference in differences),
        instructions=0,
        cycle_mismatches=0,
        cycles=0,
        differences=tuple(map(str, differences[:_SHOWN])),
    )


def host_parts(lowered: Lowered) -> list[tuple[str, ir.Model | None]]:
    """What the host runs before each entry and after the last, and the name of the folder of its compiled form."""
    parts = [*(segment.host for segment in lowered.segments), lowered.tail]
    names = [artefact.host_file(turn, len(lowered.segments)) for turn in range(len(parts))]
    return [(Path(name).stem, part) for name, part in zip(names, parts, strict=True)]


def bundles_of(folder: Path, lowered: Lowered) -> list[Path]:
    """The bundle of each segment."""
    return artefact.cpu_bundles(folder, len(lowered.segments))


def _verdict(graph: LayerGraph, bundle: Path, inputs: Maps) -> backend.Verdict:
    if not backend.is_shared(backend.machine_of(backend.read_facts(bundle))):
        return _emulated(bundle, graph, inputs)
    library = backend.load(bundle, graph, threads=2)
    try:
        return backend.compare(library, bundle, graph, inputs)
    finally:
        library.close()


def _emulated(bundle: Path, graph: LayerGraph, inputs: Maps) -> backend.Verdict:
    """In a copy: an emulated bare program exchanges files, and an artefact stays as it is."""
    with tempfile.TemporaryDirectory(prefix="edgec-qemu-") as scratch:
        for name in ("example", backend.BUNDLE):
            shutil.copy(bundle / name, scratch)
        return backend.compare_emulated(Path(scratch), graph, inputs)


def check_runs(machine: Machine) -> None:
    """Raise EmulatorMissingError, before any work, if what is built for a machine cannot be proven here."""
    if not backend.is_shared(machine):
        try:
            emulation.check_installed(machine)
        except emulation.EmulatorMissingError as missing:
            missing.add_note("remedy: or compile with --no-verify")
            raise


class Session:
    """A network of a CPU target, ready to run: numpy in, numpy out.

    Args:
        opened: An artefact.
        threads: Of the kernels, and of what runs around them.
        is_exact: onnxruntime computes what surrounds the integer layers, as for the reference; not compiled float code.

    Attributes:
        shapes: Of each network input, with its batch axis of 1.

    Raises:
        BundleError, WrongProcessorError: It cannot be loaded.
    """

    def __init__(self, opened: Stored, *, threads: int = 1, is_exact: bool = False) -> None:
        lowered = opened.lowered
        self.shapes = {str(v.name): shape_of(v) or () for v in opened.quantized.graph.inputs}
        self._names = [str(value.name) for value in opened.quantized.graph.outputs]
        bundle = opened.folder / artefact.CPU
        *self._before, self._tail = (
            _Part(part, threads, None if is_exact else bundle / name) for name, part in host_parts(lowered)
        )
        self._entries = [
            _Entry(segment, backend.load(bundle, segment.graph, threads=threads), is_kept=self._is_kept(segment))
            for segment, bundle in zip(lowered.segments, bundles_of(opened.folder, lowered), strict=True)
        ]
        last = self._entries[-1]
        self._is_bound = not last.makes_new and self._tail.bind(last.fixed_values(), self._names)

    def _is_kept(self, segment: Segment) -> bool:
        """Whether the caller may get an array that the segment wrote, or a view of it."""
        return self._tail.in_numpy or any(cut.value in self._names for cut in segment.outputs)

    def close(self) -> None:
        """Stop its threads."""
        for entry in self._entries:
            entry.library.close()
        for part in (*self._before, self._tail):
            part.close()

    def run(self, samples: Mapping[str, NDArray[np.float32]]) -> Floats:
        """One sample; one call at a time.

        Args:
            samples: float32 by network input, with a batch axis of 1.

        Returns:
            float32 by network output.

        Raises:
            HostError: An input is missing, or of another shape or type, or has a value that is not a number.
        """
        values: Floats = {name: self._checked(name, shape, samples) for name, shape in self.shapes.items()}
        maps: Floats = {}
        for before, entry in zip(self._before, self._entries, strict=True):
            before.run(values)
            entry.run(values, maps)
        if self._is_bound:
            return self._tail.run_bound()
        self._tail.run(values)
        return {name: np.ascontiguousarray(values[name]) for name in self._names}

    def _checked(self, name: str, shape: tuple[int, ...], samples: Mapping[str, NDArray]) -> NDArray[np.float32]:
        if name not in samples:
            raise HostError(f"input '{name}' is missing; given: {sorted(samples)}")
        value = samples[name]
        if value.dtype != np.float32 or value.shape != shape:
            raise HostError(f"input '{name}': expected float32 {list(shape)}, got {value.dtype} {list(value.shape)}")
        return value


class _Entry:
    """One entry into the integer layers.

    Args:
        segment: What runs.
        library: Its code.
        is_kept: Whether somebody may hold on to what it gave, so that each run needs new arrays.
    """

    def __init__(self, segment: Segment, library: backend.Library, *, is_kept: bool) -> None:
        self.library, self._graph, self._outs = library, segment.graph, segment.outputs
        self._cuts, self._ins = segment.inputs, [tensor.name for tensor in segment.graph.inputs]
        self._index = {tensor.name: i for i, tensor in enumerate(segment.graph.outputs)}
        self.makes_new = is_kept and any(cut.view.order is None for cut in segment.outputs)
        self._maps = self._new_maps()

    def fixed_values(self) -> Floats:
        """The values that are its maps as they lie, in arrays that stay."""
        return {
            cut.value: self._maps[self._index[cut.tensor.name]].reshape(cut.view.shape)
            for cut in self._outs
            if cut.view.order is None
        }

    def run(self, values: Floats, maps: Floats) -> None:
        """Add its values, and the maps that it reads and gives by tensor name: a later entry may read one, too."""
        made = self._new_maps() if self.makes_new else self._maps
        maps |= {cut.tensor.name: _map_of(cut, values) for cut in self._cuts}
        try:
            self.library.infer([maps[name] for name in self._ins], made)
        except ValueError as error:
            raise HostError(str(error)) from error
        maps |= {name: made[index] for name, index in self._index.items()}
        for cut in self._outs:
            flat, order = maps[cut.tensor.name], cut.view.order
            values[cut.value] = (flat if order is None else flat.reshape(-1)[order]).reshape(cut.view.shape)

    def _new_maps(self) -> list[NDArray[np.float32]]:
        return [np.empty(tensor.shape, np.float32) for tensor in self._graph.outputs]


class _Part:
    """A float model beside the integers: arithmetic and layout in numpy, which gives the same bits, else as compiled,
    else onnxruntime.

    Calling onnxruntime takes about as long as a small network.
    """

    def __init__(self, model: ir.Model | None, threads: int, compiled: Path | None = None) -> None:
        self.is_none = model is None
        self._steps = None if model is None else in_numpy(model)
        self.in_numpy = model is None or self._steps is not None
        self._session = self._library = None
        if model is not None and self._steps is None and compiled is not None and compiled.is_dir():
            self._library = float_library.load(compiled, threads=threads)
            return
        self._session = made = session(model, threads) if self._steps is None else None
        if made is not None:
            self._run = made.run
            self._fed = [node.name for node in made.get_inputs()]
            self._names = [node.name for node in made.get_outputs()]

    def close(self) -> None:
        """Stop its threads."""
        if self._library is not None:
            self._library.close()

    def run(self, values: Floats) -> None:
        """Add its outputs to `values`."""
        if self.is_none:
            return
        if self._library is not None:
            values.update(self._library.run(values))
            return
        if self._steps is not None:
            for call in self._steps:
                operands = [values[x] if isinstance(x, str) else x for x in call.operands]
                values[call.output] = call.function(*operands)
            return
        fed = {name: values[name] for name in self._fed}
        values.update(zip(self._names, self._run(self._names, fed), strict=True))

    def bind(self, fixed: Mapping[str, NDArray[np.float32]], names: list[str]) -> bool:
        """Prepare `run_bound` on arrays that stay; whether that is possible, and gives all outputs `names`.

        Binding takes half the time of a call with arrays, which is much beside a small network.
        """
        if self._session is None or set(self._fed) - set(fixed) or set(names) - set(self._names):
            return False
        self._binding, self._kept = self._session.io_binding(), list(fixed.values())
        self._bound: Floats = {}
        for name in self._fed:
            x = fixed[name]
            self._binding.bind_input(name, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        for node in self._session.get_outputs():
            if any(not isinstance(dim, int) for dim in node.shape) or node.type != "tensor(float)":
                return False
            y = np.empty(node.shape, np.float32)
            self._binding.bind_output(node.name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
            self._bound[node.name] = y
        return True

    def run_bound(self) -> Floats:
        """Its outputs, from what the bound arrays hold now."""
        assert self._session is not None
        self._session.run_with_iobinding(self._binding)
        return {name: y.copy() for name, y in self._bound.items()}


_ARITHMETIC: dict[str, Callable[..., NDArray]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def in_numpy(model: ir.Model) -> list[_Call] | None:
    """Its nodes in order, or None if there is one of another kind than arithmetic, Reshape and Transpose."""
    calls = []
    for node in model.graph:
        operands: list[str | NDArray] = []
        for value in node.inputs:
            held = constant(value)
            operands.append(str(value.name) if value is not None and held is None else np.asarray(held))
        output = node.outputs[0]
        shape = shape_of(output)
        if node.op_type in _ARITHMETIC:
            function = _ARITHMETIC[node.op_type]
        elif node.op_type == "Reshape" and shape is not None:
            operands, function = operands[:1], partial(np.reshape, shape=shape)
        elif node.op_type == "Transpose" and "perm" in node.attributes:
            function = partial(np.transpose, axes=tuple(node.attributes["perm"].as_ints()))
        else:
            return None
        calls.append(_Call(str(output.name), function, operands))
    return calls


@dataclass(frozen=True, eq=False)
class _Call:
    """output = function(operands), which are names of values or constants."""

    output: str
    function: Callable[..., NDArray]
    operands: list[str | NDArray]


def _map_of(cut: Cut, values: Floats) -> NDArray[np.float32]:
    """The value of a cut as a contiguous float32 [C, H, W]."""
    value = values[cut.value]
    if cut.view.order is None:
        return np.ascontiguousarray(value.reshape(cut.view.chw))
    placed = np.empty(int(np.prod(cut.view.chw)), np.float32)
    placed[cut.view.order.ravel()] = value.reshape(-1)
    return placed.reshape(cut.view.chw)
