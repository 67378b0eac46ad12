"""An int8 result for the last layer of a network that was quantized in training."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import constant, copy_type, graph_of, is_op, make, new_initializer, operand
from passes.weights import weights_of

_BOUND = 127


class QuantizeOutput(Rewrite):
    """Quantize the integer scores of a Conv or Gemm that no quantizer follows, where int8 holds them all.

    The scale is s_x * s_w and the largest sum of |w| * |q - zero_point| is at most 127, so no value changes.
    """

    name = "quantize-output"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in list(model.graph):
            if not is_op(node, "Conv", "Gemm") or _is_quantized(node):
                continue
            weights = weights_of(node)
            if weights is None or weights.dequantize is None:
                continue
            if reason := _why_not(node, weights.dequantize):
                notes.skip(node, reason)
                continue
            notes.change(node)
            _quantize(node, weights.dequantize)


def _is_quantized(node: ir.Node) -> bool:
    """Whether a QuantizeLinear comes after it at all."""
    seen, stack = set(), [node]
    while stack:
        for following in stack.pop().successors():
            if is_op(following, "QuantizeLinear"):
                return True
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def _why_not(node: ir.Node, dequantize: ir.Node) -> str | None:
    scale, zero = constant(operand(dequantize, 1)), constant(operand(dequantize, 2))
    source = _input_dequantize(node)
    if source is None:
        return "its input is not quantized"
    if operand(node, 2) is not None:
        return "it has a bias"
    if scale is None or scale.size != 1 or (zero is not None and zero.any()):
        return "its weights have a scale per channel, or a zero point"
    largest = _largest(node, dequantize, source)
    return None if largest <= _BOUND else f"its sums reach {largest}, and int8 holds {_BOUND}"


def _input_dequantize(node: ir.Node) -> ir.Node | None:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    constants = producer is not None and all(constant(v) is not None for v in producer.inputs[1:])
    return producer if is_op(producer, "DequantizeLinear") and constants else None


def _largest(node: ir.Node, dequantize: ir.Node, source: ir.Node) -> int:
    """The largest magnitude of a sum of integer products."""
    integers = constant(dequantize.inputs[0])
    assert integers is not None
    rows = np.abs(integers.astype(np.int64)).reshape(integers.shape[0], -1).sum(axis=1)
    return int(rows.max()) * _largest_code(source)


def _largest_code(source: ir.Node) -> int:
    """The largest |q - zero_point|, from the Clip before the quantizer where there is one."""
    zero = constant(operand(source, 2))
    offset = 0 if zero is None else int(zero.reshape(()))
    quantize = source.inputs[0].producer() if source.inputs[0] is not None else None
    clip = quantize.inputs[0].producer() if quantize is not None and quantize.inputs[0] is not None else None
    bounds = [constant(operand(clip, i)) for i in (1, 2)] if clip is not None and is_op(clip, "Clip") else [None]
    if quantize is None or not is_op(quantize, "QuantizeLinear") or any(b is None for b in bounds):
        return max(abs(-128 - offset), abs(127 - offset))
    return max(abs(int(np.rint(float(b.reshape(())) / _scale(quantize)))) for b in bounds if b is not None)


def _scale(node: ir.Node) -> float:
    array = constant(operand(node, 1))
    assert array is not None
    return float(array.reshape(()))


def _quantize(node: ir.Node, dequantize: ir.Node) -> None:
    graph, old = graph_of(node), node.outputs[0]
    source = _input_dequantize(node)
    assert source is not None
    product = np.float32(_scale(source) * _scale(dequantize))
    step = new_initializer(graph, f"{node.name}_scale", np.asarray(product, np.float32))
    zero = new_initializer(graph, f"{node.name}_zero_point", np.asarray(0, np.int8))
    quantize = make("QuantizeLinear", [old, step, zero], f"{node.name}_output_q", dtype=ir.DataType.INT8)
    back = make("DequantizeLinear", [quantize.outputs[0], step, zero], f"{node.name}_output_dq")
    result = back.outputs[0]
    copy_type(old, result)
    quantize.outputs[0].shape = old.shape
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    quantize.replace_input_with(0, old)
    result.name, old.name = old.name, f"{old.name}_sum"
    graph.insert_after(node, [quantize, back])
