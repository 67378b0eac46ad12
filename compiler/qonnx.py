"""QONNX and Brevitas quantization nodes as standard QuantizeLinear and DequantizeLinear.

A quantizer of b bits becomes int8 with the values that b bits can hold; `edgec.bits` in the metadata of the
nodes says b. Weights become integer initializers, so that what was trained is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from compiler.model_file import error
from passes.graph import Array, constant, graph_of, integer, make, new_initializer, operand, replace, text

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
OPERATORS = ("Quant", "IntQuant", "BipolarQuant", "Trunc")
BITS_KEY = "edgec.bits"

STEEP = 2.0**40
"""Slope of a sign, in scales: no value but 0 is as small as 2**-40, and float32 holds what it makes of the rest."""
_INT8_MIN, _INT8_MAX = -128, 127
_ROUNDING: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "ROUND": np.round,
    "ROUND_EVEN": np.round,
    "HALF_EVEN": np.round,
    "FLOOR": np.floor,
    "CEIL": np.ceil,
}


@dataclass(frozen=True)
class _Quantizer:
    """real = scale * (q - zero_point), low <= q <= high, all within int8.

    Attributes:
        scale: float32, a scalar or one per index of an axis of the tensor.
        zero_point: Of the int8 container.
        low: Smallest code.
        high: Largest code.
        bits: Of the source.
        offset: Container code minus source code: -128 for 8 bits unsigned, else 0.
        rounding: ROUND, FLOOR or CEIL.
    """

    scale: NDArray[np.float32]
    zero_point: int
    low: int
    high: int
    bits: int
    offset: int = 0
    rounding: str = "ROUND"


def declare_domains(model: onnx.ModelProto) -> None:
    """Import every QONNX domain that a node uses, as some exporters forget, and drop their function bodies."""
    declared = {o.domain for o in model.opset_import}
    for domain in {n.domain for n in model.graph.node} & set(DOMAINS) - declared:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    kept = [f for f in model.functions if f.domain not in DOMAINS]
    del model.functions[:]
    model.functions.extend(kept)


def is_quantizer(domain: str, op_type: str) -> bool:
    return domain in DOMAINS and op_type in OPERATORS


def to_standard(model: ir.Model, path: Path) -> None:
    """Replace every QONNX node in place.

    Raises:
        ModelError: All quantizers that have no int8 form.
    """
    nodes = [n for n in model.graph if is_quantizer(n.domain, n.op_type)]
    if not nodes:
        return
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    problems = [f"node {n.name!r} ({n.op_type}): {reason}" for n in nodes for reason in _problems(n)]
    if problems:
        raise error(path, problems, "train with 2 to 8 bits, constant scales, and rounding mode ROUND")
    for node in nodes:
        _replace(node)
    for domain in DOMAINS:
        model.graph.opset_imports.pop(domain, None)


def _problems(node: ir.Node) -> Iterator[str]:
    names = {"BipolarQuant": ("scale",), "Trunc": ("scale", "zero point", "input bits", "output bits")}
    for index, name in enumerate(names.get(node.op_type, ("scale", "zero point", "bits")), 1):
        array = constant(operand(node, index))
        if array is None:
            yield f"its {name} is not constant"
            return
        if name != "scale" and array.size != 1:
            yield f"its {name} has shape {list(array.shape)}, not one element"
            return
    if reason := _why_not_scale(node) or _why_not_integers(node):
        yield reason


def _why_not_scale(node: ir.Node) -> str | None:
    scale = constant(operand(node, 1))
    assert scale is not None
    if not (np.isfinite(_scale(node)).all() and (_scale(node) > 0).all()):
        return "its scale is not positive"
    if sum(d != 1 for d in scale.shape) > 1:
        return f"its scale of shape {list(scale.shape)} varies along several axes"
    if scale.size > 1 and constant(node.inputs[0]) is None:
        return "its scale is per channel, and activations have one scale"
    return None


def _why_not_integers(node: ir.Node) -> str | None:
    if node.op_type == "BipolarQuant":
        return None
    mode = text(node, "rounding_mode", "FLOOR" if node.op_type == "Trunc" else "ROUND").upper()
    if mode not in _ROUNDING:
        return f"its rounding mode {mode} is not ROUND, FLOOR or CEIL"
    zero = _scalar(node, 2)
    if zero != round(zero):
        return f"its zero point {zero} is not an integer"
    if node.op_type == "Trunc":
        bits = _scalar(node, 6 if len(node.inputs) > 5 else 4)
        return None if zero == 0 and 2 <= bits <= 8 else f"zero point {zero:g} and {bits:g} bits; must be 0 and 2 to 8"
    bits = _scalar(node, 3)
    if _is_bias(node):
        return None
    if bits != round(bits) or not 1 <= bits <= 8:
        return f"{bits:g} bits; must be 1 to 8"
    quantizer = _quantizer(node)
    inside = _INT8_MIN <= quantizer.zero_point <= _INT8_MAX
    return None if inside else f"its zero point {zero:g} lies outside the codes of {bits:g} bits"


def _scalar(node: ir.Node, index: int) -> float:
    array = constant(operand(node, index))
    assert array is not None
    return float(array.reshape(()))


def _is_bias(node: ir.Node) -> bool:
    """A constant vector: its values are kept, as the accumulator is not int8."""
    array = constant(node.inputs[0])
    return array is not None and array.ndim <= 1


def _is_bipolar(node: ir.Node) -> bool:
    one_bit = node.op_type in ("Quant", "IntQuant") and _scalar(node, 3) == 1 and bool(integer(node, "signed", 1))
    return node.op_type == "BipolarQuant" or one_bit


def _scale(node: ir.Node) -> NDArray[np.float32]:
    array = constant(operand(node, 1))
    assert array is not None
    return array.astype(np.float32)


def _quantizer(node: ir.Node) -> _Quantizer:
    """Of a Quant that is not bipolar, or of a bipolar one."""
    if _is_bipolar(node):
        return _Quantizer(_scale(node), 0, -1, 1, 1)
    bits, signed = int(_scalar(node, 3)), bool(integer(node, "signed", 1))
    low, high = _source_range(bits, signed=signed, narrow=bool(integer(node, "narrow", 1)))
    offset = _INT8_MIN if high > _INT8_MAX else 0
    zero = int(_scalar(node, 2)) + offset
    rounding = text(node, "rounding_mode", "ROUND").upper()
    return _Quantizer(_scale(node), zero, low + offset, high + offset, bits, offset, rounding)


def _source_range(bits: int, *, signed: bool, narrow: bool) -> tuple[int, int]:
    if signed:
        return -(1 << (bits - 1)) + int(narrow), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1 - int(narrow)


def _replace(node: ir.Node) -> None:
    array = constant(node.inputs[0])
    if array is not None:
        _replace_constant(node, array.astype(np.float32))
    elif node.op_type == "Trunc":
        _replace_trunc(node)
    elif _is_bipolar(node):
        _replace_bipolar(node)
    else:
        quantizer = _quantizer(node)
        nodes = [*_rounded(node, quantizer)]
        source = nodes[-1].outputs[0] if nodes else node.inputs[0]
        replace(node, *nodes, *_quantize_dequantize(node, source, quantizer))


def _replace_constant(node: ir.Node, array: NDArray[np.float32]) -> None:
    if _is_bias(node):
        bits = int(_scalar(node, 3)) if node.op_type != "BipolarQuant" else 1
        values = _dequantized_bias(node, array, bits)
        node.outputs[0].replace_all_uses_with(new_initializer(graph_of(node), str(node.outputs[0].name), values))
        graph_of(node).remove(node, safe=True)
        return
    quantizer = _quantizer(node)
    codes = _codes(node, array, quantizer)
    graph, axis = graph_of(node), _axis(quantizer.scale)
    count = quantizer.scale.size
    zero = np.full(() if count == 1 else (count,), quantizer.zero_point, np.int8)
    scale = quantizer.scale.reshape(zero.shape)
    inputs = [
        new_initializer(graph, f"{node.name}_q", codes),
        new_initializer(graph, f"{node.name}_scale", scale),
        new_initializer(graph, f"{node.name}_zero_point", zero),
    ]
    attributes = {"axis": axis + codes.ndim - quantizer.scale.ndim} if count > 1 else {}
    new = ir.node(
        "DequantizeLinear",
        inputs,
        attributes,
        name=str(node.name),
        metadata_props={BITS_KEY: str(quantizer.bits)},
    )
    new.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(codes.shape)
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    replace(node, new)


def _axis(scale: NDArray[np.float32]) -> int:
    return next((i for i, d in enumerate(scale.shape) if d != 1), 0)


def _codes(node: ir.Node, array: NDArray[np.float32], quantizer: _Quantizer) -> NDArray[np.int8]:
    if _is_bipolar(node):
        return np.where(array >= 0, 1, -1).astype(np.int8)
    # The source's own float32 arithmetic, so that ties fall as they did in training.
    shifted = array / quantizer.scale + np.float32(quantizer.zero_point - quantizer.offset)
    low, high = quantizer.low - quantizer.offset, quantizer.high - quantizer.offset
    rounded = _ROUNDING[quantizer.rounding](np.clip(shifted, np.float32(low), np.float32(high)))
    return (rounded.astype(np.int64) + quantizer.offset).astype(np.int8)


def _dequantized_bias(node: ir.Node, array: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    scale = _scale(node)
    if _is_bipolar(node):
        return (np.where(array >= 0, np.float32(1), np.float32(-1)) * scale).astype(np.float32)
    zero = np.float32(_scalar(node, 2))
    low, high = _source_range(bits, signed=bool(integer(node, "signed", 1)), narrow=bool(integer(node, "narrow", 1)))
    rounding = _ROUNDING[text(node, "rounding_mode", "ROUND").upper()]
    codes = rounding(np.clip(array / scale + zero, np.float32(low), np.float32(high)))
    return ((codes - zero) * scale).astype(np.float32)


def _rounded(node: ir.Node, quantizer: _Quantizer) -> Iterator[ir.Node]:
    """Floor and Ceil as nodes before the quantizer, which itself rounds to nearest."""
    if quantizer.rounding not in ("FLOOR", "CEIL"):
        return
    scale = _float(node, "scale", float(quantizer.scale.reshape(())))
    divide = make("Div", [node.inputs[0], scale], f"{node.name}_div")
    step = make(quantizer.rounding.capitalize(), [divide.outputs[0]], f"{node.name}_{quantizer.rounding.lower()}")
    yield from (divide, step, make("Mul", [step.outputs[0], scale], f"{node.name}_mul"))


def _quantize_dequantize(node: ir.Node, source: ir.Value | None, quantizer: _Quantizer) -> list[ir.Node]:
    """[Clip ->] QuantizeLinear -> DequantizeLinear of `source`; the Clip is the narrower range of fewer bits."""
    graph, nodes = graph_of(node), []
    scale = float(quantizer.scale.reshape(()))
    if (quantizer.low, quantizer.high) != (_INT8_MIN, _INT8_MAX):
        low = _float(node, "low", (quantizer.low - quantizer.zero_point) * scale)
        high = _float(node, "high", (quantizer.high - quantizer.zero_point) * scale)
        nodes.append(make("Clip", [source, low, high], f"{node.name}_clip"))
        source = nodes[-1].outputs[0]
    step = new_initializer(graph, f"{node.name}_scale", np.asarray(scale, np.float32))
    zero = new_initializer(graph, f"{node.name}_zero_point", np.asarray(quantizer.zero_point, np.int8))
    quantize = make("QuantizeLinear", [source, step, zero], f"{node.name}_q", dtype=ir.DataType.INT8)
    dequantize = make("DequantizeLinear", [quantize.outputs[0], step, zero], str(node.name))
    for new in (quantize, dequantize):
        new.metadata_props[BITS_KEY] = str(quantizer.bits)
    return [*nodes, quantize, dequantize]


def _float(node: ir.Node, name: str, value: float) -> ir.Value:
    array: Array = np.asarray(value, np.float32)
    return new_initializer(graph_of(node), f"{node.name}_{name}", array)


def _replace_bipolar(node: ir.Node) -> None:
    """x >= 0 ? scale : -scale, as the clamp of a line so steep that no value falls on it."""
    scale = float(_scale(node).reshape(()))
    steep = make("Mul", [node.inputs[0], _float(node, "slope", STEEP * scale)], f"{node.name}_mul")
    lifted = make("Add", [steep.outputs[0], _float(node, "lift", scale)], f"{node.name}_add")
    quantizer = _Quantizer(np.asarray(scale, np.float32), 0, -1, 1, 1)
    replace(node, steep, lifted, *_quantize_dequantize(node, lifted.outputs[0], quantizer))


def _replace_trunc(node: ir.Node) -> None:
    """Drop the lowest k bits: an exact shift of half a step turns floor into round to nearest.

    floor(n / 2**k) = round((n - (2**k - 1) / 2) / 2**k) for every integer n, and no tie occurs.
    Five inputs: the result is on the scale of the input. Seven: it has a scale of its own, and saturates.
    """
    scale = float(_scale(node).reshape(()))
    own_scale = len(node.inputs) > 5
    if own_scale:
        k = round(float(np.log2(_scalar(node, 4) / scale)))
        bits, step = int(_scalar(node, 6)), _scalar(node, 4)
        signed, narrow = bool(integer(node, "signed", 1)), bool(integer(node, "narrow", 0))
    else:
        bits = int(_scalar(node, 4))
        k, step, signed, narrow = int(_scalar(node, 3)) - bits, scale, True, False
    low, high = _source_range(bits, signed=signed, narrow=narrow) if own_scale else (_INT8_MIN, _INT8_MAX)
    offset = _INT8_MIN if high > _INT8_MAX else 0
    quantizer = _Quantizer(np.asarray(step, np.float32), offset, low + offset, high + offset, bits, offset)
    nodes, source = [], node.inputs[0]
    mode = text(node, "rounding_mode", "FLOOR").upper()
    if mode in ("FLOOR", "CEIL"):
        half = scale * (2.0**k - 1) / 2 * (-1 if mode == "FLOOR" else 1)
        nodes.append(make("Add", [source, _float(node, "half", half)], f"{node.name}_add"))
    if not own_scale:
        source = nodes[-1].outputs[0] if nodes else source
        nodes.append(make("Mul", [source, _float(node, "factor", 2.0**-k)], f"{node.name}_mul"))
    source = nodes[-1].outputs[0] if nodes else source
    replace(node, *nodes, *_quantize_dequantize(node, source, quantizer))
