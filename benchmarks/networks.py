"""The networks that the benchmarks measure: their files, calibration samples and judging data.

The files are third-party and not part of the project. They stand in the folder that the environment variable
EDGEC_SHARED names, by default ../shared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def shared() -> Path:
    """Folder of models/, zoo/ and data/."""
    return Path(os.environ.get("EDGEC_SHARED", "../shared"))


@dataclass(frozen=True)
class Samples:
    """Rows of a data file, made into a float input.

    Attributes:
        file: Under data/.
        start, stop, step: Rows, as in a slice.
        scale: x = float32(raw) * scale.
    """

    file: str
    start: int = 0
    stop: int | None = None
    step: int = 1
    scale: float = 1.0

    @property
    def path(self) -> Path:
        return shared() / "data" / self.file

    def read(self) -> Floats:
        """float32 [N, ...]."""
        with np.load(self.path) as data:
            rows = data["x"][self.start : self.stop : self.step]
        return rows.astype(np.float32) * np.float32(self.scale)

    def column(self, name: str) -> NDArray[np.generic]:
        """Another array of the file, the same rows."""
        with np.load(self.path) as data:
            return np.asarray(data[name][self.start : self.stop : self.step])


@dataclass(frozen=True)
class Network:
    """A network with the samples that calibrate it and those that judge it, which never meet."""

    key: str
    title: str
    file: str
    calibration: Samples
    judging: Samples

    @property
    def path(self) -> Path:
        return shared() / self.file


RESNET8 = Network(
    "resnet8",
    "ResNet-8",
    "models/mlperf_tiny_resnet8.onnx",
    Samples("cifar10_train_8068.npz", stop=256),
    Samples("cifar10_devtest_500.npz"),
)
KWS = Network(
    "kws",
    "DS-CNN KWS",
    "models/mlperf_tiny_dscnn_kws.onnx",
    Samples("kws_calib_200.npz"),
    Samples("kws_devtest_400.npz"),
)
VWW = Network(
    "vww",
    "VWW MobileNet",
    "models/mlperf_tiny_mobilenet_vww.onnx",
    Samples("photos_calib_96.npz", scale=1 / 255),
    Samples("vww_judge_600.npz", scale=1 / 255),
)
AD = Network(
    "ad",
    "AD autoencoder",
    "models/mlperf_tiny_autoencoder_ad.onnx",
    Samples("ad_calib_aug_1000.npz", start=0, step=2),
    Samples("ad_calib_aug_1000.npz", start=1, step=2),
)
MLPERF_TINY = (RESNET8, KWS, VWW, AD)
ZOO = (
    "mnist_8",
    "go1_policy",
    "qonnx_tfc_2w2a",
    "ultraface_rfb320",
    "super_resolution_10",
    "fastestdet",
    "dtln_model_1",
)
