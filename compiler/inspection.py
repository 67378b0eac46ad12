"""What `edgec inspect` and `edgec targets` show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compiler import artefact, compress_report, report, stored
from compiler import targets as known
from compiler.operators import SUPPORTED
from hw.isa import Memory, instruction_layout
from sim.program import Program


def facts(folder: Path, *, program: bool) -> dict[str, object]:
    """For --json: the manifest's essentials, the report, altered files and, if wanted, the instructions."""
    manifest = artefact.load(folder)
    found: dict[str, object] = {
        "network": manifest.network,
        "target": manifest.target,
        "edgec": manifest.edgec,
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "altered": artefact.altered_files(folder, manifest),
        "report": stored.read_report(folder),
    }
    if program:
        found["instructions"] = [{"pc": pc, "layer": layer, **fields} for pc, layer, fields in _instructions(folder)]
    return found


def show(folder: Path, console: Console, *, program: bool) -> None:
    """The report, the files and, if wanted, the instructions."""
    manifest = artefact.load(folder)
    _show_report(folder, console)
    altered = set(artefact.altered_files(folder, manifest))
    table = Table(title="files", title_justify="left")
    for column in ("file", "bytes", "sha256", ""):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for name, entry in manifest.files.items():
        table.add_row(name, f"{entry.bytes:,}", entry.sha256[:16], "CHANGED" if name in altered else "")
    console.print(table)
    for pc, layer, fields in _instructions(folder) if program else ():
        told = " ".join(f"{name}={value}" for name, value in fields.items() if value)
        console.print(f"{pc:4} {layer}: {told}", markup=False, highlight=False, soft_wrap=True)


def _show_report(folder: Path, console: Console) -> None:
    document = stored.read_report(folder)
    try:
        if document["kind"] == compress_report.KIND:
            compress_report.show(compress_report.from_dict(document), console)
        else:
            report.show(report.from_dict(document), console)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise artefact.damaged(f"{folder / artefact.REPORT_JSON} is damaged: {reason}") from error


def targets() -> dict[str, dict[str, str | list[str]]]:
    """Name to what it is and takes."""
    return {name: {"what": what, "operators": sorted(SUPPORTED)} for name, what in known.NAMES.items()}


def _instructions(folder: Path) -> Iterator[tuple[int, str, dict[str, int]]]:
    """(pc, layer, fields) of every instruction, as stored in the program's image."""
    program = Program.load(folder / artefact.PROGRAM)
    layout = instruction_layout(program.config)
    for info, word in zip(program.instructions, program.images[Memory.PROGRAM], strict=True):
        yield info.pc, info.layer, layout.unpack(word)
