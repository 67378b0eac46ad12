"""What a compression tells: one typed report, written as report.json (docs/report.md), and shown in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from compiler import metrics
from compiler.metrics import Comparison
from compiler.report import ModelFacts, finite, plain, tuples

KIND = "edgec-compression"
SCHEMA = 1
Outcome = Literal["kept", "rolled back", "no change", "off"]


@dataclass(frozen=True)
class Costs:
    """What a layer or a network costs; the survey's a and s are its bytes and MACs.

    Attributes:
        bytes: Of weights and biases: float32 before, coded (codes, codebooks, scales, biases) after.
        macs: Multiply-accumulates of one inference.
        moved_bytes: Weights, input and output, each once in an inference, in the width of their arithmetic.
    """

    bytes: int
    macs: int
    moved_bytes: int

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.bytes + other.bytes, self.macs + other.macs, self.moved_bytes + other.moved_bytes)


NO_COSTS = Costs(0, 0, 0)


@dataclass(frozen=True)
class LayerFigures:
    """One layer of the original network, and what became of it.

    Attributes:
        name: Of the node in the original network.
        op: Its operator.
        before, after: Its costs; all 0 after where nothing of it is left.
        recipe: Name of what was chosen.
        reason: Why.
        bits: Of a weight's code; None where weights stay float.
        activation_bits: Of its input; None where that stays float.
        sparsity: Share of zero codes.
        rank: Of a factorisation, else None.
        channels: Output channels before and after.
        sqnr_db: Signal to quantization noise of its output on the samples to choose by; None where unknown.
        sensitivity: What a unit of relative squared error in its output costs the network; None where unknown.
        loss: Predicted share in the network's loss.
    """

    name: str
    op: str
    before: Costs
    after: Costs
    recipe: str
    reason: str
    bits: int | None = None
    activation_bits: int | None = None
    sparsity: float = 0.0
    rank: int | None = None
    channels: tuple[int, int] | None = None
    sqnr_db: float | None = None
    sensitivity: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class FileParts:
    """Bytes of the compressed file by what they hold; their sum is its size."""

    codes: int
    codebooks: int
    scales: int
    biases: int
    graph: int
    headers: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Limits:
    """What was asked for, and what of it could not be had.

    Attributes:
        max_drop: As written; empty for no limit.
        max_bytes, max_macs: None for no limit.
        missed: One sentence for each limit that is exceeded.
    """

    max_drop: str = ""
    max_bytes: int | None = None
    max_macs: int | None = None
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrontPoint:
    """One of the plans of which none is better in both size and loss.

    Attributes:
        bytes: Of the file; estimated where `is_measured` is false.
        macs: Of one inference.
        loss: Predicted.
        drop: Measured, in the metric's unit as in Comparison; None where it was not measured.
        is_measured: The file was written and its size taken.
        is_chosen: It is the result.
    """

    bytes: int
    macs: int
    loss: float
    drop: float | None = None
    is_measured: bool = False
    is_chosen: bool = False


@dataclass(frozen=True)
class Probe:
    """A plan whose loss was predicted and then measured.

    Attributes:
        predicted, measured: Loss in nats.
        families: Method families of its layers, sorted.
    """

    predicted: float
    measured: float
    families: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassOutcome:
    """What became of one pass.

    Attributes:
        name: Of the pass.
        outcome: Whether its work is in the result.
        changed: Nodes that it rewrote.
        reason: Why it was rolled back or left out; else empty.
        drop: Of the metric after it, against the original, as in Comparison; None where it was not measured.
        skipped: Node to the reason why it was left alone.
        metrics: Named figures.
    """

    name: str
    outcome: Outcome
    changed: int = 0
    reason: str = ""
    drop: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CompressReport:
    """Everything worth knowing about one compression; see docs/report.md.

    Attributes:
        edgec: Version.
        model: The network as it was given; its float_bytes are the `a` of every ratio.
        calibration: Source, samples and preprocessing.
        samples: One sentence: which samples were calibrated on, and which chosen by.
        limits: What was asked for.
        layers: In the order of the network.
        before: Of the network as it was given.
        cleaned: The same without channels that do not depend on the input.
        after: As compressed; `bytes` is the size of the file, all of it.
        parts: Of the file.
        onnx_bytes: Size of the compressed network as an ONNX file.
        quality: Compressed beside original, on the samples to choose by.
        quality_why: Why this metric.
        others: The same by other metrics or on other samples, by what they are.
        front: From the smallest to the best.
        probes: Predicted and measured losses.
        passes: In the order in which they ran.
    """

    edgec: str
    model: ModelFacts
    calibration: Mapping[str, object]
    samples: str
    limits: Limits
    layers: tuple[LayerFigures, ...]
    before: Costs
    cleaned: Costs
    after: Costs
    parts: FileParts
    onnx_bytes: int | None = None
    quality: Comparison | None = None
    quality_why: str = ""
    others: Mapping[str, Comparison] = field(default_factory=dict)
    front: tuple[FrontPoint, ...] = ()
    probes: tuple[Probe, ...] = ()
    passes: tuple[PassOutcome, ...] = ()
    warnings: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of predicted and measured losses; None for fewer than three probes or where they do not vary."""
        if len(self.probes) < 3:
            return None
        predicted, measured = np.array([(probe.predicted, probe.measured) for probe in self.probes], np.float64).T
        found = metrics.spearman(predicted, measured)
        return found if math.isfinite(found) else None


# The survey's figures


def compression_rate(before: Costs, after: Costs) -> float | None:
    """a / a*; None where nothing was there, infinite where nothing is left."""
    return _ratio(before.bytes, after.bytes)


def speed_up(before: Costs, after: Costs) -> float | None:
    """s / s*, in MACs."""
    return _ratio(before.macs, after.macs)


def space_saving(before: Costs, after: Costs) -> float | None:
    """1 - a* / a; the survey prints (a - a*) / a*, which has no upper bound."""
    return 1 - after.bytes / before.bytes if before.bytes else None


def _ratio(before: int, after: int) -> float | None:
    return None if not before else before / after if after else math.inf


# JSON


def to_json(report: CompressReport) -> str:
    """The text of report.json: stable order, no time of day, non-finite numbers as null."""
    document = {"kind": KIND, "schema": SCHEMA, **asdict(report)}
    document["survey"] = _survey(report.before, report.after)
    for layer, figures in zip(document["layers"], report.layers):
        layer["survey"] = _survey(figures.before, figures.after)
    document["parts"]["total"] = report.parts.total
    document["rank_correlation"] = report.rank_correlation
    return json.dumps(finite(document), indent=1) + "\n"


def _survey(before: Costs, after: Costs) -> dict[str, float | None]:
    return {
        "compression_rate": compression_rate(before, after),
        "speed_up": speed_up(before, after),
        "space_saving": space_saving(before, after),
    }


def from_dict(document: Mapping[str, Any]) -> CompressReport:
    """The report of a parsed report.json."""
    found = _known(CompressReport, document)
    for name in ("before", "cleaned", "after"):
        found[name] = Costs(**found[name])
    model = _known(ModelFacts, found["model"])
    found["model"] = ModelFacts(**{**model, "inputs": tuples(model["inputs"]), "outputs": tuples(model["outputs"])})
    found["limits"] = Limits(**_known(Limits, found["limits"]))
    found["parts"] = FileParts(**_known(FileParts, found["parts"]))
    found["layers"] = tuple(_layer(layer) for layer in found["layers"])
    found["front"] = tuple(FrontPoint(**point) for point in found["front"])
    found["probes"] = tuple(_probe(probe) for probe in found["probes"])
    found["passes"] = tuple(PassOutcome(**row) for row in found["passes"])
    found["quality"] = _comparison(found["quality"]) if found["quality"] else None
    found["others"] = {name: _comparison(values) for name, values in found["others"].items()}
    return CompressReport(**found)


def _known(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass; what was derived for the reader of the file is left out."""
    return tuples({each.name: document[each.name] for each in fields(kind) if each.name in document})


def _layer(document: Mapping[str, Any]) -> LayerFigures:
    found = _known(LayerFigures, document)
    return LayerFigures(**{**found, "before": Costs(**found["before"]), "after": Costs(**found["after"])})


def _probe(document: Mapping[str, Any]) -> Probe:
    return Probe(
        _number(document["predicted"]), _number(document["measured"]), tuple(document.get("families", ()))
    )


def _comparison(document: Mapping[str, Any]) -> Comparison:
    found = _known(Comparison, document)
    for name in ("before", "after", "drop"):
        found[name] = _number(found[name])
    found["interval"] = tuple(map(_number, found["interval"]))
    found["agreement"] = tuple(tuple(row) for row in found["agreement"])
    return Comparison(**found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# Terminal


def show(report: CompressReport, console: Console) -> None:
    """Print the report as tables."""
    console.print(_layer_table(report))
    grid = Table.grid(padding=(0, 2))
    for label, value in summary(report):
        grid.add_row(label, plain(value))
    console.print(grid)
    for outcome in report.passes:
        if outcome.outcome == "rolled back":
            console.print(f"  {outcome.name}: rolled back: {outcome.reason}", markup=False, highlight=False)
    for line in report.limits.missed:
        console.print(f"  missed: {line}", markup=False, highlight=False)
    for warning in report.warnings:
        console.print(f"  warning: {warning}", markup=False, highlight=False)


def _layer_table(report: CompressReport) -> Table:
    table = Table(title=f"{report.model.name}, compressed", title_justify="left")
    for heading in HEADINGS[:3]:
        table.add_column(heading, overflow="fold")
    for heading in HEADINGS[3:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in report.layers:
        table.add_row(*(plain(cell) for cell in cells(layer)))
    return table


HEADINGS = ("layer", "op", "recipe", "bits", "zeros", "rank", "bytes", "a/a*", "MACs", "s/s*", "SQNR")


def cells(layer: LayerFigures) -> tuple[str, ...]:
    """Of one layer, below HEADINGS."""
    return (
        layer.name,
        layer.op,
        layer.recipe,
        "" if layer.bits is None else str(layer.bits),
        f"{100 * layer.sparsity:.0f} %" if layer.sparsity else "",
        "" if layer.rank is None else str(layer.rank),
        f"{layer.after.bytes:,}",
        times(compression_rate(layer.before, layer.after)),
        f"{layer.after.macs:,}" if layer.after.macs else "",
        times(speed_up(layer.before, layer.after)) if layer.before.macs != layer.after.macs else "",
        decibel(layer.sqnr_db),
    )


def times(ratio: float | None) -> str:
    """9.27 as "9.3x", 1.04 as "1.04x"; "gone" where nothing is left."""
    if ratio is None:
        return ""
    return "gone" if math.isinf(ratio) else f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


def decibel(value: float | None) -> str:
    """Empty where unknown or without noise."""
    return "" if value is None or not math.isfinite(value) else f"{value:.1f} dB"


def summary(report: CompressReport) -> list[tuple[str, str]]:
    """The figures of the network as label and text; terminal and HTML show the same."""
    before, cleaned, after = report.before, report.cleaned, report.after
    dead = before != cleaned
    saving = space_saving(before, after)
    size = f"{after.bytes:,} of {before.bytes:,} bytes, {times(compression_rate(before, after))}"
    lines = [("size", size + ("" if saving is None else f" (saves {100 * saving:.1f} %)"))]
    if dead:
        lines.append(
            ("", f"{times(compression_rate(cleaned, after))} of the {cleaned.bytes:,} bytes without dead channels")
        )
    macs = f"{after.macs:,} of {before.macs:,}, {times(speed_up(before, after))}"
    lines.append(("MACs", macs + (f" ({times(speed_up(cleaned, after))} without dead channels)" if dead else "")))
    lines.append(("moved", f"{after.moved_bytes:,} of {before.moved_bytes:,} bytes in one inference"))
    lines.append(("file", ", ".join(f"{name} {count:,}" for name, count in asdict(report.parts).items())))
    if report.onnx_bytes is not None:
        lines.append(("as ONNX", f"{report.onnx_bytes:,} bytes"))
    lines += quality_lines(report)
    if (correlation := report.rank_correlation) is not None:
        lines.append(("prediction", f"Spearman {correlation:.3f} with {len(report.probes)} measured plans"))
    return lines


def quality_lines(report: CompressReport) -> list[tuple[str, str]]:
    """Metric, drop, and what classes tell."""
    lines = []
    if report.quality is not None:
        limit = f", at most {report.limits.max_drop}" if report.limits.max_drop else ""
        lines.append(("quality", comparison_text(report.quality)))
        lines.append(("drop", drop_text(report.quality) + limit))
        if text := _class_text(report.quality):
            lines.append(("answers", text))
    for name, comparison in report.others.items():
        lines.append((name, f"{comparison_text(comparison)}; drop {drop_text(comparison)}"))
    return lines


def comparison_text(found: Comparison) -> str:
    """Metric before and after."""
    pair = tuple(f"{100 * v:.2f} %" if found.unit == "pt" else f"{v:.5g}" for v in (found.before, found.after))
    return f"{found.metric} {pair[0]} to {pair[1]} on {found.samples:,} samples"


def drop_text(found: Comparison) -> str:
    """The drop with its interval."""
    low, high = (amount(value, found.unit) for value in found.interval)
    return f"{amount(found.drop, found.unit)} (95 %: {low} to {high})"


def amount(drop: float | None, unit: str) -> str:
    """0.0125 as "1.25 pt"."""
    if drop is None or math.isnan(drop):
        return "n/a"
    return f"{100 * drop:.2f} {unit}" if unit else f"{drop:.4g}"


def _class_text(found: Comparison) -> str:
    parts = []
    if found.changed is not None:
        parts.append(f"{100 * found.changed:.2f} % of predictions changed")
    if found.mean_kl is not None:
        parts.append(f"mean KL {found.mean_kl:.4g}")
    if found.probability_drop is not None:
        parts.append(f"mean probability of the right class {100 * -found.probability_drop:+.2f} pt")
    return ", ".join(parts)
