"""Row `import`: `edgec compress` on files of many exporters gives a valid smaller model, or says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, at_least
from benchmarks.networks import ZOO, shared
from benchmarks.studies import REFUSED, Compression, compress_file
from tests.support.light_models import NAMES, light_model

ROW = "import"
_LARGE = ("bvlc_alexnet", "vgg19", "zfnet512", "inception_v1", "inception_v2", "densenet121", "resnet50")
"""Networks of 28 to 575 MB."""


def figures(workshop: Workshop) -> Iterator[Figure]:
    """1 where there is a valid smaller model, 0 where edgec says what hinders it, -1 where it fails."""
    for name in ZOO:
        yield covered(workshop, name, shared() / "zoo" / f"{name}.onnx")
    for name in NAMES:
        if workshop.quick and name in _LARGE:
            yield Figure(ROW, f"compress {name}", None, note="large: not in --quick")
        else:
            yield covered(workshop, name, light_file(workshop, name))


def light_file(workshop: Workshop, name: str) -> Path:
    """A network that the onnx package ships without weights, with random ones."""
    path = workshop.folder / f"light_{name}.onnx"
    if not path.exists():
        onnx.save(light_model(name), path)
    return path


def covered(workshop: Workshop, name: str, model: Path) -> Figure:
    """W8A8 by synthetic samples."""
    made = compress_file(workshop, f"covered-{name}", model)
    value, note = _verdict(made, model)
    note = f"{note}; {made.ran.seconds:.0f} s, {made.ran.peak_bytes / 1e6:.0f} MB"
    return Figure(ROW, f"compress {name}", value, "", at_least(0), at_least(1), note=note)


def _verdict(made: Compression, model: Path) -> tuple[float, str]:
    if made.failed:
        is_named = made.ran.code in REFUSED and "Traceback" not in made.ran.stderr + made.ran.stdout
        return (0.0 if is_named else -1.0), made.failed
    if fault := _fault(made.decoded):
        return -1.0, fault
    sizes = (model.stat().st_size, made.decoded.stat().st_size, made.packed_bytes)
    if max(sizes[1:]) >= sizes[0]:
        return -1.0, f"not smaller: {sizes[0]:,} B, as ONNX {sizes[1]:,} B, model.edgec {sizes[2]:,} B"
    layers = made.report["layers"]
    kept = [layer for layer in layers if layer["recipe"] == "float"]
    reasons = "; ".join(sorted({f"{layer['op']}: {layer['reason']}" for layer in kept}))
    note = f"{made.ratio:.2f}x, {sizes[0]:,} to {sizes[1]:,} and {sizes[2]:,} B, {len(layers) - len(kept)} of"
    return 1.0, f"{note} {len(layers)} layers integer{': ' + reasons if reasons else ''}"


def _fault(model: Path) -> str | None:
    """What onnx's checker or onnxruntime, at either level, says against a file."""
    try:
        onnx.checker.check_model(onnx.load(model), full_check=True)
        for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level, options.log_severity_level = level, 3
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return None
