"""Zero-block skipping: ResNet-8 with zeros written into the float file at random blocks, against the dense run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.artefacts import Workshop, edgec
from benchmarks.figures import Figure, at_most
from benchmarks.networks import RESNET8

ROW = "sparsity"
BLOCK = 8
_LIMITS = {50: (0.54, 0.52), 25: (0.32, 0.29)}


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Cycles at 50 % and 25 % of the blocks kept, relative to the dense network."""
    dense = workshop.compile(RESNET8, "--array", "16x8", "--dense")
    for percent, (bar, aim) in _LIMITS.items():
        model = workshop.folder / f"resnet8-{percent}.onnx"
        zero_blocks(RESNET8.path, model, density=percent / 100)
        sparse = workshop.compile(RESNET8, "--array", "16x8", model=model)
        what = f"ResNet-8: cycles at {percent} % of the {BLOCK}x1 blocks, relative to dense"
        failed = dense.failed or sparse.failed
        value = None if failed else sparse.report["cycles"] / dense.report["cycles"]
        note = failed or f"{sparse.report['cycles']:,} of {dense.report['cycles']:,} cycles; {_exact(sparse.folder)}"
        yield Figure(ROW, what, value, "", at_most(bar), at_most(aim), "the limit is the density itself", note)


def zero_blocks(source: Path, target: Path, *, density: float, seed: int = 0) -> None:
    """Write `source` with random blocks of 8 output channels x 1 input channel x 1 tap zeroed in every Conv.

    Exactly round(density * blocks) of each layer are kept.
    """
    model, rng = onnx.load(source), np.random.default_rng(seed)
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(_thinned(numpy_helper.to_array(tensor), density, rng), tensor.name))
    onnx.save(model, target)


def _thinned(weights: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [C_out, C_in, kh, kw] with blocks zeroed."""
    shape = (-(-weights.shape[0] // BLOCK), *weights.shape[1:])
    blocks = int(np.prod(shape))
    kept = np.zeros(blocks, bool)
    kept[rng.permutation(blocks)[: round(density * blocks)]] = True
    mask = np.repeat(kept.reshape(shape), BLOCK, axis=0)[: weights.shape[0]]
    return np.where(mask, weights, np.float32(0))


def _exact(folder: Path) -> str:
    ran = edgec("verify", folder)
    return "bit-exact" if ran.code == 0 else f"verify exits {ran.code}: {ran.complaint}"
