"""onnxruntime's quantize_static, called as a user who knows it does: in a process of its own, so that it is timed.

python -m benchmarks.peers MODEL SAMPLES.npz OUTPUT
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import version_converter

from benchmarks.artefacts import Ran, Workshop, run
from benchmarks.studies import Study, samples_file

NAME = "onnxruntime quantize_static"
_OPSET = 17
"""The tool asks for 11, and for 13 where weights are quantized per channel."""


@dataclass(frozen=True)
class Peer:
    """What quantize_static made.

    Attributes:
        model: The quantized file.
        ran: The command.
        failed: Why there is none, or None.
    """

    model: Path
    ran: Ran

    @property
    def failed(self) -> str | None:
        return f"quantize_static: exit {self.ran.code}: {self.ran.complaint}" if self.ran.code else None

    @property
    def bytes(self) -> int:
        return self.model.stat().st_size


def quantized(workshop: Workshop, study: Study) -> Peer:
    """The network calibrated on the same samples; once in a run."""

    def make() -> Peer:
        calib = samples_file(workshop, study, "calib", study.calibration)
        return quantized_file(workshop, study.key, study.network.path, calib)

    return workshop.once(("quantize_static", study.key), make)


def quantized_file(workshop: Workshop, name: str, model: Path, calib: Path) -> Peer:
    """A model file, calibrated on the array `x` of a data file."""
    out = workshop.folder / f"{name}-quantize_static.onnx"
    command = [sys.executable, "-m", "benchmarks.peers", str(model), str(calib), str(out)]
    return Peer(out, run(command))


class _Reader:
    """One sample at a time, as the tool's CalibrationDataReader."""

    def __init__(self, name: str, samples: NDArray[np.float32]) -> None:
        self._rows = iter([{name: samples[index : index + 1]} for index in range(len(samples))])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._rows, None)


def quantize(model: Path, calib: Path, out: Path) -> None:
    """Clean the graph, then QDQ with int8 activations and int8 weights per channel, ranges by minimum and maximum."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    loaded = onnx.load(model)
    if max(each.version for each in loaded.opset_import if each.domain in ("", "ai.onnx")) < _OPSET:
        loaded = version_converter.convert_version(loaded, _OPSET)
    with np.load(calib) as data, tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.onnx"
        quant_pre_process(loaded, clean)
        quantize_static(
            clean,
            out,
            _Reader(loaded.graph.input[0].name, data["x"]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )


if __name__ == "__main__":
    quantize(*map(Path, sys.argv[1:4]))
