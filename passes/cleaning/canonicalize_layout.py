"""Chains of Reshape, Transpose, Gather and Slice as the one thing they amount to."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.graph import (
    constant,
    graph_of,
    integer,
    ints,
    is_op,
    make,
    new_initializer,
    only_consumer,
    operand,
    set_input,
    shape_of,
)
from passes.weights import replace_weights, weights_of

Indices = NDArray[np.int64]

_LAYOUT = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice")
_ELEMENTS_MAX = 1 << 23


class CanonicalizeLayout(Rewrite):
    """Follow every element through a chain of layout nodes and write the shortest chain that does the same.

    1. Elements stay in order: one Reshape, or nothing.
    2. Whole channels move (channel shuffle and split): one Gather along channels.
    3. A flattened map in any order feeds a Gemm (NHWC flatten): one Reshape, and the Gemm's weights in that order.
    """

    name = "canonicalize-layout"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not _is_layout(node) or not _ends_chain(node):
                continue
            if reason := _shorten(node):
                notes.skip(node, reason)
            else:
                notes.change(node)


def _is_layout(node: ir.Node | None) -> bool:
    if node is None or not is_op(node, *_LAYOUT) or shape_of(node.outputs[0]) is None:
        return False
    return all(v is None or constant(v) is not None for v in node.inputs[1:])


def _ends_chain(node: ir.Node) -> bool:
    output = node.outputs[0]
    return output.is_graph_output() or any(not _is_layout(use.node) for use in output.uses())


def _chain(node: ir.Node) -> list[ir.Node]:
    """The layout nodes up to `node`, the first first."""
    chain = [node]
    while (source := chain[0].inputs[0]) is not None and _is_layout(source.producer()):
        producer = source.producer()
        assert producer is not None
        chain.insert(0, producer)
    return chain


def _shorten(node: ir.Node) -> str | None:
    chain = _chain(node)
    source = chain[0].inputs[0]
    shape, result = shape_of(source), shape_of(node.outputs[0])
    if source is None or shape is None or result is None:
        return "the shape of its input is unknown"
    if math.prod(shape) > _ELEMENTS_MAX:
        return f"its input {list(shape)} is too large to follow"
    indices = _trace(chain, shape)
    if indices.shape != result:
        return "its shape was not followed"
    if np.array_equal(indices.reshape(-1), np.arange(indices.size)) and indices.size == math.prod(shape):
        return _as_reshape(node, chain, source, shape, result)
    if (consumer := _gemm_after(node)) is not None and math.prod(result) == result[-1]:
        return _into_gemm(node, consumer, source, indices.reshape(-1), math.prod(shape))
    if len(chain) > 1 and (channels := _channel_gather(indices, shape)) is not None:
        return _as_gather(node, source, channels, result)
    return "it reorders elements within a channel"


def _trace(chain: list[ir.Node], shape: tuple[int, ...]) -> Indices:
    """Which element of the source each element of the result is."""
    indices: Indices = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    for node in chain:
        indices = _step(node, indices)
    return indices


def _step(node: ir.Node, indices: Indices) -> Indices:
    if is_op(node, "Transpose"):
        return np.transpose(indices, ints(node, "perm") or None)
    if is_op(node, "Gather"):
        picked = constant(node.inputs[1])
        assert picked is not None
        return np.take(indices, picked.astype(np.int64), axis=integer(node, "axis", 0))
    if is_op(node, "Slice"):
        return indices[_slices(node, indices.ndim)]
    return indices.reshape(shape_of(node.outputs[0]) or ())


def _slices(node: ir.Node, rank: int) -> tuple[slice, ...]:
    starts, ends, axes, steps = (constant(operand(node, i)) for i in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    result = [slice(None)] * rank
    for i in range(len(starts)):
        axis = i if axes is None else int(axes[i]) % rank
        step = 1 if steps is None else int(steps[i])
        end = int(ends[i])
        # ONNX writes "past the beginning" as a large negative end, Python as None.
        result[axis] = slice(int(starts[i]), None if step < 0 and end < -(1 << 30) else end, step)
    return tuple(result)


def _as_reshape(
    node: ir.Node, chain: list[ir.Node], source: ir.Value, shape: tuple[int, ...], result: tuple[int, ...]
) -> str | None:
    output = node.outputs[0]
    if shape == result and not output.is_graph_output():
        output.replace_all_uses_with(source)
        return None
    if len(chain) == 1 and not is_op(node, "Transpose", "Gather", "Slice"):
        return "it is a plain change of shape"
    target = new_initializer(graph_of(node), f"{node.name}_shape", np.asarray(result, np.int64))
    _put_instead(node, make("Reshape", [source, target], str(node.name), result))
    return None


def _put_instead(node: ir.Node, new: ir.Node) -> None:
    """`new` takes over the output of `node`, which stays for Tidy to remove with the rest of its chain."""
    old, output = node.outputs[0], new.outputs[0]
    output.type = old.type
    graph_of(node).insert_before(node, new)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    output.name, old.name = old.name, f"{old.name}_unused"
    new.name, node.name = node.name, f"{node.name}_unused"


def _gemm_after(node: ir.Node) -> ir.Node | None:
    consumer = only_consumer(node.outputs[0])
    canonical = consumer is not None and is_op(consumer, "Gemm") and integer(consumer, "transB", 0) == 1
    return consumer if canonical and weights_of(consumer) is not None else None  # type: ignore[arg-type]


def _into_gemm(node: ir.Node, gemm: ir.Node, source: ir.Value, indices: Indices, size: int) -> str | None:
    if len(np.unique(indices)) != indices.size:
        return "it repeats elements"
    weights = weights_of(gemm)
    assert weights is not None
    wide = np.zeros((weights.out_channels, size), weights.values.dtype)
    wide[:, indices] = weights.values
    if reason := replace_weights(gemm, weights, wide):
        return reason
    graph = graph_of(node)
    target = new_initializer(graph, f"{node.name}_shape", np.asarray([1, size], np.int64))
    flatten = make("Reshape", [source, target], f"{node.name}_in_order", (1, size))
    graph.insert_before(gemm, flatten)
    set_input(gemm, 0, flatten.outputs[0])
    return None


def _channel_gather(indices: Indices, shape: tuple[int, ...]) -> Indices | None:
    """Channel c of the result is channel answer[c] of the source, or None."""
    if len(shape) < 3 or indices.ndim != len(shape) or shape[0] != 1 or indices.shape[2:] != shape[2:]:
        return None
    area = math.prod(shape[2:])
    rows = indices.reshape(-1, area)
    channels = rows[:, 0] // area
    expected = channels[:, None] * area + np.arange(area)
    return channels if indices.shape[0] == 1 and np.array_equal(rows, expected) else None


def _as_gather(node: ir.Node, source: ir.Value, channels: Indices, result: tuple[int, ...]) -> str | None:
    picked = new_initializer(graph_of(node), f"{node.name}_channels", channels)
    _put_instead(node, make("Gather", [source, picked], str(node.name), result, axis=1))
    return None
