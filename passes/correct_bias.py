"""Bias correction: remove the mean error that rounding leaves in every output channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes import statistics
from passes.base import Notes, Rewrite
from passes.cones import Kind, Point
from passes.statistics import Arrays, Progress

WEIGHTED = ("Conv", "Gemm")
BIAS_MAX = 2**31 - 2**24
"""Beyond this the 48-bit offset of bias and zero point could overflow; such a correction is cut."""
MEMORY = 64 * 2**20
"""Bytes that one activation of all samples may take; larger networks are corrected on fewer samples."""


def correctable(model: ir.Model, wanted: tuple[Point, ...]) -> dict[str, str]:
    """Name of every Conv and Gemm to the name of the value straight out of it, whose float mean is needed."""
    nodes = {node.name: node for node in model.graph}
    anchors = [nodes[point.anchor] for point in wanted if point.anchor]
    return {str(node.name): str(node.outputs[0].name) for node in anchors if node.op_type in WEIGHTED}


def affordable(model: ir.Model, wanted: tuple[Point, ...], limit: int) -> int:
    """`limit`, or as many samples as keep the largest activation within MEMORY."""
    names = {point.name for point in wanted}
    values = [value for node in model.graph for value in node.outputs if value.name in names]
    largest = max((math.prod(edit.shape_of(value) or (1,)) for value in values), default=1)
    return max(1, min(limit, MEMORY // largest))


class CorrectBias(Rewrite):
    """Add to each int32 bias the mean difference between the float and the quantized output of its channel.

    Layer after layer, on the activations that the corrected layers before it give, so that each layer also makes good
    for what reaches it. One layer runs at a time, on int8 activations that are forgotten after their last reader.

    Args:
        means: Channel means of the float model over these very samples, float64 [C], by node name.
        wanted: The int8 points, in topological order.
        samples: Inputs by name, [N, ...].
        progress: Told ("correct bias", done, total).

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
        section 4.2.
    """

    name = "correct-bias"

    def __init__(
        self,
        means: Mapping[str, NDArray[np.float64]],
        wanted: tuple[Point, ...],
        samples: Arrays,
        *,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._means, self._points, self._samples, self._progress = means, wanted, samples, progress

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        nodes = {node.name: node for node in model.graph}

        def visit(point: Point, codes: Mapping[str, NDArray[np.generic]]) -> None:
            if nodes[point.anchor].op_type in WEIGHTED:
                feeds = {str(nodes[f"{source}_q"].outputs[0].name): codes[source] for source in point.sources}
                _correct(model, nodes[point.anchor], feeds, self._means, notes)

        layer_by_layer(model, self._points, self._samples, visit, ("correct bias", self._progress))


def layer_by_layer(
    model: ir.Model,
    points: tuple[Point, ...],
    samples: Arrays,
    visit: Callable[[Point, Mapping[str, NDArray[np.generic]]], None],
    told: tuple[str, Progress | None],
) -> None:
    """Visit every layer of a QDQ model before it runs: what a visit changes is seen by the layers behind it.

    Args:
        model: QDQ model.
        points: The int8 points, in topological order.
        samples: Inputs by name, [N, ...].
        visit: Called with a point and the int8 activations, [N, ...] by name of point, that it and later ones read.
        told: What to tell the progress, and the progress.
    """
    nodes = {node.name: node for node in model.graph}
    quantized = {p: nodes[f"{p}_q"].outputs[0] for p in (point.name for point in points)}
    inputs = [point.name for point in points if point.kind is Kind.INPUT]
    known = _input_codes(model, samples, {name: str(quantized[name].name) for name in inputs})
    last = {source: index for index, point in enumerate(points) for source in point.sources}
    what, progress = told
    for index, point in enumerate(points):
        if progress:
            progress(what, index + 1, len(points))
        if point.kind is Kind.INPUT:
            continue
        visit(point, known)
        feeds = {str(quantized[source].name): known[source] for source in point.sources}
        known[point.name] = np.concatenate(list(_layer_outputs(model, feeds, quantized[point.name])))
        for source in point.sources:
            if last[source] == index:
                del known[source]


def _input_codes(model: ir.Model, samples: Arrays, names: dict[str, str]) -> dict[str, NDArray[np.generic]]:
    """The int8 values that enter the accelerator, [N, ...], by point name."""
    rows = list(statistics.run(model, samples, names.values()))
    return {point: np.concatenate([row[name] for row in rows]) for point, name in names.items()}


def _correct(
    model: ir.Model,
    node: ir.Node,
    feeds: dict[str, NDArray[np.generic]],
    means: Mapping[str, NDArray[np.float64]],
    notes: Notes,
) -> None:
    """Move the bias of one Conv or Gemm by its mean error."""
    output = node.outputs[0]
    rows = [statistics.channel_mean(row) for row in _layer_outputs(model, feeds, output)]
    error = means[str(node.name)] - np.mean(rows, axis=0)
    dequantize = node.inputs[2].producer() if node.inputs[2] is not None else None
    assert dequantize is not None
    stored, scale = edit.constant(dequantize.inputs[0]), edit.constant(dequantize.inputs[1])
    assert stored is not None
    assert scale is not None
    steps = np.rint(error / scale.astype(np.float64)).astype(np.int64)
    corrected = np.clip(stored.astype(np.int64) + steps, -BIAS_MAX, BIAS_MAX).astype(np.int32)
    value = dequantize.inputs[0]
    assert value is not None
    value.const_value = ir.Tensor(corrected, name=value.name)
    if steps.any():
        notes.metrics["biases_corrected"] = notes.metrics.get("biases_corrected", 0.0) + float((steps != 0).sum())
        notes.change(node)


def _layer_outputs(
    model: ir.Model, feeds: dict[str, NDArray[np.generic]], output: ir.Value
) -> Iterator[NDArray[np.float32]]:
    """One value, sample after sample, computed from the int8 activations `feeds`, [N, ...]."""
    graph = ir.convenience.extract(model.graph, list(feeds), [output])
    layer = statistics.session(ir.Model(graph, ir_version=model.ir_version))
    for index in range(statistics.count(feeds)):
        (result,) = layer.run(None, {name: array[index : index + 1] for name, array in feeds.items()})
        yield result
