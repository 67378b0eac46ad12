"""Trains the bundled examples on scikit-learn's digits: `python examples/train_digits.py` (extra `train`).

Writes digits_cnn.onnx, digits_mlp.onnx, digits_calib.npz and digits_test.npz beside itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

FOLDER = Path(__file__).parent
TRAIN, CALIBRATION, TEST = 1097, 200, 500
"""Disjoint parts of the 1797 images."""
EPOCHS = 60
BATCH = 32


class Residual(nn.Module):
    """Depthwise 3x3, pointwise 1x1, and the input added back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(x + self.norm2(self.pointwise(y)))


class DigitsCnn(nn.Module):
    """Residual CNN for 1x8x8 images in [0, 1]: stem, residual, stride 2, residual, pool, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.block1 = Residual(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(32)
        self.block2 = Residual(32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem_norm(self.stem(x)))
        y = self.block1(y)
        y = torch.relu(self.down_norm(self.down(y)))
        y = self.pool(self.block2(y))
        return self.classifier(torch.flatten(y, 1))


class DigitsMlp(nn.Module):
    """Two hidden layers on the flattened image; SiLU shows a fused unary table."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def main() -> None:
    """Train both networks and write every file."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    train, calibration, test = _split()
    np.savez_compressed(FOLDER / "digits_calib.npz", x=calibration[0], y=calibration[1])
    np.savez_compressed(FOLDER / "digits_test.npz", x=test[0], y=test[1])
    for name, network, shift in (("digits_cnn", DigitsCnn(), 1), ("digits_mlp", DigitsMlp(), 0)):
        _train(network, *train, shift=shift)
        print(f"{name}: {100 * _accuracy(network, *test):.1f} % of {TEST} test images")
        _export(network, FOLDER / f"{name}.onnx")


def _split() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """(x float32 [N, 1, 8, 8] in [0, 1], y int64 [N]) for training, calibration and test."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    x = (digits.images[order, np.newaxis] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    edges = np.cumsum([0, TRAIN, CALIBRATION, TEST])
    return [(x[a:b], y[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _train(network: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], *, shift: int) -> None:
    """Adam with a one-cycle rate; each batch is moved by up to `shift` pixels."""
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            down, right = torch.randint(-shift, shift + 1, (2,)).tolist()
            moved = torch.roll(images[batch], (down, right), (2, 3))
            loss = nn.functional.cross_entropy(network(moved), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _accuracy(network: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> float:
    """Share of right answers."""
    network.eval()
    with torch.no_grad():
        return float((network(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def _export(network: nn.Module, path: Path) -> None:
    """Write probabilities: Softmax is appended, the batch stays dynamic, BatchNorm is left to the importer."""
    network.eval()
    torch.onnx.export(
        nn.Sequential(network, nn.Softmax(1)),
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_axes={"image": {0: "N"}, "probabilities": {0: "N"}},
        opset_version=17,
        do_constant_folding=True,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
