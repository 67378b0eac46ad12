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
    """Erf in the precision of its input; the evaluator's own is float32."""

    op_domain = ""

    def _run(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64]]:
        return (np.array([math.erf(value) for value in np.ravel(x)]).reshape(np.shape(x)),)


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
        (y,) = ReferenceEvaluator(model, new_ops=[Erf]).run(None, {source.name or "": x for source in sources})
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
