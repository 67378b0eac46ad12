"""What the pages of reports are built from: sections, tables and figures as inline SVG, one style, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 900
LABEL = 230
ROW = 22
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


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    """Nothing where there is nothing to show."""
    if not content:
        return ""
    return f"<h2>{escape(title)}</h2>" + (f"<p class='note'>{escape(note)}</p>" if note else "") + content


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Labels and texts."""
    return table((), [(label, value) for label, value in rows])


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """`right` are the columns of numbers."""
    classes = dict.fromkeys(right, " class='n'")
    top = "".join(f"<th{classes.get(i, '')}>{escape(cell)}</th>" for i, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(i, '')}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{body}</table>" if body else ""


def bars(rows: Sequence[tuple[str, float, str]], full: float | None = None) -> str:
    """Horizontal bars (label, value, text); `full` is the value of the longest possible bar."""
    if not rows:
        return ""
    longest = full or max(value for _, value, _ in rows) or 1.0
    room = WIDTH - LABEL - 140
    lines = []
    for index, (label, value, text) in enumerate(rows):
        y, width = index * ROW, max(1.0, room * value / longest)
        lines.append(
            f"<text x='{LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(short(label))}"
            f"<title>{escape(label)}</title></text>"
        )
        lines.append(f"<rect class='bar2' x='{LABEL}' y='{y + 3}' width='{room}' height='{ROW - 6}' opacity='0.35'/>")
        lines.append(f"<rect class='bar' x='{LABEL}' y='{y + 3}' width='{width:.1f}' height='{ROW - 6}'/>")
        lines.append(f"<text class='soft' x='{LABEL + room + 8}' y='{y + 15}'>{escape(text)}</text>")
    return svg(len(rows) * ROW, lines)


def svg(height: int, lines: Sequence[str]) -> str:
    """A figure as wide as the page."""
    return f"<svg viewBox='0 0 {WIDTH} {height}' role='img'>{''.join(lines)}</svg>"


def short(text: str, length: int = 32) -> str:
    """The end of a long name tells more than its beginning."""
    return text if len(text) <= length else "\N{HORIZONTAL ELLIPSIS}" + text[-(length - 1) :]


def shape_text(shape: Sequence[int]) -> str:
    """[3, 32, 32] as 3x32x32."""
    return "x".join(map(str, shape))
