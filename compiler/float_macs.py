"""Multiply-accumulates of float nodes: what the host has to do."""

from __future__ import annotations

import math

import onnx_ir as ir

from passes.graph import integer, operand, shape_of, text

Shape = tuple[int, ...]
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def float_macs(node: ir.Node) -> int:
    """Dense multiply-accumulates of a node for one sample; 0 where it has no products to add up, or unknown shapes.

    Bodies of If, Loop and Scan are not looked into.
    """
    shapes = [shape_of(value) for value in node.inputs if value is not None]
    result = shape_of(node.outputs[0])
    if result is None or None in shapes or node.domain not in ("", "ai.onnx"):
        return 0
    known = [shape for shape in shapes if shape is not None]
    match node.op_type:
        case "Conv":
            return math.prod(result) * math.prod(known[1][1:])
        case "ConvTranspose":
            return math.prod(known[0]) * math.prod(known[1][1:])
        case "MatMul":
            return math.prod(result) * known[0][-1]
        case "Gemm":
            return math.prod(result) * known[0][0 if integer(node, "transA", 0) else 1]
        case "RNN" | "GRU" | "LSTM":
            return _recurrent(node)
        case "Einsum":
            return _einsum(node, known)
    return 0


def _recurrent(node: ir.Node) -> int:
    """Input and recurrent weights [directions, gates * hidden, ...], at every step of every sequence."""
    x, weights = shape_of(operand(node, 0)) or (), shape_of(operand(node, 1)) or ()
    if len(x) != 3 or len(weights) != 3:
        return 0
    hidden = weights[1] // _GATES[node.op_type]
    return x[0] * x[1] * weights[0] * weights[1] * (weights[2] + hidden)


def _einsum(node: ir.Node, shapes: list[Shape]) -> int:
    """Every combination of indices once, for each product."""
    terms = text(node, "equation", "").replace(" ", "").partition("->")[0].split(",")
    if "..." in "".join(terms) or len(terms) != len(shapes) or len(terms) < 2:
        return 0
    sizes = {label: size for term, shape in zip(terms, shapes, strict=True) for label, size in zip(term, shape)}
    return math.prod(sizes.values()) * (len(terms) - 1)
