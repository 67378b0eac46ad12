"""RTL rows: the simulated hardware against the reference, on the networks and on the bundled example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.artefacts import ROOT, Compiled, Ran, Workshop, edgec
from benchmarks.figures import Figure, at_most
from benchmarks.networks import KWS, MLPERF_TINY, RESNET8, Network

ROW = "verify"
_SAMPLES, _QUICK_SAMPLES = 20, 2
_ARRAYS = ("16x8", "8x2")


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Differing elements and cycle counters of each network on each array; whole data sets through the RTL."""
    for network in MLPERF_TINY:
        for array in _ARRAYS:
            yield _verified(workshop, network, array)
    for network in (KWS, RESNET8):
        yield _whole_data_set(workshop, network)


def bundled(workshop: Workshop) -> Iterator[Figure]:
    """Wall seconds of a compile with its short verify, caches empty and then filled."""
    examples = ROOT / "examples"
    command: list[str | Path] = [
        "compile",
        examples / "digits_cnn.onnx",
        "--calib",
        examples / "digits_calib.npz",
        "--target",
        "fpga",
    ]
    cache = {"EDGEC_CACHE": str(workshop.folder / "cache")}
    for name, bar, aim in (("first time", 180.0, 90.0), ("warm", 30.0, 10.0)):
        ran = edgec(*command, "-o", workshop.folder / "bundled", environment=cache)
        note = ran.complaint if ran.code else "verified"
        value = None if ran.code else ran.seconds
        yield Figure(
            "bundled", f"edgec compile of the bundled model, {name}", value, "s", at_most(bar), at_most(aim), note=note
        )


def _verified(workshop: Workshop, network: Network, array: str) -> Figure:
    """Every element of every layer after its instructions, and every counter; random initial memories."""
    count = _QUICK_SAMPLES if workshop.quick else _SAMPLES
    what = f"{network.title}: elements and cycle counters that differ, {array}"
    compiled = workshop.compile(network, "--array", array)
    if compiled.failed:
        return Figure(ROW, what, None, "", at_most(0), at_most(0), note=compiled.failed)
    samples = workshop.samples(f"{network.key}-{count}", network.judging.read()[:count])
    ran = edgec("verify", compiled.folder, "--input", samples, "--json")
    if ran.code not in (0, 1):
        return Figure(ROW, what, None, "", at_most(0), at_most(0), note=ran.complaint)
    facts = json.loads(ran.stdout)
    note = (
        f"{facts['inputs']} inputs, {facts['elements']:,} elements, {facts['instructions']:,} counters, "
        f"{facts['cycles']:,} cycles, {ran.seconds:.0f} s"
    )
    return Figure(
        ROW, what, float(facts["mismatches"] + facts["cycle_mismatches"]), "", at_most(0), at_most(0), note=note
    )


def _whole_data_set(workshop: Workshop, network: Network) -> Figure:
    """All judging samples through the RTL of the 16x8 array."""
    rows = network.judging.read()
    count = 10 if workshop.quick else len(rows)
    what = f"{network.title}: output elements of {count} samples through the RTL that differ"
    compiled = workshop.compile(network, "--array", "16x8")
    if compiled.failed:
        return Figure(ROW, what, None, "", at_most(0), at_most(0), note=compiled.failed)
    data = workshop.samples(f"{network.key}-labelled-{count}", rows[:count], y=network.judging.column("y")[:count])
    return _evaluated(what, compiled, edgec("eval", compiled.folder, "--data", data, "--json"))


def _evaluated(what: str, compiled: Compiled, ran: Ran) -> Figure:
    if ran.code not in (0, 1):
        return Figure(ROW, what, None, "", at_most(0), at_most(0), note=ran.complaint)
    facts = json.loads(ran.stdout)
    rows = [f"{row['stage']} {row['value']:.2f} {row['unit']}" for row in facts["rows"] if "accuracy" in row["metric"]]
    note = f"accuracy: {', '.join(rows)}; {ran.cpu_seconds:.0f} CPU-seconds"
    return Figure(ROW, what, float(facts["differs"]), "", at_most(0), at_most(0), note=note)
