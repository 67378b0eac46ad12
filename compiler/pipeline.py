"""The whole flow: import -> cut -> calibrate -> quantize -> lower -> build -> verify -> report. Read this first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from backends.base import DoesNotFitError, UnsupportedOpError
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
    turns,
)
from compiler.artefact import Manifest, Preprocessing
from compiler.calibration import ImageOptions, Samples
from compiler.compression import CompressOptions, compress_network, read_parts
from compiler.importer import Imported, import_model
from compiler.lowering import Lowered, lower
from compiler.one_thread import blas_on_one_thread
from compiler.partition import mark, partition
from compiler.report import CompileReport, HostNode, ModelFacts, PassRow, model_facts, percent, to_json, utilisation
from compiler.report_html import to_html
from compiler.targets import OptionError, Plan, Target
from compiler.version import VERSION
from passes.base import PassReport, run
from passes.quantize import QuantizeConfig, Quantized, quantize
from passes.remove_dead_channels import RemoveDeadChannels
from sim.verilator import find_tools

Progress = Callable[[str, int, int], None]

SHORT_SAMPLES, SHORT_RANDOM = 2, 1
"""Calibration samples and random inputs of the verification that every compile does."""
LARGE_SHARE = 0.1
"""Of the multiply-accumulates: a compile warns when the host has to do more."""
MEASURED_SAMPLES = 16
"""Calibration samples for the signal to noise ratios of the report."""
_QUICK = QuantizeConfig(equalize=None, reconstruct=False)
_SHOWN = 5


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
        may_cut: The host runs what the target cannot, also between layers that it can.
        verify: Simulate the result, or run it.
        mcpu: Processor of a CPU target, by LLVM's name; None is this one, or the target's usual one.
        ram, flash: Most bytes of a CPU target's maps, and of its code and constants.
        tune: Tiles that are timed for each layer shape of a CPU target; 0 keeps the default ones.
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
    may_cut: bool = True
    verify: bool = True
    mcpu: str | None = None
    ram: int | None = None
    flash: int | None = None
    tune: int = 0
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
        if options.tune:
            error = OptionError("--tune: float kernels have no tiles to choose from")
            error.add_note("remedy: leave out --tune or --float")
            raise error
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
        inputs = stored.write_samples(folder, network.lowered, network.quantized, network.samples.arrays)
        graphs, complaints = [segment.graph for segment in network.lowered.segments], tuple[str, ...]()
        if isinstance(target, targets.Cpu):
            target, complaints = target.tuned(graphs, progress)
        progress("build", 0, 0)
        plan = target.plan(graphs)
        plan.build(folder, turns.order(network.lowered))
        report = describe(network, target, plan, options, progress)
        report = replace(report, warnings=(*report.warnings, *complaints))
        if isinstance(target, targets.Cpu) and cpu_backend.is_shared(target.machine):
            compiled = float_cpu.write_parts(folder / artefact.CPU, network.lowered, target.machine)
            report = replace(report, float_nodes=compiled)
        if options.verify and target.is_hardware:
            few = {name: values[:SHORT_SAMPLES] for name, values in inputs.items()}
            verdict = simulation.verify(folder, network.lowered.graph, few, random=SHORT_RANDOM, progress=progress)
            report = replace(report, verify=verdict)
        elif options.verify and (folder / artefact.CPU).is_dir():
            few = {name: values[:SHORT_SAMPLES] for name, values in inputs.items()}
            report = replace(report, verify=cpu.verify(folder, network.lowered, few, random=SHORT_RANDOM))
        (folder / artefact.REPORT_JSON).write_text(to_json(report), encoding="utf-8")
        (folder / artefact.REPORT_HTML).write_text(to_html(report), encoding="utf-8")
        artefact.seal(folder, _manifest(network, report, options))
    return report


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
    plan = target.plan([segment.graph for segment in network.lowered.segments])
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
        samples = samples_of(imported.model, options, progress, is_check=is_check)
        config = _QUICK if is_check else QuantizeConfig()
        quantized, report, lowered, _ = _integers(imported.model, samples, config, options, progress)
    except ValueError as error:
        if path.name not in str(error):
            error.add_note(f"in {path.name}")
        raise
    return Network(imported, imported.model, samples, quantized, lowered, (*imported.reports, report))


def _integers(
    model: ir.Model, samples: Samples, config: QuantizeConfig, options: CompileOptions, progress: Progress
) -> tuple[ir.Model, PassReport, Lowered, dict[str, str]]:
    """Quantize and lower. What turns out to have no integer layer, or none on the target, is left to the host.

    Returns:
        Quantized model, what was done, integer layers, and the nodes that were left to the host and why.
    """
    target, refused = targets.make(options), dict[str, str]()
    while True:
        cut = partition(model, may_cut=options.may_cut, refused=refused)
        quantized, report = quantize(model, cut.nodes, samples.arrays, config, progress)
        mark(quantized, cut)
        progress("lower", 0, 0)
        try:
            lowered = lower(quantized, cut)
            target.check([segment.graph for segment in lowered.segments])
        except UnsupportedOpError as error:
            found = {node.node: node.reason for node in error.nodes}
            if not options.may_cut or not found.keys() <= cut.nodes:
                raise
            refused |= found
        else:
            return quantized, report, lowered, refused


def _compressed(
    imported: Imported, options: CompileOptions, compression: CompressOptions, progress: Progress
) -> Network:
    """From the float graph to integer layers, under budgets."""
    parts = read_parts(imported.model, compression, progress)
    # What only integers show must be known before the search: which integers does not matter.
    one = calibration.synthetic_samples(imported.model, seed=0, count=1)
    *_, refused = _integers(imported.model, one, _QUICK, options, progress)
    cut = partial(partition, may_cut=options.may_cut, refused=refused)
    made = compress_network(
        imported.model, lambda model: cut(model).nodes, parts, compression, progress, _written
    )
    progress("lower", 0, 0)
    shaped = made.shaped.model
    mark(made.quantized.model, cut(shaped))
    lowered = lower(made.quantized.model, cut(shaped))
    samples = replace(parts.calibrate, warnings=parts.warnings)
    reports = (*imported.reports, *made.reports)
    return Network(imported, shaped, samples, made.quantized.model, lowered, reports, made.missed)


def _written(quantized: Quantized) -> tuple[bytes, tuple[PassReport, ...]]:
    """model.onnx of an artefact: with all names and shapes, for it is lowered again when it is opened."""
    return stored.serialized(quantized.model), ()


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
    steps = tuple(step for own in plan.steps for step in own)
    layers = costs.layer_rows(graph, steps, facts.macs_per_cycle, noise)
    on_host = turns.host_macs(quantized, network.lowered)
    host_nodes = tuple(
        HostNode(n.name, n.op, n.side, n.reason, n.after, on_host.get(n.name, 0)) for n in network.lowered.host_nodes
    )
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
        layers=layers,
        host_nodes=host_nodes,
        memory=costs.memory_uses(program) if program else (),
        activation_map=costs.activation_map(graph, plan.steps, program) if program else (),
        accuracy=accuracy,
        passes=tuple(PassRow(p.name, len(p.changed), dict(p.skipped), dict(p.metrics)) for p in network.passes),
        missed=network.missed,
        footprint=plan.footprint,
        tiles=plan.tiles,
        warnings=(*(() if is_check else samples.warnings), *_host_warnings(host_nodes, estimate.macs)),
        tools=doctor.tool_versions(),
        segments=turns.segment_rows(network.lowered, plan.steps, layers, program),
        host_macs=sum(on_host.values()),
    )


def _host_warnings(nodes: Sequence[HostNode], macs: int) -> tuple[str, ...]:
    """Whoever wants an accelerator should know when much of the work does not run there."""
    on_host = sum(node.macs for node in nodes)
    if on_host <= LARGE_SHARE * (on_host + macs):
        return ()
    largest = sorted((node for node in nodes if node.macs), key=lambda node: -node.macs)
    named = ", ".join(f"{node.name} ({node.op}) {node.macs:,}" for node in largest[:_SHOWN])
    more = f" and {len(largest) - _SHOWN} more" if len(largest) > _SHOWN else ""
    share, total = percent(on_host / (on_host + macs)), on_host + macs
    return (f"{share} of the multiply-accumulates run on the host, {on_host:,} of {total:,}: {named}{more}",)


def _source_macs(network: Network, macs: int) -> int:
    """Before channels were removed; the removal counts every Conv and Gemm, on the host too."""
    counted = next((p.metrics for p in network.passes if p.name == RemoveDeadChannels.name and p.changed), None)
    return macs if counted is None else macs + int(counted["macs_before"] - counted["macs_after"])


def _model_facts(network: Network, is_check: bool) -> ModelFacts:
    return model_facts(network.imported.source, None if is_check else len(stored.serialized(network.quantized)))


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
        **({"tune": options.tune} if options.tune else {}),
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
