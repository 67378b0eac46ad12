"""Evaluate what does not depend on the network's inputs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from passes.base import Notes, Rewrite
from passes.cleaning.infer_shapes import infer
from passes.graph import Array, constant, graph_of, integer, is_op, new_initializer, shape_of

# onnxruntime has one class for each status code, with no base but Exception.
_ORT_ERRORS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)

_ELEMENTS_MAX = 1 << 26
"""Of one folded result: a model file is not trusted to ask for more."""

_ROUNDS_MAX = 64
"""Each round makes shapes known that the next one folds; real networks need two or three."""

# Quantization is kept as nodes; random numbers are no constants; control flow is refused on import.
_NEVER = frozenset({  # fmt: skip
    "QuantizeLinear", "DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
    "Bernoulli", "Multinomial", "If", "Loop", "Scan",
})


class FoldConstants(Rewrite):
    """Turn Constant nodes, Shape of static shapes, and nodes of constant inputs into initializers.

    onnxruntime evaluates them, so that the folded value is what the original network computes.
    """

    name = "fold-constants"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for _ in range(_ROUNDS_MAX):
            infer(model)
            shapes = _fold_shapes(model.graph, notes)
            nodes = _foldable(model.graph, notes)
            if not shapes and not nodes:
                break
            if nodes and not _evaluate(model, nodes, notes):
                break
        common.RemoveUnusedNodesPass()(model)


def _fold_shapes(graph: ir.Graph, notes: Notes) -> bool:
    folded = False
    for node in list(graph):
        if not is_op(node, "Shape", "Size") or (shape := shape_of(node.inputs[0])) is None:
            continue
        if node.op_type == "Size":
            result = np.asarray(math.prod(shape), np.int64)
        else:
            end = integer(node, "end", len(shape))
            result = np.asarray(shape[integer(node, "start", 0) : end], np.int64)
        folded |= _settle(node, [result], notes)
    return folded


def _foldable(graph: ir.Graph, notes: Notes) -> list[ir.Node]:
    """Nodes whose inputs are initializers or results of such nodes, in topological order."""
    known: set[ir.Value] = set()
    nodes = []
    for node in graph:
        if node.op_type in _NEVER or not all(v is None or v in known or constant(v) is not None for v in node.inputs):
            continue
        if not any(v is not None for v in node.inputs) and node.op_type != "Constant":
            continue
        if reason := _too_large(node):
            notes.skip(node, reason)
            continue
        nodes.append(node)
        known.update(node.outputs)
    return nodes


def _too_large(node: ir.Node) -> str | None:
    for output in node.outputs:
        shape = shape_of(output)
        if shape is None:
            return "the shape of its constant result is unknown"
        if math.prod(shape) > _ELEMENTS_MAX:
            return f"its constant result {list(shape)} has more than {_ELEMENTS_MAX} elements"
    return None


def _evaluate(model: ir.Model, nodes: list[ir.Node], notes: Notes) -> bool:
    chosen = set(nodes)
    wanted = [o for n in nodes for o in n.outputs if o.name and _is_read_outside(o, chosen)]
    try:
        results = _run_on_onnxruntime(model, nodes, wanted)
    except _ORT_ERRORS as error:
        for node in nodes:
            notes.skip(node, f"onnxruntime cannot evaluate it: {' '.join(str(error).split())}")
        return False
    for node in reversed(nodes):
        if all(not tuple(o.uses()) and not o.is_graph_output() for o in node.outputs):
            graph_of(node).remove(node, safe=True)
        else:
            _settle(node, [results.get(o.name or "") for o in node.outputs], notes)
    return True


def _is_read_outside(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in nodes for use in value.uses())


def _run_on_onnxruntime(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> dict[str, Array]:
    """Evaluate `nodes` alone: their constants become the inputs of a little model.

    Those of a type that onnxruntime takes from no numpy array (int4, uint4) become its initializers.
    """
    feeds: dict[str, Array] = {}
    twins: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    copies = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in twins:
                array = constant(value)
                assert array is not None
                assert value.name
                twins[value] = ir.Value(name=value.name, type=value.type, shape=ir.Shape(array.shape))
                if array.dtype.isbuiltin == 1:
                    feeds[value.name] = array
                    inputs.append(twins[value])
                else:
                    twins[value].const_value = value.const_value
                    initializers.append(twins[value])
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else twins[v] for v in node.inputs],
            node.attributes,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = old.name, old.type, old.shape
            twins[old] = new
        copies.append(copy)
    outputs = [twins[v] for v in wanted]
    opsets = dict(model.opset_imports)
    graph = ir.Graph(inputs, outputs, nodes=copies, initializers=initializers, name="constants", opset_imports=opsets)
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=model.ir_version))
    session = ort.InferenceSession(proto.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    names = [str(v.name) for v in wanted]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _settle(node: ir.Node, results: list[Array | None], notes: Notes) -> bool:
    """Replace the outputs of `node` by initializers; graph outputs keep their producer."""
    if any(o.is_graph_output() for o in node.outputs):
        notes.skip(node, "its constant result is an output of the network")
        return False
    for output, result in zip(node.outputs, results, strict=True):
        if result is not None:
            output.replace_all_uses_with(new_initializer(graph_of(node), output.name or "constant", result))
    notes.change(node)
    graph_of(node).remove(node, safe=True)
    return True
