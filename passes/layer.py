"""A weighted layer (Conv, Gemm, MatMul) as a matrix: rows are output channels, taps what one of them reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit

POSITIONS_MAX = 1024
"""Of one sample, evenly spaced: more tell little that is new."""


@dataclass(frozen=True)
class Layer:
    """The geometry of one weighted node.

    Attributes:
        op: "Conv", "Gemm" or "MatMul".
        shape: Of the weights as stored: [C_out, C_in / groups, kernel...], or [out, in] for a Gemm with transB, or
            [in, out] for a MatMul.
        groups: Of a Conv; else 1.
        strides, pads, dilations: Of a Conv, pads as ONNX has them: all beginnings, then all ends.
    """

    op: str
    shape: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel sizes; () unless it is a Conv."""
        return self.shape[2:] if self.op == "Conv" else ()

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.shape[1] if self.op == "MatMul" else self.shape[0]

    @property
    def rows(self) -> int:
        """Output channels of one group."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """What one output channel reads."""
        return self.shape[0] if self.op == "MatMul" else math.prod(self.shape[1:])

    def matrix(self, weights: NDArray[np.generic]) -> NDArray[np.float64]:
        """Weights as stored to float64 [groups, rows, taps]."""
        flat = weights.T if self.op == "MatMul" else weights
        return np.ascontiguousarray(flat, np.float64).reshape(self.groups, self.rows, self.taps)

    def stored(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """[groups, rows, taps] to the shape of the stored weights."""
        if self.op == "MatMul":
            return np.ascontiguousarray(matrix.reshape(self.channels, self.taps).T)
        return np.ascontiguousarray(matrix).reshape(self.shape)

    def macs(self, output: tuple[int, ...]) -> int:
        """Multiply-accumulates for an output of this shape, [1, C_out, ...] or [..., out]."""
        return math.prod(output) * self.taps

    def patches(self, sample: NDArray[np.float32], limit: int = POSITIONS_MAX) -> NDArray[np.float32]:
        """What the layer reads at evenly spaced output positions (im2col), float32 [groups, taps, positions].

        Args:
            sample: The layer's input for one sample, [1, C, ...] for a Conv, [..., in] otherwise.
            limit: About as many positions at most.
        """
        if self.op != "Conv":
            rows = sample.reshape(-1, self.taps)
            return np.ascontiguousarray(rows[:: -(-len(rows) // limit)].T)[None]
        rank, image = len(self.kernel), sample[0]
        padded = _padded(image, self.pads)
        spans = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(1, rank + 1)))
        windows = windows[(slice(None), *(slice(None, None, step) for step in (*self.strides, *self.dilations)))]
        windows = windows[(slice(None), *_thinned(windows.shape[1 : rank + 1], limit))]
        taps_first = np.moveaxis(windows, range(rank + 1, 2 * rank + 1), range(1, rank + 1))
        return np.ascontiguousarray(taps_first).reshape(self.groups, self.taps, -1)

    def responses(self, sample: NDArray[np.float32], limit: int = POSITIONS_MAX) -> NDArray[np.float32]:
        """The layer's output at the positions of `patches`, float32 [groups, rows, positions]."""
        if self.op != "Conv":
            rows = sample.reshape(-1, self.channels)
            return np.ascontiguousarray(rows[:: -(-len(rows) // limit)].T)[None]
        thinned = sample[0][(slice(None), *_thinned(sample.shape[2:], limit))]
        return np.ascontiguousarray(thinned).reshape(self.groups, self.rows, -1)


def _padded(image: NDArray[np.float32], pads: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros around the spatial axes of [C, ...]; np.pad takes longer than the rest of small patches."""
    if not any(pads):
        return image
    sizes, begins, ends = image.shape[1:], pads[: len(pads) // 2], pads[len(pads) // 2 :]
    shape = [size + begin + end for size, begin, end in zip(sizes, begins, ends, strict=True)]
    result = np.zeros((len(image), *shape), np.float32)
    spans = (slice(begin, begin + size) for size, begin in zip(sizes, begins))
    result[(slice(None), *spans)] = image
    return result


def _thinned(sizes: tuple[int, ...], limit: int) -> tuple[slice, ...]:
    step = math.ceil((math.prod(sizes) / limit) ** (1 / len(sizes)))
    return tuple(slice(None, None, step) for _ in sizes)


def layer_of(node: ir.Node) -> Layer | None:
    """The geometry of `node`, or None where it is no weighted layer whose weights are known, float or dequantized."""
    if not edit.is_op(node, "Conv", "Gemm", "MatMul"):
        return None
    shape = _weight_shape(node)
    if shape is None:
        return None
    if node.op_type == "Conv":
        rank = len(shape) - 2
        return Layer(
            "Conv",
            shape,
            edit.integer(node, "group", 1),
            edit.ints(node, "strides") or (1,) * rank,
            edit.ints(node, "pads") or (0,) * 2 * rank,
            edit.ints(node, "dilations") or (1,) * rank,
        )
    if node.op_type == "MatMul":
        return Layer("MatMul", shape) if len(shape) == 2 else None
    plain = edit.integer(node, "transB", 0) == 1 and edit.integer(node, "transA", 0) == 0
    return Layer("Gemm", shape) if plain and len(shape) == 2 else None


def _weight_shape(node: ir.Node) -> tuple[int, ...] | None:
    value = edit.operand(node, 1)
    if edit.constant(value) is not None:
        return edit.shape_of(value)
    producer = value.producer() if value is not None else None
    if producer is None or not edit.is_op(producer, "DequantizeLinear"):
        return None
    return edit.shape_of(producer.outputs[0]) or edit.shape_of(producer.inputs[0])


def layers(model: ir.Model) -> dict[str, Layer]:
    """Every weighted layer by node name, in topological order."""
    found = {str(node.name): layer_of(node) for node in model.graph}
    return {name: layer for name, layer in found.items() if layer is not None}
