"""What a network's quality is measured by: a metric, its unit, and how much of it compression costs.

A drop is positive where the compressed network is worse. Its 95 % interval is paired: both networks answer the same
samples, so what they have in common cancels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from compiler.calibration import Samples
from compiler.targets import OptionError

Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]
"""By name, [N, ...]; the first is the one that labels speak of."""
Array: TypeAlias = NDArray[np.float64]
Labels: TypeAlias = NDArray[np.int64]
Kind = Literal["top-1", "agreement", "auc", "reconstruction", "kl", "relative-error", "margin", "rank"]

RESAMPLES = 2000
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_PROBABILITY_MIN = float(np.finfo(np.float32).tiny)
_SUM_TOLERANCE = 1e-3
MANY_SAMPLES = 10
"""A limit of as many samples is worth an interval."""
_ROUNDING = 1e-9
_CLASSES_SHOWN = 20
_BLOCK = 1 << 20
_Statistic: TypeAlias = Callable[[Array, Array], Array]  # a figure of each row of two arrays [rows, N]
_DROP = re.compile(r"\s*(\d{1,20}\.?\d{0,20}|\.\d{1,20})(e[-+]?\d{1,3})?\s*(pt|%|)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Metric:
    """How quality is measured.

    Attributes:
        kind: What it is called on the command line.
        title: For reports.
        units: How a drop of it may be written: "pt" (hundredths of a share), "%" (of the original's), "" (as it is).
        why: Why this one, for the reader of the report.
    """

    kind: Kind
    title: str
    units: tuple[str, ...]
    why: str = ""

    @property
    def unit(self) -> str:
        """In which drops are shown."""
        return self.units[0]


METRICS: dict[Kind, Metric] = {
    metric.kind: metric
    for metric in (
        Metric("top-1", "top-1 accuracy", ("pt",)),
        Metric("agreement", "agreement with the original's classes", ("pt",)),
        Metric("auc", "area under the ROC curve", ("", "pt")),
        Metric("reconstruction", "mean squared reconstruction error", ("%",)),
        Metric("kl", "mean KL divergence from the original's outputs (nats)", ("",)),
        Metric("relative-error", "squared error relative to the original's outputs", ("", "%")),
        Metric("margin", "mean error of the margin between the two classes (nats)", ("",)),
        Metric("rank", "Spearman correlation with the original's scores", ("",)),
    )
}
COUNTED = ("top-1", "agreement", "auc")
"""Metrics that are shares of samples, or of pairs of them."""
_BY_CLASS = ("top-1", "agreement", "margin")


@dataclass(frozen=True)
class Drop:
    """What `--max-drop` says: a number, and its unit "pt", "%" or "" (none)."""

    number: float
    unit: str

    def __str__(self) -> str:
        return f"{self.number:g}{self.unit}"


@dataclass(frozen=True)
class Comparison:
    """A compressed network beside the original, on the same samples.

    Attributes:
        metric: Its title.
        unit: Of `drop` for people: "pt" and "%" are hundredths.
        samples: Compared.
        before, after: The metric of either network; of a divergence, what the original has with itself, and what the
            compressed network has.
        drop: How much worse: 0.01 is 1 pt of a share, 1 % of an error.
        interval: 95 %, paired.
        changed: Share of the samples whose predicted class is another; None without classes.
        mean_kl: Of the class probabilities, in nats; None without classes.
        probability_drop: In the mean probability of the right class; None without labels. On few samples it says more
            than top-1: every sample counts by how far it moved.
        agreement: Of each class, as the original sees it: its number, samples, and the share that keep it; of up to
            20 classes.
    """

    metric: str
    unit: str
    samples: int
    before: float
    after: float
    drop: float
    interval: tuple[float, float]
    changed: float | None = None
    mean_kl: float | None = None
    probability_drop: float | None = None
    agreement: tuple[tuple[int, int, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Task:
    """A metric, and the samples on which it is taken.

    Attributes:
        metric: From choose_metric.
        original: Outputs of the original network.
        inputs: Of the network; an autoencoder's are what its output should be.
        labels: int64 [N], or None.
        seed: Of the intervals that are resampled.
    """

    metric: Metric
    original: Outputs
    inputs: Mapping[str, NDArray[np.generic]]
    labels: Labels | None = None
    seed: int = 0

    @property
    def samples(self) -> int:
        """N."""
        return len(_first(self.original))

    @cached_property
    def before(self) -> float:
        """The metric of the original network."""
        return self.value(self.original)

    def value(self, outputs: Outputs) -> float:
        """The metric of `outputs`."""
        kind = self.metric.kind
        if kind == "auc":
            assert self.labels is not None
            return _auc(_scores(outputs, self.inputs), self.labels)
        if kind == "rank":
            return spearman(_scores(self.original, self.inputs), _scores(outputs, self.inputs))
        if kind == "relative-error":
            return float(self._errors(outputs)[0].mean())
        return float(np.mean(self._terms(outputs)))

    def drop(self, outputs: Outputs) -> float:
        """How much worse than the original `outputs` are, without an interval; infinite where they are not finite."""
        _check_like(self.original, outputs)
        if not all(np.isfinite(values).all() for values in outputs.values()):
            return math.inf
        after, kind = self.value(outputs), self.metric.kind
        if kind in ("kl", "relative-error", "margin"):
            return after
        if kind == "reconstruction":
            return after / self.before - 1 if self.before else math.inf if after else 0.0
        drop = self.before - after
        return drop if math.isfinite(drop) else math.inf

    def compare(self, outputs: Outputs) -> Comparison:
        """Everything that a report says about `outputs`."""
        drop = self.drop(outputs)
        if math.isinf(drop):
            unknown = (math.nan, math.inf)
            return Comparison(
                self.metric.title, self.metric.unit, self.samples, self.before, math.nan, drop, unknown
            )
        found = Comparison(
            self.metric.title,
            self.metric.unit,
            self.samples,
            self.before,
            self.value(outputs),
            drop,
            self._interval(outputs),
        )
        return self._with_classes(found, outputs)

    def _terms(self, outputs: Outputs) -> Array:
        """What the metric is the mean of, float64 [N]."""
        kind = self.metric.kind
        if kind == "top-1":
            return (_class_scores(outputs).argmax(1) == self.labels).astype(np.float64)
        if kind == "agreement":
            return (_class_scores(outputs).argmax(1) == _class_scores(self.original).argmax(1)).astype(np.float64)
        if kind == "margin":
            return np.abs(self._margins(outputs) - self._margins(self.original))
        if kind == "reconstruction":
            return _reconstruction_errors(outputs, self.inputs)
        return self._divergences(outputs)

    def _logs(self, outputs: Outputs) -> Array:
        """Log probabilities, float64 [N, positions, classes]."""
        axis = _distribution_axis(_first(self.original))
        values = _first(outputs).astype(np.float64)
        if axis is None:
            return _log_softmax(values.reshape(len(values), 1, -1))
        rows = np.moveaxis(values, axis, -1)
        rows = np.maximum(rows.reshape(len(rows), -1, rows.shape[-1]), _PROBABILITY_MIN)
        return np.asarray(np.log(rows) - np.log(rows.sum(-1, keepdims=True)))

    def _divergences(self, outputs: Outputs) -> Array:
        """KL(original || outputs) of each sample, the mean over positions; float64 [N]."""
        exact = self._logs(self.original)
        each = (np.exp(exact) * (exact - self._logs(outputs))).sum(-1).mean(-1)
        return np.asarray(np.maximum(each, 0.0))

    def _margins(self, outputs: Outputs) -> Array:
        logs = self._logs(outputs)
        return np.asarray((logs[..., 1] - logs[..., 0]).mean(-1))

    def _errors(self, outputs: Outputs) -> tuple[Array, Array]:
        """Squared error and energy of each sample, both relative to the mean energy, mean over outputs; float64 [N]."""
        errors, energies = np.zeros(self.samples), np.zeros(self.samples)
        for name, exact in self.original.items():
            rows = exact.reshape(len(exact), -1).astype(np.float64)
            error, energy = np.square(outputs[name].reshape(rows.shape) - rows).sum(1), np.square(rows).sum(1)
            mean = float(energy.mean())
            errors += error / mean if mean else np.where(error > 0, math.inf, 0.0)
            energies += energy / mean if mean else 1.0
        return errors / len(self.original), energies / len(self.original)

    def _interval(self, outputs: Outputs) -> tuple[float, float]:
        kind = self.metric.kind
        if kind == "top-1":
            return newcombe_interval(self._terms(self.original) > 0, self._terms(outputs) > 0)
        if kind == "agreement":
            low, high = wilson_interval(int((self._terms(outputs) == 0).sum()), self.samples)
            return low, high
        if kind == "auc":
            assert self.labels is not None
            return _delong_interval(
                _scores(self.original, self.inputs), _scores(outputs, self.inputs), self.labels
            )
        if kind == "rank":
            ranks = [_centred_ranks(_scores(answers, self.inputs)) for answers in (self.original, outputs)]
            low, high = _resampled(self.seed, _correlation, *ranks)
            return 1 - high, 1 - low
        if kind == "reconstruction":
            low, high = _resampled(self.seed, _ratio_rows, self._terms(outputs), self._terms(self.original))
            return low - 1, high - 1
        if kind == "relative-error":
            return _resampled(self.seed, _ratio_rows, *self._errors(outputs))
        return _resampled(self.seed, _ratio_rows, self._terms(outputs), np.ones(self.samples))

    def _with_classes(self, found: Comparison, outputs: Outputs) -> Comparison:
        """With what only classes can tell."""
        first = _first(self.original)
        if self.metric.kind not in _BY_CLASS and _distribution_axis(first) is None:
            return found
        if _class_count(first) < 2:
            return found if _distribution_axis(first) is None else replace(found, mean_kl=self._mean_kl(outputs))
        exact, got = _class_scores(self.original).argmax(1), _class_scores(outputs).argmax(1)
        kept = tuple(
            (int(number), int((exact == number).sum()), float((got == number)[exact == number].mean()))
            for number in np.unique(exact)[:_CLASSES_SHOWN]
        )
        return replace(
            found,
            changed=float(np.mean(exact != got)),
            mean_kl=self._mean_kl(outputs),
            probability_drop=self._probability_drop(outputs),
            agreement=kept,
        )

    def divergence(self, outputs: Outputs) -> float:
        """How far the answers are from the original's: mean KL of class probabilities, else relative squared error."""
        kind: Kind = "relative-error" if _distribution_axis(_first(self.original)) is None else "kl"
        return replace(self, metric=METRICS[kind]).value(outputs)

    def keeps(self, outputs: Outputs, limit: float) -> bool:
        """Whether `outputs` drop the metric by no more than `limit`, and would on other samples.

        Chance decides which classes change, so what every sample tells must keep to the limit as well: the drop in the
        mean probability of the right class, or without labels the mean total variation distance of the probabilities,
        of the class that has the largest. Where samples allow, so must the upper end of the 95 % interval.
        """
        if self.drop(outputs) > limit * (1 + _ROUNDING):
            return False
        if self.metric.kind in ("top-1", "agreement"):
            if self._expected(outputs) > limit:
                return False
            if limit < MANY_SAMPLES * _of_one_sample(self):
                return True
        return self.compare(outputs).interval[1] <= limit

    def excess(self, outputs: Outputs, limit: float) -> str:
        """Why `outputs` do not keep to `limit`, as a sentence's end: "drops 1.4 pt, more than 1 pt"."""
        found = self.compare(outputs)
        shown = [amount(value, found.unit) for value in (found.drop, found.interval[1], limit)]
        if not found.drop <= limit * (1 + _ROUNDING):
            return f"drops {shown[0]}, more than {shown[2]}"
        if self.metric.kind in ("top-1", "agreement") and (expected := self._expected(outputs)) > limit:
            what = "the right class" if self.metric.kind == "top-1" and self.labels is not None else "a class"
            moved = amount(expected, found.unit)
            return f"drops {shown[0]}, but the mean probability of {what} moves by {moved}, more than {shown[2]}"
        return f"drops {shown[0]}, but on other samples perhaps {shown[1]}, more than {shown[2]}"

    def _expected(self, outputs: Outputs) -> float:
        if self.metric.kind == "top-1" and (drop := self._probability_drop(outputs)) is not None:
            return drop
        before, after = (np.exp(self._logs(answers)) for answers in (self.original, outputs))
        distances = np.abs(before - after).sum(axis=-1).reshape(self.samples, -1).mean(axis=1) / 2
        classes = before.reshape(self.samples, -1, before.shape[-1]).mean(axis=1).argmax(axis=1)
        return max(float(distances[classes == each].mean()) for each in np.unique(classes))

    def _mean_kl(self, outputs: Outputs) -> float:
        return float(self._divergences(outputs).mean())

    def _probability_drop(self, outputs: Outputs) -> float | None:
        if self.labels is None or not _labels_fit(self.labels, _first(self.original)):
            return None
        rows = np.arange(self.samples)
        before, after = (np.exp(self._logs(answers)[rows, 0, self.labels]) for answers in (self.original, outputs))
        return float(before.mean() - after.mean())


# Which metric


def choose_metric(
    original: Outputs,
    inputs: Mapping[str, NDArray[np.generic]],
    labels: Labels | None = None,
    *,
    kind: str | None = None,
) -> Metric:
    """The metric that labels and outputs give, or the one that is asked for.

    Args:
        original: Outputs of the original network, float32 [N, ...].
        inputs: Of the network, [N, ...].
        labels: int64 [N], or None.
        kind: A key of METRICS, or None for the best that there is.

    Raises:
        OptionError: `kind` is unknown, or labels or outputs do not give it.
    """
    if kind is not None:
        return _asked_for(kind, original, inputs, labels)
    first = _first(original)
    is_distribution = _distribution_axis(first) is not None
    is_autoencoder = not is_distribution and _reconstructs(original, inputs)
    what = ""
    if labels is not None:
        if _is_binary(labels) and (is_autoencoder or _class_count(first) == 1):
            score = "the reconstruction error" if is_autoencoder else "the output"
            return replace(METRICS["auc"], why=f"labels of two classes, and {score} is a score")
        if not is_autoencoder and _labels_fit(labels, first):
            return replace(METRICS["top-1"], why=f"labels, and {_class_count(first)} outputs")
        what = f"labels 'y' ({labels.min()} to {labels.max()}) do not fit the outputs; "
    if is_autoencoder:
        return replace(METRICS["reconstruction"], why=f"{what}the network reproduces its input")
    missing = what or "no labels; "
    if is_distribution and len(original) == 1:
        return replace(METRICS["kl"], why=f"{missing}the outputs are probabilities")
    return replace(METRICS["relative-error"], why=f"{missing}the outputs are no probabilities")


def _asked_for(
    kind: str, original: Outputs, inputs: Mapping[str, NDArray[np.generic]], labels: Labels | None
) -> Metric:
    if kind not in get_args(Kind):
        raise _error(f"unknown metric {kind!r}", f"one of {', '.join(METRICS)}")
    metric = next(metric for name, metric in METRICS.items() if name == kind)
    if reason := _why_not(metric.kind, original, inputs, labels):
        raise _error(f"metric {kind} cannot be measured: {reason[0]}", reason[1])
    return replace(metric, why="asked for")


def _why_not(
    kind: Kind, original: Outputs, inputs: Mapping[str, NDArray[np.generic]], labels: Labels | None
) -> tuple[str, str] | None:
    """What is missing and the remedy, or None."""
    classes, first = _class_count(_first(original)), _first(original)
    if kind in ("top-1", "auc") and labels is None:
        return "there are no labels", "give them as integers 'y' in the .npz of --calib or --eval"
    if kind == "top-1" and not _labels_fit(labels, first):
        return f"the labels do not fit {classes} outputs", "labels 'y' are class numbers, from 0"
    if kind == "auc" and not (labels is not None and _is_binary(labels)):
        return "the labels are not 0 and 1", "label normal samples 0 and the others 1"
    if kind in ("auc", "rank") and not _has_scores(original, inputs):
        return "the outputs are no score of each sample", "use another metric"
    if kind == "margin" and classes != 2:
        return f"the network has {classes} outputs, not two", "use kl"
    if kind == "agreement" and classes < 2:
        return "the outputs are not one score for each class", "use relative-error"
    if kind == "kl" and classes < 2 and _distribution_axis(first) is None:
        return "the outputs are no probabilities", "use relative-error"
    if kind == "reconstruction" and _target(first, inputs) is None:
        return "output and input have different shapes", "use relative-error"
    return None


def parse_drop(text: str) -> Drop:
    """Read "1.0pt", "2%" or "0.01".

    Raises:
        OptionError: It is none of them, or not above 0.
    """
    remedy = "for instance 1.0pt (points of accuracy), 2% (of an error) or 0.01 (of a score)"
    match = _DROP.fullmatch(text)
    if match is None:
        raise _error(f"a drop must be a number with the unit pt, % or none, not {text[:40]!r}", remedy)
    number = float(match[1] + (match[2] or ""))
    if not 0 < number < math.inf:
        raise _error(f"a drop must be above 0, not {text[:40]!r}", remedy)
    return Drop(number, match[3].lower())


def drop_limit(drop: Drop, task: Task) -> float:
    """The drop as a figure of the task's metric, comparable to Task.drop.

    Raises:
        OptionError: The unit does not fit the metric, or the drop is smaller than what one sample makes.
    """
    metric = task.metric
    if drop.unit not in metric.units:
        written = {"pt": "1.0pt", "%": "2%", "": "0.01"}
        raise _error(
            f"a drop of {drop} does not fit the metric, which is {metric.title}",
            f"write it like {' or '.join(written[unit] for unit in metric.units)}",
        )
    limit = drop.number / 100 if drop.unit else drop.number
    if metric.kind in (*COUNTED, "rank") and limit > 1:
        raise _error(f"a drop of {drop} is more than all of it ({metric.title})", "give at most 1, which is 100pt")
    step = _of_one_sample(task)
    if limit < step * (1 - 1e-9):
        least = f"{100 * step:.3g}pt" if "pt" in metric.units and drop.unit else f"{step:.3g}"
        raise _error(
            f"a drop of {drop} is smaller than one of the {task.samples} samples on which it is measured ({least})",
            f"give at least {least}, or more samples",
        )
    return limit


def _of_one_sample(task: Task) -> float:
    """By how much one sample can change the metric, at least; 0 where that has no meaning."""
    if task.metric.kind in ("top-1", "agreement"):
        return 1 / task.samples
    if task.metric.kind == "auc" and task.labels is not None:
        return 1 / max(int((task.labels == 0).sum()), int((task.labels == 1).sum()))
    return 0.0


# Samples


@dataclass(frozen=True)
class Split:
    """Samples in two parts.

    Attributes:
        calibrate: For ranges, Gram matrices and rounding.
        choose: Where a drop is measured; disjoint from the other, unless there is one sample only.
        sentence: What was done, for the report.
        warning: Where that is not good enough; else empty.
    """

    calibrate: Samples
    choose: Samples
    sentence: str
    warning: str = ""


def split(samples: Samples, seed: int, share: float = 0.5) -> Split:
    """Draw the samples to calibrate on; the others are there to choose by.

    Every class is divided alike, and is in both parts if it has two samples.

    Args:
        samples: With or without labels.
        seed: The same seed gives the same parts.
        share: Of the samples to calibrate on, above 0 and below 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to calibrate on must be above 0 and below 1, not {share}")
    if samples.count == 1:
        warning = "there is one sample only: what it says about the drop, it was calibrated on; give more samples"
        return Split(samples, samples, "1 sample, to calibrate on and to choose by", warning)
    labels = samples.labels if samples.labels is not None else np.zeros(samples.count, np.int64)
    drawn = _drawn(labels, np.random.default_rng(seed), share)
    how = f"drawn with seed {seed}" + ("" if samples.labels is None else ", every class divided alike")
    sentence = f"{int(drawn.sum())} samples to calibrate on and {int((~drawn).sum())} others to choose by, {how}"
    return Split(_part(samples, drawn), _part(samples, ~drawn), sentence)


def _drawn(labels: Labels, rng: np.random.Generator, share: float) -> NDArray[np.bool_]:
    drawn, seen, taken = np.zeros(len(labels), np.bool_), 0, 0
    for number in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == number))
        seen += len(members)
        count = math.floor(share * seen + 0.5) - taken  # what rounding left to one class is made good by the next
        count = min(max(count, 1), len(members) - 1) if len(members) > 1 else min(max(count, 0), 1)
        drawn[members[:count]] = True
        taken += count
    if drawn.all() or not drawn.any():
        drawn[0] = not drawn[0]
    return drawn


def _part(samples: Samples, chosen: NDArray[np.bool_]) -> Samples:
    labels = None if samples.labels is None else samples.labels[chosen]
    return Samples({name: values[chosen] for name, values in samples.arrays.items()}, labels, samples.warnings)


# Outputs


def _first(outputs: Outputs) -> NDArray[np.float32]:
    return next(iter(outputs.values()))


def _check_like(original: Outputs, outputs: Outputs) -> None:
    for name, exact in original.items():
        if name not in outputs or outputs[name].shape != exact.shape:
            got = list(outputs[name].shape) if name in outputs else "nothing"
            raise ValueError(f"output '{name}' has shape {list(exact.shape)} in the original, here {got}")


def _class_count(first: NDArray[np.float32]) -> int:
    """C of [N, C, 1, ...]; 0 for other shapes."""
    sizes = [size for size in first.shape[1:] if size != 1]
    return 0 if len(sizes) > 1 else sizes[0] if sizes else 1


def _class_scores(outputs: Outputs) -> NDArray[np.float32]:
    first = _first(outputs)
    return first.reshape(len(first), -1)


def _labels_fit(labels: Labels | None, first: NDArray[np.float32]) -> bool:
    classes = _class_count(first)
    return labels is not None and classes >= 2 and 0 <= labels.min(initial=0) <= labels.max(initial=0) < classes


def _is_binary(labels: Labels) -> bool:
    return np.unique(labels).tolist() == [0, 1]


def _distribution_axis(first: NDArray[np.float32]) -> int | None:
    """Along which the values are probabilities: the last, else axis 1; None where neither."""
    if first.ndim < 2 or not first.size or first.min() < 0:
        return None
    for axis in (first.ndim - 1, 1):
        if first.shape[axis] > 1 and np.abs(first.sum(axis, dtype=np.float64) - 1).max() <= _SUM_TOLERANCE:
            return axis
    return None


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _target(first: NDArray[np.float32], inputs: Mapping[str, NDArray[np.generic]]) -> Array | None:
    """The input of the output's shape, float64 [N, values], or None."""
    for values in inputs.values():
        if values.shape == first.shape:
            return values.reshape(len(values), -1).astype(np.float64)
    return None


def _reconstruction_errors(outputs: Outputs, inputs: Mapping[str, NDArray[np.generic]]) -> Array:
    """Mean squared error of each sample, float64 [N]."""
    target = _target(_first(outputs), inputs)
    assert target is not None
    return np.asarray(np.square(_class_scores(outputs) - target).mean(1))


def _reconstructs(outputs: Outputs, inputs: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether the output is nearer to the input than the input's mean is."""
    target = _target(_first(outputs), inputs)
    if target is None or _class_count(_first(outputs)) == 1:
        return False
    return float(_reconstruction_errors(outputs, inputs).mean()) < float(target.var())


def _has_scores(original: Outputs, inputs: Mapping[str, NDArray[np.generic]]) -> bool:
    return _class_count(_first(original)) in (1, 2) or _target(_first(original), inputs) is not None


def _scores(outputs: Outputs, inputs: Mapping[str, NDArray[np.generic]]) -> Array:
    """One number for each sample: the output, the second class over the first, or the reconstruction error."""
    first = _class_scores(outputs).astype(np.float64)
    if first.shape[1] == 1:
        return np.asarray(first[:, 0])
    if first.shape[1] == 2:
        return np.asarray(first[:, 1] - first[:, 0])
    return _reconstruction_errors(outputs, inputs)


# Statistics


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; ties share the mean of their ranks; NaN where either does not vary.

    Args:
        a, b: float64 [N].
    """
    return float(_correlation(_centred_ranks(a)[None], _centred_ranks(b)[None])[0])


def ranks(values: Array) -> Array:
    """From 1, float64 [N]; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share.

    Source: Wilson, JASA 22 (1927), pp. 209-212.
    """
    share, weight = hits / total, _Z95**2 / total
    centre = share + weight / 2
    half = _Z95 * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    low, high = (centre - half) / (1 + weight), (centre + half) / (1 + weight)
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def newcombe_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the difference of two paired shares, mean(before) - mean(after).

    Args:
        before, after: Whether each sample is right, bool [N].

    Source: Newcombe, Statistics in Medicine 17 (1998), pp. 2635-2650, method 10.
    """
    total = len(before)
    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    p, q = (both + lost) / total, (both + won) / total
    p_low, p_high = wilson_interval(both + lost, total)
    q_low, q_high = wilson_interval(both + won, total)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    product = both * neither - lost * won
    corrected = max(product - total / 2, 0.0) if product > 0 else float(product)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(left: float, right: float) -> float:
        return math.sqrt(max(left**2 - 2 * phi * left * right + right**2, 0.0))

    difference = (lost - won) / total
    return difference - reach(p - p_low, q_high - q), difference + reach(p_high - p, q - q_low)


def _auc(scores: Array, labels: Labels) -> float:
    """Chance that a sample of class 1 scores above one of class 0; ties count half."""
    positive = labels == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float((ranks(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _delong_interval(before: Array, after: Array, labels: Labels) -> tuple[float, float]:
    """95 % interval of the difference of two paired AUCs.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), pp. 837-845.
    """
    one, zero = labels == 1, labels == 0
    differences = [a - b for a, b in zip(_placements(before, one, zero), _placements(after, one, zero))]
    variance = sum(float(d.var(ddof=1)) / len(d) for d in differences if len(d) > 1)
    middle = _auc(before, labels) - _auc(after, labels)
    half = _Z95 * math.sqrt(variance)
    return max(middle - half, -1.0), min(middle + half, 1.0)


def _placements(scores: Array, one: NDArray[np.bool_], zero: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Of each sample the share of the other class that it is on the right side of."""
    overall = ranks(scores)
    above = (overall[one] - ranks(scores[one])) / int(zero.sum())
    below = 1 - (overall[zero] - ranks(scores[zero])) / int(one.sum())
    return above, below


def _centred_ranks(values: Array) -> Array:
    found = ranks(values)
    return found - found.mean()


def _correlation(a: Array, b: Array) -> Array:
    """Of each row, float64 [rows]; NaN where one does not vary."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    energy = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray(np.divide((a * b).sum(1), energy, out=np.full(len(a), math.nan), where=energy > 0))


def _ratio_rows(a: Array, b: Array) -> Array:
    """Sum of each row of `a` over that of `b`."""
    above, below = a.sum(1), b.sum(1)
    return np.asarray(np.divide(above, below, out=np.where(above > 0, math.inf, 1.0), where=below != 0))


def _resampled(seed: int, statistic: _Statistic, a: Array, b: Array) -> tuple[float, float]:
    """Percentile bootstrap over samples that are drawn in pairs, 95 %.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    rng, count = np.random.default_rng(seed), len(a)
    rows = max(1, _BLOCK // count)
    found = []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, count, (min(rows, RESAMPLES - start), count))
        found.append(statistic(a[drawn], b[drawn]))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)


def amount(drop: float | None, unit: str) -> str:
    """0.0125 as "1.25 pt"."""
    if drop is None or math.isnan(drop):
        return "n/a"
    return f"{100 * drop:.2f} {unit}" if unit else f"{drop:.4g}"


def _error(message: str, remedy: str) -> OptionError:
    error = OptionError(message)
    error.add_note(f"remedy: {remedy}")
    return error
