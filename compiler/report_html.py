"""report.html: the compile report as one self-contained page, figures as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from compiler import page
from compiler.report import (
    AccuracyRow,
    CompileReport,
    CutRow,
    HostNode,
    LayerRow,
    MapEntry,
    SegmentRow,
    percent,
    place_of,
    summary,
)


def to_html(report: CompileReport) -> str:
    """The whole page."""
    title = f"{report.model.name} on {report.target.name} {report.target.array}".strip()
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='note'>{escape(_origin(report))}</p>",
        _verdict(report),
        *(f"<p class='warning'>missed: {escape(line)}</p>" for line in report.missed),
        *(f"<p class='warning'>{escape(warning)}</p>" for warning in report.warnings),
        page.section("One inference", page.pairs(summary(report))),
        page.section(
            "Cycles of each layer",
            _cycles(report.layers),
            "Exact; from an instruction's start to its last write. Neighbours overlap by a few cycles.",
        ),
        page.section(
            "Use of the array",
            _use(report.layers),
            "Dense MACs / (cycles x MACs per cycle); over 100 % where zero blocks are skipped.",
        ),
        page.section(
            "Activation memory over time",
            _memory_map(report),
            "Rows are layers in the order of execution; boxes are tensors while they are alive.",
        ),
        page.section("Memories", _memories(report)),
        page.section(
            "Quantization noise",
            _noise(report.layers),
            "Signal to quantization noise of each stored tensor, "
            "end to end, float network against quantized network on calibration samples.",
        ),
        page.section("Accuracy", _accuracy(report.accuracy)),
        page.section(
            "On the host", _host(report.host_nodes), "Nodes that the accelerator leaves to the processor beside it."
        ),
        page.section(
            "In turn",
            _turns(report.segments),
            "What runs where in one inference, in this order, and the real value of each int8 q that passes a cut.",
        ),
        page.section("Layers", _layers(report.layers)),
        page.section("Passes", _passes(report)),
        page.section("Made with", page.pairs([("edgec", report.edgec), *report.tools.items()])),
    ]
    return page.page(title, parts)


def _origin(report: CompileReport) -> str:
    inputs = ", ".join(f"{name} [{page.shape_text(shape)}]" for name, shape in report.model.inputs.items())
    outputs = ", ".join(f"{name} [{page.shape_text(shape)}]" for name, shape in report.model.outputs.items())
    producer = report.model.producer or "unknown exporter"
    return f"{inputs} to {outputs}; opset {report.model.opset}, {producer}"


def _verdict(report: CompileReport) -> str:
    text = dict(summary(report))["verified"]
    kind = "" if report.verify is None else "good" if report.verify.passed else "bad"
    details = "".join(f"<br>{escape(line)}" for line in (report.verify.differences if report.verify else ()))
    return f"<p class='verdict {kind}'>Verified: {escape(text)}{details}</p>"


# Figures


def _cycles(layers: Sequence[LayerRow]) -> str:
    total = sum(row.cycles or 0 for row in layers)
    bars = [
        (row.name, float(row.cycles), f"{row.cycles:,} ({percent(row.cycles / total)})") for row in layers if row.cycles
    ]
    return page.bars(bars)


def _use(layers: Sequence[LayerRow]) -> str:
    bars = [(row.name, row.utilisation, percent(row.utilisation)) for row in layers if row.utilisation is not None]
    return page.bars(bars, full=max(1.0, *(bar[1] for bar in bars)) if bars else None)


def _noise(layers: Sequence[LayerRow]) -> str:
    finite = [(row.name, row.sqnr_db) for row in layers if row.sqnr_db is not None and math.isfinite(row.sqnr_db)]
    return page.bars([(name, max(value, 0.0), f"{value:.1f} dB") for name, value in finite])


def _memory_map(report: CompileReport) -> str:
    """Words from left to right, as far as they are used; layers from top to bottom."""
    memory = next((m for m in report.memory if m.memory == "activations"), None)
    if not report.activation_map or memory is None:
        return ""
    right, top = page.WIDTH - 10, 18
    labels = ["before", *(row.name for row in report.layers), "after"]
    bottom = top + len(labels) * page.ROW
    lines = [
        f"<text class='soft' x='{page.LABEL}' y='12'>word 0</text>",
        f"<text class='soft' x='{right}' y='12' text-anchor='end'>{memory.used:,} of {memory.available:,} words</text>",
        f"<line class='grid' x1='{page.LABEL}' y1='{bottom}' x2='{right}' y2='{bottom}'/>",
    ]
    for index, label in enumerate(labels):
        y = top + index * page.ROW
        lines.append(f"<text x='{page.LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(page.short(label))}</text>")
        lines.append(f"<line class='grid' x1='{page.LABEL}' y1='{y}' x2='{right}' y2='{y}'/>")
    for index, entry in enumerate(report.activation_map):
        lines += _box(entry, index, (right - page.LABEL) / memory.used, top)
    return page.svg(bottom + 4, lines)


def _box(entry: MapEntry, index: int, scale: float, top: int) -> list[str]:
    x, y = page.LABEL + entry.base * scale, top + (entry.first + 1) * page.ROW
    width, height = max(1.0, entry.words * scale), (entry.last - entry.first + 1) * page.ROW
    shade = "bar" if index % 2 else "bar2"
    title = f"<title>{escape(entry.tensor)}: words {entry.base} to {entry.base + entry.words - 1}</title>"
    box = (
        f"<rect class='{shade} edge' x='{x:.1f}' y='{y + 1}' width='{width:.1f}' height='{height - 2}' rx='3' "
        f"opacity='0.75'>{title}</rect>"
    )
    fits = int(width / 7)
    if fits < 4:
        return [box]
    return [box, f"<text x='{x + 5:.1f}' y='{y + 15}'>{escape(page.short(entry.tensor, fits))}{title}</text>"]


# Tables


def _memories(report: CompileReport) -> str:
    rows = [
        (m.memory, f"{m.used:,}", f"{m.available:,}", f"{m.word_bits:,}", percent(m.used / m.available))
        for m in report.memory
    ]
    return page.table(("memory", "words used", "words", "bits of a word", "used"), rows, (1, 2, 3, 4))


def _accuracy(rows: Sequence[AccuracyRow]) -> str:
    """One column for each stage."""
    stages, metrics = dict.fromkeys(row.stage for row in rows), dict.fromkeys(row.metric for row in rows)
    values = {(row.metric, row.stage): row.text for row in rows}
    cells = [(metric, *(values.get((metric, stage), "") for stage in stages)) for metric in metrics]
    return page.table(("", *stages), cells, range(1, len(stages) + 1))


def _host(nodes: Sequence[HostNode]) -> str:
    rows = [(n.name, n.op, place_of(n), f"{n.macs:,}" if n.macs else "", n.reason) for n in nodes]
    return page.table(("node", "op", "where", "MACs", "reason"), rows, (3,))


def _turns(segments: Sequence[SegmentRow]) -> str:
    """What runs where, and how numbers change at each cut."""
    rows = []
    for index, turn in enumerate(segments, start=1):
        cycles = "" if turn.cycles is None else f"{turn.cycles:,}"
        takes, gives = ("; ".join(map(_cut, cuts)) for cuts in (turn.inputs, turn.outputs))
        rows.append((str(index), turn.on, str(len(turn.steps)), f"{turn.macs:,}", cycles, takes, gives))
    head = ("", "on", "steps", "MACs", "cycles", "quantized before", "dequantized after")
    return page.table(head, rows, (0, 2, 3, 4))


def _cut(cut: CutRow) -> str:
    how = "as it is" if cut.value is None else f"{cut.scale:.6g} * (q {'+' if cut.zero_point < 0 else '-'} "
    end = "" if cut.value is None else f"{abs(cut.zero_point)})"
    return f"{cut.tensor} [{page.shape_text(cut.shape)}]: {how}{end}"


def _layers(layers: Sequence[LayerRow]) -> str:
    rows = [
        (
            row.name,
            row.kind,
            page.shape_text(row.shape),
            f"{row.macs:,}",
            "" if row.cycles is None else f"{row.cycles:,}",
            percent(row.utilisation),
            f"{row.weight_bytes:,}",
            str(row.instructions),
        )
        for row in layers
    ]
    head = ("layer", "kind", "stores", "MACs", "cycles", "use", "weight bytes", "instructions")
    return page.table(head, rows, (3, 4, 5, 6, 7))


def _passes(report: CompileReport) -> str:
    rows = [
        (row.name, str(row.changed), "; ".join(f"{node}: {reason}" for node, reason in list(row.skipped.items())[:5]))
        for row in report.passes
        if row.changed or row.skipped
    ]
    return page.table(("pass", "nodes changed", "left alone"), rows, (1,))
