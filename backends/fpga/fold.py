"""First phase: which layers run as one instruction.

The post-processor applies one elementwise operation and one table to every requantized value before it is stored, so
a layer whose result is read once, by such an operation, takes it along. The value in between is never stored.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from backends.layers import (
    Add,
    AveragePool,
    Concat,
    Conv,
    Layer,
    LayerGraph,
    MaxPool,
    Mul,
    Pad,
    PRelu,
    Resize,
    Table,
    Tensor,
)

Base: TypeAlias = Conv | MaxPool | AveragePool | Concat | Resize | Pad | Tensor
Pointwise: TypeAlias = Add | Mul | PRelu


@dataclass(frozen=True, eq=False)
class Operation:
    """What one run of instructions computes: a base, then at most one elementwise operation and one table.

    Attributes:
        name: Of the last layer.
        base: The layer that feeds the array, or the tensor that passes through it unchanged.
        pointwise: Applied to the base's results.
        swapped: The base's result is operand `b` of `pointwise`, and `a` is read from memory.
        table: Applied last.
        layers: Names of the layers that it stands for, in order.
        output: The tensor that it stores.
    """

    name: str
    base: Base
    output: Tensor
    layers: tuple[str, ...]
    pointwise: Pointwise | None = None
    swapped: bool = False
    table: Table | None = None

    @property
    def result(self) -> Tensor:
        """What the base computes."""
        return self.base if isinstance(self.base, Tensor) else self.base.output

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """Tensors that the array reads."""
        return (self.base,) if isinstance(self.base, Tensor) else self.base.inputs

    @property
    def operand(self) -> Tensor | None:
        """The tensor that the post-processor reads."""
        if not isinstance(self.pointwise, Add | Mul):
            return None
        return self.pointwise.a if self.swapped else self.pointwise.b

    @property
    def broadcast(self) -> bool:
        """The operand is one value for each channel."""
        return self.operand is not None and self.operand.shape[1:] == (1, 1) != self.output.shape[1:]

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Every tensor that must be in memory."""
        return self.sources + (() if self.operand is None else (self.operand,))


def fold(graph: LayerGraph, unfused: frozenset[str] = frozenset()) -> tuple[Operation, ...]:
    """The operations of a graph, in an order in which each reads what earlier ones stored.

    Args:
        graph: A valid layer graph.
        unfused: Elementwise layers that must stand alone.
    """
    single = _read_once(graph)
    operations: dict[str, Operation] = {}  # by the tensor that they store
    for layer in graph.layers:
        producer = None if layer.name in unfused else _producer(layer, operations, single)
        if producer is None:
            operations[layer.output.name] = _alone(layer)
        else:
            del operations[producer.output.name]
            operations[layer.output.name] = _extend(producer, layer)
    return tuple(operations.values())


def flatten_inputs(graph: LayerGraph) -> LayerGraph:
    """Turn input maps that only fully connected layers read into vectors: one long tap instead of one for each pixel.

    The bytes of a map in NCHW order are those of the vector, so the host notices nothing.
    """
    outputs = {tensor.name for tensor in graph.outputs}
    flat = {
        t.name: replace(t, shape=(t.size, 1, 1))
        for t in graph.inputs
        if t.shape[1:] != (1, 1) and t.name not in outputs and _only_fully_connected(graph, t)
    }
    if not flat:
        return graph
    layers = tuple(_flattened(layer, flat) for layer in graph.layers)
    return replace(graph, inputs=tuple(flat.get(t.name, t) for t in graph.inputs), layers=layers)


def is_whole_map(layer: Layer) -> bool:
    """A dense layer whose kernel meets every element of its input once."""
    return (
        isinstance(layer, Conv)
        and layer.groups == 1
        and layer.pads == (0, 0, 0, 0)
        and layer.kernel == layer.input.shape[1:]
        and layer.output.shape[1:] == (1, 1)
    )


def _only_fully_connected(graph: LayerGraph, tensor: Tensor) -> bool:
    consumers = graph.consumers(tensor)
    return bool(consumers) and all(is_whole_map(layer) for layer in consumers)


def _flattened(layer: Layer, flat: dict[str, Tensor]) -> Layer:
    if not isinstance(layer, Conv) or layer.input.name not in flat:
        return layer
    weights = np.ascontiguousarray(layer.weights.reshape(len(layer.weights), -1, 1, 1))
    return replace(layer, input=flat[layer.input.name], weights=weights, dilations=(1, 1), strides=(1, 1))


def _read_once(graph: LayerGraph) -> frozenset[str]:
    """Tensors with one reader that the host does not want."""
    reads = Counter(tensor.name for layer in graph.layers for tensor in layer.inputs)
    return frozenset(name for name, count in reads.items() if count == 1) - {t.name for t in graph.outputs}


def _producer(layer: Layer, operations: dict[str, Operation], single: frozenset[str]) -> Operation | None:
    """The operation that can take `layer` along; of two the later one, because the other's result must be stored."""
    names = {t.name for t in layer.inputs} & single
    for name, operation in reversed(operations.items()):
        if name in names and _can_extend(operation, layer):
            return operation
    return None


def _can_extend(operation: Operation, layer: Layer) -> bool:
    if not _has_post_processor(operation) or operation.table is not None:
        return False
    match layer:
        case Table():
            return True
        case PRelu():  # slopes are read once for each block: lanes of a fully connected layer have no own ones
            return operation.pointwise is None and not _is_wide(operation)
        case Add() | Mul():
            whole = layer.a.shape == layer.b.shape or operation.output.name == layer.a.name
            return operation.pointwise is None and layer.a.name != layer.b.name and whole
    return False


def _is_wide(operation: Operation) -> bool:
    return isinstance(operation.base, Conv) and is_whole_map(operation.base)


def _has_post_processor(operation: Operation) -> bool:
    """Lanes of a reduction have no operand, and repeated passes of a Resize or Concat would repeat the operation."""
    if isinstance(operation.base, AveragePool):
        return not operation.base.is_global
    return isinstance(operation.base, Conv | MaxPool | Tensor)


def _extend(operation: Operation, layer: Layer) -> Operation:
    done = replace(operation, name=layer.name, output=layer.output, layers=(*operation.layers, layer.name))
    if isinstance(layer, Table):
        return replace(done, table=layer)
    assert isinstance(layer, Add | Mul | PRelu)
    swapped = isinstance(layer, Add | Mul) and operation.output.name != layer.a.name
    return replace(done, pointwise=layer, swapped=swapped)


def _alone(layer: Layer) -> Operation:
    match layer:
        case Table():
            return Operation(layer.name, layer.input, layer.output, (layer.name,), table=layer)
        case PRelu():
            return Operation(layer.name, layer.input, layer.output, (layer.name,), pointwise=layer)
        case Add() | Mul():
            return Operation(layer.name, layer.a, layer.output, (layer.name,), pointwise=layer)
        case _:
            return Operation(layer.name, layer, layer.output, (layer.name,))
