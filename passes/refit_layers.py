"""Layer after layer, float weights with which a pruned network answers as the original does, on what it now reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.gram import Gatherer, Moments
from passes.graph import constant, graph_of, new_initializer, operand, set_input
from passes.layer import layer_of
from passes.reconstruct import responses
from passes.solvers import channels as solver
from passes.statistics import Arrays, Progress
from passes.walk import Inputs, walk

POSITIONS = 256
"""Of one sample, at most about as many."""
_SAME = 1e-9
"""Share of a layer's variance by which its answers must change for it to be fitted anew."""


class RefitLayers(Rewrite):
    """Fit each layer to what the original layer answered, while it reads what the layers before it, fitted, now give.

    With x what the layer reads, y what the original answers, C the covariance of x, R = ridge * diag(C) and W the
    present weights, V = (E[(y - E y)(x - E x)^T] + W R)(C + R)^-1 and b = E y - V E x. On the samples no layer errs
    more than with W and the best bias.

    Args:
        original: The network as it was; layers are matched by node name.
        samples: Inputs by name, [N, ...].
        rows: Output channels of the original that a layer still has, by node name; all where it is not named.
        ridge: Share of each input's variance that holds the weights near the present ones.
        positions: Of one sample, at most about as many.
        progress: Told ("refit", done, total).

    Source: He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.2: the
        asymmetric objective, whole layers at a time.
    """

    name = "refit-layers"

    def __init__(
        self,
        original: ir.Model,
        samples: Arrays,
        rows: Mapping[str, Sequence[int]] | None = None,
        *,
        ridge: float = solver.RIDGE,
        positions: int = POSITIONS,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._original, self._samples, self._rows = original, samples, rows or {}
        self._ridge, self._positions, self._progress = ridge, positions, progress

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        known = {str(node.name): node for node in self._original.graph if layer_of(node) is not None}
        names: list[str] = []
        for node in model.graph:
            if layer_of(node) is None:
                continue
            if reason := self._why_not(node, known.get(str(node.name))):
                notes.skip(node, reason)
            else:
                names.append(str(node.name))

        def visit(node: ir.Node, inputs: Inputs) -> None:
            moments = self._moments(node, known[str(node.name)], inputs)
            if reason := _refit(node, moments, self._ridge):
                notes.skip(node, reason)
            else:
                notes.change(node)

        walk(model, names, self._samples, visit, ("refit", self._progress))

    def _why_not(self, node: ir.Node, before: ir.Node | None) -> str | None:
        layer, original = layer_of(node), layer_of(before) if before is not None else None
        weights, bias = constant(operand(node, 1)), operand(node, 2)
        if layer is None or original is None:
            return "the original network has no such layer"
        if weights is None or weights.dtype != np.float32 or (bias is not None and constant(bias) is None):
            return "its weights or its bias are quantized or not constant"
        if node.op_type == "MatMul":
            return "it has no bias that could take up the mean"
        if layer.channels != len(self._rows.get(str(node.name), range(original.channels))):
            return f"it has {layer.channels} output channels, and is said to have others"
        return None

    def _moments(self, node: ir.Node, before: ir.Node, inputs: Inputs) -> Moments:
        layer, name = layer_of(node), str(node.name)
        assert layer is not None
        wanted = responses(self._original, {name: str(before.outputs[0].name)}, self._samples, self._positions)
        gatherer = Gatherer(layer, self._positions)
        for sample, answer in zip(inputs, wanted.values[name], strict=True):
            rows = answer.reshape(-1, answer.shape[-1])
            chosen = rows[list(self._rows.get(name, range(len(rows))))]
            gatherer.add(sample, chosen.reshape(layer.groups, layer.rows, -1))
        return gatherer.moments()


def _refit(node: ir.Node, moments: Moments, ridge: float) -> str | None:
    """Give `node` the weights and the bias that fit; why not, or None when done."""
    layer, stored = layer_of(node), constant(operand(node, 1))
    cross, answer = moments.cross_covariance, moments.answer
    assert layer is not None
    assert stored is not None
    assert cross is not None
    assert answer is not None
    weights, covariance = layer.matrix(stored), moments.covariance
    fitted = np.stack([solver.follow(*each, ridge) for each in zip(weights, covariance, cross, strict=True)])
    bias = answer - np.einsum("grt,gt->gr", fitted, moments.mean)
    old = constant(operand(node, 2))
    before = np.zeros(answer.shape) if old is None else old.astype(np.float64).reshape(answer.shape)
    shift = answer - before - np.einsum("grt,gt->gr", weights, moments.mean)
    moved = _energy(fitted - weights, covariance) + float(np.square(shift).sum())
    if moved <= _SAME * _energy(weights, covariance):
        return "it answers as before"
    graph = graph_of(node)
    set_input(node, 1, new_initializer(graph, f"{node.name}_weights", layer.stored(fitted.astype(np.float32))))
    set_input(node, 2, new_initializer(graph, f"{node.name}_bias", bias.reshape(-1).astype(np.float32)))
    return None


def _energy(weights: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Variance of what the weights answer, all rows together."""
    return float(np.einsum("grt,grt->", weights @ covariance, weights))
