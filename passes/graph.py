"""Small questions and surgery on onnx_ir graphs that every pass shares."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# One name for the numpy array of any dtype, as ONNX tensors have.
Array = NDArray[np.generic]

DEFAULT_DOMAINS = ("", "ai.onnx")


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of the standard operators `op_types`."""
    return node is not None and node.domain in DEFAULT_DOMAINS and node.op_type in op_types


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer, or None for anything computed or fed."""
    if value is None or value.const_value is None or value.producer() is not None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of `value`, or None where a dimension is unknown."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(d) for d in value.const_value.shape.numpy())
    if value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def ints(node: ir.Node, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of `node`, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_quantized(graph: ir.Graph) -> bool:
    """Whether the network brought its own quantization: float layers must not be added to it."""
    return any(is_op(node, "QuantizeLinear") for node in graph)


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, once; None when it is read twice, by nobody, or is a graph output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def new_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register `array` under `name`, made unique."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}_{count}", count + 1
    array = np.ascontiguousarray(array).reshape(array.shape)
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.Tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Put `value` at input `index`, which may be one past the present end or further."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def copy_type(source: ir.Value, target: ir.Value) -> None:
    """Give `target` the shape and dtype of `source`."""
    target.shape = source.shape
    target.type = source.type


def bypass(node: ir.Node) -> bool:
    """Remove a node whose output 0 equals its input 0; graph inputs and outputs keep their names.

    Returns:
        Whether it was possible: it is not when both ends are an input or output of the graph.
    """
    source, result = node.inputs[0], node.outputs[0]
    graph = node.graph
    assert source is not None
    assert isinstance(graph, ir.Graph)
    if result.is_graph_output():
        if source.producer() is None or source.is_graph_output():
            return False
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        name = result.name
        graph.remove(node, safe=True)
        source.name = name
        return True
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def absorb(producer: ir.Node, consumer: ir.Node) -> None:
    """Let output 0 of `producer` stand for output 0 of `consumer`, whose name it takes, and remove `consumer`."""
    old, new = consumer.outputs[0], producer.outputs[0]
    copy_type(old, new)
    graph = consumer.graph
    assert isinstance(graph, ir.Graph)
    for index, value in enumerate(consumer.inputs):
        if value is new:
            consumer.replace_input_with(index, None)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name = old.name
    graph.remove(consumer, safe=True)
    new.name = name


def replace(node: ir.Node, *nodes: ir.Node) -> None:
    """Put `nodes` in the place of `node`; the last one's output 0 takes over output 0, name and all."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old, new = node.outputs[0], nodes[-1].outputs[0]
    copy_type(old, new)
    graph.insert_before(node, nodes)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name


def make(
    op_type: str,
    inputs: list[ir.Value | None],
    name: str,
    shape: tuple[int, ...] | None = None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: int | float | str | list[int],
) -> ir.Node:
    """A standard node with one named, typed output."""
    node = ir.node(op_type, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name = f"{name}_out"
    output.type = ir.TensorType(dtype)
    output.shape = None if shape is None else ir.Shape(shape)
    return node


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that holds `node`; functions were inlined on import."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph
