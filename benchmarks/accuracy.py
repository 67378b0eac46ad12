"""Accuracy rows: the accelerator's integers, which are the reference's, against the float network on judging data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.chain import Integers, float_outputs, integers, quantized_outputs
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.networks import AD, KWS, RESNET8, VWW, Network

ROW = "accuracy"
_TFLITE = {RESNET8.key: 88.8, KWS.key: 90.75}


def figures() -> Iterator[Figure]:
    """One or more lines for each of the four networks."""
    yield from _classifier(KWS)
    yield from _classifier(RESNET8)
    yield from _wake_words()
    yield from _autoencoder()


def _classifier(network: Network) -> Iterator[Figure]:
    """Loss in points against float, within 0.75; the aim is the official int8 model's accuracy."""
    compiled, labels = integers(network), network.judging.column("y")
    samples = network.judging.read()
    whole = _percent(float_outputs(network, samples), labels)
    quantized = _percent(quantized_outputs(compiled, samples), labels)
    ours = _percent(compiled.run(samples), labels)
    peer = _TFLITE[network.key]
    note = f"float {whole:.2f} %, quantized in onnxruntime {quantized:.2f} %, {len(samples)} samples"
    anchor = f"official int8 tflite {peer} %"
    bar, aim = at_least(whole - 0.75), at_least(peer)
    yield Figure(ROW, f"{network.title}: accuracy of the integers", ours, "%", bar, aim, anchor, note)


def _percent(outputs: NDArray[np.float32], labels: NDArray[np.generic]) -> float:
    return 100 * float(np.mean(outputs.argmax(axis=1) == labels))


def _wake_words() -> Iterator[Figure]:
    """Mean error of the margin log p1 - log p0, and agreement with the float network in each class."""
    compiled, samples = integers(VWW), VWW.judging.read()
    margin = VWW.judging.column("float_margin").astype(np.float64)
    note = f"{len(samples)} crops, calibrated on photos_calib_96"
    ours = _margin(compiled.run(samples))
    error = float(np.abs(ours - margin).mean())
    yield Figure(
        ROW,
        f"{VWW.title}: mean margin error",
        error,
        "",
        at_most(0.30),
        at_most(0.143),
        "onnxruntime quantize_static 0.143",
        f"{note}; in onnxruntime {_onnxruntime_margin_error(compiled, samples, margin):.3f}",
    )
    for name, chosen, peer in (("person", margin > 0, 99.6), ("no person", margin <= 0, 99.4)):
        agreement = 100 * float(np.mean((ours > 0)[chosen] == (margin > 0)[chosen]))
        what = f"{VWW.title}: agreement, {name}"
        anchor = f"onnxruntime quantize_static {peer} %"
        yield Figure(ROW, what, agreement, "%", at_least(97), at_least(99), anchor, f"{int(chosen.sum())} crops")


def _onnxruntime_margin_error(compiled: Integers, samples: NDArray[np.float32], margin: NDArray[np.float64]) -> float:
    return float(np.abs(_margin(quantized_outputs(compiled, samples)) - margin).mean())


def _margin(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    # float32 probabilities reach 0 far from the border: keep the logarithm finite.
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    return np.asarray(logs[:, 1] - logs[:, 0])


def _autoencoder() -> Iterator[Figure]:
    """Ratio of the mean reconstruction errors, quantized over float; 1 is no change."""
    compiled, samples = integers(AD), AD.judging.read()
    whole = _reconstruction(float_outputs(AD, samples), samples)
    ours = _reconstruction(compiled.run(samples), samples)
    quantized = _reconstruction(quantized_outputs(compiled, samples), samples)
    change = 100 * abs(ours / whole - 1)
    note = f"float {whole:.4g}, integers {ours:.4g}, in onnxruntime {quantized:.4g}; {len(samples)} odd rows"
    what = f"{AD.title}: change of the mean reconstruction error"
    yield Figure(ROW, what, change, "%", at_most(5), at_most(2), "weights alone to 8 bits: -0.1 %", note)


def _reconstruction(outputs: NDArray[np.float32], samples: NDArray[np.float32]) -> float:
    return float(np.mean((outputs.astype(np.float64) - samples) ** 2))
