"""Float networks on processors: all of a network with `--float`, or what surrounds a CPU target's integer layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from backends.base import Unsupported, UnsupportedOpError
from backends.cpu.floats import library
from backends.cpu.floats.library import FloatLibrary
from backends.cpu.floats.program import Program
from backends.cpu.machine import Machine
from compiler import artefact, cpu, doctor, quality, stored
from compiler.artefact import Manifest, Preprocessing
from compiler.host import Floats, HostError
from compiler.importer import Imported, import_model
from compiler.lowering import Lowered
from compiler.report import CompileReport, PassRow, TargetFacts, VerifyFacts, model_facts, to_json
from compiler.report_html import to_html
from compiler.version import VERSION
from passes import statistics

if TYPE_CHECKING:
    from compiler.pipeline import CompileOptions, Progress

FLOAT = "float"
"""Value of the manifest's option "arithmetic"."""
TOLERANCE = 1e-4
"""Largest difference from onnxruntime, relative to the largest value of an output."""
VERIFIED = 2
_REMEDY = "take the node out of the network, or replace it by operators that TVM imports, or run it in onnxruntime"


def program_of(model: ir.Model, machine: Machine) -> Program:
    """Lower a float model of static shapes.

    Raises:
        UnsupportedOpError: Names every node that TVM cannot import, or that needs its runtime.
    """
    from backends.cpu.floats import importing, plan

    proto = ir.serde.serialize_model(model)
    names = tuple(str(v.name) for v in model.graph.inputs), tuple(str(v.name) for v in model.graph.outputs)
    _refuse(_unknown(proto, importing.known_operators()))
    try:
        return plan.make_plan(importing.import_model(proto), machine, names)
    except (importing.ImportFailedError, UnsupportedOpError) as error:
        _refuse(_failing(model, machine))
        if isinstance(error, UnsupportedOpError):
            raise
        _refuse([Unsupported(proto.graph.name or "network", "graph", f"TVM's importer says: {error}", _REMEDY)])
        raise


def _refuse(nodes: list[Unsupported]) -> None:
    if nodes:
        raise UnsupportedOpError(tuple(nodes))


def _unknown(proto: onnx.ModelProto, known: frozenset[str]) -> list[Unsupported]:
    """Nodes whose operator TVM has never heard of."""
    found = []
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx"):
            op = f"{node.domain}.{node.op_type}"
            found.append(Unsupported(node.name, op, "TVM imports no custom domain", _REMEDY))
        elif node.op_type not in known and node.op_type != "Constant":
            found.append(Unsupported(node.name, node.op_type, "TVM imports no such operator", _REMEDY))
    return found


def _failing(model: ir.Model, machine: Machine) -> list[Unsupported]:
    """Nodes that cannot be compiled when they are alone, each with its constants."""
    from backends.cpu.floats import importing, plan

    found = []
    for node in model.graph:
        alone = _alone(node, model)
        names = tuple(v.name for v in alone.graph.input), tuple(v.name for v in alone.graph.output)
        try:
            plan.make_plan(importing.import_model(alone), machine, names)
        except importing.ImportFailedError as error:
            found.append(Unsupported(node.name or "", node.op_type, f"TVM's importer says: {error}", _REMEDY))
        except UnsupportedOpError as error:
            reasons = ", ".join(dict.fromkeys(bad.reason for bad in error.nodes))
            found.append(Unsupported(node.name or "", node.op_type, reasons, _REMEDY))
    return found


def _alone(node: ir.Node, model: ir.Model) -> onnx.ModelProto:
    """One node as a network."""
    values = [v for v in dict.fromkeys(node.inputs) if v is not None]
    constants = [v.const_value for v in values if v.const_value is not None]
    inputs = [ir.serde.serialize_value(v) for v in values if v.const_value is None]
    outputs = [ir.serde.serialize_value(v) for v in node.outputs if v.name]
    weights = [ir.serde.serialize_tensor(c) for c in constants]
    graph = helper.make_graph([ir.serde.serialize_node(node)], "alone", inputs, outputs, weights)
    opset = model.opset_imports.get("", 21)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def write_parts(folder: Path, lowered: Lowered, machine: Machine) -> dict[str, str]:
    """Compile what surrounds the integer layers, where that is more than arithmetic that numpy does as fast.

    What TVM cannot import is left to onnxruntime.

    Args:
        folder: Of the CPU bundle; gets a folder for each part.
        lowered: The network.
        machine: That it runs on.

    Returns:
        Name to operator of the nodes that were compiled.
    """
    nodes: dict[str, str] = {}
    for name, part in cpu.host_parts(lowered):
        if part is None or cpu.in_numpy(part) is not None:
            continue
        try:
            program = program_of(part, machine)
        except UnsupportedOpError:
            continue
        (folder / name).mkdir()
        library.write(program, name, folder / name)
        nodes |= nodes_of(part)
    return nodes


def compile_float(path: Path, destination: Path, options: CompileOptions, progress: Progress) -> CompileReport:
    """Compile an ONNX file into an artefact that computes in float32, compared with onnxruntime.

    Raises:
        ValueError, RuntimeError: One of the classes in compiler.cli.EXIT_CODES, with its remedy as a note.
    """
    from compiler import pipeline, targets

    artefact.check_destination(destination)
    _check(options)
    target = targets.make(options)
    assert isinstance(target, targets.Cpu)
    progress("import", 0, 0)
    imported = import_model(path, options.input_shapes)
    samples = pipeline.samples_of(imported.model, options, progress)
    progress("build", 0, 0)
    program = program_of(imported.model, target.machine)
    with artefact.writing(destination) as folder:
        proto = ir.to_proto(imported.model).SerializeToString(deterministic=True)
        (folder / artefact.MODEL).write_bytes(proto)
        bundle = folder / artefact.CPU
        bundle.mkdir()
        library.write(program, path.stem, bundle)
        report = _report(imported, target.facts(), program, options, len(proto))
        if options.verify:
            few = quality.first(samples.arrays, VERIFIED)
            report = replace(report, verify=verify(folder, imported.model, few))
        (folder / artefact.REPORT_JSON).write_text(to_json(report), encoding="utf-8")
        (folder / artefact.REPORT_HTML).write_text(to_html(report), encoding="utf-8")
        artefact.seal(folder, _manifest(report, options))
    return report


def _check(options: CompileOptions) -> None:
    from compiler.targets import OptionError

    if options.target != "cpu":
        error = OptionError(f"--float computes on a processor: it needs --target cpu, not {options.target!r}")
        error.add_note("remedy: add --target cpu, or leave --float out")
        raise error
    if options.compression is not None:
        error = OptionError("--float compresses nothing: it takes no bits and no budgets")
        error.add_note("remedy: leave --float out, or run `edgec compress` first and compile its model.onnx")
        raise error


def _report(
    imported: Imported, target: TargetFacts, program: Program, options: CompileOptions, size: int
) -> CompileReport:
    source = imported.source
    facts = model_facts(source, size)
    footprint = {"arena_bytes": program.arena.size, "constant_bytes": len(program.constants)}
    return CompileReport(
        edgec=VERSION,
        model=facts,
        target=target,
        calibration={
            "source": options.calibration.name if options.calibration else "synthetic",
            "samples": VERIFIED,
            "input_scale": list(options.scale),
            "input_mean": list(options.mean),
        },
        macs=program.macs,
        source_macs=program.macs,
        cycles=None,
        multipliers=None,
        utilisation=None,
        weight_bytes=source.float_bytes,
        stored_weight_bytes=len(program.constants),
        layers=(),
        host_nodes=(),
        float_nodes=nodes_of(imported.model),
        passes=tuple(PassRow(p.name, len(p.changed), dict(p.skipped), dict(p.metrics)) for p in imported.reports),
        footprint=footprint,
        tools=doctor.tool_versions(),
    )


def _manifest(report: CompileReport, options: CompileOptions) -> Manifest:
    return Manifest(
        network=report.model.name,
        target=report.target.name,
        edgec=VERSION,
        preprocessing=Preprocessing(options.scale, options.mean, options.images),
        options={"arithmetic": FLOAT, "mcpu": str(report.target.config["mcpu"])},
        tools=report.tools,
    )


def nodes_of(model: ir.Model) -> dict[str, str]:
    """Name to operator of what runs in float."""
    return {str(node.name): node.op_type for node in model.graph}


@dataclass(frozen=True, eq=False)
class StoredFloat:
    """An artefact of `--float` that was opened.

    Attributes:
        model: What was compiled.
        warnings: Files that are not as compile wrote them.
    """

    manifest: Manifest
    model: ir.Model
    warnings: tuple[str, ...]


def open_float(folder: Path) -> StoredFloat:
    """Read an artefact.

    Raises:
        ArtefactError: Not an artefact, or damaged.
    """
    manifest = artefact.load(folder)
    warnings = tuple(f"{folder / name} is not as compile wrote it" for name in artefact.altered_files(folder, manifest))
    return StoredFloat(manifest, stored.read_model(folder / artefact.MODEL), warnings)


def is_float(folder: Path) -> bool:
    """Whether a folder is an artefact of `--float`."""
    return artefact.load(folder).options.get("arithmetic") == FLOAT


def verify(folder: Path, model: ir.Model, samples: Mapping[str, NDArray[np.generic]]) -> VerifyFacts:
    """Compare the library with onnxruntime on whole samples.

    Raises:
        BundleError, WrongProcessorError: The library cannot be loaded.
    """
    expected = quality.in_onnxruntime(model, samples)
    got = run(folder / artefact.CPU, samples, threads=2)
    elements, wrong, told = 0, 0, []
    for name, want in expected.items():
        want64 = want.astype(np.float64)
        scale = np.abs(want64[np.isfinite(want64)]).max(initial=0) or 1.0
        same = (got[name] == want) | (np.isnan(want64) & np.isnan(got[name]))
        far = ~same & ~(np.abs(got[name].astype(np.float64) - want64) <= TOLERANCE * scale)
        elements, wrong = elements + want.size, wrong + int(far.sum())
        if far.any():
            index = tuple(map(int, np.argwhere(far)[0]))
            told.append(f"output {name!r}: element {list(index)} is {got[name][index]}, onnxruntime has {want[index]}")
    return VerifyFacts(
        inputs=statistics.count(samples),
        random_inputs=0,
        elements=elements,
        layers=0,
        mismatches=wrong,
        instructions=0,
        cycle_mismatches=0,
        cycles=0,
        differences=tuple(told),
        tolerance=TOLERANCE,
    )


def run(folder: Path, samples: Mapping[str, NDArray[Any]], *, threads: int = 1) -> Floats:
    """Samples [N, ...] one after the other through the library of a folder; outputs [N, ...].

    Raises:
        HostError: They do not fit.
        BundleError, WrongProcessorError: The library cannot be loaded.
    """
    loaded = library.load(folder, threads=threads)
    try:
        rows = [
            loaded.run(checked(loaded, {name: values[i : i + 1] for name, values in samples.items()}))
            for i in range(statistics.count(samples))
        ]
    finally:
        loaded.close()
    return {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in rows[0]}


def checked(loaded: FloatLibrary, sample: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One sample in the network's types.

    Raises:
        HostError: An input is missing, of another shape, or has a value that is not a number.
    """
    values = {}
    for tensor in loaded.inputs:
        if tensor.name not in sample:
            raise HostError(f"input '{tensor.name}' is missing; given: {sorted(sample)}")
        value = sample[tensor.name]
        if value.shape != tensor.shape:
            raise HostError(f"input '{tensor.name}': expected {list(tensor.shape)}, got {list(value.shape)}")
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise HostError(f"input '{tensor.name}' has a value that is not a number")
        values[tensor.name] = value.astype(tensor.dtype, copy=False)
    return values
