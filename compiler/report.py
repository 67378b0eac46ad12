"""What a compile tells: one typed report, written as report.json (docs/report.md), and shown in the terminal."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # reading a report needs no importer
    from compiler.importer import Source

KIND = "edgec-report"
SCHEMA = 1
HOST, ACCELERATOR = "host", "accelerator"


@dataclass(frozen=True)
class ModelFacts:
    """The network as it was given.

    Attributes:
        inputs, outputs: Name to static shape.
        float_bytes: Of the float initializers.
        quantized_bytes: Size of the quantized ONNX file; None for a check, which writes none.
    """

    name: str
    sha256: str
    producer: str
    opset: int
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    float_bytes: int
    quantized_bytes: int | None = None


def model_facts(source: Source, quantized_bytes: int | None) -> ModelFacts:
    """The facts of a file, and the size of what was made of it."""
    return ModelFacts(
        name=source.path.stem,
        sha256=source.sha256,
        producer=source.producer,
        opset=source.opset,
        inputs=source.inputs,
        outputs=source.outputs,
        float_bytes=source.float_bytes,
        quantized_bytes=quantized_bytes,
    )


@dataclass(frozen=True)
class TargetFacts:
    """What it was compiled for.

    Attributes:
        array: "PxQ"; empty where the target has none.
        macs_per_cycle: Of the whole array; None where the target has none.
        config: Every parameter of the accelerator.
    """

    name: str
    array: str = ""
    macs_per_cycle: int | None = None
    config: Mapping[str, int | str] = field(default_factory=dict)
    config_id: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One step of the program and what it costs.

    Attributes:
        name: Of the layer; a layout copy has a name of its own.
        kind: Layer kinds that run in this step, joined by "+".
        shape: (channels, height, width) of what it stores.
        macs: Dense multiply-accumulates.
        cycles: Exact; None where the target has no schedule.
        utilisation: Dense macs / (cycles * macs per cycle); above 1 where zero blocks are skipped.
        weight_bytes: Dense int8 weights.
        instructions: Of the accelerator.
        activation_bytes: Alive while it runs.
        multipliers: Of the array that have an output channel to work on.
        sqnr_db: Signal to quantization noise of the stored tensor, end to end; None where unknown or without noise.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    macs: int
    cycles: int | None
    utilisation: float | None
    weight_bytes: int
    instructions: int
    activation_bytes: int | None = None
    multipliers: int | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class MemoryUse:
    """Words used of one memory of the accelerator."""

    memory: str
    used: int
    available: int
    word_bits: int


@dataclass(frozen=True)
class MapEntry:
    """Where a tensor is in the activation memory, and from which layer to which (indices into layers, inclusive).

    `first` is -1 for what is there before the first layer; `last` is the number of layers for what the host reads.
    """

    tensor: str
    base: int
    words: int
    first: int
    last: int


@dataclass(frozen=True)
class HostNode:
    """A node that runs on the host, and why.

    Attributes:
        side: "head", "middle" or "tail".
        after: How many entries into the accelerator are before it.
        macs: Dense multiply-accumulates.
    """

    name: str
    op: str
    side: str
    reason: str
    after: int = 0
    macs: int = 0


@dataclass(frozen=True)
class CutRow:
    """A tensor that passes between host and accelerator.

    Attributes:
        tensor: int8; real = scale * (q - zero_point), and q = clip(rint(real / scale) + zero_point, -128, 127).
        value: Name of the float value that it stands for; None where it passes as it is, from or to another entry.
        shape: (channels, height, width).
    """

    tensor: str
    value: str | None
    shape: tuple[int, int, int]
    scale: float
    zero_point: int


@dataclass(frozen=True)
class SegmentRow:
    """What host or accelerator does in one turn.

    Attributes:
        on: "host" or "accelerator".
        model: File that the host runs; None for the accelerator, and for a host that only quantizes and dequantizes.
        steps: Names of nodes or of rows in `layers`.
        macs: Dense multiply-accumulates.
        cycles: Exact; None on the host, or where the target has no schedule.
        instructions: [first, end) of the program.
        inputs: What the accelerator reads: quantized by the host before.
        outputs: What the accelerator gives: dequantized by the host afterwards.
    """

    on: str
    model: str | None
    steps: tuple[str, ...]
    macs: int
    cycles: int | None = None
    instructions: tuple[int, int] | None = None
    inputs: tuple[CutRow, ...] = ()
    outputs: tuple[CutRow, ...] = ()


@dataclass(frozen=True)
class VerifyFacts:
    """What was compared between the reference and the simulated hardware.

    Attributes:
        inputs: Samples run; `random_inputs` of them are random.
        elements: int8 elements compared.
        layers: Layer tensors compared for each sample.
        mismatches: Elements that differ.
        instructions: Instructions whose cycles were compared, over all samples.
        cycle_mismatches: Instructions that took another time than the schedule says.
        cycles: Measured, of one inference.
        differences: The first few, as sentences.
        tolerance: Largest difference relative to an output's largest value, for floats; 0 where equality is asked for.
    """

    inputs: int
    random_inputs: int
    elements: int
    layers: int
    mismatches: int
    instructions: int
    cycle_mismatches: int
    cycles: int
    differences: tuple[str, ...] = ()
    tolerance: float = 0.0

    @property
    def passed(self) -> bool:
        return self.mismatches == 0 and self.cycle_mismatches == 0 and self.elements > 0


@dataclass(frozen=True)
class AccuracyRow:
    """One number about the quality of a stage: `value` in `unit`; not finite (null in JSON) without noise or signal."""

    stage: str
    metric: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.value:.2f} {self.unit}" if math.isfinite(self.value) else "n/a"


@dataclass(frozen=True)
class PassRow:
    """What one pass did."""

    name: str
    changed: int
    skipped: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileReport:
    """Everything worth knowing about one compile; see docs/report.md.

    Attributes:
        macs: Dense multiply-accumulates of one inference on the accelerator, without channels that were removed.
        source_macs: The same before channels that do not depend on the input were removed.
        cycles: From the start register to done, weights resident; exact.
        multipliers: Hardware multipliers of the whole accelerator.
        utilisation: macs / (cycles * macs per cycle).
        weight_bytes: Dense int8 weights.
        stored_weight_bytes: Of the weight streams: zero blocks left out, partial blocks filled up.
        missed: One sentence for each budget that is exceeded.
        segments: What runs where, in the order of execution.
        host_macs: Dense multiply-accumulates of one inference on the host.
        footprint: Bytes of a CPU target by what they hold; empty for hardware.
        tiles: Layer to the tile of a CPU target's kernel, as pixels x vectors of channels, and the default if another.
        float_nodes: Name to operator of nodes that a CPU target computes in float32, compiled.
    """

    edgec: str
    model: ModelFacts
    target: TargetFacts
    calibration: Mapping[str, object]
    macs: int
    source_macs: int
    cycles: int | None
    multipliers: int | None
    utilisation: float | None
    weight_bytes: int
    stored_weight_bytes: int
    layers: tuple[LayerRow, ...]
    host_nodes: tuple[HostNode, ...]
    memory: tuple[MemoryUse, ...] = ()
    activation_map: tuple[MapEntry, ...] = ()
    verify: VerifyFacts | None = None
    accuracy: tuple[AccuracyRow, ...] = ()
    passes: tuple[PassRow, ...] = ()
    missed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    footprint: Mapping[str, int] = field(default_factory=dict)
    tiles: Mapping[str, str] = field(default_factory=dict)
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[SegmentRow, ...] = ()
    host_macs: int = 0


def to_json(report: CompileReport) -> str:
    """The text of report.json: stable order, no time of day, non-finite numbers as null."""
    document = {"kind": KIND, "schema": SCHEMA, **asdict(report)}
    return json.dumps(finite(document), indent=1) + "\n"


def from_dict(document: Mapping[str, Any]) -> CompileReport:
    """The report of a parsed report.json."""
    fields = {name: value for name, value in document.items() if name not in ("kind", "schema")}
    rows = {
        "layers": LayerRow,
        "host_nodes": HostNode,
        "memory": MemoryUse,
        "activation_map": MapEntry,
        "accuracy": AccuracyRow,
        "passes": PassRow,
    }
    for name, row in rows.items():
        fields[name] = tuple(row(**tuples(values)) for values in fields[name])
    fields["segments"] = tuple(_segment(values) for values in fields.get("segments", ()))
    fields["accuracy"] = tuple(replace(a, value=math.nan) if a.value is None else a for a in fields["accuracy"])
    fields["model"] = ModelFacts(**fields["model"])
    fields["target"] = TargetFacts(**fields["target"])
    fields["verify"] = VerifyFacts(**tuples(fields["verify"])) if fields["verify"] else None
    return CompileReport(**{**fields, **{name: tuple(fields.get(name, ())) for name in ("missed", "warnings")}})


def _segment(values: Mapping[str, Any]) -> SegmentRow:
    cuts = {name: tuple(CutRow(**tuples(cut)) for cut in values[name]) for name in ("inputs", "outputs")}
    return SegmentRow(**{**tuples(values), **cuts})


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def finite(value: object) -> object:
    """For JSON, which has no infinity: a tensor without noise has no SQNR."""
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def utilisation(macs: int, cycles: int | None, macs_per_cycle: int | None) -> float | None:
    """Share of the array's multiply-accumulates that were of use; None where it has no meaning."""
    if not cycles or not macs_per_cycle or not macs:
        return None
    return macs / (cycles * macs_per_cycle)


def show(report: CompileReport, console: Console) -> None:
    """Print the report as tables."""
    if report.layers:
        console.print(_layer_table(report))
    console.print(_summary(report))
    for node in report.host_nodes:
        told = f"{node.name} ({node.op}): {node.reason}"
        console.print(f"  host ({place_of(node)}): {told}", markup=False, highlight=False)
    for line in report.missed:
        console.print(f"  missed: {line}", markup=False, highlight=False)
    for warning in report.warnings:
        console.print(f"  warning: {warning}", markup=False, highlight=False)


def _layer_table(report: CompileReport) -> Table:
    table = Table(
        title=f"{report.model.name} on {report.target.name} {report.target.array}".rstrip(), title_justify="left"
    )
    for heading in ("layer", "kind", "stores"):
        table.add_column(heading, overflow="fold")
    for heading in ("MACs", "cycles", "use", "weights", "memory", "SQNR"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.layers:
        table.add_row(*(plain(cell) for cell in _cells(row)))
    return table


def plain(text: str) -> str:
    """Names of tensors may look like markup."""
    return text.replace("[", r"\[")


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "x".join(map(str, row.shape)),
        f"{row.macs:,}" if row.macs else "",
        number(row.cycles),
        percent(row.utilisation),
        f"{row.weight_bytes:,}" if row.weight_bytes else "",
        number(row.activation_bytes),
        "" if row.sqnr_db is None or not math.isfinite(row.sqnr_db) else f"{row.sqnr_db:.1f} dB",
    )


def _summary(report: CompileReport) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in summary(report):
        table.add_row(label, plain(value))
    return table


def summary(report: CompileReport) -> list[tuple[str, str]]:
    """The figures of one inference as label and text; terminal and HTML show the same."""
    before = f", {report.source_macs:,} with dead channels" if report.source_macs != report.macs else ""
    stored = f"{report.weight_bytes:,} bytes, {report.stored_weight_bytes:,} as stored"
    on_host = f", {report.host_macs:,} on the host" if report.host_macs else ""
    lines = [("MACs", f"{report.macs:,}{before}{on_host}"), ("weights", stored)]
    if len([segment for segment in report.segments if segment.on == ACCELERATOR]) > 1:
        lines.append(("runs", " -> ".join(_turn(segment) for segment in report.segments)))
    if report.cycles is not None:
        use = f" ({percent(report.utilisation)} of {report.target.macs_per_cycle} MACs per cycle)"
        lines.append(("cycles", f"{report.cycles:,}{use if report.utilisation else ''}"))
    if report.multipliers is not None:
        lines.append(("multipliers", f"{report.multipliers:,}"))
    if report.footprint:
        parts = (f"{name.removesuffix('_bytes')} {size:,}" for name, size in report.footprint.items())
        lines.append(("bytes", ", ".join(parts)))
    if "tune" in report.target.config:
        changed = sum("default" in tile for tile in report.tiles.values())
        lines.append(("tuned", f"another tile than by default in {changed} of {counted(len(report.tiles), 'layer')}"))
    if report.float_nodes:
        kinds = Counter(report.float_nodes.values()).most_common()
        lines.append(("in float", ", ".join(f"{count} {op}" for op, count in kinds)))
    if report.memory:
        lines.append(("memory", ", ".join(f"{m.memory} {percent(m.used / m.available)}" for m in report.memory)))
    for metric in dict.fromkeys(row.metric for row in report.accuracy):
        rows = [row for row in report.accuracy if row.metric == metric]
        lines.append((metric, ", ".join(f"{row.stage} {row.text}" for row in rows)))
    lines.append(("verified", verdict(report.verify)))
    return lines


def place_of(node: HostNode) -> str:
    """Where a node of the host runs, for people."""
    return node.side if node.side != "middle" else f"after entry {node.after}"


def _turn(segment: SegmentRow) -> str:
    if segment.on == ACCELERATOR:
        return f"accelerator ({counted(len(segment.steps), 'step')})"
    return f"host ({counted(len(segment.steps), 'node') if segment.steps else 'passes int8 on'})"


def counted(count: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def verdict(verify: VerifyFacts | None) -> str:
    """One sentence."""
    if verify is None:
        return "no (not simulated)"
    if verify.tolerance:
        differs = f"{verify.mismatches:,} of " if verify.mismatches else ""
        how = "differ from" if verify.mismatches else "agree with"
        return f"{differs}{verify.elements:,} output elements {how} onnxruntime, tolerance {verify.tolerance:g}"
    if verify.passed and not verify.instructions:
        return f"{verify.elements:,} elements of {verify.inputs} inputs equal to the reference"
    if verify.passed:
        return (
            f"{verify.elements:,} elements of {verify.inputs} inputs equal to the reference, "
            f"{verify.instructions:,} instructions take exactly the expected cycles"
        )
    return (
        f"FAILED: {verify.mismatches:,} of {verify.elements:,} elements differ, "
        f"{verify.cycle_mismatches:,} instructions take another time"
    )


def number(value: int | None) -> str:
    """With thousands separators; empty for None."""
    return "" if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """Of a share; empty for None."""
    return "" if value is None else f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:.0f} %"
