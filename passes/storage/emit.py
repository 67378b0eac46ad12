"""Stored forms of a layer's integers as ONNX: an expression of initializers that evaluates to exactly the same int8.

It stands in front of the weights' DequantizeLinear, which stays, with metadata_props "edgec.storage" naming the form.
onnxruntime and the importer evaluate it once, when they load the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import onnx_ir as ir

from passes import graph as edit
from passes.graph import Array
from passes.storage.forms import Codebook, Narrow, Planes, Storage, Vector
from passes.weights import weights_of

PROPERTY = "edgec.storage"


def emit(node: ir.Node, storage: Storage) -> str | None:
    """Store the int8 codes of `node` as `storage`, where that makes the file smaller.

    Args:
        node: Conv or Gemm whose weights are an int8 initializer behind DequantizeLinear.
        storage: Evaluates to those codes, [groups, rows, taps] in the order of the initializer.

    Returns:
        Why not (the graph is as before), or None when done.

    Raises:
        ValueError: `storage` stands for other codes than those of `node`.
    """
    if not edit.is_op(node, "Conv", "Gemm"):
        return f"the weights of a {node.op_type} are not stored row by row"
    weights = weights_of(node)
    if weights is None or weights.dequantize is None or weights.values.dtype != np.int8:
        return "its weights are no int8 initializer behind a DequantizeLinear"
    if not np.array_equal(storage.codes().ravel(), weights.values.ravel()):
        raise ValueError(f"node '{node.name}': the stored form '{storage.form}' stands for other codes than its own")
    if edit.only_consumer(_codes_of(weights.dequantize)) is None:
        return "its codes are also read elsewhere"
    return _replace_codes(weights.dequantize, storage, weights.values.shape)


def _replace_codes(dequantize: ir.Node, storage: Storage, shape: tuple[int, ...]) -> str | None:
    old = _codes_of(dequantize)
    before = _value_bytes(old) + _node_bytes(dequantize)
    expression = Expression(edit.graph_of(dequantize), str(old.name), shape)
    edit.set_input(dequantize, 0, write(storage, expression))
    dequantize.metadata_props[PROPERTY] = storage.form
    after = expression.byte_size() + _node_bytes(dequantize)
    if after >= before:
        edit.set_input(dequantize, 0, old)
        del dequantize.metadata_props[PROPERTY]
        expression.discard()
        return f"as {storage.form} its codes would take {after} bytes of the file, not {before}"
    expression.graph.insert_before(dequantize, expression.nodes)
    del expression.graph.initializers[str(old.name)]
    return None


def _codes_of(dequantize: ir.Node) -> ir.Value:
    value = dequantize.inputs[0]
    assert value is not None
    return value


@dataclass
class Expression:
    """Nodes and initializers under construction.

    Attributes:
        graph: Owns the initializers already, the nodes when they are inserted.
        name: Begins the name of everything new.
        shape: Of the codes.
    """

    graph: ir.Graph
    name: str
    shape: tuple[int, ...]
    nodes: list[ir.Node] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)

    def constant(self, role: str, array: Array) -> ir.Value:
        """A new initializer."""
        self.constants.append(edit.new_initializer(self.graph, f"{self.name}_{role}", array))
        return self.constants[-1]

    def node(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        shape: tuple[int, ...],
        dtype: ir.DataType,
        **attributes: int | list[int],
    ) -> ir.Value:
        """The output of a new node."""
        name = f"{self.name}_{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(edit.make(op_type, inputs, name, shape, dtype, **attributes))
        return self.nodes[-1].outputs[0]

    def cast(self, value: ir.Value, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        return self.node("Cast", [value], shape, dtype, to=int(dtype))

    def indices(self, array: Array, count: int) -> ir.Value:
        """Indices below `count` as int32, stored in 4 bits each where those suffice, in a byte otherwise."""
        narrow = array.astype(ir.DataType.UINT4.numpy()) if count <= 16 else array.astype(np.uint8)
        return self.cast(self.constant("indices", narrow), array.shape, ir.DataType.INT32)

    def reshape(self, value: ir.Value, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
        """`value` in another shape; itself where it has that shape."""
        if edit.shape_of(value) == shape:
            return value
        return self.node("Reshape", [value, self.constant("shape", np.array(shape, np.int64))], shape, dtype)

    def reshaped(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` in the shape of the codes."""
        return self.reshape(value, self.shape, dtype)

    def byte_size(self) -> int:
        """What this adds to the file."""
        outputs = [value for node in self.nodes for value in node.outputs]
        return sum(_value_bytes(v) for v in [*self.constants, *outputs]) + sum(_node_bytes(n) for n in self.nodes)

    def discard(self) -> None:
        """Take the initializers out of the graph again."""
        for value in self.constants:
            del self.graph.initializers[str(value.name)]


@singledispatch
def write(storage: Storage, expression: Expression) -> ir.Value:
    """Build `storage` in `expression`; its int8 result, of shape expression.shape. Forms register themselves."""
    raise NotImplementedError(f"no ONNX expression is known for the stored form {type(storage).__name__}")


@write.register
def _(storage: Narrow, expression: Expression) -> ir.Value:
    values = storage.values.reshape(expression.shape).astype(ir.DataType.INT4.numpy())
    return expression.cast(expression.constant("int4", values), expression.shape, ir.DataType.INT8)


@write.register
def _(storage: Codebook, expression: Expression) -> ir.Value:
    entries = expression.constant("entries", storage.entries)
    indices = expression.indices(storage.indices.reshape(expression.shape), len(storage.entries))
    return expression.node("Gather", [entries, indices], expression.shape, ir.DataType.INT8)


@write.register
def _(storage: Vector, expression: Expression) -> ir.Value:
    entries = expression.constant("entries", storage.entries)
    indices = expression.indices(storage.indices.ravel(), len(storage.entries))
    shape = (storage.indices.size, storage.entries.shape[1])
    gathered = expression.node("Gather", [entries, indices], shape, ir.DataType.INT8)
    return expression.reshaped(gathered, ir.DataType.INT8)


@write.register
def _(storage: Planes, expression: Expression) -> ir.Value:
    table = storage.table()
    rows, shape = table.reshape(-1, table.shape[2]), (expression.shape[0], storage.signs.shape[2])
    entries = expression.constant("planes", rows)
    signs = expression.indices(storage.signs.reshape(shape), rows.shape[1])
    chosen = expression.node("GatherElements", [entries, signs], shape, ir.DataType.INT8, axis=1)
    return expression.reshaped(chosen, ir.DataType.INT8)


def _value_bytes(value: ir.Value) -> int:
    """What a value takes in the file: its type and shape, and its elements where it is an initializer."""
    described = _field(ir.serde.serialize_value(value).ByteSize())
    held = value.const_value
    return described if held is None else described + _field(ir.serde.serialize_tensor(held).ByteSize())


def _node_bytes(node: ir.Node) -> int:
    return _field(ir.serde.serialize_node(node).ByteSize())


def _field(size: int) -> int:
    """Bytes of a protobuf message in its field of the graph: tag, length, content."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
