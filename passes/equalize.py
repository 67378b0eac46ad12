"""Channel equalization before a depthwise Conv: each channel of its input uses more of the tensor's one int8 range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes.base import Notes, Rewrite
from passes.cones import Point

MARK = "edgec.equalized"
"""Metadata of a Conv whose output channels were scaled; Quantize hands it on to the QuantizeLinear behind it."""


@dataclass(frozen=True)
class EqualizeConfig:
    """How far to equalize.

    Attributes:
        headroom: A channel is scaled so that its peak times this is the tensor's peak: samples are few, and what
            clips costs more than what is coarse.
        limit: Largest factor, for the same reason.
    """

    headroom: float = 1.25
    limit: float = 2.0


def equalizable(model: ir.Model, wanted: tuple[Point, ...]) -> dict[str, str]:
    """Name of every point that can be equalized to the name of the Conv that computes it.

    A Conv [and Relu] read by depthwise Convs alone: relu(k * x) = k * relu(x), and both its own weights and the
    readers' have one scale for each channel, so that the factor costs no precision anywhere.
    """
    nodes = {node.name: node for node in model.graph}
    values = {value.name: value for node in model.graph for value in node.outputs}
    accelerated = {name for point in wanted for name in point.nodes}
    return {
        point.name: point.anchor
        for point in wanted
        if point.anchor
        and nodes[point.anchor].op_type == "Conv"
        and all(nodes[name].op_type in ("Conv", "Relu") for name in point.nodes)
        and _is_read_by_depthwise(values[point.name], accelerated)
    }


class Equalize(Rewrite):
    """Multiply the channels of a Conv's output by factors, and divide the depthwise Convs that read it by the same.

    k = clip(max over channels of peak / (headroom * peak), 1, limit); 1 for a channel that is 0 throughout.

    Args:
        convs: Point to Conv, from `equalizable`.
        peaks: Largest |value| of each channel of those points, float64 [C].
        config: How far.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019,
        section 4.1.
    """

    name = "equalize"

    def __init__(
        self,
        convs: Mapping[str, str],
        peaks: Mapping[str, NDArray[np.float64]],
        config: EqualizeConfig | None = None,
    ) -> None:
        super().__init__()
        self._convs, self._peaks, self._config = convs, peaks, config or EqualizeConfig()

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        nodes = {node.name: node for node in model.graph}
        values = {value.name: value for node in model.graph for value in node.outputs}
        for point, conv in self._convs.items():
            factors = channel_factors(self._peaks[point], self._config)
            if np.all(factors == 1):
                notes.skip(nodes[conv], "its channels are equal already")
                continue
            _scale(nodes[conv], (1, 2), factors)
            for reader in values[point].consumers():
                _scale(reader, (1,), 1 / factors)
            nodes[conv].metadata_props[MARK] = "1"
            notes.change(nodes[conv])
            notes.metrics["equalized_channels"] = notes.metrics.get("equalized_channels", 0.0) + float(
                (factors > 1).sum()
            )


def channel_factors(peaks: NDArray[np.float64], config: EqualizeConfig) -> NDArray[np.float64]:
    """The factor of every channel, float64 [C], from 1 to config.limit."""
    live = peaks > 0
    wanted = peaks.max(initial=0.0) / (config.headroom * np.where(live, peaks, 1.0))
    return np.where(live, np.clip(wanted, 1.0, config.limit), 1.0)


def _is_read_by_depthwise(value: ir.Value, accelerated: set[str]) -> bool:
    channels = (edit.shape_of(value) or (0, 0))[1]
    readers = value.consumers()
    return (
        channels > 1
        and bool(readers)
        and not value.is_graph_output()
        and all(
            node.name in accelerated
            and edit.is_op(node, "Conv")
            and edit.integer(node, "group", 1) == channels
            and node.inputs[0] is value
            for node in readers
        )
    )


def _scale(conv: ir.Node, indices: tuple[int, ...], factors: NDArray[np.float64]) -> None:
    """Multiply the output channels of a Conv's weights and bias; several channels of a group share a factor."""
    for index in indices:
        array = edit.constant(edit.operand(conv, index))
        if array is None:
            continue
        each = np.repeat(factors, array.shape[0] // factors.size).reshape(-1, *[1] * (array.ndim - 1))
        scaled = (array.astype(np.float64) * each).astype(array.dtype)
        edit.set_input(conv, index, edit.new_initializer(edit.graph_of(conv), f"{conv.name}_eq{index}", scaled))
