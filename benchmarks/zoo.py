"""Zoo rows: `edgec check` on third-party files of many exporters never ends in a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.artefacts import Workshop, edgec
from benchmarks.figures import Figure, at_least
from benchmarks.networks import ZOO, shared

ROW = "zoo"
_EXPECTED = (0, 3, 5)


_COMPILED = (("mnist_8", "mnist_train_10000.npz", 1.0), ("go1_policy", None, 1.0), ("qonnx_tfc_2w2a", None, 1 / 255))
_LARGE = (("ultraface_rfb320", "1M", "photos_240x320.npz"), ("super_resolution_10", "8M", None))
_ACCURATE = {"mnist_8": 98.86, "qonnx_tfc_2w2a": 96.30}


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Checks of all files; verified compiles of small ones; accuracy on MNIST; large ones on a simulated memory."""
    yield from _checks()
    for name, data, scale in _COMPILED:
        yield from _compiled(workshop, name, data, scale)
    if not workshop.quick:
        for name, memory, data in _LARGE:
            yield _large(workshop, name, memory, data)


def _compiled(workshop: Workshop, name: str, data: str | None, scale: float) -> Iterator[Figure]:
    """1 where compile and its verify succeed; then accuracy of the integers where there is data."""
    out = workshop.folder / name
    calib: list[str | Path] = ["--calib", _calibration(workshop, data)] if data else []
    ran = edgec("compile", shared() / "zoo" / f"{name}.onnx", *calib, "--input-scale", str(scale), "-o", out)
    note = ran.complaint if ran.code else f"{ran.seconds:.0f} s"
    yield Figure(ROW, f"compile and verify {name}", float(ran.code == 0), "", at_least(1), at_least(1), note=note)
    if ran.code or name not in _ACCURATE:
        return
    judging = shared() / "data" / "mnist_devtest_5000.npz"
    evaluated = edgec("eval", out, "--data", judging, "--no-rtl", "--json")
    rows = json.loads(evaluated.stdout)["rows"] if evaluated.code == 0 else []
    found = {row["stage"]: row["value"] for row in rows if "accuracy" in row["metric"]}
    peer, what = _ACCURATE[name], f"{name}: accuracy of the integers on 5,000 digits"
    note = ", ".join(f"{stage} {value:.2f} %" for stage, value in found.items()) or evaluated.complaint
    ours = next((value for stage, value in found.items() if "reference" in stage), None)
    yield Figure(ROW, what, ours, "%", at_least(peer - 0.75), at_least(peer), f"float or published {peer} %", note)


def _large(workshop: Workshop, name: str, memory: str, data: str | None) -> Figure:
    """1 where a native-size network runs, verified, on an activation memory that only a simulation has."""
    calib: list[str | Path] = (
        ["--calib", shared() / "data" / data, "--input-scale", "1/128", "--input-mean", "127"] if data else []
    )
    sizes = f"activations={memory},weights=1M,parameters=2048,blocks=4096,taps=4096,instructions=512"
    model, out = shared() / "zoo" / f"{name}.onnx", workshop.folder / name
    ran = edgec("compile", model, *calib, "--memory", sizes, "-o", out, timeout_s=7200)
    note = ran.complaint if ran.code else f"{json.loads((out / 'report.json').read_text())['cycles']:,} cycles"
    what = f"compile and verify {name}, {memory}iB of activations"
    return Figure(ROW, what, float(ran.code == 0), "", at_least(0), at_least(1), note=f"{note}, {ran.seconds:.0f} s")


def _calibration(workshop: Workshop, data: str) -> Path:
    with np.load(shared() / "data" / data) as file:
        return workshop.samples(f"calibration-{Path(data).stem}", file["x"][:256].astype(np.float32))


def _checks() -> Iterator[Figure]:
    """1 where the check ends with a verdict, 0 where it ends in a fault of edgec."""
    for name in ZOO:
        ran = edgec("check", shared() / "zoo" / f"{name}.onnx", "--target", "fpga")
        clean = ran.code in _EXPECTED and "Traceback" not in ran.stderr + ran.stdout
        said = (ran.stdout if ran.code == 0 else ran.stderr).strip().splitlines()
        note = f"exit {ran.code}, {ran.seconds:.1f} s: {said[0] if said else ''}"[:120]
        yield Figure(ROW, f"check {name}", float(clean), "", at_least(1), at_least(1), note=note)
