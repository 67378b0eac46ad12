"""Second moments of what a layer reads and of what it should answer, gathered sample after sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import statistics
from passes.layer import POSITIONS_MAX, Layer, layers
from passes.solvers.hessian import damped
from passes.statistics import Arrays, Progress

NOISE = 2.0**-20
"""Variance relative to the mean square below which it is float32 noise: what is read is constant."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments over samples and positions.

    Attributes:
        count: Positions seen.
        mean: Of what is read, float64 [groups, taps].
        square: E[x x^T], padding included, float64 [groups, taps, taps].
        shared: E[m m^T] with m the mean of x over the positions of a sample, float64 [groups, taps, taps].
        answer: Mean of the wanted responses, float64 [groups, rows], or None where none were given.
        cross: E[y x^T] with y the wanted response, float64 [groups, rows, taps], or None.
    """

    count: int
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    shared: NDArray[np.float64]
    answer: NDArray[np.float64] | None = None
    cross: NDArray[np.float64] | None = None

    @property
    def covariance(self) -> NDArray[np.float64]:
        """E[(x - mean)(x - mean)^T], float64 [groups, taps, taps]: the loss where the bias takes up the mean."""
        return self.square - self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def shared_covariance(self) -> NDArray[np.float64]:
        """Covariance over samples of the mean over positions: the loss of errors that all positions share."""
        return self.shared - self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def cross_covariance(self) -> NDArray[np.float64] | None:
        """E[(y - answer)(x - mean)^T], float64 [groups, rows, taps]."""
        if self.cross is None or self.answer is None:
            return None
        return self.cross - self.answer[:, :, None] * self.mean[:, None, :]

    def hessian(self, share: float = 0.1, shared: float = 0.0) -> NDArray[np.float64]:
        """The covariance plus `shared` times the shared covariance, damped.

        Args:
            share: Of the mean diagonal, added; more where positions are fewer than taps.
            shared: What shared errors cost beside independent ones.
        """
        share = max(share, self.mean.shape[1] / max(self.count, 1))
        whole = self.covariance + shared * self.shared_covariance if shared else self.covariance
        return np.stack([damped(each, share) for each in np.where(self._is_constant(), 0.0, whole)])

    def _is_constant(self) -> NDArray[np.bool_]:
        """Whether what a group reads does not vary, but for float32 noise, bool [groups, 1, 1]."""
        variance, size = (np.trace(each, axis1=1, axis2=2) for each in (self.covariance, self.square))
        return np.asarray(variance <= NOISE * size)[:, None, None]


TOTALS = 64
"""Samples whose totals are multiplied together."""


class Means:
    """Adds up what is needed where rounding to the nearest will do.

    Args:
        layer: The layer.
        positions: Of one sample, at most about as many.
    """

    def __init__(self, layer: Layer, positions: int = POSITIONS_MAX) -> None:
        self._layer, self._positions, self._count = layer, positions, 0
        self._sum, self._square = np.zeros((layer.groups, layer.taps)), np.zeros((layer.groups, layer.taps))
        self._answer = np.zeros((layer.groups, layer.rows))

    def add(self, sample: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
        """As `Gatherer.add`."""
        seen = self._layer.patches(sample, self._positions)
        self._count += seen.shape[2]
        self._sum += seen.sum(axis=2, dtype=np.float64)
        self._square += np.square(seen).sum(axis=2, dtype=np.float64)
        self._answer += wanted.sum(axis=2, dtype=np.float64)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of what is read, float64 [groups, taps]."""
        return self._sum / self._count

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of what is read, float64 [groups, taps]."""
        return np.maximum(self._square / self._count - np.square(self.mean), 0.0)

    @property
    def answer(self) -> NDArray[np.float64]:
        """Mean of the wanted responses, float64 [groups, rows]."""
        return self._answer / self._count


class Gatherer:
    """Adds up the moments of one layer, in the order of the samples; sums are float64.

    Products are float32, of as many samples at a time as have half as many positions as there are taps: to add up large
    matrices for each sample takes longer than to multiply.

    Args:
        layer: The layer.
        positions: Of one sample, at most about as many.
    """

    def __init__(self, layer: Layer, positions: int = POSITIONS_MAX) -> None:
        self._layer, self._positions = layer, positions
        self._count = 0
        self._sum = np.zeros((layer.groups, layer.taps))
        self._square = np.zeros((layer.groups, layer.taps, layer.taps))
        self._shared = np.zeros((layer.groups, layer.taps, layer.taps))
        self._answer = np.zeros((layer.groups, layer.rows))
        self._cross = np.zeros((layer.groups, layer.rows, layer.taps))
        self._has_answers = False
        self._waiting_positions = 0
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = []
        self._totals: list[NDArray[np.float64]] = []

    def add(self, sample: NDArray[np.float32], wanted: NDArray[np.float32] | None = None) -> None:
        """One sample's input [1, C, ...], and the wanted responses as `Layer.responses` gives them."""
        seen = self._layer.patches(sample, self._positions)
        self._count += seen.shape[2]
        total = seen.sum(axis=2, dtype=np.float64)
        self._sum += total
        if wanted is not None:
            self._has_answers = True
            self._answer += wanted.sum(axis=2, dtype=np.float64)
        self._totals.append(total / math.sqrt(seen.shape[2]))
        if len(self._totals) == TOTALS:
            self._add_totals()
        self._waiting.append((seen, wanted))
        self._waiting_positions += seen.shape[2]
        if self._waiting_positions >= self._layer.taps // 2:
            self._flush()

    def _multiply(self, seen: NDArray[np.float32], wanted: NDArray[np.float32] | None) -> None:
        turned = seen.transpose(0, 2, 1)
        self._square += np.matmul(seen, turned)
        if wanted is not None:
            self._cross += np.matmul(wanted, turned)

    def _flush(self) -> None:
        """Multiply what waits."""
        if self._waiting:
            answers = [each for _, each in self._waiting if each is not None]
            self._multiply(_joined([each for each, _ in self._waiting]), _joined(answers) if answers else None)
        self._waiting, self._waiting_positions = [], 0

    def _add_totals(self) -> None:
        if self._totals:
            totals = np.stack(self._totals, axis=2)
            self._shared += np.matmul(totals, totals.transpose(0, 2, 1))
        self._totals = []

    def moments(self) -> Moments:
        """What was gathered so far; at least one sample."""
        self._flush()
        self._add_totals()
        n = self._count
        answers = (self._answer / n, self._cross / n) if self._has_answers else (None, None)
        return Moments(n, self._sum / n, self._square / n, self._shared / n, *answers)


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def collect_moments(
    model: ir.Model, samples: Arrays, names: Iterable[str], *, progress: Progress | None = None
) -> dict[str, Moments]:
    """Moments of the inputs and outputs of the named layers of `model` itself.

    Args:
        model: Any model that onnxruntime runs.
        samples: Inputs by name, [N, ...].
        names: Of weighted nodes (see passes.layer.layers).
        progress: Told ("gram", done, total).
    """
    known, wanted = layers(model), list(names)
    nodes = {str(node.name): node for node in model.graph}
    source = {name: str(nodes[name].inputs[0].name) for name in wanted}  # type: ignore[union-attr]
    gatherers = {name: Gatherer(known[name]) for name in wanted}
    total = statistics.count(samples)
    for done, values in enumerate(statistics.run(model, samples, dict.fromkeys(source.values())), 1):
        for name, gatherer in gatherers.items():
            gatherer.add(values[source[name]])
        if progress:
            progress("gram", done, total)
    return {name: gatherer.moments() for name, gatherer in gatherers.items()}
