"""Puts operators that no accelerator has into random networks, at random places."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_KINDS = ("Softmax", "CumSum", "LayerNormalization", "Einsum")
_LETTERS = "abcd"


def with_host_ops(model: onnx.ModelProto, seed: int, count: int = 2) -> onnx.ModelProto:
    """A copy with `count` such operators, each behind a random value and before all or one of its readers.

    Args:
        model: Of one float input; the operators keep shapes.
        seed: Of places and kinds.
        count: How many.
    """
    rng = np.random.default_rng([seed, 2])
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for number in range(count):
        _insert(result.graph, f"host{number}", rng)
    onnx.checker.check_model(result)
    return result


def _insert(graph: onnx.GraphProto, name: str, rng: np.random.Generator) -> None:
    shapes = _shapes(graph)
    places = [i for i, node in enumerate(graph.node) if 2 <= len(shapes.get(node.output[0], ())) <= 4]
    place = int(rng.choice(places))
    value = graph.node[place].output[0]
    readers = [(node, i) for node in graph.node for i, read in enumerate(node.input) if read == value]
    if len(readers) > 1 and rng.integers(2):
        readers = [readers[int(rng.integers(len(readers)))]]
    made = _node(graph, str(rng.choice(_KINDS)), value, name, shapes[value])
    for node, index in readers:
        node.input[index] = made.output[0]
    for info in graph.output:
        if info.name == value:
            info.name = made.output[0]
    graph.node.insert(place + 1, made)


def _node(
    graph: onnx.GraphProto, kind: str, value: str, name: str, shape: tuple[int, ...]
) -> onnx.NodeProto:
    inputs, attributes = [value], {}
    match kind:
        case "Softmax":
            attributes = {"axis": 1}
        case "CumSum":
            graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), f"{name}_axis"))
            inputs.append(f"{name}_axis")
        case "LayerNormalization":
            graph.initializer.append(numpy_helper.from_array(np.ones(shape[-1], np.float32), f"{name}_scale"))
            inputs.append(f"{name}_scale")
        case "Einsum":
            term = _LETTERS[: len(shape)]
            graph.initializer.append(numpy_helper.from_array(np.eye(shape[1], dtype=np.float32)[::-1], f"{name}_mix"))
            inputs.append(f"{name}_mix")
            attributes = {"equation": f"{term},bz->{term.replace('b', 'z')}"}
    return helper.make_node(kind, inputs, [f"{name}_value"], name, **attributes)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
