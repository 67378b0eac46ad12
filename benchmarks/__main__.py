"""python -m benchmarks: measures, prints one table, and says what was not reached."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console

from benchmarks import (
    accuracy,
    compression,
    coverage,
    cpu,
    cpu_float,
    cycles,
    determinism,
    equivalence,
    families,
    lenet,
    plans,
    random_networks,
    resnet50,
    simulation,
    sparsity,
    synthesis,
    verification,
    zoo,
)
from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, print_table, write_json
from benchmarks.networks import shared

Row = Callable[[Workshop], Iterator[Figure]]
ROWS: dict[str, Row] = {
    "verify": verification.figures,
    "equivalence": lambda workshop: equivalence.figures(),
    "accuracy": lambda workshop: accuracy.figures(),
    "cycles": cycles.figures,
    "sparsity": sparsity.figures,
    "bundled": verification.bundled,
    "compile-time": cycles.compile_times,
    "simulation": simulation.figures,
    "zoo": zoo.figures,
    compression.W8A8: compression.w8a8,
    compression.W4A8: compression.w4a8,
    compression.SMALLEST: compression.smallest,
    compression.TIME: compression.search_time,
    compression.PEER: compression.quantize_static,
    compression.FEWEST: compression.fewest_macs,
    plans.ROW: plans.figures,
    families.ROW: families.figures,
    coverage.ROW: coverage.figures,
    cpu_float.ROW: cpu_float.figures,
    determinism.ROW: determinism.figures,
    resnet50.ROW: resnet50.figures,
    cpu.SPEED: cpu.speed,
    cpu.SPARSE: cpu.sparse,
    cpu.BINARY: cpu.binary,
    cpu.SIZE: cpu.size,
    cpu.TIME: cpu.compile_time,
    cpu.EQUAL: cpu.equal,
    "lenet": lenet.figures,
    "random": random_networks.figures,
    "synthesis": synthesis.figures,
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Measure this row alone; may be repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep artefacts in this folder.")
@click.option("--quick", is_flag=True, help="Fewer simulated samples.")
@click.option("--strict", is_flag=True, help="Exit 1 if a figure is below its bar or was not measured.")
def main(only: tuple[str, ...], json_path: Path | None, work: Path | None, quick: bool, strict: bool) -> None:
    """Measure every figure that edgec claims, on the models in $EDGEC_SHARED (default ../shared)."""
    if not shared().is_dir():
        raise click.UsageError(f"{shared()} is not a folder; set EDGEC_SHARED to the folder of models/ and data/")
    with tempfile.TemporaryDirectory(prefix="edgec-benchmarks-") as scratch:
        folder = work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        figures = _measure(only or tuple(ROWS), Workshop(folder, quick=quick))
    console = Console()
    print_table(figures, console if console.is_terminal else Console(width=200))
    missing = sum(figure.value is None for figure in figures)
    below = sum(figure.fails for figure in figures) - missing
    console.print(f"{len(figures)} figures, {below} below their bar; {missing} could not be measured")
    if json_path:
        write_json(figures, json_path)
    if strict and any(figure.fails for figure in figures):
        raise SystemExit(1)


def _measure(rows: tuple[str, ...], workshop: Workshop) -> list[Figure]:
    """All figures of `rows`; each is told on stderr as soon as it is known."""
    console, figures = Console(stderr=True), []
    for row in rows:
        for figure in ROWS[row](workshop):
            figures.append(figure)
            value = "not measured" if figure.value is None else f"{figure.value:.6g} {figure.unit}"
            console.print(f"{figure.row}: {figure.what}: {value} ({figure.verdict}) {figure.note}", highlight=False)
    return figures


if __name__ == "__main__":
    main()
