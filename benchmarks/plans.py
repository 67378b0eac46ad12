"""Row `plans`: do predicted losses order plans as measured losses do?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, at_least
from benchmarks.studies import IC_STUDY, KWS_STUDY, Study, samples_file
from compiler import compression
from compiler.compression import CompressOptions, read_parts
from compiler.importer import import_model
from compiler.metrics import METRICS, Task, spearman
from compiler.quality import in_onnxruntime
from compiler.quantizable import quantizable
from compiler.search import Search, Subject
from passes import sensitivity, statistics
from passes.quantize import Calibrated, QuantizeConfig
from passes.recipes.families import LayerOption
from passes.remove_dead_channels import RemoveDeadChannels

ROW = "plans"
PLANS = 50
JUDGED = 500
"""Samples on which a plan's loss is measured, at most: they judge, and nothing was fitted to them."""
BOUNDS = (1e-4, 1e-1)
"""What one layer of a plan may lose: drawn for each plan, log-uniform between these, in nats.

What less would lose, is lost in what 8-bit activations do, which is the same in every plan.
"""


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Spearman over random plans of ResNet-8 and KWS."""
    for study in (IC_STUDY, KWS_STUDY):
        yield from correlation(workshop, study)


def correlation(workshop: Workshop, study: Study, plans: int = PLANS) -> Iterator[Figure]:
    """Carries out random plans; measured is the mean KL divergence on samples that did not calibrate."""
    search, start = search_of(workshop, study), time.monotonic()
    search.prepare()
    rng = np.random.default_rng(0)
    for _ in range(plans):
        chosen = drawn(search, rng)
        search.carry_out(chosen, sum(option.loss for option in chosen.values()))
    predicted, measured = np.array([(trial.predicted, trial.drop) for trial in search.trials], np.float64).T
    spread = f"predicted {predicted.min():.2g} to {predicted.max():.2g}, measured {measured.min():.2g} to"
    note = f"{plans} plans, {spread} {measured.max():.2g} nats; {time.monotonic() - start:.0f} s"
    what = f"{study.title}: Spearman of predicted and measured loss"
    yield Figure(ROW, what, spearman(predicted, measured), "", at_least(0.9), note=note)
    better = np.argsort(predicted, kind="stable")[: plans // 2]
    found = spearman(predicted[better], measured[better])
    ratio = np.log2(measured / predicted)
    note = f"measured over predicted: median {2 ** np.median(ratio):.2f}, from {2 ** ratio.min():.2f} to"
    yield Figure(ROW, f"{what}, better half of the plans", found, "", note=f"{note} {2 ** ratio.max():.2f}")


def drawn(search: Search, rng: np.random.Generator) -> dict[str, LayerOption]:
    """A random plan: every layer any of the options that lose no more than a bound, which is random too."""
    bound = float(np.exp(rng.uniform(*np.log(BOUNDS))))
    chosen = {}
    for name, options in zip(search.names, search.table, strict=True):
        least = min(option.loss for option in options)
        allowed = [option for option in options if option.loss <= max(bound, least)]
        chosen[name] = allowed[int(rng.integers(len(allowed)))]
    return chosen


def search_of(workshop: Workshop, study: Study) -> Search:
    """The search of `edgec compress --max-drop` on a network, judging by divergence."""
    calib = samples_file(workshop, study, "calib", study.calibration)
    choose = None if study.choosing is None else samples_file(workshop, study, "choose", study.choosing)
    model = import_model(study.network.path).model
    RemoveDeadChannels()(model)
    parts = read_parts(model, CompressOptions(calibration=calib, evaluation=choose), _quiet)
    samples = parts.calibrate.arrays
    judging = statistics.spread({name: study.judging[0].read() for name in samples}, JUDGED)
    config = QuantizeConfig(
        reconstruction_samples=compression.SAMPLES, positions=compression.POSITIONS, is_coarse=True
    )
    calibrated = Calibrated.of(model, quantizable(model)[0], samples, config)
    found = sensitivity.importance(calibrated.source, samples)
    importance = sensitivity.calibrated(calibrated.source, samples, found).importance
    task = Task(METRICS["kl"], in_onnxruntime(model, judging), judging)
    return Search(Subject(calibrated, importance, judging, task))


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""
