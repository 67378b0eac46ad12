"""Brings a model of any supported opset to the one that edgec works in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import defs, version_converter

from compiler.model_file import error

OPSET = 21
IR_VERSION = 10
OPSET_MIN = 7
OPSET_MAX = 26


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the file asks for, 0 when none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def to_canonical_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """`model` in opset 21, IR 10.

    Raises:
        ModelError: The opset is not 7 to 26, or an operator has no form in opset 21.
    """
    opset = opset_of(model)
    if not OPSET_MIN <= opset <= OPSET_MAX:
        raise error(
            path,
            [f"opset must be {OPSET_MIN} to {OPSET_MAX}, not {opset}"],
            f"export with opset_version={OPSET}, or convert with onnx.version_converter",
        )
    if opset < OPSET:
        model = _upgrade(model, path)
    elif opset > OPSET:
        _relabel(model, path)
    model.ir_version = IR_VERSION
    return model


def _upgrade(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    model.ir_version = max(model.ir_version, 4)  # from IR 4 on, initializers are not inputs
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as cause:
        # The converter raises RuntimeError, ValueError and its own types for what it cannot convert.
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise error(
            path,
            [f"opset {opset_of(model)} cannot be converted to {OPSET}: {reason}"],
            f"export with opset_version={OPSET}",
        ) from cause


def _relabel(model: onnx.ModelProto, path: Path) -> None:
    """Later opsets add types and operators; a node that uses neither is a node of opset 21."""
    _decompose_swish(model)
    problems = list(_newer(model))
    if problems:
        raise error(path, problems, f"export with opset_version={OPSET}")
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET


def _newer(model: onnx.ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        where = f"node {node.name!r} ({node.op_type})"
        if not defs.has(node.op_type, ""):
            continue
        try:
            schema = defs.get_schema(node.op_type, OPSET, "")
        except defs.SchemaError:
            yield f"{where}: the operator is newer than opset {OPSET}"
            continue
        extra = sorted({a.name for a in node.attribute} - set(schema.attributes))
        if extra:
            yield f"{where}: attributes {extra} are newer than opset {OPSET}"
        if len(node.input) > schema.max_input:
            yield f"{where}: {len(node.input)} inputs, opset {OPSET} has {schema.max_input}"


def _decompose_swish(model: onnx.ModelProto) -> None:
    """Swish of opset 24 as x * Sigmoid(alpha * x)."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Swish" or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
        inner = node.input[0]
        stem = node.name or node.output[0]
        if alpha != 1.0:
            name = f"{stem}_alpha"
            model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [alpha]))
            nodes.append(onnx.helper.make_node("Mul", [inner, name], [f"{stem}_scaled"], name=f"{stem}_scale"))
            inner = f"{stem}_scaled"
        gate = f"{stem}_gate"
        nodes.append(onnx.helper.make_node("Sigmoid", [inner], [gate], name=f"{stem}_sigmoid"))
        nodes.append(onnx.helper.make_node("Mul", [node.input[0], gate], [node.output[0]], name=f"{stem}_mul"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
