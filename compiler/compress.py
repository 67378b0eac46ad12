"""`edgec compress`: import -> split the samples -> compress -> write and check the files -> report. Read this first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from compiler import artefact, compress_html, compress_report, doctor
from compiler.artefact import Manifest, Preprocessing
from compiler.compress_report import (
    NO_COSTS,
    CompressReport,
    Costs,
    FileParts,
    FrontPoint,
    LayerFigures,
    Limits,
    PassOutcome,
    Probe,
)
from compiler.compression import Compressed, CompressOptions, Parts, compress_network, read_parts
from compiler.importer import Imported, import_model
from compiler.one_thread import blas_on_one_thread
from compiler.quality import first
from compiler.quantizable import quantizable
from compiler.report import model_facts
from compiler.search import Trial, coded_layer, layer_bits
from compiler.structure import CHANNELS, LOW_RANK
from compiler.structure import NAMES as STRUCTURES
from compiler.version import VERSION
from passes import graph as edit
from passes import low_rank
from passes.base import PassReport, run
from passes.layer import Layer, layers
from passes.low_rank import Split
from passes.quantize import why_not
from passes.recipes.families import EXACT_SCALE_BITS, NAMES, stored_bits
from passes.remove_dead_channels import RemoveDeadChannels
from passes.statistics import Progress
from passes.statistics import run as run_model

FLOAT_BYTES = 4


class CompressError(RuntimeError):
    """The compressed file does not compute what the network in memory does: a fault of edgec, or of onnxruntime."""


@blas_on_one_thread()
def compress(path: Path, destination: Path, options: CompressOptions, progress: Progress) -> CompressReport:
    """Compress an ONNX file into an artefact folder, which appears only when it is complete.

    Raises:
        ValueError, RuntimeError: One of the classes in compiler.cli.EXIT_CODES, with its remedy as a note.
    """
    artefact.check_destination(destination)
    progress("import", 0, 0)
    imported = import_model(path, options.input_shapes)
    source = imported.model.clone()
    reports = run([RemoveDeadChannels()], imported.model)
    parts = read_parts(imported.model, options, progress)
    made = compress_network(imported.model, lambda model: quantizable(model)[0], parts, options, progress)
    with artefact.writing(destination) as folder:
        progress("write", 0, 0)
        nodes, reasons = quantizable(made.shaped.model)
        if already := why_not(imported.model):
            nodes, reasons = frozenset(), {str(node.name): already for node in imported.model.graph}
        chosen = PassReport("integer-arithmetic", tuple(sorted(nodes)), reasons)
        _write(folder, made, parts)
        told = _report(
            imported, source, made, parts, options, (*imported.reports, *reports, chosen, *made.reports), reasons
        )
        (folder / artefact.REPORT_JSON).write_text(compress_report.to_json(told), encoding="utf-8")
        (folder / artefact.REPORT_HTML).write_text(compress_html.to_html(told), encoding="utf-8")
        artefact.seal(folder, _manifest(imported, parts, options, told))
    return told


def _write(folder: Path, made: Compressed, parts: Parts) -> None:
    """model.onnx and model.edgec, which was unpacked to it when it was packed, after a comparison with the network."""
    _check_file(made.onnx, made.quantized.model, parts)
    (folder / artefact.MODEL).write_bytes(made.onnx)
    (folder / artefact.PACKED).write_bytes(made.packed)


def _check_file(data: bytes, model: ir.Model, parts: Parts) -> None:
    """The file is valid, loads in onnxruntime at BASIC and ALL, and answers as the network in memory does."""
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    few = first(parts.choose.arrays, 2)
    names = [str(value.name) for value in model.graph.outputs]
    wanted = list(run_model(model, few, names))
    for row, got in zip(wanted, run_model(ir.serde.deserialize_model(onnx.load_from_string(data)), few, names)):
        for name in names:
            if not np.array_equal(row[name], got[name], equal_nan=True):
                raise CompressError(f"output '{name}' of the written file differs from the network in memory")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


# The report


def _report(
    imported: Imported,
    source: ir.Model,
    made: Compressed,
    parts: Parts,
    options: CompressOptions,
    reports: tuple[PassReport, ...],
    reasons: Mapping[str, str],
) -> CompressReport:
    figures = _layer_figures(source, made, reasons)
    before = sum((layer.before for layer in figures), NO_COSTS)
    after = sum((layer.after for layer in figures), NO_COSTS)
    facts, budget, already = imported.source, options.budget, why_not(imported.model)
    return CompressReport(
        edgec=VERSION,
        model=model_facts(facts, len(made.onnx)),
        calibration={
            "source": options.calibration.name if options.calibration else "synthetic",
            "samples": parts.calibrate.count,
            "input_scale": list(options.scale),
            "input_mean": list(options.mean),
        },
        samples=parts.sentence,
        limits=Limits(budget.max_drop or "", budget.max_bytes, budget.max_macs, made.missed),
        layers=figures,
        before=replace(before, bytes=facts.float_bytes),
        cleaned=_cleaned(imported.model),
        after=replace(after, bytes=len(made.packed)),
        parts=FileParts(**asdict(made.sizes)),
        onnx_bytes=len(made.onnx),
        quality=made.comparison,
        quality_why=made.metric.why,
        front=_front(made, after.macs),
        probes=tuple(_probe(trial) for trial in made.trials if trial.predicted > 0),
        passes=(*(_outcome(report) for report in reports), *_families(made, options)),
        warnings=(
            *parts.warnings,
            *([f"{already}: what is large and float alone is stored smaller"] if already else []),
        ),
        tools=doctor.tool_versions(),
    )


def _probe(trial: Trial) -> Probe:
    return Probe(trial.predicted, trial.divergence, trial.families)


def _outcome(report: PassReport) -> PassOutcome:
    return PassOutcome(
        report.name,
        "kept" if report.changed else "no change",
        len(report.changed),
        skipped=dict(report.skipped),
        metrics=dict(report.metrics),
    )


def _families(made: Compressed, options: CompressOptions) -> list[PassOutcome]:
    """What became of every method family that a budget was searched with."""
    codings = NAMES if options.is_searched else ()
    structures = STRUCTURES if options.budget.asks_macs else ()
    used = next((trial.recipes for trial in made.trials if trial.quantized is made.quantized), {})
    counts = Counter(option.family for option in used.values()) if codings else Counter[str]()
    counts |= Counter({CHANNELS: len(made.shaped.structure.removal), LOW_RANK: len(made.shaped.structure.ranks)})
    return [_family(name, counts[name], made, options) for name in dict.fromkeys((*codings, *structures))]


def _family(name: str, count: int, made: Compressed, options: CompressOptions) -> PassOutcome:
    """Of a family that `count` layers, or groups of channels, of the result use."""
    if count:
        return PassOutcome(name, "kept", count)
    if name not in options.families:
        return PassOutcome(name, "off", reason="left out by --only or --without")
    plans = [trial for trial in made.trials if trial.refused and name in trial.families]
    if plans:
        nearest = min(plans, key=lambda trial: trial.drop)
        tried = sum(option.family == name for option in nearest.recipes.values())
        reason = f"the plan of {nearest.bytes:,} bytes that has it in {tried} layers {nearest.refused}"
        return PassOutcome(name, "rolled back", reason=reason, drop=nearest.drop)
    if name in made.refused:
        return PassOutcome(name, "rolled back", reason=made.refused[name])
    return PassOutcome(name, "no change", reason="no plan that was carried out has it")


def _front(made: Compressed, macs: int) -> tuple[FrontPoint, ...]:
    """The trials of which none is better in both size and drop."""
    points = sorted(made.trials, key=lambda trial: (trial.bytes, trial.drop))
    front, best = [], math.inf
    for trial in points:
        is_chosen = trial.quantized is made.quantized
        if trial.drop < best or is_chosen:
            best = min(best, trial.drop)
            size = len(made.packed) if is_chosen else trial.bytes
            front.append(FrontPoint(size, macs, trial.predicted, trial.drop, is_chosen, is_chosen))
    return tuple(front)


def _cleaned(model: ir.Model) -> Costs:
    nodes = {str(node.name): node for node in model.graph}
    return sum((_float_costs(nodes[name], layer) for name, layer in layers(model).items()), NO_COSTS)


def _float_costs(node: ir.Node, layer: Layer) -> Costs:
    weights = layer.channels * layer.taps + (layer.channels if edit.operand(node, 2) is not None else 0)
    read, written = (math.prod(edit.shape_of(value) or (0,)) for value in (node.inputs[0], node.outputs[0]))
    size = FLOAT_BYTES * weights
    return Costs(size, layer.macs(edit.shape_of(node.outputs[0]) or (0,)), size + FLOAT_BYTES * (read + written))


def _layer_figures(source: ir.Model, made: Compressed, reasons: Mapping[str, str]) -> tuple[LayerFigures, ...]:
    """Every weighted layer of the original network, with what became of it: of a split layer, all parts."""
    model = made.quantized.model
    now = {str(node.name): node for node in model.graph}
    known, originals = layers(model), layers(source)
    sizes, splits = _coded_bytes(made), low_rank.splits(made.shaped.model)
    rows = []
    for node in source.graph:
        name = str(node.name)
        if (layer := originals.get(name)) is None:
            continue
        split = splits.get(name)
        parts = [part for part in (split.nodes if split else (name,)) if part in known]
        costs = [
            _coded_costs(now[part], known[part], sizes[part], made.activation_bits)
            if part in made.recipes
            else _stored_costs(now[part], known[part], sizes[part])
            for part in parts
        ]
        row = LayerFigures(
            name,
            node.op_type,
            _float_costs(node, layer),
            sum(costs, NO_COSTS),
            "float",
            reasons.get(name, "it is gone: nothing depends on it"),
            rank=min(split.choice.rank) if split else None,
            channels=(layer.channels, known[name].channels)
            if name in known and known[name].channels != layer.channels
            else None,
        )
        if name in known and name not in made.recipes and (codes := _integers(now[name])) is not None:
            row = replace(row, recipe=f"float, stored as W{_bits(codes)}", bits=_bits(codes))
        if name in made.recipes and name in known:
            row = _coded(row, [now[part] for part in parts if part in made.recipes], split, made)
        rows.append(row)
    return tuple(rows)


def _coded_bytes(made: Compressed) -> dict[str, int]:
    """The file's codes, scales and biases, divided among the layers by what their numbers take."""
    nodes = {str(node.name): node for node in made.quantized.model.graph}
    taken = {
        name: layer_bits(nodes[name]) if name in made.recipes else _stored_bits(nodes[name], layer)
        for name, layer in layers(made.quantized.model).items()
    }
    whole = made.sizes.codes + made.sizes.codebooks + made.sizes.scales + made.sizes.biases
    total = sum(taken.values()) or 1.0
    return {name: round(whole * bits / total) for name, bits in taken.items()}


def _integers(node: ir.Node) -> NDArray[np.integer] | None:
    """Codes of a layer whose weights are stored as integers; None where they are float."""
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    if producer is None or not edit.is_op(producer, "DequantizeLinear"):
        return None
    codes = edit.constant(producer.inputs[0])
    return None if codes is None else codes.astype(np.int64)


def _stored_bits(node: ir.Node, layer: Layer) -> float:
    """Of a float layer: its weights, as integers and scales or as they are, and its biases."""
    biases = 8 * FLOAT_BYTES * (layer.channels if edit.operand(node, 2) is not None else 0)
    codes = _integers(node)
    if codes is None:
        return 8 * FLOAT_BYTES * layer.channels * layer.taps + biases
    rows = codes.T if layer.op == "MatMul" else codes.reshape(len(codes), -1)
    return stored_bits(rows, None, layer.kernel) + EXACT_SCALE_BITS * layer.channels + biases


def _stored_costs(node: ir.Node, layer: Layer, size: int) -> Costs:
    """Of one float node: its arithmetic is float, its weights may be stored as integers."""
    found, codes = _float_costs(node, layer), _integers(node)
    saved = 0 if codes is None else FLOAT_BYTES * codes.size - math.ceil(codes.size * _bits(codes) / 8)
    return Costs(size, found.macs, found.moved_bytes - saved)


def _coded_costs(node: ir.Node, layer: Layer, size: int, activation_bits: int) -> Costs:
    """Of one quantized node, in the width of its codes and activations."""
    codes = _codes(node)
    read, written = (math.prod(edit.shape_of(value) or (0,)) for value in (node.inputs[0], node.outputs[0]))
    moved_bits = codes.size * _bits(codes) + (read + written) * activation_bits
    return Costs(size, layer.macs(edit.shape_of(node.outputs[0]) or (0,)), math.ceil(moved_bits / 8))


def _coded(row: LayerFigures, nodes: Sequence[ir.Node], split: Split | None, made: Compressed) -> LayerFigures:
    """With what is known of its integers; its own name is that of the last node."""
    codes, importance = [_codes(node) for node in nodes], made.importance.get(row.name)
    recipes = dict.fromkeys(made.recipes[str(node.name)].name for node in nodes)
    losses = [made.quantized.losses[str(node.name)] for node in nodes if node.name in made.quantized.losses]
    falls = [made.quantized.fallbacks[str(node.name)] for node in nodes if node.name in made.quantized.fallbacks]
    return replace(
        row,
        recipe=", ".join([*([str(split.choice)] if split else []), *recipes]),
        reason="; ".join(falls) if falls else _reason(row.name, made, split),
        bits=max(map(_bits, codes)),
        activation_bits=made.activation_bits,
        sparsity=sum(int((each == 0).sum()) for each in codes) / max(1, sum(each.size for each in codes)),
        sqnr_db=made.sqnr.get(row.name),
        sensitivity=None if importance is None else float((importance.scattered + importance.shared).mean()),
        loss=sum(losses) if importance is not None and losses else None,
    )


def _codes(node: ir.Node) -> NDArray[np.integer]:
    found = coded_layer(node)
    assert found is not None
    return found[0]


def _bits(codes: np.ndarray) -> int:
    """The narrowest symmetric integer that holds every code; at least 2."""
    return max(2, int(np.abs(codes).max(initial=0)).bit_length() + 1)


def _reason(name: str, made: Compressed, split: Split | None) -> str:
    """What the choice was up against."""
    rivals = made.options.get(name)
    if not rivals:
        return "as asked for"
    chosen, choice = made.recipes[name].name, split.choice if split else None
    own = next((option for option in rivals if (option.recipe.name, option.split) == (chosen, choice)), None)
    if own is None:
        return "as asked for"
    families = {option.family for option in rivals} - {own.family}
    smaller = [o for o in rivals if o.family != own.family and o.bits <= own.bits]
    best = min(smaller, key=lambda option: option.loss, default=None)
    if best is None:
        return f"nothing else of {len(families)} families is as small" if families else "the one family allowed"
    worse = best.loss / max(own.loss, 1e-30)
    return f"at this size the best rival, {best.name}, loses {worse:.1f} times as much"


def _manifest(imported: Imported, parts: Parts, options: CompressOptions, told: CompressReport) -> Manifest:
    return Manifest(
        network=imported.source.path.stem,
        target=artefact.COMPRESSED,
        edgec=VERSION,
        preprocessing=Preprocessing(options.scale, options.mean, options.images),
        input_ranges={name: (float(x.min()), float(x.max())) for name, x in parts.calibrate.arrays.items()},
        options={"calibration": str(told.calibration["source"]), **options.facts()},
        tools=told.tools,
    )
