"""A cone of elementwise nodes with one int8 source as a table of 256 entries, evaluated in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from compiler.operators import constant_of

OPSET, IR_VERSION = 21, 10
CODES = np.arange(-128, 128)


class Erf(OpRun):
    """Erf in float64; the evaluator's own is float32."""

    op_domain = ""

    def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
        return (_erf(x),)


class Gelu(OpRun):
    """Gelu in float64; the evaluator's own goes through a float32 Erf."""

    op_domain = ""

    def _run(self, x: NDArray[np.float64], approximate: str = "none") -> tuple[NDArray[np.float64]]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class HardSwish(OpRun):
    """HardSwish in float64; the evaluator's own has 1/6 in float32."""

    op_domain = ""

    def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


def _erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erf(value) for value in np.ravel(x)]).reshape(np.shape(x))


def evaluate(
    nodes: Sequence[ir.Node], sources: Sequence[ir.Value], result: ir.Value, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What the cone makes of each element.

    Args:
        nodes: In topological order, elementwise, with scalar constants.
        sources: The value that they start from, under every name that it has.
        result: The value that they end in.
        x: float64 [n].

    Returns:
        float64 [n].
    """
    if not nodes:
        return x
    made = {value for node in nodes for value in node.outputs}
    constants = {
        value.name or "": array
        for node in nodes
        for value in node.inputs
        if value is not None and value not in sources and value not in made
        if (array := constant_of(value)) is not None
    }
    model = _as_float64([ir.to_proto(node) for node in nodes], sources, result, constants)
    with np.errstate(all="ignore"):  # a function may be undefined where its input never is
        (y,) = ReferenceEvaluator(model, new_ops=[Erf, Gelu, HardSwish]).run(
            None, {source.name or "": x for source in sources}
        )
    return np.asarray(y, np.float64).reshape(x.shape)


def _as_float64(
    nodes: list[onnx.NodeProto],
    sources: Sequence[ir.Value],
    result: ir.Value,
    constants: dict[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    double = onnx.TensorProto.DOUBLE
    scalars = [
        onnx.numpy_helper.from_array(array.astype(np.float64).reshape(()), name) for name, array in constants.items()
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "cone",
        [onnx.helper.make_tensor_value_info(source.name or "", double, [None]) for source in sources],
        [onnx.helper.make_tensor_value_info(result.name or "", double, [None])],
        scalars,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
