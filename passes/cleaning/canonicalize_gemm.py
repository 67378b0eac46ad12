"""Every product with constant weights as one Gemm: weights [out, in], alpha = beta = 1."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import (
    Array,
    absorb,
    constant,
    graph_of,
    integer,
    is_op,
    make,
    new_initializer,
    number,
    only_consumer,
    operand,
    replace,
    set_input,
    shape_of,
)


class CanonicalizeGemm(Rewrite):
    """Rewrite products with constant weights.

    1. Gemm and MatMul of one row become Gemm(transB=1), dequantized integer weights included.
    2. MatMul of several rows [1, ..., C] becomes a 1x1 Conv between two Transposes, which often cancel.

    A bias that is added behind a MatMul joins it.
    """

    name = "canonicalize-gemm"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not is_op(node, "Gemm", "MatMul") or _is_canonical(node):
                continue
            if reason := _why_not(node):
                notes.skip(node, reason)
                continue
            notes.change(node)
            _rewrite(node)


def _is_canonical(node: ir.Node) -> bool:
    if not is_op(node, "Gemm") or _alpha(node) != 1.0 or _beta(node) != 1.0:
        return False
    bias = shape_of(operand(node, 2))
    plain = integer(node, "transA", 0) == 0 and integer(node, "transB", 0) == 1
    return plain and (bias is None or bias == (shape_of(node.inputs[1]) or ())[:1])


def _alpha(node: ir.Node) -> float:
    return number(node, "alpha", 1.0)


def _beta(node: ir.Node) -> float:
    return number(node, "beta", 1.0)


def _why_not(node: ir.Node) -> str | None:
    source, weights = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if source is None or weights is None:
        return "the shapes of its operands are unknown"
    if len(weights) != 2 or not (_rows_of_one_sample(source) or _is_map_of_rows(source)):
        return f"its operands have shapes {list(source)} and {list(weights)}"
    if not _is_weight(node.inputs[1]):
        return "its weights are not constant"
    if not _rows_of_one_sample(source) and (constant(node.inputs[1]) is None or is_op(node, "Gemm")):
        return "it multiplies several rows, and its weights are quantized"
    if integer(node, "transA", 0):
        return "its input is transposed"
    if _dequantize(node) is not None and (_alpha(node) != 1.0 or _beta(node) != 1.0):
        return "its weights are quantized and scaled by alpha or beta"
    bias = operand(node, 2)
    if bias is not None and constant(bias) is None:
        fits = shape_of(bias) == (_out_features(node),) and _is_weight(bias) and _beta(node) == 1.0
        return None if fits else "its bias is not constant"
    return None


def _rows_of_one_sample(source: tuple[int, ...]) -> bool:
    """Rank 2, or more dimensions that are all 1 but the last."""
    return len(source) >= 2 and all(d == 1 for d in source[:-1])


def _is_map_of_rows(source: tuple[int, ...]) -> bool:
    """[1, L, C] or [1, H, W, C]: rows of one sample."""
    return len(source) in (3, 4) and source[0] == 1


def _is_weight(value: ir.Value | None) -> bool:
    if constant(value) is not None:
        return True
    producer = value.producer() if value is not None else None
    return producer is not None and is_op(producer, "DequantizeLinear") and constant(producer.inputs[0]) is not None


def _dequantize(node: ir.Node) -> ir.Node | None:
    value = node.inputs[1]
    return value.producer() if value is not None else None


def _out_features(node: ir.Node) -> int:
    rows, columns = shape_of(node.inputs[1]) or (0, 0)
    return rows if integer(node, "transB", 0) else columns


def _rewrite(node: ir.Node) -> None:
    _take_bias_behind(node)
    if _rows_of_one_sample(shape_of(node.inputs[0]) or ()):
        _rewrite_as_gemm(node)
    else:
        _rewrite_as_conv(node)


def _take_bias_behind(node: ir.Node) -> None:
    """Make the vector that an Add puts on the result of a MatMul its third input, as a Gemm has."""
    add = only_consumer(node.outputs[0])
    if add is None or not is_op(node, "MatMul") or not is_op(add, "Add"):
        return
    vector = constant(add.inputs[1]) if add.inputs[0] is node.outputs[0] else constant(add.inputs[0])
    features = _out_features(node)
    if vector is None or vector.size != features or vector.shape[-1:] != (features,) or _dequantize(node) is not None:
        return
    if shape_of(add.outputs[0]) != shape_of(node.outputs[0]):
        return
    bias = new_initializer(graph_of(node), f"{node.name}_bias", vector.reshape(-1))
    absorb(node, add)
    set_input(node, 2, bias)


def _rewrite_as_conv(node: ir.Node) -> None:
    graph, features, shape = graph_of(node), _out_features(node), shape_of(node.inputs[0]) or ()
    rank, rows = len(shape), shape[1:-1]
    array = constant(node.inputs[1])
    assert array is not None
    ones = [1] * len(rows)
    weights = new_initializer(graph, f"{node.name}_weights", array.T.reshape(features, shape[-1], *ones))
    down, up = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    before = make("Transpose", [node.inputs[0]], f"{node.name}_to_map", (1, shape[-1], *rows), perm=down)
    conv = make(
        "Conv", [before.outputs[0], weights, *_bias(node, features)], str(node.name), (1, features, *rows),
        group=1, kernel_shape=ones, strides=ones, dilations=ones, pads=[0] * (2 * len(rows)),
    )  # fmt: skip
    after = make("Transpose", [conv.outputs[0]], f"{node.name}_from_map", (*shape[:-1], features), perm=up)
    replace(node, before, conv, after)


def _rewrite_as_gemm(node: ir.Node) -> None:
    graph, features = graph_of(node), _out_features(node)
    source, shape = node.inputs[0], shape_of(node.inputs[0]) or ()
    nodes = []
    if len(shape) != 2:
        target = new_initializer(graph, f"{node.name}_rows", np.asarray([1, shape[-1]], np.int64))
        nodes.append(make("Reshape", [source, target], f"{node.name}_to_rows", (1, shape[-1])))
        source = nodes[-1].outputs[0]
    inputs = [source, _weights(node), *_bias(node, features)]
    nodes.append(make("Gemm", inputs, str(node.name), (1, features), transB=1))
    if len(shape) != 2:
        back = (*shape[:-1], features)
        target = new_initializer(graph, f"{node.name}_shape", np.asarray(back, np.int64))
        nodes.append(make("Reshape", [nodes[-1].outputs[0], target], f"{node.name}_from_rows", back))
    replace(node, *nodes)


def _weights(node: ir.Node) -> ir.Value:
    value, transposed = node.inputs[1], bool(integer(node, "transB", 0))
    assert value is not None
    array = constant(value)
    if array is None:
        return value if transposed else _transposed_dequantize(node)
    if transposed and _alpha(node) == 1.0:
        return value
    rows = array if transposed else array.T
    scaled = (rows.astype(np.float64) * _alpha(node)).astype(array.dtype) if _alpha(node) != 1.0 else rows
    return new_initializer(graph_of(node), f"{node.name}_weights", scaled)


def _transposed_dequantize(node: ir.Node) -> ir.Value:
    """The DequantizeLinear of integer weights [in, out] made one of [out, in]."""
    old = _dequantize(node)
    assert old is not None
    integers = constant(old.inputs[0])
    assert integers is not None
    graph = graph_of(node)
    inputs = [new_initializer(graph, f"{node.name}_weights_q", integers.T), *old.inputs[1:]]
    axis = 1 - integer(old, "axis", 1) % 2
    new = ir.node(
        "DequantizeLinear",
        inputs,
        {"axis": axis},
        name=f"{node.name}_weights_dq",
        metadata_props=dict(old.metadata_props),
    )
    new.outputs[0].name = f"{node.name}_weights_dq_out"
    new.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    new.outputs[0].shape = ir.Shape(integers.T.shape)
    graph.insert_before(node, new)
    return new.outputs[0]


def _bias(node: ir.Node, features: int) -> list[ir.Value | None]:
    value = operand(node, 2)
    if value is None:
        return []
    array = constant(value)
    if array is None or (array.shape == (features,) and _beta(node) == 1.0):
        return [value]
    flat: Array = np.broadcast_to(array.reshape(-1), (features,))
    scaled = (flat.astype(np.float64) * _beta(node)).astype(array.dtype)
    return [new_initializer(graph_of(node), f"{node.name}_bias", scaled)]
