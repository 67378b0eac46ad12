"""The four MLPerf Tiny networks and the zoo through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.edgec import edgec
from tests.support.shared import shared

# (model, calibration file, scale, cycles of a dense 16x8 array that must not be exceeded)
NETWORKS = {
    "resnet8": ("mlperf_tiny_resnet8.onnx", "cifar10_train_8068.npz", 1.0, 114_000),
    "kws": ("mlperf_tiny_dscnn_kws.onnx", "kws_calib_200.npz", 1.0, 28_000),
    "vww": ("mlperf_tiny_mobilenet_vww.onnx", "photos_calib_96.npz", 1 / 255, 90_000),
    "ad": ("mlperf_tiny_autoencoder_ad.onnx", "ad_calib_aug_1000.npz", 1.0, 12_000),
}
# model: (exit code of check, words that must be said)
ZOO = {
    "mnist_8": (0, ()),
    "go1_policy": (0, ("mlp_1/sub",)),
    "qonnx_tfc_2w2a": (0, ()),
    "dtln_model_1": (0, ("lstm_4", "of the multiply-accumulates run on the host")),
    "ultraface_rfb320": (5, ("--memory", "layer '")),
    "super_resolution_10": (5, ("--memory", "layer '")),
    "fastestdet": (5, ("--memory", "layer '")),
}


@pytest.mark.slow
@pytest.mark.verilator
@pytest.mark.parametrize("array", ["16x8", pytest.param("8x2", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", NETWORKS)
def test_mlperf_tiny_network_compiles_and_verifies(tmp_path: Path, name: str, array: str) -> None:
    model, data, scale, cycles = NETWORKS[name]
    calib = _first_samples(tmp_path, data, scale)
    out = tmp_path / "out"
    ran = edgec("compile", shared("models", model), "--calib", calib, "--array", array, "-o", out, "--dense", "--json")
    assert ran.code == 0, ran.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["verify"]["mismatches"] == 0
    assert report["verify"]["elements"] > 0
    assert report["verify"]["cycle_mismatches"] == 0
    if array == "16x8":
        assert report["cycles"] <= cycles


@pytest.mark.parametrize("name", ZOO)
def test_zoo_model_is_checked_without_a_traceback(name: str) -> None:
    code, words = ZOO[name]
    ran = edgec("check", shared("zoo", f"{name}.onnx"), "--target", "fpga")
    said = ran.stdout + ran.stderr
    assert ran.code == code, said
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == []


@pytest.mark.slow
@pytest.mark.verilator
@pytest.mark.parametrize("name", ["mnist_8", "go1_policy", "qonnx_tfc_2w2a", "dtln_model_1"])
def test_zoo_model_compiles_and_verifies(tmp_path: Path, name: str) -> None:
    ran = edgec("compile", shared("zoo", f"{name}.onnx"), "--target", "fpga", "-o", tmp_path / "out")
    assert ran.code == 0, ran.stderr


def _first_samples(tmp_path: Path, data: str, scale: float, count: int = 64) -> Path:
    path = tmp_path / "calib.npz"
    with np.load(shared("data", data)) as file:
        np.savez(path, x=file["x"][:count].astype(np.float32) * np.float32(scale))
    return path
