"""The whole flow: import -> cut -> calibrate -> quantize -> lower -> build -> verify -> report. Read this first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from backends.base import DoesNotFitError
from backends.cpu import backend as cpu_backend
from compiler import (
    artefact,
    calibration,
    container,
    costs,
    cpu,
    doctor,
    float_cpu,
    quality,
    simulation,
    stored,
    targets,
)
from compiler.artefact import Manifest, Preprocessing
from compiler.calibration import ImageOptions, Samples
from compiler.compression import CompressOptions, compress_network, read_parts
from compiler.importer import Imported, import_model
from compiler.lowering import Lowered, lower
from compiler.one_thread import blas_on_one_thread
from compiler.partition import partition
from compiler.report import CompileReport, HostNode, ModelFacts, PassRow, to_json, utilisation
from compiler.report_html import to_html
from compiler.targets import OptionError, Plan, Target
from compiler.version import VERSION
from passes.base import PassReport, run
from passes.quantize import QuantizeConfig, quantize
from passes.remove_dead_channels import RemoveDeadChannels
from sim.verilator import find_tools

Progress = Callable[[str, int, int], None]

SHORT_SAMPLES, SHORT_RANDOM = 2, 1
"""Calibration samples and random inputs of the verification that every compile does."""
MEASURED_SAMPLES = 16
"""Calibration samples for the signal to noise ratios of the report."""


@dataclass(frozen=True)
class CompileOptions:
    """What to compile for, and how.

    Attributes:
        target: A name of compiler.targets.
        array: (pixels, rows) of the array.
        memory: Sizes that differ from the array's default, by name; see targets.MEMORIES.
        input_shapes: Static shapes of dynamic inputs.
        dense: Keep zero weights and channels that do not depend on the input.
        calibration: Sample file; None makes synthetic samples, with a warning.
        scale, mean: Preprocessing, x = (sample - mean) * scale.
        images: How the images of a folder become samples.
        compression: Budgets and bits, where weights are not simply 8 bits wide; its samples are these.
        verify: Simulate the result, or run it.
        mcpu: Processor of a CPU target, by LLVM's name; None is this one, or the target's usual one.
        ram, flash: Most bytes of a CPU target's maps, and of its code and constants.
        is_float: Nothing becomes an integer; a CPU target computes in float32.
    """

    target: str = "fpga"
    array: tuple[int, int] = (16, 8)
    memory: Mapping[str, int] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dense: bool = False
    calibration: Path | None = None
    scale: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    images: ImageOptions = ImageOptions()
    compression: CompressOptions | None = None
    verify: bool = True
    mcpu: str | None = None
    ram: int | None = None
    flash: int | None = None
    is_float: bool = False


@dataclass(frozen=True, eq=False)
class Network:
    """A network in all its forms, before it is built for a target.

    Attributes:
        imported: Canonical float graph and facts about the file.
        shaped: The float graph that was quantized: without the channels and ranks that a budget took.
        samples: That it was calibrated on.
        quantized: With Q/DQ pairs.
        lowered: Integer layers and what the host does.
        passes: What each pass did.
        missed: One sentence for each budget that is exceeded.
    """

    imported: Imported
    shaped: ir.Model
    samples: Samples
    quantized: ir.Model
    lowered: Lowered
    passes: tuple[PassReport, ...]
    missed: tuple[str, ...] = ()


def compile(path: Path, destination: Path, options: CompileOptions, progress: Progress) -> CompileReport:
    """Compile an ONNX file into an artefact folder, which appears only when it is complete.

    Raises:
        ValueError, RuntimeError: One of the classes in compiler.cli.EXIT_CODES, with its remedy as a note.
    """
    if options.is_float:
        return float_cpu.compile_float(path, destination, options, progress)
    artefact.check_destination(destination)
    target = targets.make(options)
    if options.compression is not None:
        _check_bits(target, options.compression)
    if options.verify and target.is_hardware:
        find_tools()  # what is missing is better told now than after the work
    if options.verify and isinstance(target, targets.Cpu):
        cpu.check_runs(target.machine)
    network = prepare(path, options, progress)
    with artefact.writing(destination) as folder:
        stored.write_network(folder, network.imported.model, network.quantized, network.lowered)
        if options.compression is not None:
            packed = container.pack((folder / artefact.MODEL).read_bytes())
            (folder / artefact.PACKED).write_bytes(packed)
            network = replace(network, missed=(*network.missed, *_missed_size(len(packed), options.compression)))
        inputs = stored.write_samples(folder, network.lowered, network.quantized, network.samples.arrays)
        progress("build", 0, 0)
        plan = target.plan(network.lowered.graph)
        plan.build(folder)
        report = describe(network, target, plan, options, progress)
        if isinstance(target, targets.Cpu) and cpu_backend.is_shared(target.machine):
            compiled = float_cpu.write_parts(folder / artefact.CPU, network.lowered, target.machine)
            report = replace(report, float_nodes=compiled)
        if options.verify and target.is_hardware:
            few = {name: values[:SHORT_SAMPLES] for name, values in inputs.items()}
            verdict = simulation.verify(folder, network.lowered.graph, few, random=SHORT_RANDOM, progress=progress)
            report = replace(report, verify=verdict)
        elif options.verify and (folder / artefact.CPU).is_dir():
            few = {name: values[:SHORT_SAMPLES] for name, values in inputs.items()}
            report = replace(report, verify=cpu.verify(folder, network.lowered.graph, few, random=SHORT_RANDOM))
        (folder / artefact.REPORT_JSON).write_text(to_json(report), encoding="utf-8")
        (folder / artefact.REPORT_HTML).write_text(to_html(report), encoding="utf-8")
        artefact.seal(folder, _manifest(network, report, options))
    return report


def _missed_size(size: int, compression: CompressOptions) -> tuple[str, ...]:
    """The file of an artefact has all names and shapes, so it is larger than the search made it."""
    most = compression.budget.max_bytes
    return () if most is None or size <= most else (f"{artefact.PACKED} has {size} bytes, not {most}",)


def _check_bits(target: Target, compression: CompressOptions) -> None:
    """Refuse widths that the target has no arithmetic for, before anything is done."""
    can = target.capabilities
    for what, bits, known in (
        ("weights", compression.weights, can.weight_bits),
        ("activations", compression.activations.bits, can.activation_bits),
    ):
        if bits not in known:
            error = OptionError(f"the target has no arithmetic for {what} of {bits} bits")
            error.add_note(f"remedy: choose --{what} from {', '.join(map(str, known))}")
            raise error


def check(path: Path, options: CompileOptions, progress: Progress) -> tuple[CompileReport, DoesNotFitError | None]:
    """What a network costs on the target, and why it does not fit there, if so. Writes nothing.

    One synthetic sample is enough: costs do not depend on it.
    """
    target = targets.make(options)
    network = prepare(path, options, progress, is_check=True)
    plan = target.plan(network.lowered.graph)
    try:
        plan.program()
    except DoesNotFitError as error:
        return describe(network, target, plan, options, progress, is_check=True, fits=False), error
    return describe(network, target, plan, options, progress, is_check=True), None


@blas_on_one_thread()
def prepare(path: Path, options: CompileOptions, progress: Progress, *, is_check: bool = False) -> Network:
    """From the file to integer layers."""
    try:
        progress("import", 0, 0)
        imported = _without_dead_channels(import_model(path, options.input_shapes), options)
        if options.compression is not None and not is_check:
            return _compressed(imported, options, options.compression, progress)
        cut = partition(imported.model)
        samples = samples_of(imported.model, options, progress, is_check=is_check)
        config = QuantizeConfig(equalize=None, reconstruct=False) if is_check else QuantizeConfig()
        quantized, report = quantize(imported.model, cut.nodes, samples.arrays, config, progress)
        progress("lower", 0, 0)
        lowered = lower(quantized, cut)
    except ValueError as error:
        if path.name not in str(error):
            error.add_note(f"in {path.name}")
        raise
    return Network(imported, imported.model, samples, quantized, lowered, (*imported.reports, report))


def _compressed(
    imported: Imported, options: CompileOptions, compression: CompressOptions, progress: Progress
) -> Network:
    """From the float graph to integer layers, under budgets."""
    parts = read_parts(imported.model, compression, progress)
    made = compress_network(imported.model, lambda model: partition(model).nodes, parts, compression, progress)
    progress("lower", 0, 0)
    shaped = made.shaped.model
    lowered = lower(made.quantized.model, partition(shaped))
    samples = replace(parts.calibrate, warnings=parts.warnings)
    reports = (*imported.reports, *made.reports)
    return Network(imported, shaped, samples, made.quantized.model, lowered, reports, made.missed)


def _without_dead_channels(imported: Imported, options: CompileOptions) -> Imported:
    reports = [] if options.dense else run([RemoveDeadChannels()], imported.model)
    return replace(imported, reports=(*imported.reports, *reports))


def samples_of(
    model: ir.Model, options: CompileOptions, progress: Progress, *, is_check: bool = False
) -> Samples:
    """The given samples, or synthetic ones."""
    if options.calibration is None or is_check:
        return calibration.synthetic_samples(model, seed=0, count=1 if is_check else 16)
    return calibration.read_calibration(
        options.calibration,
        model,
        scale=options.scale,
        mean=options.mean,
        image_options=options.images,
        progress=progress,
    )


def describe(
    network: Network,
    target: Target,
    plan: Plan,
    options: CompileOptions,
    progress: Progress,
    *,
    is_check: bool = False,
    fits: bool = True,
) -> CompileReport:
    """Everything the report says but the verification. A check measures nothing on samples."""
    graph, facts, estimate, samples = network.lowered.graph, target.facts(), plan.estimate, network.samples
    model, quantized = network.imported.model, network.quantized
    program = plan.program() if fits else None
    few = quality.first(samples.arrays, MEASURED_SAMPLES)
    noise = {} if is_check else quality.noise(network.shaped, quantized, few, progress)
    accuracy = () if is_check else quality.on_calibration(model, quantized, network.lowered, samples, progress)
    return CompileReport(
        edgec=VERSION,
        model=_model_facts(network, is_check),
        target=facts,
        calibration=_calibration_facts(samples, options),
        macs=estimate.macs,
        source_macs=_source_macs(network, estimate.macs),
        cycles=estimate.cycles,
        multipliers=estimate.multipliers,
        utilisation=utilisation(estimate.macs, estimate.cycles, facts.macs_per_cycle),
        weight_bytes=sum(map(costs.weight_bytes, graph.layers)),
        stored_weight_bytes=estimate.weight_bytes,
        layers=costs.layer_rows(graph, plan.steps, facts.macs_per_cycle, noise),
        host_nodes=tuple(HostNode(n.name, n.op, n.side, n.reason) for n in network.lowered.host_nodes),
        memory=costs.memory_uses(program) if program else (),
        activation_map=costs.activation_map(graph, plan.steps, program) if program else (),
        accuracy=accuracy,
        passes=tuple(PassRow(p.name, len(p.changed), dict(p.skipped), dict(p.metrics)) for p in network.passes),
        missed=network.missed,
        footprint=plan.footprint,
        warnings=() if is_check else samples.warnings,
        tools=doctor.tool_versions(),
    )


def _source_macs(network: Network, macs: int) -> int:
    """Before channels were removed; the removal counts every Conv and Gemm, on the host too."""
    counted = next((p.metrics for p in network.passes if p.name == RemoveDeadChannels.name and p.changed), None)
    return macs if counted is None else macs + int(counted["macs_before"] - counted["macs_after"])


def _model_facts(network: Network, is_check: bool) -> ModelFacts:
    source = network.imported.source
    return ModelFacts(
        name=source.path.stem,
        sha256=source.sha256,
        producer=source.producer,
        opset=source.opset,
        inputs=source.inputs,
        outputs=source.outputs,
        float_bytes=source.float_bytes,
        quantized_bytes=None if is_check else len(stored.serialized(network.quantized)),
    )


def _calibration_facts(samples: Samples, options: CompileOptions) -> dict[str, object]:
    return {
        "source": options.calibration.name if options.calibration else "synthetic",
        "samples": samples.count,
        "input_scale": list(options.scale),
        "input_mean": list(options.mean),
    }


def _manifest(network: Network, report: CompileReport, options: CompileOptions) -> Manifest:
    told = {
        "array": report.target.array,
        "dense": str(options.dense).lower(),
        **({"mcpu": report.target.config["mcpu"]} if "mcpu" in report.target.config else {}),
        "calibration": report.calibration["source"],
        **(options.compression.facts() if options.compression else {}),
    }
    return Manifest(
        network=report.model.name,
        target=report.target.name,
        edgec=VERSION,
        preprocessing=Preprocessing(options.scale, options.mean, options.images),
        input_ranges={name: (float(x.min()), float(x.max())) for name, x in network.samples.arrays.items()},
        options={name: str(value) for name, value in told.items()},
        tools=report.tools,
    )
