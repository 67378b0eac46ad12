"""Groups of channels that can only leave a network together, what they cost, and how they leave it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from passes.channel_labels import Classes, Labels, axes_of, dynamic, is_grouped, is_layer, label, pad_amounts, varying
from passes.constant_channels import ELEMENTWISE
from passes.graph import Array, constant, graph_of, integer, is_op, new_initializer, operand, set_input, shape_of
from passes.layer import layer_of

Mask = NDArray[np.bool_]
Removal = Mapping[str, Collection[int]]
"""Channels that go, by the name of their group."""


class ChannelError(ValueError):
    """Channels that cannot be removed; the message says which and why."""


@dataclass(frozen=True)
class Member:
    """A layer that computes or reads the channels of a group.

    Attributes:
        node: Its name.
        channels: For each channel of the group, its output channels (or input channels, inputs of a Gemm), ascending.
    """

    node: str
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of which each can go, and with it what is tied to it, without the others.

    Attributes:
        name: Of the first layer that computes them, made unique.
        size: How many there are.
        producers: Layers that compute them, grouped convolutions that pass them on among them.
        consumers: Layers of which each output channel reads them all.
        reason: Why none can go, or None.
    """

    name: str
    size: int
    producers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Cost:
    """Of the layers with weights: multiply-accumulates of one inference, and numbers in weights and biases."""

    macs: int
    params: int


class ChannelGraph:
    """The channels of a canonical float graph. It describes the model as it was given, until `remove` changes it.

    Args:
        model: Opset 21, static shapes, batch 1.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        classes, labels = label(model.graph)
        self._axes = {value: varying(own) for value, own in labels.items()}
        self._labels = {value: _along(own, value) for value, own in labels.items()}
        self._layers = [node for node in model.graph if is_layer(node)]
        self._roots: dict[str, list[int]] = {}
        self.groups = self._grouped(classes)

    def cost(self, removal: Removal) -> Cost:
        """What the network costs without some channels.

        Raises:
            ChannelError: They cannot go.
        """
        gone = self._gone(removal)
        macs = params = 0
        for node in self._model.graph:
            layer, output = layer_of(node), shape_of(node.outputs[0])
            if layer is None or output is None:
                continue
            taps, channels = layer.taps, layer.channels
            if is_layer(node):
                source = gone[dynamic(node)[0]]
                if not is_grouped(node):
                    taps -= int(source.sum()) * math.prod(layer.kernel)
                channels -= int(gone[node.outputs[0]].sum())
            macs += math.prod(output) // layer.channels * channels * taps
            params += channels * (taps + (operand(node, 2) is not None))
        return Cost(macs, params)

    def remove(self, removal: Removal) -> None:
        """Take channels out of every constant, attribute and static shape of the model.

        What the layers behind them compute changes by what they read of them, and by nothing else.

        Raises:
            ChannelError: They cannot go; the model is as it was.
        """
        gone = self._gone(removal)
        for node in self._model.graph:
            touched = [value for value in (*dynamic(node), *node.outputs) if value in gone and gone[value].any()]
            for op_types, edit in _EDITS.items():
                if touched and is_op(node, *op_types):
                    edit(node, _Cut(gone, self._axes))
        for value, mask in gone.items():
            if mask.any():
                shape, (axis,) = shape_of(value) or (), self._axes[value]
                value.shape = ir.Shape((*shape[:axis], int((~mask).sum()), *shape[axis + 1 :]))
        common.RemoveUnusedNodesPass()(self._model)

    def rows(self, removal: Removal) -> dict[str, tuple[int, ...]]:
        """The output channels that each layer keeps of those that it has now, by node name; layers that lose some.

        Raises:
            ChannelError: They cannot go.
        """
        gone = self._gone(removal)
        left = {str(node.name): ~gone[node.outputs[0]] for node in self._layers}
        return {name: tuple(np.flatnonzero(kept).tolist()) for name, kept in left.items() if not kept.all()}

    def _gone(self, removal: Removal) -> dict[ir.Value, Mask]:
        """Which indices of each value go, along the axis along which its labels differ; bool [n]."""
        groups = {group.name: group for group in self.groups}
        roots: set[int] = set()
        for name, channels in removal.items():
            if name not in groups:
                raise ChannelError(f"there is no group of channels {name!r}")
            group = groups[name]
            if channels and group.reason is not None:
                raise ChannelError(f"no channel of {name!r} can go: {group.reason}")
            if wrong := sorted(c for c in channels if not 0 <= c < group.size):
                raise ChannelError(f"{name!r} has {group.size} channels, and no channel {wrong[0]}")
            if len(set(channels)) == group.size:
                raise ChannelError(f"one channel of {name!r} must stay")
            roots.update(self._roots[name][c] for c in channels)
        chosen = np.asarray(sorted(roots), np.int64)
        return {value: np.isin(labels, chosen) for value, labels in self._labels.items()}

    def _grouped(self, classes: Classes) -> tuple[ChannelGroup, ...]:
        """Channels that run through the same values are of one group."""
        touched: dict[int, list[int]] = {}
        for index, labels in enumerate(self._labels.values()):
            for root in np.unique(labels).tolist():
                touched.setdefault(root, []).append(index)
        alike: dict[tuple[tuple[int, ...], str | None], list[int]] = {}
        for root in sorted(touched):
            alike.setdefault((tuple(touched[root]), classes.why_frozen(root)), []).append(root)
        found = [group for (_, reason), roots in alike.items() if (group := self._group(roots, reason)) is not None]
        return tuple(found)

    def _group(self, roots: list[int], reason: str | None) -> ChannelGroup | None:
        producers = self._members([(node, node.outputs[0]) for node in self._layers], roots)
        read = [(node, dynamic(node)[0]) for node in self._layers if not is_grouped(node)]
        consumers = self._members(read, roots)
        if not producers and (reason is not None or not consumers):
            return None
        first = producers[0].node if producers else f"{consumers[0].node}_input"
        name, count = first, 1
        while name in self._roots:
            name, count = f"{first}_{count}", count + 1
        self._roots[name] = roots
        if reason is None and len(roots) == 1:
            reason = "it is a single channel"
        return ChannelGroup(name, len(roots), producers, consumers, reason)

    def _members(self, candidates: list[tuple[ir.Node, ir.Value]], roots: list[int]) -> tuple[Member, ...]:
        members = []
        for node, value in candidates:
            labels = self._labels[value]
            if np.isin(labels, roots).any():
                channels = tuple(tuple(np.flatnonzero(labels == root).tolist()) for root in roots)
                members.append(Member(str(node.name), channels))
        return tuple(members)


def groups(model: ir.Model) -> tuple[ChannelGroup, ...]:
    """The groups of channels of a canonical float graph, in the order of their first layers; intact afterwards."""
    return ChannelGraph(model).groups


def remove(model: ir.Model, removal: Removal) -> None:
    """Take channels out of `model` in place; see ChannelGraph.remove."""
    ChannelGraph(model).remove(removal)


def _along(labels: Labels, value: ir.Value) -> Labels:
    """The labels along the one axis along which they differ, else along the channels (axis 1), one-dimensional."""
    axes, shape = varying(labels), shape_of(value) or ()
    if not axes and len(shape) < 2:
        return labels.reshape(-1)
    axis = axes[0] if axes else 1
    return np.broadcast_to(labels.reshape(-1), (shape[axis],))


# What is cut out of the constants and attributes of a node


@dataclass(frozen=True, eq=False)
class _Cut:
    """Which indices go of every value, and along which axis (none where nothing can go)."""

    gone: Mapping[ir.Value, Mask]
    axes: Mapping[ir.Value, tuple[int, ...]]

    def axis(self, value: ir.Value) -> int:
        """The axis along which indices of a value go, of which some do."""
        (axis,) = self.axes[value]
        return axis

    def kept(self, value: ir.Value) -> Mask:
        return ~self.gone[value]

    def new_shape(self, value: ir.Value) -> list[int]:
        shape = list(shape_of(value) or ())
        shape[self.axis(value)] = int(self.kept(value).sum())
        return shape


def _cut_layer(node: ir.Node, cut: _Cut) -> None:
    source, result = dynamic(node)[0], node.outputs[0]
    weights, bias = constant(operand(node, 1)), constant(operand(node, 2))
    assert weights is not None
    kept = cut.kept(result)
    if is_grouped(node):
        rows = weights.shape[0] // integer(node, "group", 1)
        node.attributes["group"] = ir.AttrInt64("group", int(kept.sum()) // rows)
    elif cut.gone[source].any():
        weights = weights[:, cut.kept(source)]
    _put(node, 1, weights[kept], "weights")
    if bias is not None:
        _put(node, 2, bias.reshape(-1)[kept], "bias")


def _cut_elementwise(node: ir.Node, cut: _Cut) -> None:
    result = node.outputs[0]
    if not cut.gone[result].any():
        return
    rank = len(shape_of(result) or ())
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None:
            continue
        axis = cut.axis(result) - (rank - array.ndim)
        if axis >= 0 and array.shape[axis] > 1:
            _put(node, index, np.compress(cut.kept(result), array, axis), "channels")


def _cut_reshape(node: ir.Node, cut: _Cut) -> None:
    _put(node, 1, np.asarray(cut.new_shape(node.outputs[0]), np.int64), "shape")
    node.attributes.pop("allowzero", None)


def _cut_resize(node: ir.Node, cut: _Cut) -> None:
    sizes = constant(operand(node, 3))
    if sizes is not None and sizes.size:
        _put(node, 3, np.asarray(cut.new_shape(node.outputs[0]), np.int64), "sizes")


def _cut_split(node: ir.Node, cut: _Cut) -> None:
    source = dynamic(node)[0]
    axis = integer(node, "axis", 0) % len(shape_of(source) or ())
    if not cut.gone[source].any() or axis != cut.axis(source):
        return
    sizes, start = [], 0
    for value in node.outputs:
        length = (shape_of(value) or ())[axis]
        sizes.append(int(cut.kept(source)[start : start + length].sum()))
        start += length
    node.attributes.pop("num_outputs", None)
    _put(node, 1, np.asarray(sizes, np.int64), "sizes")


def _cut_slice(node: ir.Node, cut: _Cut) -> None:
    source = dynamic(node)[0]
    starts, ends = constant(operand(node, 1)), constant(operand(node, 2))
    assert starts is not None
    assert ends is not None
    axes = list(axes_of(node))[: starts.size]
    if not cut.gone[source].any() or cut.axis(source) not in axes:
        return
    entry, length = axes.index(cut.axis(source)), (shape_of(source) or ())[cut.axis(source)]
    first, last, _ = slice(int(starts[entry]), int(ends[entry])).indices(length)
    before, inside = int(cut.kept(source)[:first].sum()), int(cut.kept(source)[first:last].sum())
    _put(node, 1, _with(starts, entry, before), "starts")
    _put(node, 2, _with(ends, entry, before + inside), "ends")


def _with(array: Array, entry: int, number: int) -> Array:
    changed = array.copy()
    changed[entry] = number
    return changed


def _cut_gather(node: ir.Node, cut: _Cut) -> None:
    source, result, indices = dynamic(node)[0], node.outputs[0], constant(operand(node, 1))
    assert indices is not None
    length = (shape_of(source) or ())[integer(node, "axis", 0)]
    if not cut.gone[source].any() or integer(node, "axis", 0) % len(shape_of(source) or ()) != cut.axis(source):
        return
    moved = np.cumsum(cut.kept(source)) - 1
    left = indices[cut.kept(result)] if cut.gone[result].any() else indices
    _put(node, 1, moved[left.astype(np.int64) % length].astype(indices.dtype), "indices")


def _cut_pad(node: ir.Node, cut: _Cut) -> None:
    result, known, amounts = node.outputs[0], pad_amounts(node), constant(operand(node, 1))
    assert known is not None
    assert amounts is not None
    axis, count = cut.axis(result), amounts.size // 2
    before, behind = known[axis]
    if not cut.gone[result].any() or not (before or behind):
        return
    kept, entry = cut.kept(result), list(axes_of(node)).index(axis)
    changed = _with(amounts, entry, int(kept[:before].sum()))
    _put(node, 1, _with(changed, count + entry, int(kept[kept.size - behind :].sum())), "amounts")


def _put(node: ir.Node, index: int, array: Array, what: str) -> None:
    set_input(node, index, new_initializer(graph_of(node), f"{node.name}_{what}", array))


_EDITS: Mapping[tuple[str, ...], Callable[[ir.Node, _Cut], None]] = {
    ("Conv", "Gemm"): _cut_layer,
    (*ELEMENTWISE, "Where"): _cut_elementwise,
    ("Reshape",): _cut_reshape,
    ("Resize",): _cut_resize,
    ("Split",): _cut_split,
    ("Slice",): _cut_slice,
    ("Gather",): _cut_gather,
    ("Pad",): _cut_pad,
}
