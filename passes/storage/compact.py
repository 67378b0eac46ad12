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

    Inner values and initializers get short names in the order of their first use, nodes none (the importer names
    them); inputs and outputs of the network keep theirs. Types that can be inferred, descriptions, metadata, and
    attributes that say what holds without them are dropped. Small equal constants are shared. The order of the nodes
    stays.

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
        _forget(value)  # the tensor itself says its type and shape


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
    names = _new_names(graph, set(kept), taken)
    unread = [value for value in graph.initializers.values() if value not in names]
    graph.initializers.clear()
    for value, name in names.items():
        value.name = name
    for value in (*unread, *(value for value in names if value.const_value is not None and not value.producer())):
        graph.register_initializer(value)


def _new_names(graph: ir.Graph, kept: set[ir.Value], taken: set[str | None]) -> dict[ir.Value, str]:
    """Names in the order of first use: letters that count the QuantizeLinear nodes so far, and one for the place since.

    So the same place of every layer has the same last letter, and an entropy coder that has seen one layer knows the
    names of the next.
    """
    names: dict[ir.Value, str] = {}
    prefixes = _prefixes()
    layer = _layer_names(prefixes, taken)
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value not in kept and value not in names:
                names[value] = next(layer)
        if is_op(node, "QuantizeLinear"):
            layer = _layer_names(prefixes, taken)
    return names


def _layer_names(prefixes: Iterator[str], taken: set[str | None]) -> Iterator[str]:
    """Names of one layer, from the next prefix on."""
    for prefix in prefixes:
        yield from (prefix + letter for letter in _LETTERS if prefix + letter not in taken)


def _inner_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of subgraphs."""
    return (node for node in ir.traversal.RecursiveGraphIterator(graph) if graph_of(node) is not graph)


def _prefixes() -> Iterator[str]:
    for length in itertools.count(1):
        yield from map("".join, itertools.product(_LETTERS, repeat=length))
