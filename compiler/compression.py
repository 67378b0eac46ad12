"""From a float network and samples to its compressed form: budgets, integers, and the file that holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from compiler import calibration, container, stored
from compiler.calibration import Samples
from compiler.images import ImageOptions
from compiler.metrics import (
    COUNTED,
    Comparison,
    Metric,
    Split,
    Task,
    amount,
    choose_metric,
    drop_limit,
    parse_drop,
    split,
)
from compiler.quality import first, in_onnxruntime
from compiler.search import Search, Subject, Trial
from compiler.structure import NAMES as STRUCTURES
from compiler.structure import Shaped, StructureSearch, split_network
from compiler.targets import OptionError
from passes import sensitivity, statistics
from passes.base import PassReport
from passes.cones import CLAMPS
from passes.low_rank import Choice
from passes.move_dequantize import SinkDequantize
from passes.problem import Importance
from passes.quantize import Calibrated, QuantizeConfig, Quantized
from passes.recipes.base import Recipe
from passes.recipes.coded import Codebook, Stochastic
from passes.recipes.families import NAMES as CODINGS
from passes.recipes.families import LayerOption
from passes.recipes.uniform import WIDE_BITS, Uniform
from passes.scales import ActivationConfig
from passes.statistics import Progress, quantized_points, sqnr
from passes.storage.compact import compact
from passes.storage.emit_structured import emit
from passes.storage.weight_only import StoreWeights, WeightOnlyConfig

FIXED_POINT, STOCHASTIC, CODEBOOK = "fixed-point", "stochastic", "codebook"
INDEX_BITS = range(3, 6)
"""Widths at which as many numbers of any size may serve better than integers."""
WORTH = 0.6
"""Of the loss or drop of integers, what a codebook must come down to."""
LARGE = 1 << 22
"""Weights from which on a network of a given width is rounded once, at one scale for each channel."""
NAMES = tuple(dict.fromkeys((*CODINGS, *STRUCTURES)))
"""Every method family."""
STRUCTURES_TRIED, STRUCTURE_SAMPLES = 8, 512
STRUCTURE_LOSSES = (1e-6, 0.3)
"""Predicted losses, in nats, between which a structure is looked for that keeps to the drop."""
STRUCTURES_REFINED = 3
"""Structures that are tried between one whose integers keep to it and one whose do not."""
HALF, MOST = 0.5, 0.8
"""Shares of one file's samples to calibrate on, with and without a budget to choose by."""
MEASURED = 64
"""Samples for the signal to noise ratios of the report."""
SAMPLES, SAMPLES_OF_FEW, POSITIONS = 256, 4096, 256
"""For the reconstruction: many samples at few positions say more than few at many, and more yet where a sample has one
position alone."""


@dataclass(frozen=True)
class Budget:
    """What the search must keep to.

    Attributes:
        max_drop: As the user wrote it, "1.0pt"; None sets no bound.
        max_bytes: Of the whole container.
        max_macs: Multiply-accumulates of one inference.
        fewest_macs: Whether `max_drop` is spent on multiplications instead of bytes.
        is_guarded: Whether `max_drop` decides; else the families asked for are used in every layer.
        points: Of the measured front besides the result.
    """

    max_drop: str | None = None
    max_bytes: int | None = None
    max_macs: int | None = None
    fewest_macs: bool = False
    is_guarded: bool = True
    points: int = 0

    @property
    def asks_macs(self) -> bool:
        """Whether it is about multiplications."""
        return self.fewest_macs or self.max_macs is not None

    @property
    def is_open(self) -> bool:
        """Whether it leaves the bits of the weights to the user."""
        return (self.max_drop is None or self.fewest_macs) and self.max_bytes is None and not self.points


@dataclass(frozen=True)
class CompressOptions:
    """What to compress to, and how.

    Attributes:
        calibration: Samples to calibrate on and, where there is no other file, to choose by.
        evaluation: Samples to choose by instead, with labels where the metric needs them.
        scale, mean, images: Preprocessing, x = (sample - mean) * scale.
        input_shapes: Static shapes of dynamic inputs.
        weights: Bits of every layer where no budget decides.
        is_stochastic: Round weights stochastically (with `seed`) instead of for the least error.
        activations: How activations are quantized.
        families: Method families that the search may use.
        budget: What it must keep to.
        metric: Kind of metric, or None for the best that there is.
        seed: Of the split, the random directions and stochastic rounding.
        threads: Layers that are worked on at the same time; the result is the same.
    """

    calibration: Path | None = None
    evaluation: Path | None = None
    scale: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    images: ImageOptions = ImageOptions()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: int = 8
    is_stochastic: bool = False
    activations: ActivationConfig = ActivationConfig()
    families: tuple[str, ...] = NAMES
    budget: Budget = Budget()
    metric: str | None = None
    seed: int = 0
    threads: int = 2

    @property
    def codings(self) -> tuple[str, ...]:
        """The families that code weights."""
        return tuple(name for name in self.families if name in CODINGS)

    @property
    def is_searched(self) -> bool:
        """Whether recipes are searched for; else every layer gets `weights` bits."""
        codings = set(self.codings) - (set(STRUCTURES) if self.budget.asks_macs else set())
        is_plain = FIXED_POINT in codings or not codings or self.is_stochastic
        return not (self.budget.is_open and is_plain)

    def facts(self) -> dict[str, str]:
        """Everything but the samples and shapes, as text, for the manifest."""
        budget, acts = self.budget, self.activations
        settings: dict[str, object] = {
            "evaluation": self.evaluation.name if self.evaluation else "",
            "metric": self.metric or "",
            "weights": self.weights,
            "stochastic": self.is_stochastic,
            "activations": acts.bits,
            "symmetric": acts.symmetric,
            "power_of_two": acts.power_of_two,
            "families": ",".join(self.families),
            "max_drop": budget.max_drop or "",
            "max_size": budget.max_bytes or "",
            "max_macs": budget.max_macs or "",
            "fewest_macs": budget.fewest_macs,
            "guard": budget.is_guarded,
            "pareto": budget.points,
            "seed": self.seed,
        }
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}

    def check(self) -> None:
        """Refuse what has no meaning.

        Raises:
            OptionError: Options contradict each other.
        """
        if self.budget.fewest_macs and self.budget.max_drop is None:
            error = OptionError("--fewest-macs has no drop to spend")
            error.add_note("remedy: give --max-drop, or --max-macs instead")
            raise error
        if not self.codings and not self.budget.asks_macs:
            error = OptionError(f"{' and '.join(self.families)} alone: nothing says how many multiplications to keep")
            error.add_note("remedy: give --max-macs, or --max-drop with --fewest-macs")
            raise error


@dataclass(frozen=True, eq=False)
class Parts:
    """Samples in their roles.

    Attributes:
        calibrate: For ranges, moments and rounding.
        choose: Where plans are judged.
        sentence: What was done, for the report.
        warnings: What the user should know.
    """

    calibrate: Samples
    choose: Samples
    sentence: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Compressed:
    """A network in its compressed form.

    Attributes:
        shaped: The float network that was quantized.
        quantized: As the search left it.
        onnx: model.onnx, serialized.
        packed: model.edgec.
        metric: By which plans were judged.
        sizes: Of its parts.
        comparison: With the original, on the samples that judge.
        sqnr: Signal to noise of each layer's output, in dB, by node name.
        activation_bits: Of every quantized activation.
        recipes: Of every layer, by node name.
        is_met: Whether every budget is kept to.
        missed: Sentences about the budgets that are not.
        trials: Plans that were carried out.
        importance: What errors cost, by node name.
        reports: What each pass did.
        options: Every option of every layer that the search measured.
        refused: Why the guard took back a structure that was tried, by the families in it.
    """

    shaped: Shaped
    quantized: Quantized
    onnx: bytes
    packed: bytes
    metric: Metric
    sizes: container.Sizes
    comparison: Comparison
    sqnr: Mapping[str, float]
    activation_bits: int
    recipes: Mapping[str, Recipe]
    missed: tuple[str, ...]
    trials: tuple[Trial, ...]
    importance: Mapping[str, Importance]
    reports: tuple[PassReport, ...]
    options: Mapping[str, tuple[LayerOption, ...]]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        return not self.missed


def chosen_families(only: Sequence[str], without: Sequence[str]) -> tuple[str, ...]:
    """The families that --only and --without leave.

    Raises:
        OptionError: A name is unknown, or nothing is left.
    """
    for name in (*only, *without):
        if name not in NAMES:
            error = OptionError(f"there is no method family {name!r}")
            error.add_note(f"remedy: one of {', '.join(NAMES)}")
            raise error
    left = tuple(name for name in NAMES if (not only or name in only) and name not in without)
    if not left:
        error = OptionError("no method family is left")
        error.add_note("remedy: name fewer with --without")
        raise error
    return left


def read_parts(model: ir.Model, options: CompressOptions, progress: Progress) -> Parts:
    """The samples to calibrate on and to choose by: disjoint."""
    how = {"scale": options.scale, "mean": options.mean, "image_options": options.images}
    # Without a budget nothing is chosen: most samples are better spent on calibration.
    share = MOST if options.budget.is_open and options.budget.max_drop is None else HALF
    if options.calibration is None:
        samples = calibration.synthetic_samples(model, seed=options.seed)
        return _divided(split(samples, options.seed, share), samples.warnings)
    samples = calibration.read_calibration(options.calibration, model, **how, progress=progress)  # type: ignore[arg-type]
    if options.evaluation is None:
        return _divided(split(samples, options.seed, share), samples.warnings)
    others = calibration.read_samples(options.evaluation, model, **how, progress=progress)  # type: ignore[arg-type]
    sentence = (
        f"{samples.count} samples of {options.calibration.name} to calibrate on, "
        f"{others.count} of {options.evaluation.name} to choose by"
    )
    return Parts(samples, others, sentence, (*samples.warnings, *others.warnings))


def _divided(parts: Split, warnings: tuple[str, ...]) -> Parts:
    more = (parts.warning,) if parts.warning else ()
    return Parts(parts.calibrate, parts.choose, parts.sentence, (*warnings, *more))


def compress_network(
    model: ir.Model,
    nodes_of: Callable[[ir.Model], frozenset[str]],
    parts: Parts,
    options: CompressOptions,
    progress: Progress,
    write: Callable[[Quantized], tuple[bytes, tuple[PassReport, ...]]] | None = None,
) -> Compressed:
    """Compress a canonical float network.

    Args:
        model: Intact afterwards.
        nodes_of: Names of the nodes of a network that get integer arithmetic.
        parts: Samples.
        options: Budgets and settings.
        progress: Told (what, done, total).
        write: Makes the file of a network, by which --max-size weighs it, and tells what that took; `onnx_file`
            where none is given.

    Raises:
        OptionError: A budget or metric does not fit the network or the samples.
    """
    options.check()
    task, limit = _task(model, parts, options)
    write = write or onnx_file
    refused: dict[str, str] = {}

    def weigh(quantized: Quantized) -> int:
        """Bytes of model.edgec."""
        return len(container.pack(write(quantized)[0], verify=False))

    def search_of(shaped: Shaped) -> Search:
        samples = parts.calibrate.arrays
        calibrated = Calibrated.of(shaped.model, nodes_of(shaped.model), samples, _config(options), progress)
        found = _importance(calibrated.source, parts, options, progress) if options.is_searched else {}

        def split(choices: Mapping[str, Choice]) -> tuple[ir.Model, Calibrated]:
            model = split_network(shaped.model, choices, samples, found)
            return model, Calibrated.of(model, nodes_of(model), samples, _config(options), progress)

        subject = Subject(
            calibrated, found, parts.choose.arrays, task, options.codings, options.threads, options.seed, split
        )
        return Search(subject, progress, weigh if options.budget.max_bytes is not None else None)

    shaped, missed = _shaped(model, parts, options, task, limit, search_of, refused, progress)
    search = search_of(shaped)
    trial, more = _searched(search, options, limit)
    if trial.split is not None:
        shaped = shaped.with_splits(trial.split)
    quantized = trial.quantized
    data, reports = write(quantized)
    packed, sizes = container.pack_with_sizes(data)
    if options.budget.max_bytes is not None and len(packed) > options.budget.max_bytes:
        missed = (*missed, f"the nearest file has {len(packed)} bytes, not {options.budget.max_bytes}")
    return Compressed(
        shaped,
        quantized,
        data,
        packed,
        task.metric,
        sizes,
        task.compare(trial.outputs),
        _sqnr(shaped.model, quantized, parts, progress),
        options.activations.bits,
        {name: Uniform() if name in quantized.fallbacks else o.recipe for name, o in trial.recipes.items()},
        (*missed, *more),
        tuple(search.trials),
        search.subject.importance,
        (*shaped.reports, quantized.report, *reports),
        dict(zip(search.names, map(tuple, search.table), strict=True)),
        refused,
    )


def _shaped(
    model: ir.Model,
    parts: Parts,
    options: CompressOptions,
    task: Task,
    limit: float | None,
    search_of: Callable[[Shaped], Search],
    refused: dict[str, str],
    progress: Progress,
) -> tuple[Shaped, tuple[str, ...]]:
    """The network with the structure that the budget of multiplications asks for, and what is missed.

    Why the guard took structures back is added to `refused`, by family.
    """
    budget, families = options.budget, tuple(name for name in options.families if name in STRUCTURES)
    whole = StructureSearch(model, {}, {}).whole()
    if not budget.asks_macs:
        return whole, ()
    if not families:
        return whole, _missed_macs(whole, budget.max_macs)
    samples = statistics.spread(parts.calibrate.arrays, STRUCTURE_SAMPLES)
    # A channel that goes is no small error, and probes of small ones would make the last layers cheap.
    costs = sensitivity.importance(
        model, samples, seed=options.seed, is_correlated=True, progress=progress
    ).importance
    search = StructureSearch(model, samples, costs, families, progress=progress)
    search.prepare()
    if budget.max_macs is not None:
        shaped = search.within(budget.max_macs)
        return shaped, _missed_macs(shaped, budget.max_macs)

    def excess(shaped: Shaped) -> str:
        """Why the answers of a network do not keep to the drop; empty where they do."""
        outputs = in_onnxruntime(shaped.model, parts.choose.arrays)
        return "" if limit is None or task.keeps(outputs, limit) else task.excess(outputs, limit)

    return _fewest(whole, search, excess, search_of, options, refused), ()


def _missed_macs(shaped: Shaped, max_macs: int | None) -> tuple[str, ...]:
    if max_macs is None or shaped.macs <= max_macs:
        return ()
    return (f"the fewest multiplications of any plan are {shaped.macs}, not {max_macs}",)


def _fewest(
    whole: Shaped,
    search: StructureSearch,
    excess: Callable[[Shaped], str],
    search_of: Callable[[Shaped], Search],
    options: CompressOptions,
    refused: dict[str, str],
) -> Shaped:
    """The network with the fewest multiplications that keeps to the drop, in float and then with its integers."""
    kept, (low, high) = [whole], STRUCTURE_LOSSES

    def refuse(shaped: Shaped, why: str) -> None:
        for family in shaped.structure.families:
            refused[family] = f"at {shaped.macs:,} multiplications the network {why}"

    for _ in range(STRUCTURES_TRIED):
        loss = math.sqrt(low * high)
        shaped = search.spending(loss)
        if why := excess(shaped):
            refuse(shaped, f"{why}, in float")
            high = loss
        else:
            if shaped.macs < kept[-1].macs:
                kept.append(shaped)
            low = loss

    def keeps_as_integers(shaped: Shaped) -> bool:
        trial, missed = _searched(search_of(shaped), options, None)
        why = "; ".join(missed) or excess(Shaped(trial.quantized.model, shaped.structure, {}, shaped.macs))
        if why:
            refuse(shaped, f"{why}, with its integers")
        return not why

    is_cut = False
    while len(kept) > 1 and not keeps_as_integers(kept[-1]):
        high, is_cut = kept.pop().structure.loss, True
    if not is_cut:
        return kept[-1]
    return _refined(kept[-1], high, search, lambda each: not excess(each) and keeps_as_integers(each))


def _refined(best: Shaped, high: float, search: StructureSearch, keeps: Callable[[Shaped], bool]) -> Shaped:
    """The fewest multiplications between a network that keeps to the drop and a predicted loss that does not."""
    low = max(best.structure.loss, STRUCTURE_LOSSES[0])
    for _ in range(STRUCTURES_REFINED):
        loss = math.sqrt(low * high)
        shaped = search.spending(loss)
        if shaped.macs >= best.macs:
            low = loss
        elif keeps(shaped):
            low, best = loss, shaped
        else:
            high = loss
    return best


def _task(model: ir.Model, parts: Parts, options: CompressOptions) -> tuple[Task, float | None]:
    """What judges, and the drop that it may show, in its own unit."""
    outputs, inputs, labels = in_onnxruntime(model, parts.choose.arrays), parts.choose.arrays, parts.choose.labels
    drop = None if options.budget.max_drop is None else parse_drop(options.budget.max_drop)
    kind = options.metric
    if kind is None and labels is None and drop is not None and drop.unit == "pt":
        kind = "agreement"  # without labels, points can only be points of agreement
    metric = choose_metric(outputs, inputs, labels, kind=kind)
    task = Task(metric, outputs, inputs, labels, options.seed)
    return task, None if drop is None else drop_limit(drop, task)


def _config(options: CompressOptions) -> QuantizeConfig:
    return QuantizeConfig(
        activations=options.activations,
        reconstruction_samples=SAMPLES,
        samples_of_few=SAMPLES_OF_FEW,
        positions=POSITIONS,
        is_coarse=True,
    )


def _importance(
    model: ir.Model, parts: Parts, options: CompressOptions, progress: Progress
) -> Mapping[str, Importance]:
    """What errors cost, by gradients and then by probes."""
    samples = parts.calibrate.arrays
    found = sensitivity.importance(model, samples, seed=options.seed, progress=progress)
    return sensitivity.calibrated(model, samples, found, progress=progress).importance


def _at_width(search: Search, options: CompressOptions) -> Trial:
    """Every layer at the bits asked for.

    Narrow codes are tried as integers and as indices of a codebook: of as many numbers, but any. Those take about half
    a bit more once they are coded, for which rounding gives about half the loss: less is no reason to take them. Of
    metrics that count samples the divergence alone tells, for their drop is chance.
    """
    bits, aims = options.weights, search.subject.calibrated.aims

    def tried(family: str, recipe: Recipe) -> Trial:
        return search.carry_out(dict.fromkeys(aims, LayerOption(family, recipe, 0.0, 0.0)), 0.0)

    if options.is_stochastic:
        return tried(STOCHASTIC, Stochastic(bits, options.seed))
    weights = sum(aim.weights.size for aim in aims.values())
    plain = tried(FIXED_POINT, Uniform(bits, is_searched=bits < WIDE_BITS and weights <= LARGE))
    if bits not in INDEX_BITS or CODEBOOK not in options.families or weights > LARGE:
        return plain
    shared = tried(CODEBOOK, Codebook(1 << bits))
    is_better = shared.divergence <= WORTH * plain.divergence
    if search.subject.task.metric.kind not in COUNTED:
        is_better |= shared.drop <= WORTH * plain.drop
    return shared if is_better else plain


def _searched(search: Search, options: CompressOptions, limit: float | None) -> tuple[Trial, tuple[str, ...]]:
    """The best plan that keeps to the budget, else the nearest, and what it misses."""
    budget = options.budget
    if not options.is_searched:
        trial = _at_width(search, options)
        return trial, _missed_drop(search, trial, options, limit)
    search.prepare()
    if budget.points:
        front = search.front(max(budget.points, 2))
    if budget.max_bytes is not None:
        trial, _ = search.within_size(budget.max_bytes)  # what the file of the nearest has is told later
        if limit is not None and not search.subject.task.keeps(trial.outputs, limit):
            return trial, (f"at that size the drop is {amount(trial.drop, search.subject.task.metric.unit)}",)
        return trial, ()
    if limit is not None and budget.is_guarded:
        best = search.within_drop(limit)
        if best is not None:
            return best, ()
        nearest = min(search.trials, key=lambda trial: (trial.drop, trial.predicted))
        return nearest, _missed_drop(search, nearest, options, limit)
    return (front[-1] if budget.points else search.alone()), ()


def _missed_drop(search: Search, trial: Trial, options: CompressOptions, limit: float | None) -> tuple[str, ...]:
    """What a plan that is written for want of a better one exceeds."""
    task = search.subject.task
    if limit is None or not options.budget.is_guarded or task.keeps(trial.outputs, limit):
        return ()
    reach = amount(task.compare(trial.outputs).interval[1], task.metric.unit)
    shown = f"{amount(trial.drop, task.metric.unit)} (95 %: up to {reach})"
    return (f"no plan surely keeps to {options.budget.max_drop}: the nearest drops {shown}",)


def onnx_file(quantized: Quantized) -> tuple[bytes, tuple[PassReport, ...]]:
    """model.onnx: codes in the form that takes fewest bytes, other large weights as integers, short names; checked.

    Raises:
        AssertionError: The file does not compute what the network in memory does.
    """
    model = quantized.model.clone()
    nodes = {str(node.name): node for node in model.graph}
    reasons: dict[str, str] = {}
    for name, storage in quantized.storages.items():
        if (reason := emit(nodes[name], storage)) is not None:  # type: ignore[arg-type]
            reasons[name] = reason
    emitted = tuple(name for name in quantized.storages if name not in reasons)
    weights = StoreWeights(WeightOnlyConfig())
    weights(model)
    SinkDequantize()(model)
    compact(model)
    data = stored.serialized(model)
    return data, (PassReport("store-codes", emitted, reasons), weights.report)


def _sqnr(model: ir.Model, quantized: Quantized, parts: Parts, progress: Progress) -> dict[str, float]:
    """Signal to noise of every integer point, by the node that computes it."""
    if not quantized_points(quantized.model):
        return {}
    by_point = sqnr(model, quantized.model, first(parts.choose.arrays, MEASURED), progress=progress)
    found: dict[str, float] = {}
    for node in quantized.model.graph:
        point = node.metadata_props.get("edgec.point")
        if point in by_point:
            found[_maker(node)] = by_point[str(point)]
    return found


def _maker(quantize: ir.Node) -> str:
    """Name of the node whose result this QuantizeLinear takes, clamps aside."""
    value = quantize.inputs[0]
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in CLAMPS:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return "" if node is None else str(node.name)
