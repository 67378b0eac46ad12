"""Transposes of exporters that think in NHWC: moved down until they cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import (
    bypass,
    constant,
    copy_type,
    graph_of,
    integer,
    ints,
    is_op,
    make,
    new_initializer,
    operand,
    set_input,
    shape_of,
)

_UNARY = frozenset({  # fmt: skip
    "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Softplus",
    "Softsign", "Mish", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "ThresholdedRelu", "Floor", "Ceil",
    "Round", "Sign", "Clip", "Cast",
})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu"})
_REDUCE = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"})

Perm = tuple[int, ...]


class RemoveTransposes(Rewrite):
    """Push every Transpose below the nodes that do not care, and cancel those that meet.

    1. Transpose(Transpose(x)) becomes one Transpose, or none.
    2. f(Transpose(x)) becomes Transpose(f(x)) for elementwise f, constants and axes adapted.

    A Transpose of the network's own input stays where it is: the host runs it.
    Quantized values are not moved.
    """

    name = "remove-transposes"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        changed = True
        while changed:
            changed = False
            for node in list(model.graph):
                if node.graph is not None and is_op(node, "Transpose"):
                    changed |= self._push_all(node, notes)

    def _push_all(self, node: ir.Node, notes: Notes) -> bool:
        name, pushed = node.name or "Transpose", False
        if _is_identity(_perm(node)) and bypass(node):
            notes.changed.append(name)
            return True
        for consumer in dict.fromkeys(use.node for use in node.outputs[0].uses()):
            pushed |= _push(node, consumer)
        if pushed:
            notes.changed.append(name)
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph_of(node).remove(node, safe=True)
        return pushed


def _perm(node: ir.Node) -> Perm:
    rank = len(shape_of(node.inputs[0]) or ())
    return ints(node, "perm", tuple(reversed(range(rank))))


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


def _inverse(perm: Perm) -> Perm:
    return tuple(int(i) for i in np.argsort(perm))


def _push(node: ir.Node, consumer: ir.Node) -> bool:
    """Move `node` below `consumer`, where that is possible."""
    source = node.inputs[0]
    if source is None or shape_of(source) is None:
        return False
    if is_op(consumer, "Transpose"):
        return _merge(node, consumer)
    if source.producer() is None or any(shape_of(o) is None for o in consumer.outputs):
        return False
    rule = _rule(consumer)
    if rule is None:
        return False
    after = rule(node, consumer, _perm(node))
    if after is None:
        return False
    for output in consumer.outputs:
        _transpose_below(consumer, output, after)
    return True


def _merge(node: ir.Node, consumer: ir.Node) -> bool:
    first, second = _perm(node), _perm(consumer)
    merged = tuple(first[i] for i in second)
    consumer.attributes["perm"] = ir.AttrInt64s("perm", list(merged))
    consumer.replace_input_with(0, node.inputs[0])
    if _is_identity(merged):
        bypass(consumer)
    return True


def _transpose_below(consumer: ir.Node, output: ir.Value, perm: Perm) -> None:
    """Let a Transpose follow `output` and take over its name; `output` itself is in the source's order."""
    if _is_identity(perm):
        return
    graph, shape = graph_of(consumer), shape_of(output) or ()
    new = make("Transpose", [output], f"{consumer.name}_transpose_{output.index()}", perm=list(perm))
    result = new.outputs[0]
    copy_type(output, result)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    new.replace_input_with(0, output)
    result.name, output.name = output.name, f"{output.name}_untransposed"
    output.shape = ir.Shape([shape[i] for i in _inverse(perm)])
    graph.insert_after(consumer, new)


# A rule changes the inputs and attributes of the consumer and returns the permutation that must follow it,
# or returns None and changes nothing.
_Rule = Callable[[ir.Node, ir.Node, Perm], Perm | None]


def _rule(consumer: ir.Node) -> _Rule | None:
    if is_op(consumer, *_UNARY):
        return _unary
    if is_op(consumer, *_ELEMENTWISE):
        return _elementwise
    if is_op(consumer, *_REDUCE):
        return _reduce
    if is_op(consumer, "Softmax", "LogSoftmax", "Split"):
        return _one_axis
    if is_op(consumer, "Concat"):
        return _concat
    if is_op(consumer, "Pad"):
        return _pad
    return _slice if is_op(consumer, "Slice") else None


def _unary(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    if consumer.inputs[0] is not node.outputs[0]:
        return None
    consumer.replace_input_with(0, node.inputs[0])
    return perm


def _elementwise(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    replacements = [_untransposed(value, node, perm) for value in consumer.inputs]
    if any(r is None for r in replacements):
        return None
    for index, make_value in enumerate(replacements):
        assert make_value is not None
        consumer.replace_input_with(index, make_value(consumer))
    return perm


def _untransposed(value: ir.Value | None, node: ir.Node, perm: Perm) -> Callable[[ir.Node], ir.Value | None] | None:
    """How to get `value` in the order before `perm`; None when that needs another Transpose."""
    shape = shape_of(value)
    if value is None or shape is None:
        return None
    producer = value.producer()
    if is_op(producer, "Transpose") and producer is not None and _perm(producer) == perm:
        return lambda _: producer.inputs[0]
    array = constant(value)
    if array is not None:
        if array.ndim > len(perm):
            return None
        full = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        before = np.transpose(full, _inverse(perm))
        return lambda consumer: value if array.size == 1 else _constant_for(consumer, value, before)
    if len(shape) != len(perm) or not _keeps_order(shape, _inverse(perm)):
        return None
    return lambda consumer: _reshaped(consumer, value, tuple(shape[i] for i in _inverse(perm)))


def _constant_for(consumer: ir.Node, value: ir.Value, array: np.ndarray) -> ir.Value:
    return new_initializer(graph_of(consumer), f"{value.name}_transposed", array)


def _keeps_order(shape: tuple[int, ...], perm: Perm) -> bool:
    """Whether transposing moves only dimensions of size 1."""
    moved = [i for i in perm if shape[i] != 1]
    return moved == sorted(moved)


def _reshaped(consumer: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    graph = graph_of(consumer)
    target = new_initializer(graph, f"{consumer.name}_shape", np.asarray(shape, np.int64))
    reshape = make("Reshape", [value, target], f"{consumer.name}_reshape", shape)
    if value.type is not None:
        reshape.outputs[0].type = value.type
    graph.insert_before(consumer, reshape)
    return reshape.outputs[0]


def _one_axis(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    default = 0 if is_op(consumer, "Split") else -1
    axis = integer(consumer, "axis", default) % len(perm)
    consumer.attributes["axis"] = ir.AttrInt64("axis", perm[axis])
    return _unary(node, consumer, perm)


def _concat(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    axis = integer(consumer, "axis", 0) % len(perm)
    if _elementwise(node, consumer, perm) is None:
        return None
    consumer.attributes["axis"] = ir.AttrInt64("axis", perm[axis])
    return perm


def _pad(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    pads = constant(operand(consumer, 1))
    if pads is None or operand(consumer, 3) is not None:
        return None
    begins, ends = np.split(pads, 2)
    order = list(_inverse(perm))
    new = np.concatenate([begins[order], ends[order]])
    set_input(consumer, 1, new_initializer(graph_of(consumer), f"{consumer.name}_pads", new))
    return _unary(node, consumer, perm)


def _slice(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    if any(v is not None and constant(v) is None for v in consumer.inputs[1:]):
        return None
    starts, axes = constant(operand(consumer, 1)), constant(operand(consumer, 3))
    assert starts is not None
    old = range(len(starts)) if axes is None else axes
    new = np.asarray([perm[int(a) % len(perm)] for a in old], np.int64)
    set_input(consumer, 3, new_initializer(graph_of(consumer), f"{consumer.name}_axes", new))
    return _unary(node, consumer, perm)


def _reduce(node: ir.Node, consumer: ir.Node, perm: Perm) -> Perm | None:
    axes = constant(operand(consumer, 1))
    if axes is None:
        return None
    old = [int(a) % len(perm) for a in axes]
    new = np.asarray(sorted(perm[a] for a in old), np.int64)
    set_input(consumer, 1, new_initializer(graph_of(consumer), f"{consumer.name}_axes", new))
    _unary(node, consumer, perm)
    if integer(consumer, "keepdims", 1):
        return perm
    rest = [p for i, p in enumerate(perm) if i not in old]
    return tuple(int(i) for i in np.argsort(np.argsort(rest)))
