"""report.html: the compile report as one self-contained page, figures as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from compiler.report import AccuracyRow, CompileReport, HostNode, LayerRow, MapEntry, percent, summary

_WIDTH = 900
_LABEL = 230
_ROW = 22
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #66717e; --line: #d9dee4; --paper: #fff; --bar: #2f6fb0;
        --bar2: #b9cfe6; --good: #23805a; --bad: #b3362b; --warn: #9a6700; --box: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #98a3af; --line: #39424c; --paper: #14191f;
        --bar: #5c9bd8; --bar2: #2c4763; --good: #5ec294; --bad: #ee7b70; --warn: #dfae45; --box: #1c232b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 940px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.note { color: var(--soft); margin: .2rem 0 .8rem; font-size: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
.verdict { padding: .6rem .9rem; border-radius: 6px; background: var(--box); border-left: 4px solid var(--soft); }
.good { border-color: var(--good); } .bad { border-color: var(--bad); }
.warning { border-left: 4px solid var(--warn); background: var(--box); padding: .4rem .9rem; margin: .4rem 0; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.soft { fill: var(--soft); } svg .bar { fill: var(--bar); } svg .bar2 { fill: var(--bar2); }
svg .grid { stroke: var(--line); } svg .edge { stroke: var(--paper); }
"""


def to_html(report: CompileReport) -> str:
    """The whole page."""
    title = f"{report.model.name} on {report.target.name} {report.target.array}".strip()
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='note'>{escape(_origin(report))}</p>",
        _verdict(report),
        *(f"<p class='warning'>{escape(warning)}</p>" for warning in report.warnings),
        _section("One inference", _pairs(summary(report))),
        _section(
            "Cycles of each layer",
            _cycles(report.layers),
            "Exact; from an instruction's start to its last write. Neighbours overlap by a few cycles.",
        ),
        _section(
            "Use of the array",
            _use(report.layers),
            "Dense MACs / (cycles x MACs per cycle); over 100 % where zero blocks are skipped.",
        ),
        _section(
            "Activation memory over time",
            _memory_map(report),
            "Rows are layers in the order of execution; boxes are tensors while they are alive.",
        ),
        _section("Memories", _memories(report)),
        _section(
            "Quantization noise",
            _noise(report.layers),
            "Signal to quantization noise of each stored tensor, "
            "end to end, float network against quantized network on calibration samples.",
        ),
        _section("Accuracy", _accuracy(report.accuracy)),
        _section(
            "On the host", _host(report.host_nodes), "Nodes that the accelerator leaves to the processor beside it."
        ),
        _section("Layers", _layers(report.layers)),
        _section("Passes", _passes(report)),
        _section("Made with", _pairs([("edgec", report.edgec), *report.tools.items()])),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _origin(report: CompileReport) -> str:
    inputs = ", ".join(f"{name} [{_shape(shape)}]" for name, shape in report.model.inputs.items())
    outputs = ", ".join(f"{name} [{_shape(shape)}]" for name, shape in report.model.outputs.items())
    producer = report.model.producer or "unknown exporter"
    return f"{inputs} to {outputs}; opset {report.model.opset}, {producer}"


def _verdict(report: CompileReport) -> str:
    text = dict(summary(report))["verified"]
    kind = "" if report.verify is None else "good" if report.verify.passed else "bad"
    details = "".join(f"<br>{escape(line)}" for line in (report.verify.differences if report.verify else ()))
    return f"<p class='verdict {kind}'>Verified: {escape(text)}{details}</p>"


def _section(title: str, content: str, note: str = "") -> str:
    """Nothing where there is nothing to show."""
    if not content:
        return ""
    return f"<h2>{escape(title)}</h2>" + (f"<p class='note'>{escape(note)}</p>" if note else "") + content


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return _table((), [(label, value) for label, value in rows])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """`right` are the columns of numbers."""
    classes = dict.fromkeys(right, " class='n'")
    top = "".join(f"<th{classes.get(i, '')}>{escape(cell)}</th>" for i, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(i, '')}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{body}</table>" if body else ""


# Figures


def _cycles(layers: Sequence[LayerRow]) -> str:
    total = sum(row.cycles or 0 for row in layers)
    bars = [
        (row.name, float(row.cycles), f"{row.cycles:,} ({percent(row.cycles / total)})") for row in layers if row.cycles
    ]
    return _bars(bars)


def _use(layers: Sequence[LayerRow]) -> str:
    bars = [(row.name, row.utilisation, percent(row.utilisation)) for row in layers if row.utilisation is not None]
    return _bars(bars, full=max(1.0, *(bar[1] for bar in bars)) if bars else None)


def _noise(layers: Sequence[LayerRow]) -> str:
    finite = [(row.name, row.sqnr_db) for row in layers if row.sqnr_db is not None and math.isfinite(row.sqnr_db)]
    return _bars([(name, max(value, 0.0), f"{value:.1f} dB") for name, value in finite])


def _bars(bars: Sequence[tuple[str, float, str]], full: float | None = None) -> str:
    """Horizontal bars (label, value, text); `full` is the value of the longest possible bar."""
    if not bars:
        return ""
    longest = full or max(value for _, value, _ in bars) or 1.0
    room = _WIDTH - _LABEL - 140
    lines = []
    for index, (label, value, text) in enumerate(bars):
        y, width = index * _ROW, max(1.0, room * value / longest)
        lines.append(
            f"<text x='{_LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(_short(label))}"
            f"<title>{escape(label)}</title></text>"
        )
        lines.append(f"<rect class='bar2' x='{_LABEL}' y='{y + 3}' width='{room}' height='{_ROW - 6}' opacity='0.35'/>")
        lines.append(f"<rect class='bar' x='{_LABEL}' y='{y + 3}' width='{width:.1f}' height='{_ROW - 6}'/>")
        lines.append(f"<text class='soft' x='{_LABEL + room + 8}' y='{y + 15}'>{escape(text)}</text>")
    return _svg(len(bars) * _ROW, lines)


def _memory_map(report: CompileReport) -> str:
    """Words from left to right, as far as they are used; layers from top to bottom."""
    memory = next((m for m in report.memory if m.memory == "activations"), None)
    if not report.activation_map or memory is None:
        return ""
    right, top = _WIDTH - 10, 18
    labels = ["before", *(row.name for row in report.layers), "after"]
    bottom = top + len(labels) * _ROW
    lines = [
        f"<text class='soft' x='{_LABEL}' y='12'>word 0</text>",
        f"<text class='soft' x='{right}' y='12' text-anchor='end'>{memory.used:,} of {memory.available:,} words</text>",
        f"<line class='grid' x1='{_LABEL}' y1='{bottom}' x2='{right}' y2='{bottom}'/>",
    ]
    for index, label in enumerate(labels):
        y = top + index * _ROW
        lines.append(f"<text x='{_LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(_short(label))}</text>")
        lines.append(f"<line class='grid' x1='{_LABEL}' y1='{y}' x2='{right}' y2='{y}'/>")
    for index, entry in enumerate(report.activation_map):
        lines += _box(entry, index, (right - _LABEL) / memory.used, top)
    return _svg(bottom + 4, lines)


def _box(entry: MapEntry, index: int, scale: float, top: int) -> list[str]:
    x, y = _LABEL + entry.base * scale, top + (entry.first + 1) * _ROW
    width, height = max(1.0, entry.words * scale), (entry.last - entry.first + 1) * _ROW
    shade = "bar" if index % 2 else "bar2"
    title = f"<title>{escape(entry.tensor)}: words {entry.base} to {entry.base + entry.words - 1}</title>"
    box = (
        f"<rect class='{shade} edge' x='{x:.1f}' y='{y + 1}' width='{width:.1f}' height='{height - 2}' rx='3' "
        f"opacity='0.75'>{title}</rect>"
    )
    fits = int(width / 7)
    if fits < 4:
        return [box]
    return [box, f"<text x='{x + 5:.1f}' y='{y + 15}'>{escape(_short(entry.tensor, fits))}{title}</text>"]


def _svg(height: int, lines: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {height}' role='img'>{''.join(lines)}</svg>"


def _short(text: str, length: int = 32) -> str:
    """The end of a long name tells more than its beginning."""
    return text if len(text) <= length else "\N{HORIZONTAL ELLIPSIS}" + text[-(length - 1) :]


# Tables


def _memories(report: CompileReport) -> str:
    rows = [
        (m.memory, f"{m.used:,}", f"{m.available:,}", f"{m.word_bits:,}", percent(m.used / m.available))
        for m in report.memory
    ]
    return _table(("memory", "words used", "words", "bits of a word", "used"), rows, (1, 2, 3, 4))


def _accuracy(rows: Sequence[AccuracyRow]) -> str:
    """One column for each stage."""
    stages, metrics = dict.fromkeys(row.stage for row in rows), dict.fromkeys(row.metric for row in rows)
    values = {(row.metric, row.stage): row.text for row in rows}
    cells = [(metric, *(values.get((metric, stage), "") for stage in stages)) for metric in metrics]
    return _table(("", *stages), cells, range(1, len(stages) + 1))


def _host(nodes: Sequence[HostNode]) -> str:
    return _table(("node", "op", "side", "reason"), [(n.name, n.op, n.side, n.reason) for n in nodes])


def _layers(layers: Sequence[LayerRow]) -> str:
    rows = [
        (
            row.name,
            row.kind,
            _shape(row.shape),
            f"{row.macs:,}",
            "" if row.cycles is None else f"{row.cycles:,}",
            percent(row.utilisation),
            f"{row.weight_bytes:,}",
            str(row.instructions),
        )
        for row in layers
    ]
    head = ("layer", "kind", "stores", "MACs", "cycles", "use", "weight bytes", "instructions")
    return _table(head, rows, (3, 4, 5, 6, 7))


def _passes(report: CompileReport) -> str:
    rows = [
        (row.name, str(row.changed), "; ".join(f"{node}: {reason}" for node, reason in list(row.skipped.items())[:5]))
        for row in report.passes
        if row.changed or row.skipped
    ]
    return _table(("pass", "nodes changed", "left alone"), rows, (1,))


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
