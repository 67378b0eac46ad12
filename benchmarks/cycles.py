"""Cycle rows: the scheduler's exact number, which every verify compares with the counters of the RTL."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from benchmarks.artefacts import Compiled, Workshop, edgec
from benchmarks.figures import Figure, Limit, at_most
from benchmarks.networks import AD, KWS, MLPERF_TINY, RESNET8, VWW, Network

ROW = "cycles"
_DENSE = {
    RESNET8.key: (114e3, 100e3, "fpgaConvNet ZedBoard, 211 DSP: 58.8 k (a measured board)"),
    KWS.key: (28e3, 22e3, "fpgaConvNet ZedBoard, 188 DSP: 46.3 k (a measured board)"),
    VWW.key: (90e3, 75e3, "fpgaConvNet ZC706, 564 DSP: 144 k (a measured board)"),
    AD.key: (12e3, 4.6e3, "hls4ml Pynq-Z2: 18.7 us (a measured board)"),
}
_SECONDS_BAR, _SECONDS_AIM = 60.0, 15.0


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Cycles of the four networks, dense and as compiled, and the time from ONNX to Verilog and images."""
    for network in MLPERF_TINY:
        bar, aim, anchor = _DENSE[network.key]
        compiled = workshop.compile(network, "--array", "16x8", "--dense")
        yield _cycles(network, "16x8 dense", compiled, at_most(bar), at_most(aim), anchor)
    yield _cycles(VWW, "16x8 as compiled", workshop.compile(VWW, "--array", "16x8"), at_most(80e3), at_most(41e3), "")
    for network in (RESNET8, KWS, AD):
        yield _cycles(network, "16x8 as compiled", workshop.compile(network, "--array", "16x8"), None, None, "")


def compile_times(workshop: Workshop) -> Iterator[Figure]:
    """Wall seconds of `edgec compile --no-verify`, calibration included, the Verilog made anew and from the cache."""
    for network in MLPERF_TINY:
        with tempfile.TemporaryDirectory(prefix="cache-", dir=workshop.folder) as cache:
            for how in ("nothing cached", "Verilog cached"):
                yield _compile_time(workshop, network, how, cache)


def _compile_time(workshop: Workshop, network: Network, how: str, cache: str) -> Figure:
    calib = workshop.samples(network.key, network.calibration.read())
    command = ["compile", network.path, "--target", "fpga", "--array", "16x8", "--calib", calib, "--no-verify"]
    ran = edgec(*command, "-o", workshop.folder / f"timed-{network.key}", environment={"EDGEC_CACHE": cache})
    what = f"{network.title}: ONNX to Verilog and images, {how}"
    value, note = (None, ran.complaint) if ran.code else (ran.seconds, f"{ran.cpu_seconds:.0f} CPU-seconds")
    return Figure("compile-time", what, value, "s", at_most(_SECONDS_BAR), at_most(_SECONDS_AIM), note=note)


def _cycles(
    network: Network, how: str, compiled: Compiled, bar: Limit | None, aim: Limit | None, anchor: str
) -> Figure:
    what = f"{network.title}: cycles, {how}"
    if compiled.failed:
        return Figure(ROW, what, None, "cycles", bar, aim, anchor, compiled.failed)
    report = compiled.report
    note = f"{report['macs']:,} MACs, utilisation {report['utilisation']:.0%}"
    return Figure(ROW, what, float(report["cycles"]), "cycles", bar, aim, anchor, note)
