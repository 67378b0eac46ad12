"""What a pass is: rewrites in place, says what it changed and why it left the rest alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import onnx_ir as ir


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one model.

    Attributes:
        name: Of the pass.
        changed: Names of the nodes that it rewrote, in order.
        skipped: Node name to the reason why a candidate was left alone.
        metrics: Named figures, for instance {"weights_pruned": 0.42}.
        seconds: Wall time.
    """

    name: str
    changed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    seconds: float = 0.0


@dataclass
class Notes:
    """What a pass writes down while it runs."""

    changed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def change(self, node: ir.Node) -> None:
        self.changed.append(node.name or node.op_type)

    def skip(self, node: ir.Node, reason: str) -> None:
        self.skipped[node.name or node.op_type] = reason


class Rewrite(ir.passes.InPlacePass):
    """A pass that fills in Notes; `report` holds them after each run."""

    name: ClassVar[str] = "rewrite"

    def __init__(self) -> None:
        super().__init__()
        self.report = PassReport(self.name)

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        """Change `model` in place."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        notes = Notes()
        self.rewrite(model, notes)
        self.report = PassReport(self.name, tuple(notes.changed), dict(notes.skipped), dict(notes.metrics))
        return ir.passes.PassResult(model, modified=bool(notes.changed))

    def __str__(self) -> str:
        return self.name


def run(passes: Iterable[ir.passes.InPlacePass], model: ir.Model) -> list[PassReport]:
    """Run `passes` over `model` in place, in order.

    Returns:
        One report for each pass, with its time.

    Raises:
        Exception: What a pass raised, with the note "in pass <name>".
    """
    return [_timed(step, model) for step in passes]


def _timed(step: ir.passes.InPlacePass, model: ir.Model) -> PassReport:
    start = time.perf_counter()
    try:
        step(model)
    except Exception as error:
        error.add_note(f"in pass {step}")
        raise
    report = getattr(step, "report", None) or PassReport(str(step))
    return dataclasses.replace(report, seconds=time.perf_counter() - start)
