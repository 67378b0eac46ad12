"""Layer after layer, integers with which the network answers as the original does, whatever came before the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import statistics
from passes.base import Notes, Rewrite
from passes.gram import Gatherer, Means, Moments
from passes.layer import Layer, layers
from passes.problem import SHRINKAGE, Importance, optimism, problem_of
from passes.quantize_weights import WEIGHT_MAX, bias_codes, dead_channels, fitted, nearest_codes
from passes.recipes.base import AsFound, Coded, Problem, Recipe, RecipeError
from passes.recipes.uniform import WIDE_BITS, Uniform
from passes.scale_grid import STEPS_PER_OCTAVE
from passes.scales import Scale
from passes.spill import Rows, Store
from passes.statistics import Arrays, Progress
from passes.walk import Inputs, walk

TAPS_MAX = 8192
"""Weights that one output channel may have: the covariance of its inputs has the square of that."""
WIDE_MAX = 1 << 17
"""Weights that a layer of wide codes may have: to choose them takes minutes in larger ones, and gains little."""
SPILL = 256 * 2**20
"""Bytes of responses that are held in memory; more goes to a temporary file."""


SLOPE_MAX = 1.25
"""Rows are drawn out by no more: beyond that they are noise."""
SURE = 1.3
"""And not at all where weights that were fitted lose more than so many times as much on other samples."""
BIAS_EXPONENT_MAX = 12
"""Biases are stored as multiples of s_y / 2**e with e up to this."""
NEAREST_BIAS_EXPONENT = 5
"""And of layers that are rounded to the nearest, with this e."""


@dataclass(frozen=True, eq=False)
class Aim:
    """What one layer of the quantized network is to answer.

    Attributes:
        weights: Float weights as stored.
        bias: float32 [C_out].
        source, target: Scales of its input and output.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    source: Scale
    target: Scale


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses of the original layers at the positions where moments are taken, by node name.

    Attributes:
        values: float32 [N, groups, rows, positions], sample by sample.
    """

    values: Mapping[str, Rows | NDArray[np.float32]]


@dataclass(frozen=True)
class ReconstructConfig:
    """How far to go.

    Attributes:
        acc_bits: Signed accumulator width that every channel's sum provably fits.
        is_coarse: Whether weight scales are powers of 2**(1/4) before the grid, and biases multiples of a coarse power
            of two: cheap to store, and the rounding absorbs the error.
        follow: Whether a layer's target makes good for what the layers before it changed, or is its own float weights.
        positions: Of one sample, at most about as many.
    """

    acc_bits: int = 24
    is_coarse: bool = False
    follow: bool = True
    positions: int = 1024


def responses(
    model: ir.Model, names: Mapping[str, str], samples: Arrays, positions: int, progress: Progress | None = None
) -> Responses:
    """What the layers of the original network answer.

    Args:
        model: The original network.
        names: Node name, as the quantized network has it, to the name of the value it is to give.
        samples: Inputs by name, [N, ...].
        positions: As in ReconstructConfig.
        progress: Told ("responses", done, total).
    """
    made = Answers(model, names, statistics.count(samples), positions)
    for index, row in enumerate(statistics.run(model, samples, dict.fromkeys(names.values()))):
        made.add(index, row)
        if progress:
            progress("responses", index + 1, made.count)
    return made.responses


class Answers:
    """Gathers responses, in memory or, where they are many, in a file.

    Args:
        model, names, positions: As in `responses`.
        count: Samples that will come.
    """

    def __init__(self, model: ir.Model, names: Mapping[str, str], count: int, positions: int) -> None:
        known = layers(model)
        made = {str(node.outputs[0].name): known.get(str(node.name)) for node in model.graph if node.outputs}
        self.count, self._positions = count, positions
        self._layers = {name: (value, made[value]) for name, value in names.items()}
        self._values: dict[str, Rows | NDArray[np.float32]] = {}

    def add(self, index: int, row: Mapping[str, NDArray[np.float32]]) -> None:
        """The values of one sample."""
        answers = {}
        for name, (value, layer) in self._layers.items():
            assert layer is not None
            answers[name] = layer.responses(row[value], self._positions)
        if not self._values:
            store = Store() if self.count * sum(each.nbytes for each in answers.values()) > SPILL else None
            for name, each in answers.items():
                whole = (self.count, *each.shape)
                self._values[name] = Rows(store, self.count, each.shape) if store else np.empty(whole, np.float32)
        for name, each in answers.items():
            self._values[name][index] = each

    @property
    def responses(self) -> Responses:
        """What was gathered."""
        return Responses(self._values)


class Reconstruct(Rewrite):
    """Choose the integers of every quantized layer, on what the layers before it, already chosen, really give.

    With x what the layer reads and y what the original answers, the weights aim at the least squared error over the
    samples (or at the float weights), the recipe rounds them for the least error in the metric of x, and the bias takes
    up the mean: b = E[y] - W E[x].

    Args:
        aims: By node name.
        recipes: By node name; Uniform(8) for the others.
        importance: What errors in the output channels cost, by node name; the others' channels count alike.
        wanted: Of the original layers, over these very samples.
        samples: Inputs by name, [N, ...].
        config: How far to go.
        progress: Told ("reconstruct", done, total).

    Source: Frantar et al., GPTQ, ICLR 2023; Nagel et al., Data-Free Quantization, ICCV 2019, section 4.2, for the bias.
    """

    name = "reconstruct"

    def __init__(
        self,
        aims: Mapping[str, Aim],
        wanted: Responses,
        samples: Arrays,
        *,
        recipes: Mapping[str, Recipe] | None = None,
        importance: Mapping[str, Importance] | None = None,
        config: ReconstructConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self._aims, self._wanted, self._samples = aims, wanted, samples
        self._recipes, self._importance = recipes or {}, importance or {}
        self._config, self._progress = config or ReconstructConfig(), progress
        self.storages: dict[str, object] = {}
        self.losses: dict[str, float] = {}
        self.fallbacks: dict[str, str] = {}

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        known = layers(model)

        def visit(node: ir.Node, inputs: Inputs) -> None:
            self._layer(node, known[str(node.name)], inputs, notes)

        walk(model, list(self._aims), self._samples, visit, ("reconstruct", self._progress))

    def _layer(self, node: ir.Node, layer: Layer, inputs: Inputs, notes: Notes) -> None:
        name = str(node.name)
        aim, recipe = self._aims[name], self._recipes.get(name, Uniform())
        if layer.taps > TAPS_MAX or (aim.weights.size > WIDE_MAX and _is_wide(recipe)):
            if not isinstance(recipe, Uniform):
                reason = f"{recipe.name}: its channels have {layer.taps} weights each; it is W8 instead"
                self._fall_back(node, reason, notes)
            self._nearest(node, layer, inputs, recipe if isinstance(recipe, Uniform) else Uniform())
            notes.change(node)
            return
        moments = self._moments(layer, inputs, self._wanted.values[name])
        problem = self._problem(name, layer, aim, moments, recipe)
        is_dead = dead_channels(aim.weights, aim.source, aim.target)
        problem.weights[is_dead.reshape(problem.weights.shape[:2])] = 0
        try:
            coded, scale = self._coded(recipe, problem, aim)
        except RecipeError as error:
            self._fall_back(node, f"{recipe.name}: {error}; it is W8 instead", notes)
            recipe = Uniform()
            problem = self._problem(name, layer, aim, moments, recipe)
            problem.weights[is_dead.reshape(problem.weights.shape[:2])] = 0
            coded, scale = self._coded(recipe, problem, aim)
        real = coded.codes * scale.astype(np.float64).reshape(*coded.codes.shape[:2], 1)
        assert moments.answer is not None
        bias = moments.answer - np.einsum("grt,gt->gr", real, moments.mean)
        bias = np.where(is_dead.reshape(bias.shape), aim.bias.reshape(bias.shape), bias)
        if coded.storage is not None:
            self.storages[name] = coded.storage
        self.losses[name] = problem.loss(real)
        bias = bias.ravel()
        if self._config.is_coarse:
            step = _bias_step(problem, scale, self._importance.get(name)) / math.sqrt(optimism(moments))
            bias = _coarse(bias, step, aim.target)
        stored = bias_codes(bias, aim.source, scale)
        _write(node, np.asarray(layer.stored(coded.codes)), scale, stored, aim.source)
        notes.change(node)

    def _fall_back(self, node: ir.Node, reason: str, notes: Notes) -> None:
        notes.skip(node, reason)
        self.fallbacks[str(node.name)] = reason

    def _nearest(self, node: ir.Node, layer: Layer, inputs: Inputs, recipe: Uniform) -> None:
        """Integers next to the float weights, and a bias that takes up the mean."""
        aim = self._aims[str(node.name)]
        means = Means(layer, self._config.positions)
        for sample, answer in zip(inputs, self._wanted.values[str(node.name)], strict=True):
            means.add(sample, answer)
        is_dead = dead_channels(aim.weights, aim.source, aim.target)
        weights = (aim.weights.T if layer.op == "MatMul" else aim.weights).reshape(layer.channels, layer.taps)
        weights = np.where(is_dead[:, None], np.float32(0), weights)
        wished = recipe.nearest_scales(weights, means.variance)
        scale, codes = fitted(
            wished,
            nearest_codes(weights, recipe.limit),
            aim.bias,
            aim.source,
            aim.target,
            acc_bits=self._config.acc_bits,
            is_coarse=self._config.is_coarse,
            least=_least(weights, means.variance, wished, recipe.limit) if self._config.is_coarse else 0.0,
        )
        sums = np.array([row.astype(np.float64) @ means.mean[index // layer.rows] for index, row in enumerate(codes)])
        bias = np.where(is_dead, aim.bias, means.answer.ravel() - sums * scale)
        if self._config.is_coarse:
            bias = _coarse(bias, aim.target.scale / 2**NEAREST_BIAS_EXPONENT, aim.target)
        stored = bias_codes(bias, aim.source, scale)
        _write(node, np.asarray(layer.stored(codes)), scale, stored, aim.source)

    def _moments(self, layer: Layer, inputs: Inputs, wanted: Rows | NDArray[np.float32]) -> Moments:
        gatherer = Gatherer(layer, self._config.positions)
        for sample, answer in zip(inputs, wanted, strict=True):
            gatherer.add(sample, answer)
        return gatherer.moments()

    def _problem(self, name: str, layer: Layer, aim: Aim, moments: Moments, recipe: Recipe) -> Problem:
        importance = self._importance.get(name) or Importance.even(layer.channels)
        made = problem_of(layer, aim.weights, moments, importance)
        if isinstance(recipe, AsFound) or not self._config.follow:
            return made
        return replace(made, weights=_followed(made.weights, moments, is_wary=_is_wide(recipe)))

    def _coded(self, recipe: Recipe, problem: Problem, aim: Aim) -> tuple[Coded, NDArray[np.float32]]:
        latest: list[Coded] = []

        def rounding(scale: NDArray[np.float64]) -> NDArray[np.int32]:
            latest[:] = [recipe.codes(problem, scale.reshape(problem.weights.shape[:2]))]
            return latest[0].codes.reshape(scale.size, -1)

        wished = recipe.scales(problem).ravel()
        is_best = isinstance(recipe, Uniform) and recipe.is_searched
        rows, diagonal = problem.weights.reshape(wished.size, -1), np.diagonal(problem.hessian, axis1=1, axis2=2)
        scale, _ = fitted(
            np.where(problem.weights.any(axis=2).ravel(), wished, 0.0),
            rounding,
            aim.bias,
            aim.source,
            aim.target,
            acc_bits=self._config.acc_bits,
            is_coarse=self._config.is_coarse and not isinstance(recipe, AsFound),
            least=_least(rows, diagonal, wished, recipe.limit) if self._config.is_coarse and not is_best else 0.0,
        )
        return latest[0], scale


def _is_wide(recipe: Recipe) -> bool:
    """Whether its codes are the nearest, or so wide that others are hardly better."""
    return isinstance(recipe, Uniform) and (recipe.is_nearest or recipe.bits >= WIDE_BITS)


def _followed(weights: NDArray[np.float64], moments: Moments, *, is_wary: bool) -> NDArray[np.float64]:
    """The weights of least squared error towards the wanted responses, held to the float weights by the damping.

    W + (C_yx - W C_xx) (C_xx + damping)^-1; a weight of 0 stays 0.

    What a layer reads carries noise, and least squares against noise shrinks: on samples unlike the calibration's,
    where signals are larger, every layer would answer too little, and a deep network all the less. So rows are drawn
    out again, by the root of what would give their regression on the wanted answers the slope 1: the variance is then
    that of the wanted ones; where samples are so few that the slope is chance, they are not. Codes of 8 bits leave
    little but noise; there weights are moved by no more than the share of the error that moving them takes away.

    Args:
        weights: float64 [groups, rows, taps].
        moments: Of what the layer reads, with the wanted responses.
        is_wary: Whether the layers before made hardly more error than the activations' rounding.

    Source: Fuller, Measurement Error Models, 1987, section 1.1, for the attenuation.
    """
    cross = moments.cross_covariance
    assert cross is not None
    hessian = moments.hessian(SHRINKAGE)
    rest = cross - weights @ moments.covariance
    moved = weights + np.stack([np.linalg.solve(h, r.T).T for h, r in zip(hessian, rest, strict=True)])
    if is_wary:
        moved = weights + _explained(weights, moved, moments) * (moved - weights)
    if optimism(moments) <= SURE:
        moved = moved * np.sqrt(_slope(moved, moments))[:, :, None]
    return np.where(weights != 0, moved, 0.0)


def _explained(before: NDArray[np.float64], after: NDArray[np.float64], moments: Moments) -> float:
    """The share of the squared error towards the wanted responses that other weights take away, 0 to 1."""
    old, new = (_error(weights, moments) for weights in (before, after))
    return min(max(1 - new / old, 0.0), 1.0) if old > 0 else 0.0


def _error(weights: NDArray[np.float64], moments: Moments) -> float:
    """Mean squared error towards the wanted responses, their means apart, of all rows together."""
    variance, cross = moments.answer_variance, moments.cross_covariance
    assert variance is not None
    assert cross is not None
    own = np.einsum("grt,grt->gr", weights @ moments.covariance, weights)
    return float((variance - 2 * np.einsum("grt,grt->gr", weights, cross) + own).sum())


def _slope(weights: NDArray[np.float64], moments: Moments) -> NDArray[np.float64]:
    """By what to multiply each row for its answers to follow the wanted ones one to one, float64 [groups, rows].

    1 where the two are hardly related.
    """
    variance, cross = moments.answer_variance, moments.cross_covariance
    assert variance is not None
    assert cross is not None
    shared = np.einsum("grt,grt->gr", weights, cross)
    is_related = shared * SLOPE_MAX > variance
    slope = np.divide(variance, shared, out=np.ones_like(shared), where=is_related & (shared > 0))
    return np.clip(slope, 1 / SLOPE_MAX, SLOPE_MAX)


def _least(
    weights: NDArray[np.floating], variance: NDArray[np.float64], wished: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    """Scales that the coarse grid shall not undercut, float64 [C_out]: a finer one errs more, for it cuts weights.

    0 where the finer one is as good. Weights are [C_out, taps], variances of what they read [groups, taps].
    """
    steps = np.floor(np.log2(np.maximum(wished, np.finfo(np.float32).tiny)) * STEPS_PER_OCTAVE)
    finer, coarser = (np.exp2((steps + add) / STEPS_PER_OCTAVE) for add in (0, 1))
    group = len(weights) // len(variance)

    def error(index: int, scale: float) -> float:
        row = weights[index].astype(np.float64)
        rounded = np.clip(np.rint(row / scale), -limit, limit) * scale
        return float(np.square(rounded - row) @ variance[index // group])

    is_better = [error(index, coarser[index]) < error(index, finer[index]) for index in range(len(weights))]
    return np.where(is_better, coarser * (1 - 1e-9), 0.0)


def _bias_step(problem: Problem, scale: NDArray[np.float32], importance: Importance | None) -> float:
    """The step of the biases whose rounding costs the network as much as that of one weight.

    With s a step, a bias' error is shared by all positions and costs shared * s^2 / 12, a weight's costs
    importance * left * s^2 / 12.
    """
    steps = np.square(scale.astype(np.float64)).reshape(problem.importance.shape)
    weight = float((problem.importance * problem.left[:, None] * steps).mean())
    shared = 1.0 if importance is None else float(importance.shared.mean())
    return math.sqrt(weight / max(shared, 1e-30))


def _coarse(bias: NDArray[np.float64], step: float, target: Scale) -> NDArray[np.float64]:
    """Biases as multiples of s_y / 2**e, the largest such step that is at most `step`, with e from 0 to 12."""
    exponent = math.ceil(math.log2(target.scale / step)) if step > 0 else BIAS_EXPONENT_MAX
    unit = math.ldexp(target.scale, -min(max(exponent, 0), BIAS_EXPONENT_MAX))
    return np.asarray(np.rint(bias / unit) * unit)


def _write(
    node: ir.Node,
    codes: NDArray[np.generic],
    scale: NDArray[np.float32],
    bias: NDArray[np.int32],
    source: Scale,
) -> None:
    """Put integers into the initializers in front of the node's DequantizeLinear nodes."""
    weights = node.inputs[1].producer() if node.inputs[1] is not None else None
    biases = node.inputs[2].producer() if node.inputs[2] is not None else None
    assert weights is not None
    assert biases is not None
    dtype = np.int8 if np.abs(codes).max(initial=0) <= WEIGHT_MAX else np.int16
    _set(weights.inputs[0], codes.astype(dtype))
    _set(weights.inputs[1], scale)
    _set(biases.inputs[0], bias)
    _set(biases.inputs[1], scale * np.float32(source.scale))


def _set(value: ir.Value | None, array: NDArray[np.generic]) -> None:
    assert value is not None
    value.const_value = ir.Tensor(array, name=value.name)
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
