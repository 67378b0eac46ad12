"""`edgec compress` on all kinds of networks: a smaller file that is valid and loads; what stays float is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compiler import container
from compiler.compress import compress
from compiler.compress_report import CompressReport
from compiler.compression import CompressOptions
from tests.support.light_models import NAMES, light_model
from tests.support.shared import shared

ZOO = ("dtln_model_1", "fastestdet", "go1_policy", "mnist_8", "super_resolution_10", "ultraface_rfb320")
TINY = ("autoencoder_ad", "dscnn_kws", "mobilenet_vww", "resnet8", "streaming_wakeword")
LARGE = tuple(name for name in NAMES if name not in ("shufflenet", "squeezenet"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_zoo_model(tmp_path: Path, name: str) -> None:
    _holds(shared("zoo", f"{name}.onnx"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_mlperf_tiny_model(tmp_path: Path, name: str) -> None:
    _holds(shared("models", f"mlperf_tiny_{name}.onnx"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.nightly) if n in LARGE else n for n in NAMES])
def test_light_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.onnx"
    onnx.save(light_model(name), path)
    _holds(path, tmp_path)


def test_a_quantized_model_is_told_so_and_stored_smaller(tmp_path: Path) -> None:
    report = _holds(shared("zoo", "qonnx_tfc_2w2a.onnx"), tmp_path)
    assert any("quantized already" in warning for warning in report.warnings)
    assert all("quantized already" in layer.reason for layer in report.layers)


def test_weights_of_float_nodes_are_integers_too(tmp_path: Path) -> None:
    """Two thirds of this network are LSTMs, which stay float: their weights do not."""
    report = _holds(shared("zoo", "dtln_model_1.onnx"), tmp_path)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    weights = [made.get(node.input[index]) for node in model.graph.node if node.op_type == "LSTM" for index in (1, 2)]
    assert weights == ["DequantizeLinear"] * 4
    assert report.quality is not None
    assert 0 < report.quality.drop < 0.01


def _holds(path: Path, folder: Path) -> CompressReport:
    """Compressed without samples, with all that is promised; its report."""
    out = folder / "out"
    report = compress(path, out, CompressOptions(), lambda *told: None)
    assert any("no calibration samples" in warning for warning in report.warnings)
    made, packed = (out / "model.onnx").read_bytes(), (out / "model.edgec").read_bytes()
    assert container.unpack(packed) == made
    assert len(packed) < len(made) < path.stat().st_size
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        settings = ort.SessionOptions()
        settings.graph_optimization_level, settings.log_severity_level = level, 3
        session = ort.InferenceSession(made, settings, providers=["CPUExecutionProvider"])
        shapes = {value.name: value.shape for value in session.get_inputs()}
        answers = session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        assert all(np.isfinite(answer).all() for answer in answers)
    told = next(outcome for outcome in report.passes if outcome.name == "integer-arithmetic")
    assert all(told.skipped.values())
    return report
