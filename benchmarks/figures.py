"""One measured figure with its bar, its aim and the figure of others that stands beside it."""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

_HOLDS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Limit:
    """What a figure has to reach.

    Attributes:
        sense: "<=" or ">=".
        value: In the figure's unit.
    """

    sense: str
    value: float

    def holds(self, value: float) -> bool:
        """Whether `value` reaches the limit."""
        return _HOLDS[self.sense](value, self.value)

    def __str__(self) -> str:
        return f"{self.sense} {_number(self.value)}"


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        row: Name of the group, which --only takes.
        what: What was measured, on what.
        value: The measurement; None where it could not be made, `note` says why.
        unit: Of the value.
        bar: What it must reach.
        aim: What it should reach.
        anchor: What others reach, in words.
        note: How it was measured, or why it was not.
    """

    row: str
    what: str
    value: float | None
    unit: str = ""
    bar: Limit | None = None
    aim: Limit | None = None
    anchor: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """ "aim", "bar", "below", "-" (no bar), or "none" (not measured)."""
        if self.value is None:
            return "none"
        if self.bar is None:
            return "-"
        if not self.bar.holds(self.value):
            return "below"
        return "aim" if self.aim is None or self.aim.holds(self.value) else "bar"

    @property
    def fails(self) -> bool:
        """Whether a strict run is to fail."""
        return self.verdict in ("below", "none")


def at_most(value: float) -> Limit:
    """A figure that should be small."""
    return Limit("<=", value)


def at_least(value: float) -> Limit:
    """A figure that should be large."""
    return Limit(">=", value)


def print_table(figures: Sequence[Figure], console: Console) -> None:
    """The figures as a table, one line each."""
    table = Table("row", "what", "measured", "bar", "aim", "verdict", "others", "note", title="edgec benchmarks")
    for figure in figures:
        value = "not measured" if figure.value is None else f"{_number(figure.value)} {figure.unit}".strip()
        bar, aim = str(figure.bar or ""), str(figure.aim or "")
        style = "red" if figure.fails else None
        table.add_row(figure.row, figure.what, value, bar, aim, figure.verdict, figure.anchor, figure.note, style=style)
    console.print(table)


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """The figures and their verdicts as JSON."""
    rows = [dataclasses.asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    path.write_text(json.dumps({"schema": 1, "figures": rows}, indent=2) + "\n")


def _number(value: float) -> str:
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"
