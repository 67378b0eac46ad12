"""Row `resnet50`: a graph of its size, with random weights: time, memory, and how near the logits stay.

python -m benchmarks.resnet50 MODEL SAMPLES.npz OUTPUT rounds the weights to the nearest 4-bit integers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks import peers
from benchmarks.artefacts import Ran, Workshop, run
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.networks import Floats, shared
from benchmarks.studies import Compression, answers, compress_file
from compiler import compression, container
from compiler.compression import onnx_file
from compiler.importer import import_model
from compiler.quantizable import quantizable
from passes.quantize import Calibrated, QuantizeConfig
from passes.recipes.uniform import Uniform
from passes.scales import ActivationConfig
from tests.support.light_models import light_model, with_batch_statistics

ROW = "resnet50"
CALIBRATION, JUDGING, STATISTICS = 64, 16, 8
"""Images that calibrate and that judge, and those of them that BatchNormalization sees."""
SIZE = 224
ACTIVATION_BITS = 16
"""Of the comparison of 4-bit weights."""
_GIGABYTE = 1e9


def figures(workshop: Workshop) -> Iterator[Figure]:
    """W8A8 beside quantize_static, W4 by GPTQ beside the nearest integers, and the coding of either's integers."""
    if workshop.quick:
        yield Figure(ROW, "ResNet-50-size graph", None, note="takes many minutes: not in --quick")
        return
    images, others = crops(CALIBRATION, seed=1), crops(JUDGING, seed=2)
    calib, model = workshop.samples("resnet50-calib", images), workshop.folder / "resnet50.onnx"
    if not model.exists():
        onnx.save(with_batch_statistics(light_model("resnet50"), images[:STATISTICS]), model)
    exact = answers(model, others)
    yield from _w8a8(workshop, model, calib, exact, others)
    yield from _w4(workshop, model, calib, exact, others)


def crops(count: int, seed: int) -> Floats:
    """Random crops of photos, some mirrored, brighter or darker; normalized, float32 [count, 3, SIZE, SIZE]."""
    with np.load(shared() / "data" / "photos_240x320.npz") as data:
        photos = data["x"]
    rng, made = np.random.default_rng(seed), np.empty((count, 3, SIZE, SIZE), np.float32)
    for image in made:
        photo = photos[rng.integers(len(photos))]
        top, left = (int(rng.integers(size - SIZE + 1)) for size in photo.shape[1:])
        crop = photo[:, top : top + SIZE, left : left + SIZE].astype(np.float32) / 255
        image[:] = (crop[:, :, :: rng.choice([-1, 1])] * rng.uniform(0.6, 1.2) - 0.45) / 0.225
    return made


def _w8a8(workshop: Workshop, model: Path, calib: Path, exact: Floats, others: Floats) -> Iterator[Figure]:
    peer = peers.quantized_file(workshop, "resnet50", model, calib)
    made = compress_file(workshop, "resnet50-w8a8", model, "--calib", calib)
    if failed := made.failed or peer.failed:
        yield Figure(ROW, "W8A8", None, note=failed)
        return
    theirs, anchor = peer.ran, f"{peers.NAME} {peer.ran.seconds:.0f} s, {peer.ran.peak_bytes / _GIGABYTE:.2f} GB"
    yield from _cost("W8A8", made.ran, (4 * theirs.seconds, theirs.seconds), (1.5, 1), anchor)
    own, other = (_sqnr(exact, answers(file, others)) for file in (made.decoded, peer.model))
    anchor, note = f"{peers.NAME} {other:.2f} dB", f"{len(others)} images that did not calibrate"
    yield Figure(ROW, "W8A8: SQNR of the logits", own, "dB", at_least(other), None, anchor, note)
    yield from _coding("W8A8", made)


def _w4(workshop: Workshop, model: Path, calib: Path, exact: Floats, others: Floats) -> Iterator[Figure]:
    # With activations of 8 bits their own error, larger than that of the weights, is all that the logits show.
    given = ("--calib", calib, "--weights", "4", "--activations", str(ACTIVATION_BITS))
    made = compress_file(workshop, "resnet50-w4", model, *given)
    nearest = workshop.folder / "resnet50-w4-nearest.onnx"
    ran = run([sys.executable, "-m", "benchmarks.resnet50", str(model), str(calib), str(nearest)])
    if made.failed or ran.code:
        yield Figure(ROW, "W4 by GPTQ", None, note=made.failed or f"to the nearest: {ran.complaint}")
        return
    yield from _cost("W4 by GPTQ", made.ran, (600, 180), (2.5, 1.5))
    own, other = (_sqnr(exact, answers(file, others)) for file in (made.decoded, nearest))
    note = f"{own:.2f} and {other:.2f} dB, {len(others)} images"
    yield Figure(ROW, "W4: SQNR of the logits by GPTQ above that of nearest", own - other, "dB", at_least(3), note=note)
    yield from _coding("W4", made)


def _cost(
    what: str, ran: Ran, seconds: tuple[float, float], gigabytes: tuple[float, float], anchor: str = ""
) -> Iterator[Figure]:
    (bar, aim), note = map(at_most, seconds), f"{ran.cpu_seconds:.0f} CPU-seconds, {CALIBRATION} images"
    yield Figure(ROW, f"{what}: time", ran.seconds, "s", bar, aim, anchor, note)
    (bar, aim), peak = map(at_most, gigabytes), ran.peak_bytes / _GIGABYTE
    yield Figure(ROW, f"{what}: peak memory", peak, "GB", bar, aim, anchor)


def _coding(what: str, made: Compression) -> Iterator[Figure]:
    """The whole file to a container and back, in one process."""
    data, start = made.decoded.read_bytes(), time.monotonic()
    packed = container.pack(data)
    encoded = time.monotonic()
    if container.unpack(packed) != data:
        yield Figure(ROW, f"{what}: entropy coding", None, note="the container does not give the file back")
        return
    decoded = time.monotonic()
    note = f"{len(data):,} B of ONNX, {len(packed):,} B of model.edgec, {made.ratio:.2f}x"
    yield Figure(ROW, f"{what}: encode", encoded - start, "s", at_most(60), at_most(5), note=note)
    yield Figure(ROW, f"{what}: decode", decoded - encoded, "s", at_most(60), at_most(3), note=note)


def _sqnr(exact: Floats, got: Floats) -> float:
    difference = np.square(exact.astype(np.float64) - got).sum()
    return 10 * float(np.log10(np.square(exact, dtype=np.float64).sum() / difference))


def round_to_nearest(model: Path, calib: Path, out: Path) -> None:
    """As `edgec compress --weights 4 --activations 16`, but every weight to the nearest integer at the same scale."""
    network = import_model(model).model
    with np.load(calib) as data:
        samples = {str(network.graph.inputs[0].name): data["x"]}
    config = QuantizeConfig(
        activations=ActivationConfig(bits=ACTIVATION_BITS),
        reconstruction_samples=compression.SAMPLES, positions=compression.POSITIONS, is_coarse=True
    )
    calibrated = Calibrated.of(network, quantizable(network)[0], samples, config)
    recipes = {name: Uniform(4, is_nearest=True) for name in calibrated.aims}
    out.write_bytes(onnx_file(calibrated.quantized(recipes))[0])


if __name__ == "__main__":
    round_to_nearest(*map(Path, sys.argv[1:4]))
