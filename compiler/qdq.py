"""Quantized models in QDQ form: uint8 becomes int8, onnxruntime's own domain becomes the standard one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from compiler.model_file import error
from passes.graph import constant, graph_of, is_op, new_initializer, operand, set_input

_MICROSOFT = "com.microsoft"
_PAIR = ("QuantizeLinear", "DequantizeLinear")
# These move integers or pick the largest: the same whether 128 is subtracted before or after.
_KEEPS_ORDER = (  # fmt: skip
    "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat", "Split",
    "Identity", "DepthToSpace",
)


def standardize_domains(model: onnx.ModelProto) -> None:
    """Move onnxruntime's QuantizeLinear and DequantizeLinear to the standard domain, which has them all by now."""
    for node in model.graph.node:
        if node.domain == _MICROSOFT and node.op_type in _PAIR:
            node.domain = ""


def to_int8(model: ir.Model, path: Path) -> None:
    """Subtract 128 from every uint8 code and zero point, in place; real values stay as they are.

    Raises:
        ModelError: A uint8 code reaches an operator or an output that would see the difference.
    """
    codes = _uint8_codes(model)
    if problems := _problems(model, codes):
        raise error(path, problems, "quantize with activation_type=QuantType.QInt8, and keep the last DequantizeLinear")
    for node in list(model.graph):
        if is_op(node, "QuantizeLinear") and node.outputs[0] in codes:
            _shift_zero_point(node)
            node.attributes.pop("output_dtype", None)
        elif is_op(node, "DequantizeLinear") and (node.inputs[0] in codes or _is_uint8_constant(node.inputs[0])):
            _shift_zero_point(node)
            _shift_weights(node)
    for value in codes:
        value.type = ir.TensorType(ir.DataType.INT8)


def _uint8_codes(model: ir.Model) -> set[ir.Value]:
    """The uint8 outputs of QuantizeLinear, and what order-keeping nodes make of them."""
    codes: set[ir.Value] = set()
    for node in model.graph:
        if is_op(node, "QuantizeLinear") and _is_uint8_quantize(node):
            codes.add(node.outputs[0])
        elif is_op(node, *_KEEPS_ORDER) and any(v in codes for v in node.inputs):
            codes.update(node.outputs)
    return codes


def _is_uint8_quantize(node: ir.Node) -> bool:
    zero = operand(node, 2)
    if zero is not None:
        array = constant(zero)
        return array is not None and array.dtype == np.uint8
    attribute = node.attributes.get("output_dtype")
    return attribute is None or attribute.as_int() in (0, ir.DataType.UINT8)


def _is_uint8_constant(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.uint8


def _problems(model: ir.Model, codes: set[ir.Value]) -> list[str]:
    problems = [f"output {v.name!r} is a uint8 code" for v in model.graph.outputs if v in codes]
    for node in model.graph:
        if is_op(node, *_KEEPS_ORDER, *_PAIR) or not any(v in codes for v in node.inputs):
            continue
        problems.append(f"node {node.name!r} ({node.op_type}): it computes with uint8 codes")
    return problems


def _shift_zero_point(node: ir.Node) -> None:
    array = constant(operand(node, 2))
    scale = constant(operand(node, 1))
    shape = scale.shape if scale is not None else ()
    old = np.zeros(shape, np.uint8) if array is None else array
    set_input(node, 2, new_initializer(graph_of(node), f"{node.name}_zero_point", _minus_128(old)))


def _shift_weights(node: ir.Node) -> None:
    array = constant(node.inputs[0])
    if array is not None:
        set_input(node, 0, new_initializer(graph_of(node), f"{node.name}_q", _minus_128(array)))


def _minus_128(array: np.ndarray) -> np.ndarray:
    return (array.astype(np.int16) - 128).astype(np.int8)
