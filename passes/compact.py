"""Everything out of a graph that computing does not need: long names, types that can be inferred, descriptions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from passes.graph import constant, graph_of, is_op

SHARED_ELEMENTS_MAX = 16
"""Equal constants of at most so many elements become one."""
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_WINDOW: Mapping[str, int] = {"dilations": 1, "strides": 1, "pads": 0}
"""Lists that may be left out where every number is this."""
_WINDOWED = ("Conv", "MaxPool", "AveragePool")


def compact(model: ir.Model) -> None:
    """Make the file of `model` as small as it can be without changing a number that it computes, in place.

    Inner values and initializers get the shortest names in the order of their first use, nodes none (the importer names
    them); inputs and outputs of the network keep theirs. Inferred types, descriptions, metadata and attributes that say
    what holds without them are dropped. Small equal constants are shared. The order of the nodes stays.

    A model in memory cannot be lowered afterwards: write it, and import the file.
    """
    graph = model.graph
    _share_constants(graph)
    _drop_descriptions(model)
    for node in graph:
        _drop_defaults(node)
    _rename(graph)


def _share_constants(graph: ir.Graph) -> None:
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        array = constant(value)
        if array is None or array.size > SHARED_ELEMENTS_MAX or value.is_graph_output():
            continue
        key = (value.dtype, array.shape, array.tobytes())
        kept = first.setdefault(key, value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[name]


def _drop_descriptions(model: ir.Model) -> None:
    graph = model.graph
    model.producer_name = model.producer_version = model.domain = model.doc_string = None
    model.model_version = None
    graph.doc_string = None
    for holder in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        holder.metadata_props.clear()
    for node in graph:
        node.doc_string = node.name = None
        for value in node.outputs:
            _forget(value)
    for value in graph.initializers.values():
        value.doc_string = None


def _forget(value: ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
    if not value.is_graph_output():
        value.type = value.shape = None


def _drop_defaults(node: ir.Node) -> None:
    """Attributes of a Conv or pool that say what holds without them."""
    if not is_op(node, *_WINDOWED):
        return
    for name, neutral in _WINDOW.items():
        attribute = node.attributes.get(name)
        if attribute is not None and set(attribute.as_ints()) == {neutral}:
            del node.attributes[name]
    if (group := node.attributes.get("group")) is not None and group.as_int() == 1:
        del node.attributes["group"]


def _rename(graph: ir.Graph) -> None:
    kept = (*graph.inputs, *graph.outputs)
    taken = {value.name for value in kept}
    taken.update(value.name for node in _inner_nodes(graph) for value in (*node.inputs, *node.outputs) if value)
    names = (name for name in _short_names() if name not in taken)
    done = set(kept)
    order: list[ir.Value] = []
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value not in done:
                done.add(value)
                order.append(value)
    initializers = [value for value in order if value.is_initializer()]
    rest = [value for value in graph.initializers.values() if value not in set(initializers)]
    graph.initializers.clear()
    for value in order:
        value.name = next(names)
    for value in (*rest, *initializers):
        graph.register_initializer(value)


def _inner_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of subgraphs."""
    return (node for node in ir.traversal.RecursiveGraphIterator(graph) if graph_of(node) is not graph)


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(_LETTERS, repeat=length))
