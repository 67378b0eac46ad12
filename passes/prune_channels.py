"""Whole channels leave the network, and the layers that read them are fitted to do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.channel_groups import ChannelGraph, ChannelGroup, Member, Removal
from passes.gram import Moments
from passes.graph import constant, graph_of, new_initializer, operand, set_input
from passes.layer import Layer, layer_of
from passes.problem import Importance, weighing
from passes.solvers import channels as solver

Method = Literal["least squares", "magnitude"]


@dataclass(frozen=True)
class ChannelOption:
    """A number of channels that a group may keep, and the best found choice of them.

    Attributes:
        group: Name of the group.
        kept: Channels of the group that stay, ascending.
        removed: The others, ascending.
        loss: Weighted squared error of all layers that read them, after they were fitted anew.
        macs_saved: Multiply-accumulates of one inference, while all other groups stay whole.
        params_saved: Weights and biases, likewise.
    """

    group: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    loss: float
    macs_saved: int
    params_saved: int


class PruneChannels(Rewrite):
    """Remove channels and fit every layer that read them to what it computed with them.

    1. Each Conv and Gemm that read a removed channel gets weights V_S = W C_:S (C_SS)^-1 on what is left, and a bias
       that takes up the mean: b' = b + W m - V m.
    2. The channels leave all constants, attributes and static shapes; see passes.channel_groups.
    3. A layer without moments keeps its weights: its outputs lose what the channels added.

    Args:
        removal: Channels that go, by name of their group.
        moments: Of the inputs of layers of the unpruned network, by node name.
        importance: What errors in a layer's outputs cost, by node name: it says how much errors weigh that all
            positions share. Without it they weigh like the others.
        ridge: Share of each input's variance that holds the weights near the old ones.

    Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.1.
    """

    name = "prune-channels"

    def __init__(
        self,
        removal: Removal,
        moments: Mapping[str, Moments] | None = None,
        *,
        importance: Mapping[str, Importance] | None = None,
        ridge: float = solver.RIDGE,
    ) -> None:
        super().__init__()
        self._removal = {name: tuple(sorted(set(gone))) for name, gone in removal.items() if len(gone)}
        self._moments, self._importance, self._ridge = moments or {}, importance or {}, ridge

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        graph = ChannelGraph(model)
        before, after = graph.cost({}), graph.cost(self._removal)
        nodes = {str(node.name): node for node in model.graph}
        for name, kept in _kept_taps(graph, self._removal, nodes).items():
            if (moments := self._moments.get(name)) is None:
                notes.skip(nodes[name], "it has no moments: its weights are not fitted anew")
            else:
                covariance, _ = _metric(moments, self._importance.get(name))
                _refit(nodes[name], kept, solver.ridged(covariance, self._ridge), moments.mean[0])
        touched = [group for group in graph.groups if group.name in self._removal]
        for name in dict.fromkeys(m.node for group in touched for m in (*group.producers, *group.consumers)):
            notes.change(nodes[name])
        graph.remove(self._removal)
        notes.metrics.update(
            channels_removed=float(sum(map(len, self._removal.values()))),
            macs_before=float(before.macs),
            macs_after=float(after.macs),
            params_before=float(before.params),
            params_after=float(after.params),
        )


def options(
    model: ir.Model,
    group: ChannelGroup,
    moments: Mapping[str, Moments],
    counts: Iterable[int],
    *,
    importance: Mapping[str, Importance] | None = None,
    method: Method = "least squares",
    ridge: float = solver.RIDGE,
    graph: ChannelGraph | None = None,
) -> list[ChannelOption]:
    """What it would cost to keep only so many channels of a group.

    Args:
        model: Canonical float graph; intact afterwards.
        group: Of `model`, one of which channels can go.
        moments: Of all layers that read the group.
        counts: How many channels to keep, each from 1 to the size of the group.
        importance: What errors in the output channels of the layers cost the network, by node name; the loss is in its
            unit. By default every layer's output has the same total variance: the loss is the sum of their relative
            errors, which cannot be compared between groups.
        method: How channels are chosen; the refit is the same.
        ridge: As for PruneChannels.
        graph: That of `model`, where it is known already.

    Returns:
        One option for each count, in descending order of what they keep.

    Raises:
        ValueError: The group is frozen, a count is out of range, or moments are missing.
    """
    if group.reason is not None:
        raise ValueError(f"no channel of {group.name!r} can go: {group.reason}")
    wanted = sorted(set(counts), reverse=True)
    if wanted and not (wanted[-1] >= 1 and wanted[0] <= group.size):
        raise ValueError(f"counts must be from 1 to {group.size}, not {wanted}")
    graph = graph or ChannelGraph(model)
    nodes = {str(node.name): node for node in model.graph}
    readers = [_reader(nodes, member, moments, importance) for member in group.consumers]
    if method == "magnitude":
        order = solver.by_magnitude(readers, group.size)
    else:
        order = solver.eliminate(readers, group.size, ridge).order
    whole = graph.cost({})
    result = []
    for count in wanted:
        removed = tuple(sorted(order[: group.size - count]))
        kept = tuple(sorted(set(range(group.size)) - set(removed)))
        cost = graph.cost({group.name: removed})
        error = solver.loss(readers, removed, ridge)
        saved = whole.macs - cost.macs, whole.params - cost.params
        result.append(ChannelOption(group.name, kept, removed, error, *saved))
    return result


def counts(size: int, multiple: int = 1) -> tuple[int, ...]:
    """Numbers of channels that are multiples of `multiple`, and smaller than `size`, descending."""
    return tuple(range((size - 1) // multiple * multiple, 0, -multiple))


def taps_of(layer: Layer, inputs: Iterable[int]) -> NDArray[np.int64]:
    """The taps with which a dense layer reads some input channels (a Gemm: inputs), int64."""
    block = int(np.prod(layer.kernel, dtype=np.int64))
    return (np.asarray(list(inputs), np.int64)[:, None] * block + np.arange(block)).ravel()


def _reader(
    nodes: Mapping[str, ir.Node],
    member: Member,
    moments: Mapping[str, Moments],
    importance: Mapping[str, Importance] | None,
) -> solver.Reader:
    layer, known = _layer(nodes[member.node]), moments.get(member.node)
    if known is None:
        raise ValueError(f"the inputs of node {member.node!r} were not measured")
    weights = layer.matrix(_weights(nodes[member.node]))[0]
    covariance, rows = _metric(known, None if importance is None else importance[member.node])
    if importance is None:
        variance = float(np.einsum("rt,rt->", weights @ covariance, weights))
        rows = np.full(len(weights), 1 / variance if variance > 0 else 1.0)
    return solver.Reader(weights, covariance, rows, tuple(taps_of(layer, each) for each in member.channels))


def _metric(moments: Moments, importance: Importance | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What an error of a dense layer is measured with: float64 [taps, taps], and the weight of each row, [rows]."""
    covariance = moments.covariance[0]
    if importance is None:
        return covariance, np.empty(0)
    ratio, rows = weighing(moments, importance)
    return covariance + ratio * moments.shared_covariance[0], rows


def _kept_taps(graph: ChannelGraph, removal: Removal, nodes: Mapping[str, ir.Node]) -> dict[str, NDArray[np.bool_]]:
    """Which taps each layer keeps that reads a channel which goes, bool [taps], over all groups that it reads."""
    kept: dict[str, NDArray[np.bool_]] = {}
    for group in graph.groups:
        for member in group.consumers:
            gone = [c for channel in removal.get(group.name, ()) for c in member.channels[channel]]
            if gone:
                layer = _layer(nodes[member.node])
                mask = kept.setdefault(member.node, np.ones(layer.taps, np.bool_))
                mask[taps_of(layer, gone)] = False
    return kept


def _refit(node: ir.Node, kept: NDArray[np.bool_], covariance: NDArray[np.float64], mean: NDArray[np.float64]) -> None:
    """New weights, 0 where taps go, and a bias that takes up the mean."""
    layer, old = _layer(node), _weights(node)
    weights = layer.matrix(old)[0]
    fitted = solver.refit(weights, covariance, kept)
    bias = constant(operand(node, 2))
    before = np.zeros(len(weights)) if bias is None else bias.astype(np.float64).reshape(-1)
    shifted = before + (weights - fitted) @ mean
    stored = layer.stored(fitted[None].astype(np.float32))
    set_input(node, 1, new_initializer(graph_of(node), f"{node.name}_weights", stored))
    set_input(node, 2, new_initializer(graph_of(node), f"{node.name}_bias", shifted.astype(np.float32)))


def _layer(node: ir.Node) -> Layer:
    layer = layer_of(node)
    assert layer is not None
    return layer


def _weights(node: ir.Node) -> NDArray[np.generic]:
    weights = constant(operand(node, 1))
    assert weights is not None
    return weights
