"""How good the integers are: signal to noise of every layer, and the network's answers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.calibration import Samples
from compiler.host import host_of
from compiler.lowering import Lowered
from compiler.report import AccuracyRow
from passes import statistics

Arrays = Mapping[str, NDArray[np.generic]]
Floats = dict[str, NDArray[np.float32]]
Progress = Callable[[str, int, int], None]

# Float and quantized are the ONNX files in onnxruntime, reference and RTL are integers.
FLOAT, QUANTIZED, REFERENCE, RTL, CPU = "float", "quantized", "reference", "RTL", "CPU"
MEASURED = 200
"""Calibration samples on which a compile measures the answers."""
_BATCH = 32


def first(samples: Arrays, count: int) -> dict[str, NDArray[np.generic]]:
    """The first rows of each input."""
    return {name: values[:count] for name, values in samples.items()}


def noise(model: ir.Model, quantized: ir.Model, samples: Arrays, progress: Progress) -> dict[str, float]:
    """Signal to quantization noise of every int8 tensor, in dB; empty for a model that came quantized."""
    if not statistics.quantized_points(quantized):
        return {}
    return statistics.sqnr(model, quantized, samples, progress=progress)


def in_onnxruntime(model: ir.Model, samples: Arrays) -> Floats:
    """The network's outputs by name, float32 [N, ...]."""
    names = [str(value.name) for value in model.graph.outputs]
    rows = list(statistics.run(model, samples, names))
    return {name: np.concatenate([row[name] for row in rows]).astype(np.float32) for name in names}


def in_reference(lowered: Lowered, model: ir.Model, samples: Arrays, progress: Progress) -> Floats:
    """The network's outputs by the integer layers, with the host around and between them."""
    host = host_of(lowered, model)
    total = statistics.count(samples)
    rows: list[Floats] = []
    for start in range(0, total, _BATCH):
        batch = {name: values[start : start + _BATCH].astype(np.float32) for name, values in samples.items()}
        rows.append(host.reference(batch).outputs)
        progress("reference", min(start + _BATCH, total), total)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def on_calibration(
    model: ir.Model, quantized: ir.Model, lowered: Lowered, samples: Samples, progress: Progress
) -> tuple[AccuracyRow, ...]:
    """Rows for float, quantized and reference on calibration samples."""
    some = first(samples.arrays, MEASURED)
    labels = None if samples.labels is None else samples.labels[:MEASURED]
    answers = {
        FLOAT: in_onnxruntime(model, some),
        QUANTIZED: in_onnxruntime(quantized, some),
        REFERENCE: in_reference(lowered, quantized, some, progress),
    }
    return compare(answers, labels, "calibration samples")


def compare(answers: Mapping[str, Floats], labels: NDArray[np.int64] | None, where: str) -> tuple[AccuracyRow, ...]:
    """Accuracy of each stage's first output, where labels say what is right, and its agreement with float.

    Args:
        answers: Outputs of each stage; the float network is the measure of the others.
        labels: Class numbers [N], or None.
        where: What the samples are, for the reader.
    """
    rows: list[AccuracyRow] = []
    exact = _first_output(answers[FLOAT])
    for stage, outputs in answers.items():
        got = _first_output(outputs)
        if labels is not None and (right := _accuracy(got, labels)) is not None:
            rows.append(AccuracyRow(stage, f"accuracy on {len(got)} {where}", right, "%"))
        if stage != FLOAT:
            what = f"SQNR on {len(got)} {where}"
            rows.append(AccuracyRow(stage, what, _decibel(exact, got), "dB"))
    return tuple(rows)


def _first_output(outputs: Floats) -> NDArray[np.float32]:
    return next(iter(outputs.values()))


def _accuracy(got: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
    """Percent of right classes, or None where the output is not one score for each class."""
    scores = got.reshape(len(got), -1)
    if scores.shape[1] < 2 or labels.max(initial=0) >= scores.shape[1]:
        return None
    return 100 * float(np.mean(scores.argmax(1) == labels))


def _decibel(exact: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    signal = float(np.square(exact, dtype=np.float64).sum())
    difference = float(np.square(exact.astype(np.float64) - got.astype(np.float64)).sum())
    if difference == 0:
        return float("inf")
    return 10 * float(np.log10(signal / difference)) if signal else float("-inf")
