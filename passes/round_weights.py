"""Rounding of weights to integers so that a layer's output errs least on the calibration samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes.base import Notes, Rewrite
from passes.cones import Point
from passes.correct_bias import WEIGHTED, layer_by_layer
from passes.statistics import Arrays, Progress

WEIGHT_MAX = 127
TAPS_MAX = 2048
"""Weights that one output channel may have: the covariance of its inputs has the square of that."""
POSITIONS_MAX = 1024
"""Of one sample, evenly spaced: more tell little that is new."""
SWEEPS_MAX = 8
SHRINKAGE = 0.1
"""Share of the mean variance that is added to every input's: samples are not the world."""

Matrix = NDArray[np.float64]
Fits = Callable[[NDArray[np.int8]], NDArray[np.bool_]]


class RoundWeights(Rewrite):
    """Move int8 weights to a neighbouring integer where that makes good for the rounding of the others.

    For each output channel, (q - w) C (q - w)^T is brought down one weight at a time; C is the covariance of the
    layer's int8 inputs over samples and positions. The mean is left to the bias, which CorrectBias moves afterwards.
    Every q stays within 1 of w, and 0 where w is 0: what was pruned stays so.

    Args:
        weights: Float weights by node name, as they were quantized.
        wanted: The int8 points, in topological order.
        samples: Inputs by name, [N, ...].
        fits: Whether int8 weights [C_out, ...] fit the accumulator, bool [C_out].
        progress: Told ("round weights", done, total).

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, section 3: the
        same objective, minimized by coordinate descent.
    """

    name = "round-weights"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        wanted: tuple[Point, ...],
        samples: Arrays,
        *,
        fits: Fits,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._weights, self._points, self._samples = weights, wanted, samples
        self._fits, self._progress = fits, progress

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        nodes = {node.name: node for node in model.graph}

        def visit(point: Point, codes: Mapping[str, NDArray[np.generic]]) -> None:
            node = nodes[point.anchor]
            if node.op_type not in WEIGHTED:
                return
            source = point.sources[0]
            zero_point = edit.constant(edit.operand(nodes[f"{source}_q"], 2))
            offset = 0 if zero_point is None else int(zero_point)
            self._round(node, codes[source].astype(np.float32) - offset, notes)

        layer_by_layer(model, self._points, self._samples, visit, ("round weights", self._progress))

    def _round(self, node: ir.Node, inputs: NDArray[np.float32], notes: Notes) -> None:
        dequantize = node.inputs[1].producer() if node.inputs[1] is not None else None
        assert dequantize is not None
        codes, scale = (edit.constant(value) for value in dequantize.inputs[:2])
        assert codes is not None
        assert scale is not None
        taps = math.prod(codes.shape[1:])
        if taps > TAPS_MAX:
            notes.skip(node, f"its channels have {taps} weights each: they are rounded to the nearest")
            return
        exact = self._weights[str(node.name)].astype(np.float64).reshape(len(codes), taps)
        exact = exact / scale.astype(np.float64).reshape(-1, 1)
        spread = covariance(node, inputs, codes.shape[1:])
        grouped = (len(spread), -1, taps)
        rounded = descend(exact.reshape(grouped), codes.astype(np.float64).reshape(grouped), spread)
        new = rounded.reshape(codes.shape).astype(np.int8)
        new = np.where(self._fits(new).reshape(-1, *[1] * (codes.ndim - 1)), new, codes.astype(np.int8))
        if moved := int((new != codes).sum()):
            value = dequantize.inputs[0]
            assert value is not None
            value.const_value = ir.Tensor(new, name=value.name)
            notes.metrics["weights_moved"] = notes.metrics.get("weights_moved", 0.0) + moved
            notes.change(node)


def descend(exact: Matrix, codes: Matrix, spread: Matrix) -> Matrix:
    """Codes with a smaller error (q - w) C (q - w)^T than `codes`, found one weight at a time.

    Args:
        exact: w in units of the scale, float64 [groups, rows, taps].
        codes: q to start from, integers in float64 [groups, rows, taps]; a row of zeros stays.
        spread: C, float64 [groups, taps, taps].
    """
    q, variance = codes.copy(), np.diagonal(spread, axis1=1, axis2=2)
    low, high = np.maximum(np.ceil(exact - 1), -WEIGHT_MAX), np.minimum(np.floor(exact + 1), WEIGHT_MAX)
    is_free = (exact != 0) & (codes != 0).any(axis=2, keepdims=True) & (low <= high)
    slope = (q - exact) @ spread
    for _ in range(SWEEPS_MAX):
        has_moved = False
        for tap in range(q.shape[2]):
            # The minimum along this weight lies where the slope is 0.
            best = q[:, :, tap] - slope[:, :, tap] / variance[:, None, tap]
            new = np.clip(np.rint(best), low[:, :, tap], high[:, :, tap])
            step = np.where(is_free[:, :, tap], new - q[:, :, tap], 0.0)
            if step.any():
                has_moved = True
                q[:, :, tap] += step
                slope += step[:, :, None] * spread[:, None, tap]
        if not has_moved:
            break
    return q


def covariance(node: ir.Node, inputs: NDArray[np.float32], kernel: tuple[int, ...]) -> Matrix:
    """Covariance of what a channel of `node` reads at one position, shrunk towards a multiple of the identity.

    Args:
        node: Conv or Gemm.
        inputs: Less their zero point, float32 [N, C, ...].
        kernel: (input channels of a group, taps...).

    Returns:
        float64 [groups, taps, taps], positive definite.
    """
    count, total, square = 0, 0.0, 0.0
    for sample in inputs:
        seen = _patches(node, sample, kernel)
        count += seen.shape[2]
        total = total + seen.sum(axis=2, dtype=np.float64)
        square = square + np.matmul(seen, seen.transpose(0, 2, 1)).astype(np.float64)
    mean = np.asarray(total) / count
    spread = np.asarray(square) / count - mean[:, :, None] * mean[:, None, :]
    taps = spread.shape[1]
    average = np.trace(spread, axis1=1, axis2=2) / taps
    # With fewer positions than weights the covariance says nothing: then the nearest integer is best.
    added = np.maximum(average, np.finfo(np.float32).eps) * max(SHRINKAGE, taps / count)
    return np.asarray(spread + added[:, None, None] * np.eye(taps))


def _patches(node: ir.Node, sample: NDArray[np.float32], kernel: tuple[int, ...]) -> NDArray[np.float32]:
    """What the kernel covers, float32 [groups, taps, positions]; sample: [C, ...]."""
    if node.op_type == "Gemm":
        return sample.reshape(1, -1, 1)
    channels, *sizes = kernel
    rank = len(sizes)
    pads = edit.ints(node, "pads", (0,) * 2 * rank)
    strides, dilations = (edit.ints(node, name, (1,) * rank) for name in ("strides", "dilations"))
    padded = np.pad(sample, [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(1, rank + 1)))
    windows = windows[(slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))]
    thinned = math.ceil((math.prod(windows.shape[1 : rank + 1]) / POSITIONS_MAX) ** (1 / rank))
    windows = windows[(slice(None), *(slice(None, None, thinned),) * rank)]
    taps_first = np.moveaxis(windows, range(rank + 1, 2 * rank + 1), range(1, rank + 1))
    return np.ascontiguousarray(taps_first).reshape(len(sample) // channels, channels * math.prod(sizes), -1)
