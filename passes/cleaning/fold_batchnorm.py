"""BatchNormalization into the layer before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.graph import (
    absorb,
    constant,
    graph_of,
    integer,
    ints,
    is_op,
    is_quantized,
    make,
    new_initializer,
    number,
    only_consumer,
    replace,
    shape_of,
)
from passes.weights import scale_and_shift, why_not_linear

Channels = NDArray[np.float64]


class FoldBatchNorm(Rewrite):
    """Fold each BatchNormalization into the weights of the Conv or Gemm that feeds it.

    w' = w * gamma / sqrt(var + eps);  b' = (b - mean) * gamma / sqrt(var + eps) + beta

    One that nothing feeds becomes a Mul and Add where FoldAffine can put them into the next layer,
    else a depthwise 1x1 Conv.

    Source: Jacob et al., CVPR 2018, section 3.2.
    """

    name = "fold-batchnorm"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not is_op(node, "BatchNormalization"):
                continue
            reason = _why_not(node) or _fold(node)
            if reason:
                notes.skip(node, reason)
            else:
                notes.change(node)


def _why_not(node: ir.Node) -> str | None:
    if any(constant(v) is None for v in node.inputs[1:5]):
        return "its statistics are not constant"
    if integer(node, "training_mode", 0):
        return "it is in training mode"
    if any(tuple(o.uses()) or o.is_graph_output() for o in node.outputs[1:]):
        return "its running statistics are read"
    if shape_of(node.inputs[0]) is None:
        return "the shape of its input is unknown"
    return None


def _fold(node: ir.Node) -> str | None:
    factor, shift = _factor_and_shift(node)
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return "its variance plus epsilon is not positive"
    source = node.inputs[0]
    assert source is not None
    producer = source.producer()
    folds = producer is not None and why_not_linear(producer) is None
    if producer is not None and folds and scale_and_shift(producer, factor, shift) is None:
        absorb(producer, node)
        return None
    if is_quantized(graph_of(node)):
        return f"the network is quantized, and {why_not_linear(producer) or 'the layer before it cannot take it'}"
    rank = len(shape_of(source) or ())
    if rank in (3, 4) and not _next_layer_takes_shift(node):
        replace(node, depthwise(node, source, factor, shift))
    elif rank >= 2:
        replace(node, *_mul_add(node, source, factor, shift, rank))
    else:
        return f"its input has {rank} dimensions"
    return None


def _factor_and_shift(node: ir.Node) -> tuple[Channels, Channels]:
    gamma, beta, mean, variance = (np.asarray(constant(v), np.float64) for v in node.inputs[1:5])
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = gamma / np.sqrt(variance + number(node, "epsilon", 1e-5))
        return factor, beta - mean * factor


def _next_layer_takes_shift(node: ir.Node) -> bool:
    consumer = only_consumer(node.outputs[0])
    if consumer is None or consumer.inputs[0] is not node.outputs[0]:
        return False
    return is_op(consumer, "Conv") and not any(ints(consumer, "pads")) and "auto_pad" not in consumer.attributes


def depthwise(node: ir.Node, source: ir.Value, factor: Channels, shift: Channels) -> ir.Node:
    """A 1x1 depthwise Conv of `source` [1, C, H, W] or [1, C, L] that multiplies and shifts each channel."""
    graph, ones = graph_of(node), [1] * (len(shape_of(source) or ()) - 2)
    weights = new_initializer(graph, f"{node.name}_weights", factor.astype(np.float32).reshape(-1, 1, *ones))
    bias = new_initializer(graph, f"{node.name}_bias", shift.astype(np.float32))
    return make(
        "Conv",
        [source, weights, bias],
        str(node.name),
        shape_of(source),
        group=factor.size,
        kernel_shape=ones,
        strides=ones,
        dilations=ones,
        pads=[0] * (2 * len(ones)),
    )


def _mul_add(node: ir.Node, source: ir.Value, factor: Channels, shift: Channels, rank: int) -> list[ir.Node]:
    graph, shape = graph_of(node), (-1,) + (1,) * (rank - 2)
    scale = new_initializer(graph, f"{node.name}_factor", factor.astype(np.float32).reshape(shape))
    offset = new_initializer(graph, f"{node.name}_shift", shift.astype(np.float32).reshape(shape))
    multiply = make("Mul", [source, scale], f"{node.name}_mul", shape_of(source))
    return [multiply, make("Add", [multiply.outputs[0], offset], f"{node.name}_add", shape_of(source))]
