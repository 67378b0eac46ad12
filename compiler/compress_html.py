"""report.html of a compression: one self-contained page, figures as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

from compiler import page
from compiler.compress_report import (
    HEADINGS,
    CompressReport,
    LayerFigures,
    cells,
    compression_rate,
    drop_text,
    summary,
    times,
)
from compiler.metrics import Comparison, amount

_HEIGHT = 300
_TOP, _LEFT, _RIGHT, _BOTTOM = 28, 90, page.WIDTH - 20, _HEIGHT - 40
_TICKS = 5


@dataclass(frozen=True)
class _Point:
    """Of a plot."""

    x: float
    y: float
    text: str
    is_chosen: bool


def to_html(report: CompressReport) -> str:
    """The whole page."""
    title = f"{report.model.name}, compressed {times(compression_rate(report.before, report.after))}"
    unit = report.quality.unit if report.quality else ""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='note'>{escape(report.samples)}</p>",
        _verdict(report),
        *(f"<p class='warning'>{escape(warning)}</p>" for warning in report.warnings),
        page.section("In total", page.pairs(summary(report)), "a/a* of bytes, s/s* of MACs."),
        page.section(
            "Size and predicted loss",
            _front(report),
            "Of none of these plans another is better in both. The ring is the result.",
        ),
        page.section(
            "Size and measured drop", _measured(report), f"Of files that were written and run{_in(unit)}."
        ),
        page.section(
            "Bytes of each layer",
            _bytes(report.layers),
            "Coded weights and biases, dark, over float32, light; the longest bar is the largest layer.",
        ),
        page.section("Bits of each layer", _bits(report.layers), "Of a weight's code."),
        page.section("The file", _parts(report)),
        page.section("Layers", _layers(report.layers)),
        page.section(
            "Why",
            _reasons(report.layers),
            "Moved: bytes of weights, input and output in one inference. Sensitivity: what a unit of relative squared "
            "error in the output costs the network. Loss: as predicted.",
        ),
        page.section("Classes", _classes(report.quality), "As the original network answers."),
        page.section(
            "Predicted and measured", _probes(report), "Each point is one plan: its predicted and its measured loss."
        ),
        page.section("Passes", _passes(report, unit)),
        page.section("Made with", page.pairs([("edgec", report.edgec), *report.tools.items()])),
    ]
    return page.page(title, parts)


def _in(unit: str) -> str:
    return f", in {unit}" if unit else ""


def _verdict(report: CompressReport) -> str:
    if report.limits.missed:
        missed = "".join(f"<br>{escape(line)}" for line in report.limits.missed)
        return f"<p class='verdict bad'>Not all that was asked for could be had; this is the nearest:{missed}</p>"
    if report.quality is None:
        return "<p class='verdict'>The quality was not measured.</p>"
    asked = f", at most {report.limits.max_drop} asked for" if report.limits.max_drop else ""
    why = f". Why this metric: {report.quality_why}." if report.quality_why else ""
    kind = " good" if report.limits.max_drop else ""
    text = f"Drop of the {report.quality.metric}: {drop_text(report.quality)}{asked}{why}"
    return f"<p class='verdict{kind}'>{escape(text)}</p>"


# Figures


def _front(report: CompressReport) -> str:
    points = [
        _Point(p.bytes, p.loss, f"{p.bytes:,} bytes, loss {p.loss:.4g}", p.is_chosen)
        for p in report.front
        if math.isfinite(p.loss)
    ]
    return _plot(points, "bytes", "predicted loss", is_line=True)


def _measured(report: CompressReport) -> str:
    unit = report.quality.unit if report.quality else ""
    scale = 100 if unit else 1
    points = [
        _Point(p.bytes, scale * p.drop, f"{p.bytes:,} bytes, drop {amount(p.drop, unit)}", p.is_chosen)
        for p in report.front
        if p.drop is not None and math.isfinite(p.drop)
    ]
    return _plot(points, "bytes", f"drop {unit}".rstrip(), is_line=False, may_be_log=False)


def _probes(report: CompressReport) -> str:
    points = [
        _Point(p.predicted, p.measured, f"predicted {p.predicted:.4g}, measured {p.measured:.4g}", False)
        for p in report.probes
        if math.isfinite(p.predicted) and math.isfinite(p.measured)
    ]
    return _plot(points, "predicted", "measured", is_line=False)


def _plot(points: Sequence[_Point], x_title: str, y_title: str, *, is_line: bool, may_be_log: bool = True) -> str:
    """Points over two axes, logarithmic where the figures are positive and span more than a decade."""
    if len(points) < 2:
        return ""
    xs, ys = _Axis.over([p.x for p in points], may_be_log), _Axis.over([p.y for p in points], may_be_log)
    lines = []
    for share in (i / (_TICKS - 1) for i in range(_TICKS)):
        x, y = _LEFT + share * (_RIGHT - _LEFT), _BOTTOM - share * (_BOTTOM - _TOP)
        lines.append(f"<line class='grid' x1='{_LEFT}' y1='{y:.1f}' x2='{_RIGHT}' y2='{y:.1f}'/>")
        labels = ((_LEFT - 8, y + 4, "end", ys.at(share)), (x, _BOTTOM + 18, "middle", xs.at(share)))
        for left, base, anchor, value in labels:
            at = f"x='{left:.1f}' y='{base:.1f}' text-anchor='{anchor}'"
            lines.append(f"<text class='soft' {at}>{_tick(value)}</text>")
    lines.append(f"<text x='{_RIGHT}' y='{_HEIGHT - 4}' text-anchor='end'>{escape(x_title)}</text>")
    lines.append(f"<text x='{_LEFT}' y='12' text-anchor='middle'>{escape(y_title)}</text>")
    places = [
        (_LEFT + xs.share(p.x) * (_RIGHT - _LEFT), _BOTTOM - ys.share(p.y) * (_BOTTOM - _TOP)) for p in points
    ]
    if is_line:
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f"<polyline points='{way}' fill='none' stroke='var(--bar2)' stroke-width='2'/>")
    for point, (x, y) in zip(points, places):
        title = f"<title>{escape(point.text)}</title>"
        lines.append(f"<circle class='bar' cx='{x:.1f}' cy='{y:.1f}' r='3'>{title}</circle>")
        if point.is_chosen:
            ring = "fill='none' stroke='var(--good)' stroke-width='3'"
            lines.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='8' {ring}>{title}</circle>")
    return page.svg(_HEIGHT, lines)


@dataclass(frozen=True)
class _Axis:
    """From `low` to `high`, both logarithms where `is_log`."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def over(cls, values: Sequence[float], may_be_log: bool) -> _Axis:
        low, high = min(values), max(values)
        is_log = may_be_log and low > 0 and high > 10 * low
        if is_log:
            low, high = math.log10(low), math.log10(high)
        return cls(low, high if high > low else low + 1, is_log)

    def share(self, value: float) -> float:
        """Where it is, from 0 to 1."""
        return ((math.log10(value) if self.is_log else value) - self.low) / (self.high - self.low)

    def at(self, share: float) -> float:
        """What is there."""
        value = self.low + share * (self.high - self.low)
        return 10**value if self.is_log else value


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bytes(layers: Sequence[LayerFigures]) -> str:
    """Before and after in one row."""
    rows = [layer for layer in layers if layer.before.bytes or layer.after.bytes]
    if not rows:
        return ""
    room = page.WIDTH - page.LABEL - 210
    longest = max(max(layer.before.bytes, layer.after.bytes) for layer in rows)
    lines = []
    for index, layer in enumerate(rows):
        y = index * page.ROW
        before, after = (room * costs.bytes / longest for costs in (layer.before, layer.after))
        text = f"{layer.after.bytes:,} of {layer.before.bytes:,} ({times(compression_rate(layer.before, layer.after))})"
        lines.append(
            f"<text x='{page.LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(page.short(layer.name))}"
            f"<title>{escape(layer.name)}</title></text>"
        )
        for shade, width in (("bar2", before), ("bar", after)):
            lines.append(
                f"<rect class='{shade}' x='{page.LABEL}' y='{y + 3}' width='{max(width, 1.0):.1f}' "
                f"height='{page.ROW - 6}'/>"
            )
        lines.append(f"<text class='soft' x='{page.LABEL + room + 8}' y='{y + 15}'>{escape(text)}</text>")
    return page.svg(len(rows) * page.ROW, lines)


def _bits(layers: Sequence[LayerFigures]) -> str:
    rows = [(layer, layer.bits) for layer in layers if layer.bits is not None]
    texts = [f"{bits}" + (f", {100 * layer.sparsity:.0f} % zeros" if layer.sparsity else "") for layer, bits in rows]
    full = 16.0 if any(bits > 8 for _, bits in rows) else 8.0
    return page.bars([(layer.name, float(bits), text) for (layer, bits), text in zip(rows, texts)], full)


# Tables


def _parts(report: CompressReport) -> str:
    total = report.parts.total
    rows = [(name, f"{count:,}", _share(count, total)) for name, count in asdict(report.parts).items()]
    return page.table(("", "bytes", "share"), [*rows, ("all", f"{total:,}", "")], (1, 2))


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else ""


def _layers(layers: Sequence[LayerFigures]) -> str:
    return page.table(HEADINGS, [cells(layer) for layer in layers], range(3, len(HEADINGS)))


def _reasons(layers: Sequence[LayerFigures]) -> str:
    head = ("layer", "reason", "activations", "channels", "moved", "sensitivity", "loss")
    rows = [
        (
            layer.name,
            layer.reason,
            "" if layer.activation_bits is None else f"{layer.activation_bits} bits",
            "" if layer.channels is None else f"{layer.channels[1]} of {layer.channels[0]}",
            f"{layer.after.moved_bytes:,}",
            "" if layer.sensitivity is None else f"{layer.sensitivity:.3g}",
            "" if layer.loss is None else f"{layer.loss:.3g}",
        )
        for layer in layers
    ]
    return page.table(head, rows, range(2, len(head)))


def _classes(quality: Comparison | None) -> str:
    rows = [] if quality is None else quality.agreement
    return page.table(
        ("class", "samples", "keep it"),
        [(str(number), f"{count:,}", f"{100 * share:.1f} %") for number, count, share in rows],
        (0, 1, 2),
    )


def _passes(report: CompressReport, unit: str) -> str:
    rows = [
        (
            row.name,
            row.outcome,
            str(row.changed),
            "" if row.drop is None else amount(row.drop, unit),
            "; ".join([*([row.reason] if row.reason else []), *_left(row.skipped)]),
        )
        for row in report.passes
    ]
    return page.table(("pass", "outcome", "nodes changed", "drop after it", "why; left alone"), rows, (2, 3))


def _left(skipped: Mapping[str, str], most: int = 5) -> list[str]:
    pairs = list(skipped.items())
    more = [f"and {len(pairs) - most} more"] if len(pairs) > most else []
    return [f"{node}: {reason}" for node, reason in pairs[:most]] + more
