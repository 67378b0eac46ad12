"""The budget search: which recipe each layer gets, by predicted losses, judged by what the whole network then answers.

Predictions choose: an exact dynamic program over every layer's options. Measurements decide: the plan is carried out
layer by layer, the network's answers on samples that were not calibrated on are compared, and the predicted loss that
the plan may have is bisected until the answers just keep to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.metrics import Outputs, Task
from compiler.quality import in_onnxruntime
from passes import graph as edit
from passes import low_rank
from passes.budget import Option, Plan, choose, pareto, plan_of
from passes.gram import Moments, collect_moments
from passes.layer import Layer, layers
from passes.low_rank import Choice
from passes.problem import Importance, problem_of
from passes.quantize import Calibrated, Quantized
from passes.recipes.base import Recipe
from passes.recipes.families import BIAS_BITS, NAMES, SCALE_BITS, LayerOption, options, stored_bits
from passes.recipes.halves import importance_before
from passes.scales import WEIGHTED
from passes.statistics import Arrays, Progress
from passes.storage.weight_only import StoreWeights, WeightOnlyConfig

TRIALS = 8
"""Plans that are carried out and measured, at most."""
FIRST, STRIDE = 0.05, 4.0
"""Predicted loss of the first plan, and by what it is changed until the answer lies between two plans."""
GRAPH_BYTES = 700
CLOSE = 1.15
"""Two predicted losses nearer than this factor are one: the search ends."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A calibrated network, and what judges it.

    Attributes:
        calibrated: Activations quantized.
        importance: What errors cost, by node name.
        choose: Samples on which plans are judged, not calibrated on.
        task: Metric over these samples.
        families: That may be used.
        split: Makes the float network in which some layers are two of lower rank, by their choices, and calibrates it;
            None where layers stay whole.
        threads: Layers whose options are measured at the same time.
        seed: Of stochastic rounding.
    """

    calibrated: Calibrated
    importance: Mapping[str, Importance]
    choose: Arrays
    task: Task
    families: tuple[str, ...] = NAMES
    threads: int = 2
    seed: int = 0
    split: Callable[[Mapping[str, Choice]], tuple[ir.Model, Calibrated]] | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """A plan that was carried out.

    Attributes:
        recipes: By node name; both halves of a split layer have its option.
        predicted: Sum of the predicted losses of its layers.
        quantized: The network.
        outputs: Of the judged samples.
        drop: In the metric's own unit.
        divergence: From the original's answers, in the unit of `predicted`.
        bytes: Of the file, estimated from the codes unless it is weighed.
        split: The float network in which layers were split, or None.
        refused: Why the guard did not keep it; empty where it was kept or nothing was guarded.
    """

    recipes: Mapping[str, LayerOption]
    predicted: float
    quantized: Quantized
    outputs: Outputs
    drop: float
    divergence: float
    bytes: int
    split: ir.Model | None = None
    refused: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """Method families of its layers, sorted."""
        return tuple(sorted({option.family for option in self.recipes.values()}))


@dataclass(eq=False)
class Search:
    """Options of every layer, and the plans that were tried.

    Args:
        subject: What is searched.
        progress: Told ("options" or "try", done, total).
        weigh: Bytes of the file that a network becomes; None estimates them, which is for plans that no size binds.
    """

    subject: Subject
    progress: Progress | None = None
    weigh: Callable[[Quantized], int] | None = None
    names: list[str] = field(default_factory=list)
    table: list[list[LayerOption]] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    _splits: dict[tuple[tuple[str, str], ...], tuple[ir.Model, Calibrated]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Measure every option of every layer."""
        calibrated = self.subject.calibrated
        self.names = list(calibrated.aims)
        moments = collect_moments(calibrated.source, calibrated.samples, self.names)
        known, nodes = layers(calibrated.source), {str(node.name): node for node in calibrated.source.graph}
        done = 0

        def measured(name: str) -> list[LayerOption]:
            nonlocal done
            found = self._options(nodes[name], known[name], moments[name])
            done += 1
            if self.progress:
                self.progress("options", done, len(self.names))
            return found

        # The largest layers first: none of them is left alone at the end.
        order = sorted(self.names, key=lambda name: -_work(known[name]))
        with ThreadPoolExecutor(self.subject.threads) as pool:
            found = dict(zip(order, pool.map(measured, order)))
        self.table = [found[name] for name in self.names]

    def _options(self, node: ir.Node, layer: Layer, moments: Moments) -> list[LayerOption]:
        weights = edit.constant(edit.operand(node, 1))
        assert weights is not None
        importance = self.subject.importance.get(str(node.name)) or Importance.even(layer.channels)
        problem = problem_of(layer, weights, moments, importance)
        window = _divisible(node) if self.subject.split else None
        return options(
            problem, self.subject.families, tensor=str(node.name), seed=self.subject.seed, window=window
        )

    def within_drop(self, max_drop: float) -> Trial | None:
        """The smallest plan that drops the metric by no more than `max_drop`; None where not even the best does."""
        best: Trial | None = None
        low, high = 0.0, math.inf
        loss = FIRST
        least = sum(min(each.loss for each in row) for row in self.table)
        for _ in range(TRIALS):
            trial = self.attempt(self._smallest(loss))
            if self.subject.task.keeps(trial.outputs, max_drop):
                best = trial if best is None or trial.bytes <= best.bytes else best
                low = loss
            else:
                high = loss
                self.refuse(trial, max_drop)
            if low and high / low < CLOSE or high <= least:
                break
            loss = loss * STRIDE if math.isinf(high) else high / STRIDE if not low else math.sqrt(low * high)
            loss = max(loss, least)
        return best

    def refuse(self, trial: Trial, max_drop: float) -> None:
        """Note that the guard did not keep a plan, and why."""
        why = self.subject.task.excess(trial.outputs, max_drop)
        self.trials = [replace(each, refused=why) if each is trial else each for each in self.trials]

    def within_size(self, max_bytes: int) -> tuple[Trial, bool]:
        """The plan of least predicted loss whose file keeps to `max_bytes`, and whether it does."""
        aim = max_bytes
        best: Trial | None = None
        tried: list[Plan] = []
        for _ in range(TRIALS):
            found = choose(self._table(), max_bytes=max(aim, 0))
            if found.plan in tried:
                break
            tried.append(found.plan)
            trial = self.attempt(found.plan)
            if trial.bytes <= max_bytes:
                best = trial if best is None or trial.predicted < best.predicted else best
                if trial.bytes > 0.99 * max_bytes:
                    break
            elif not found.is_feasible:
                return (best or trial), best is not None
            aim += max_bytes - trial.bytes
        return (best, True) if best is not None else (self.trials[-1], False)

    def front(self, points: int) -> list[Trial]:
        """Plans along the predicted front, carried out, from the smallest."""
        plans = pareto(self._table(), points=points)
        return [self.attempt(plan) for plan in plans]

    def alone(self) -> Trial:
        """The plan of least predicted loss in which every layer uses the families asked for, where they offer any."""
        indices = []
        for row in self.table:
            own = [index for index, each in enumerate(row) if each.family in self.subject.families]
            indices.append(min(own or range(len(row)), key=lambda index: row[index].loss))
        return self.attempt(plan_of(self._table(), indices))

    def attempt(self, plan: Plan) -> Trial:
        """Carry a plan out and judge it."""
        chosen = {name: row[index] for name, row, index in zip(self.names, self.table, plan.indices, strict=True)}
        return self.carry_out(chosen, plan.loss)

    def carry_out(self, chosen: Mapping[str, LayerOption], predicted: float) -> Trial:
        """Quantize by these options and judge the answers."""
        if self.progress:
            self.progress("try", len(self.trials) + 1, TRIALS)
        calibrated, importance, split = self.subject.calibrated, self.subject.importance, None
        if choices := {name: option.split for name, option in chosen.items() if option.split is not None}:
            split, calibrated = self._split(choices)
            chosen, importance = _by_parts(chosen, importance, calibrated.source)
        recipes: dict[str, Recipe] = {name: option.recipe for name, option in chosen.items()}
        quantized = _stored(calibrated.quantized(recipes, importance))
        outputs = in_onnxruntime(quantized.model, self.subject.choose)
        drop = self.subject.task.drop(outputs)
        divergence = self.subject.task.divergence(outputs)
        size = (self.weigh or estimated_bytes)(quantized)
        trial = Trial(chosen, predicted, quantized, outputs, drop, divergence, size, split)
        self.trials.append(trial)
        return trial

    def _split(self, choices: Mapping[str, Choice]) -> tuple[ir.Model, Calibrated]:
        """The network with these layers as two, made once for each set of choices."""
        assert self.subject.split is not None
        key = tuple(sorted((name, str(choice)) for name, choice in choices.items()))
        if key not in self._splits:
            self._splits[key] = self.subject.split(choices)
        return self._splits[key]

    def _table(self) -> list[list[Option]]:
        return [
            [Option(each.name, each.loss, math.ceil(each.bits / 8), 0) for each in row] for row in self.table
        ]

    def _smallest(self, loss: float) -> Plan:
        return choose(self._table(), max_loss=loss).plan


def _divisible(node: ir.Node) -> low_rank.Window | None:
    """Sizes of a layer that may become two; None for one that is a part already, or of no such kind."""
    if node.op_type not in ("Conv", "Gemm") or low_rank.METADATA in node.metadata_props:
        return None
    window = low_rank.window_of(node)
    return None if isinstance(window, str) else window


def _by_parts(
    chosen: Mapping[str, LayerOption], importance: Mapping[str, Importance], model: ir.Model
) -> tuple[dict[str, LayerOption], dict[str, Importance]]:
    """Options and importance of the nodes of a network in which layers are two."""
    options, costs, nodes = dict(chosen), dict(importance), {str(node.name): node for node in model.graph}
    for name, split in low_rank.splits(model).items():
        if name not in chosen or chosen[name].split is None:
            continue
        options |= dict.fromkeys(split.nodes, chosen[name])
        weights = edit.constant(edit.operand(nodes[name], 1))
        if weights is not None and name in importance:
            costs[split.nodes[0]] = importance_before(weights, importance[name])
    return options, costs


def _work(layer: Layer) -> int:
    """Multiplications of one sweep over all groups, by which layers are put in order."""
    return layer.channels * layer.taps * layer.taps


def _stored(quantized: Quantized) -> Quantized:
    """With large weights of float nodes as integers, too: what is judged is what is written."""
    step = StoreWeights(WeightOnlyConfig())
    step(quantized.model)
    told, more = quantized.report, step.report
    skipped = {**told.skipped, **more.skipped}
    return replace(quantized, report=replace(told, changed=(*told.changed, *more.changed), skipped=skipped))


def estimated_bytes(quantized: Quantized) -> int:
    """About how large the container becomes: codes or what they are stored as, scales, biases, and a graph."""
    bits = sum(layer_bits(node, quantized.storages.get(str(node.name))) for node in quantized.model.graph)
    return math.ceil(bits / 8) + GRAPH_BYTES


def layer_bits(node: ir.Node, storage: object | None = None) -> float:
    """Bits of the integers of one quantized layer, or of their stored form, and its scales; 0 for other nodes."""
    found = coded_layer(node)
    if found is None:
        return 0.0
    weights, biases = found
    rows = weights.reshape(len(weights), -1)
    bits = stored_bits(rows, storage, weights.shape[2:])
    return bits + BIAS_BITS * len(biases) + SCALE_BITS * int(rows.any(axis=1).sum())


def coded_layer(node: ir.Node) -> tuple[NDArray[np.integer], NDArray[np.integer]] | None:
    """Integer weights and biases of a quantized layer."""
    if node.op_type not in WEIGHTED or len(node.inputs) < 3:
        return None
    producers = [value.producer() if value is not None else None for value in node.inputs[1:3]]
    found = [None if producer is None else edit.constant(producer.inputs[0]) for producer in producers]
    if found[0] is None or found[1] is None:
        return None
    return found[0].astype(np.int64), found[1].astype(np.int64)
