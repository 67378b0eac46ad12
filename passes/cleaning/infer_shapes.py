"""Static shapes and types for every value."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from passes.base import Notes, Rewrite

_ELEMENTS_MAX = 1024
"""Longer initializers are no shapes: inference needs their dimensions, not their values."""


class InferShapes(Rewrite):
    """Infer the shape and type of every value; contradictions between nodes and shapes are an error."""

    name = "infer-shapes"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        infer(model)


def infer(model: ir.Model) -> None:
    """Infer shapes and types in place, those of reshapes by constants included.

    Raises:
        onnx.shape_inference.InferenceError: Shapes or types contradict each other.
    """
    proto = _without_weights(model)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    types = {v.name: v.type.tensor_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in types:
                _write(value, types[value.name])


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(model)
    small = []
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= _ELEMENTS_MAX:
            small.append(tensor)
        else:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(value)
    copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(copies)
    return proto


def _write(value: ir.Value, tensor: onnx.TypeProto.Tensor) -> None:
    if tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        dims = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
        value.shape = ir.Shape(dims)
