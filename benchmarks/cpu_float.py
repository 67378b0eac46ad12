"""The float32 CPU target beside onnxruntime, in one process, run by run in turns; numpy in, numpy out on both sides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from backends.cpu.floats import library
from benchmarks.artefacts import Ran, Workshop, edgec
from benchmarks.figures import Figure, at_most
from compiler import artefact
from tests.support.resnet18 import resnet18

ROW = "cpu-float"
_TITLE = "ResNet-18 structure, fp32, 224x224"
_RATIO_BAR, _RATIO_AIM = 1.5, 1.0
_SECONDS_BAR, _SECONDS_AIM = 60.0, 15.0
_NEAR = 1e-4
_TURNS, _QUICK_TURNS = 40, 15


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Compile time, agreement, and time relative to onnxruntime with 1 and 2 threads; here and as for a Haswell."""
    path = workshop.folder / "resnet18.onnx"
    model = resnet18()
    onnx.save(model, path)
    given = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    for cpu in ("native", "haswell"):
        out = workshop.folder / f"resnet18-{cpu}"
        ran = edgec("compile", path, "--target", "cpu", "--float", "--mcpu", cpu, "--no-verify", "-o", out)
        bars = (at_most(_SECONDS_BAR), at_most(_SECONDS_AIM))
        yield Figure(
            ROW, f"{_TITLE}: compile, {cpu}", None if ran.code else ran.seconds, "s", *bars, note=_note(ran)
        )
        if ran.code:
            continue
        for threads in (1, 2):
            yield from _beside(workshop, model, out / artefact.CPU, given, cpu, threads)


def _beside(
    workshop: Workshop, model: onnx.ModelProto, bundle: Path, given: np.ndarray, cpu: str, threads: int
) -> Iterator[Figure]:
    session = _session(model, threads)
    loaded = library.load(bundle, threads=threads)
    try:
        inputs = {"x": given}
        theirs, ours = session.run(None, inputs)[0], loaded.run(inputs)["y"]
        far = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        if threads == 1:
            yield Figure(ROW, f"{_TITLE}: largest relative difference, {cpu}", far, "", at_most(_NEAR), at_most(_NEAR))
        turns = _QUICK_TURNS if workshop.quick else _TURNS
        times = _in_turns([lambda: session.run(None, inputs), lambda: loaded.run(inputs)], turns)
    finally:
        loaded.close()
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    theirs_ms, ours_ms = 1e3 * np.median(times, axis=0)
    note = f"median of {turns} pairs; {ours_ms:.1f} ms, onnxruntime {theirs_ms:.1f} ms; fastest "
    note += f"{1e3 * times[:, 1].min():.1f} and {1e3 * times[:, 0].min():.1f} ms; {_flags()}"
    limits = (at_most(_RATIO_BAR), at_most(_RATIO_AIM)) if cpu == "native" else (None, None)  # it uses all there is
    what = f"{_TITLE}: time / onnxruntime's, {threads} thread{'s' if threads > 1 else ''}, --mcpu {cpu}"
    yield Figure(ROW, what, ratio, "", *limits, "onnxruntime fp32: 1", note)


def _note(ran: Ran) -> str:
    return ran.complaint if ran.code else f"{ran.cpu_seconds:.0f} CPU-seconds"


def _session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _in_turns(calls: list[Callable[[], Any]], turns: int) -> np.ndarray:
    """Seconds [turn, call]; the order changes from turn to turn."""
    seconds = np.zeros((turns, len(calls)))
    for call in calls * 3:
        call()
    for turn in range(turns):
        order = range(len(calls)) if turn % 2 else reversed(range(len(calls)))
        for index in order:
            start = time.perf_counter()
            calls[index]()
            seconds[turn, index] = time.perf_counter() - start
    return seconds


def _flags() -> str:
    """Vector instructions of this processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return " ".join(flag for flag in flags if flag in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile"))
