"""Metrics: chosen by what there is, drops with intervals that hold what they promise, limits that fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler import metrics
from compiler.calibration import Samples
from compiler.metrics import METRICS, Drop, Task, choose_metric, drop_limit, parse_drop, split
from compiler.targets import OptionError
from tests.support.shared import shared

Floats = NDArray[np.float32]
RNG = np.random.default_rng(0)
PIXELS = {"x": RNG.normal(size=(40, 3, 4, 4)).astype(np.float32)}
VECTORS = {"x": RNG.normal(size=(40, 6)).astype(np.float32)}
LABELS = RNG.integers(0, 5, 40)
BINARY = np.arange(40) % 2


def softmax(scores: NDArray[np.float64]) -> Floats:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def out(values: NDArray[np.generic]) -> dict[str, Floats]:
    return {"y": values.astype(np.float32)}


PROBABILITIES = out(softmax(RNG.normal(size=(40, 5))))
TWO = out(softmax(RNG.normal(size=(40, 2))))
SCORES = out(RNG.normal(size=(40, 5)))
ONE = out(RNG.normal(size=(40, 1)))
NEARLY = out(VECTORS["x"] + 0.1)


def task(
    kind: str, original: dict[str, Floats], labels: NDArray[np.int64] | None = None, inputs: object = None
) -> Task:
    given = VECTORS if inputs is None else inputs
    return Task(choose_metric(original, given, labels, kind=kind), original, given, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "inputs", "labels", "kind"),
    [
        (PROBABILITIES, PIXELS, LABELS, "top-1"),
        (SCORES, PIXELS, LABELS, "top-1"),
        (TWO, PIXELS, BINARY, "top-1"),
        (ONE, PIXELS, BINARY, "auc"),
        (NEARLY, VECTORS, BINARY, "auc"),
        (NEARLY, VECTORS, None, "reconstruction"),
        (out(RNG.normal(size=(40, 6))), VECTORS, None, "relative-error"),
        (PROBABILITIES, PIXELS, None, "kl"),
        (PROBABILITIES, PIXELS, LABELS + 5, "kl"),
        (PROBABILITIES | {"boxes": SCORES["y"]}, PIXELS, None, "relative-error"),
        (out(softmax(RNG.normal(size=(40, 7, 2)))), PIXELS, None, "kl"),
        (SCORES, PIXELS, None, "relative-error"),
    ],
)
def test_metric_follows_from_labels_and_outputs(
    outputs: dict[str, Floats], inputs: dict[str, Floats], labels: NDArray[np.int64] | None, kind: str
) -> None:
    metric = choose_metric(outputs, inputs, labels)
    assert metric.kind == kind
    assert metric.why


@pytest.mark.parametrize(
    ("model", "data", "count", "kind"),
    [
        ("mlperf_tiny_resnet8", "cifar10_train_8068", 40, "top-1"),
        ("mlperf_tiny_dscnn_kws", "kws_calib_200", 40, "top-1"),
        ("mlperf_tiny_mobilenet_vww", "photos_calib_96", 20, "kl"),
        ("mlperf_tiny_autoencoder_ad", "ad_calib_aug_1000", 500, "reconstruction"),
    ],
)
def test_metric_of_the_mlperf_tiny_networks(model: str, data: str, count: int, kind: str) -> None:
    session = onnxruntime.InferenceSession(shared("models", f"{model}.onnx"))
    with np.load(shared("data", f"{data}.npz")) as file:
        x = file["x"][:count].astype(np.float32)
        labels = file["y"][:count].astype(np.int64) if "y" in file else None
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    outputs = {target: session.run(None, {source: x})[0]}
    assert choose_metric(outputs, {source: x}, labels).kind == kind


def test_labels_that_do_not_fit_are_named() -> None:
    assert choose_metric(PROBABILITIES, PIXELS, LABELS + 5).why.startswith("labels 'y' (5 to 9) do not fit")


@pytest.mark.parametrize(
    ("kind", "outputs", "labels", "message"),
    [
        ("top-1", PROBABILITIES, None, "there are no labels"),
        ("auc", ONE, LABELS, "the labels are not 0 and 1"),
        ("auc", PROBABILITIES, BINARY, "the outputs are no score of each sample"),
        ("margin", PROBABILITIES, None, "the network has 5 outputs, not two"),
        ("agreement", ONE, None, "not one score for each class"),
        ("kl", ONE, None, "the outputs are no probabilities"),
        ("reconstruction", PROBABILITIES, None, "output and input have different shapes"),
        ("top-1", PROBABILITIES, LABELS + 1, "the labels do not fit 5 outputs"),
        ("f1", PROBABILITIES, LABELS, "unknown metric 'f1'"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused_with_a_remedy(
    kind: str, outputs: dict[str, Floats], labels: NDArray[np.int64] | None, message: str
) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        task(kind, outputs, labels)
    assert caught.value.__notes__[0].startswith("remedy: ")


# Drops


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [("1.0pt", 1.0, "pt"), ("2%", 2.0, "%"), ("0.01", 0.01, ""), (" .5 PT ", 0.5, "pt"), ("1e-3", 1e-3, "")],
)
def test_drop_is_read_with_its_unit(text: str, number: float, unit: str) -> None:
    assert parse_drop(text) == Drop(number, unit)


@pytest.mark.parametrize(
    "text", ["", "pt", "1 point", "-1pt", "nan", "inf", "0pt", "0", "1,5pt", "1e999", "1pt2", "9" * 999]
)
def test_what_is_no_drop_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="a drop must be"):
        parse_drop(text)


@pytest.mark.parametrize(
    ("kind", "text", "limit"),
    [
        ("top-1", "2.5pt", 0.025),
        ("agreement", "5pt", 0.05),
        ("reconstruction", "2%", 0.02),
        ("kl", "0.01", 0.01),
        ("relative-error", "2%", 0.02),
        ("relative-error", "0.02", 0.02),
        ("auc", "0.05", 0.05),
        ("auc", "5pt", 0.05),
        ("rank", "0.01", 0.01),
    ],
)
def test_drop_becomes_a_limit_in_the_unit_of_the_metric(kind: str, text: str, limit: float) -> None:
    outputs, labels = {"auc": (ONE, BINARY), "reconstruction": (NEARLY, None), "rank": (ONE, None)}.get(
        kind, (PROBABILITIES, LABELS)
    )
    assert drop_limit(parse_drop(text), task(kind, outputs, labels)) == pytest.approx(limit, rel=1e-15)


@pytest.mark.parametrize(
    ("kind", "text", "remedy"),
    [("top-1", "2%", "1.0pt"), ("top-1", "0.01", "1.0pt"), ("reconstruction", "1pt", "2%"), ("kl", "2%", "0.01")],
)
def test_a_unit_that_does_not_fit_is_refused(kind: str, text: str, remedy: str) -> None:
    outputs = NEARLY if kind == "reconstruction" else PROBABILITIES
    with pytest.raises(OptionError, match="does not fit the metric, which is") as caught:
        drop_limit(parse_drop(text), task(kind, outputs, LABELS))
    assert caught.value.__notes__ == [f"remedy: write it like {remedy}"]


def test_a_drop_smaller_than_one_sample_is_refused() -> None:
    measured = task("top-1", PROBABILITIES, LABELS)
    with pytest.raises(OptionError, match=r"2\.4pt is smaller than one of the 40 samples .* \(2\.5pt\)"):
        drop_limit(parse_drop("2.4pt"), measured)
    with pytest.raises(OptionError, match=r"0\.04 is smaller than one of the 40 samples .* \(0\.05\)"):
        drop_limit(parse_drop("0.04"), task("auc", ONE, BINARY))


def test_a_drop_of_more_than_everything_is_refused() -> None:
    with pytest.raises(OptionError, match="more than all of it"):
        drop_limit(parse_drop("101pt"), task("top-1", PROBABILITIES, LABELS))


# Values


def test_nothing_is_lost_by_the_original_itself() -> None:
    cases = [("top-1", PROBABILITIES, LABELS), ("agreement", PROBABILITIES, None), ("kl", PROBABILITIES, None)]
    cases += [("auc", ONE, BINARY), ("reconstruction", NEARLY, None), ("rank", ONE, None), ("margin", TWO, None)]
    cases += [("relative-error", SCORES, None)]
    assert {kind for kind, _, _ in cases} == set(METRICS)
    for kind, outputs, labels in cases:
        found = task(kind, outputs, labels).compare(outputs)  # type: ignore[arg-type]
        assert found.drop == pytest.approx(0, abs=1e-12), kind
        assert found.interval[0] <= 0 <= found.interval[1], kind


def test_top1_counts_what_is_no_longer_right() -> None:
    exact = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 0])  # the last is wrong
    worse = np.eye(4)[[1, 1, 2, 3, 0, 1, 3, 0]]  # two are lost, one is won
    found = task("top-1", out(exact), labels).compare(out(worse))
    assert (found.before, found.after, found.drop) == (7 / 8, 6 / 8, 1 / 8)
    assert found.changed == 3 / 8
    assert found.agreement == ((0, 2, 0.5), (1, 2, 1.0), (2, 2, 0.5), (3, 2, 0.5))


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    scores = RNG.integers(0, 6, 40).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(scores[BINARY == 1], scores[BINARY == 0])]
    assert task("auc", out(scores[:, None]), BINARY).before == pytest.approx(np.mean(pairs), rel=1e-12)


def test_autoencoder_scores_anomalies_by_its_error() -> None:
    error = np.where(BINARY == 1, 2.0, 1.0)[:, None]
    assert task("auc", out(VECTORS["x"] + error), BINARY).before == 1.0


def test_reconstruction_error_is_relative() -> None:
    found = task("reconstruction", out(VECTORS["x"] + 1)).compare(out(VECTORS["x"] + 1.1))
    assert found.drop == pytest.approx(0.21, rel=1e-5)
    assert found.interval == pytest.approx((0.21, 0.21), rel=1e-5)


def test_kl_equals_its_definition_for_probabilities_and_scores() -> None:
    other = RNG.normal(size=(40, 5))
    p, q = PROBABILITIES["y"].astype(float), softmax(other).astype(float)
    expected = float(np.mean((p * np.log(p / q)).sum(1)))
    assert task("kl", PROBABILITIES).drop(out(q)) == pytest.approx(expected, rel=1e-6)
    logits = task("kl", out(np.log(p)))
    assert logits.drop(out(other)) == pytest.approx(expected, rel=1e-5)


def test_margin_of_probabilities_is_that_of_their_scores() -> None:
    scores = RNG.normal(size=(40, 2))
    moved = scores + [0.25, -0.5]
    assert task("margin", out(softmax(scores))).drop(out(softmax(moved))) == pytest.approx(0.75, rel=1e-4)


def test_relative_error_weighs_every_output_alike() -> None:
    exact = {"a": np.full((4, 2), 2.0, np.float32), "b": np.full((4, 3), 100.0, np.float32)}
    got = {"a": exact["a"] + 1, "b": exact["b"]}
    assert task("relative-error", exact).drop(got) == pytest.approx(0.125)


def test_probability_of_the_right_class_tells_what_top1_does_not() -> None:
    labels = np.array([0, 1])
    before, after = out(np.array([[0.9, 0.1], [0.2, 0.8]])), out(np.array([[0.6, 0.4], [0.4, 0.6]]))
    found = task("top-1", before, labels).compare(after)
    assert found.drop == 0
    assert found.probability_drop == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("kind", ["top-1", "kl", "relative-error"])
def test_outputs_that_are_not_finite_are_infinitely_bad(kind: str) -> None:
    broken = PROBABILITIES["y"].copy()
    broken[3, 2] = np.nan
    found = task(kind, PROBABILITIES, LABELS).compare(out(broken))
    assert found.drop == np.inf


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="output 'y' has shape \\[40, 5\\] in the original, here \\[40, 6\\]"):
        task("kl", PROBABILITIES).drop(NEARLY)


# Intervals


def coverage(trial: Callable[[np.random.Generator], tuple[tuple[float, float], float]], trials: int) -> float:
    """Share of trials whose interval holds the truth."""
    held = [
        interval[0] <= truth <= interval[1]
        for interval, truth in (trial(np.random.default_rng(seed)) for seed in range(trials))
    ]
    return float(np.mean(held))


@pytest.mark.parametrize(("right", "lost", "won", "total"), [(0.9, 0.03, 0.01, 200), (0.6, 0.1, 0.1, 60)])
def test_interval_of_top1_holds_the_truth_19_times_in_20(right: float, lost: float, won: float, total: int) -> None:
    def trial(rng: np.random.Generator) -> tuple[tuple[float, float], float]:
        before = rng.random(total) < right
        after = np.where(before, rng.random(total) >= lost / right, rng.random(total) < won / (1 - right))
        return metrics.newcombe_interval(before, after), lost - won

    assert 0.93 <= coverage(trial, 1500) <= 0.985


def test_interval_of_a_resampled_mean_holds_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 400)

    def trial(rng: np.random.Generator) -> tuple[tuple[float, float], float]:
        exact = rng.normal(size=(150, 4))
        noise = rng.normal(size=(150, 4)) * 0.1
        return task("relative-error", out(exact), inputs={"x": exact}).compare(out(exact + noise)).interval, 0.01

    assert 0.90 <= coverage(trial, 300) <= 0.98


def test_interval_of_auc_holds_the_truth() -> None:
    labels = np.arange(120) % 2

    def trial(rng: np.random.Generator) -> tuple[tuple[float, float], float]:
        before = rng.normal(size=120) + labels
        after = before + rng.normal(size=120)
        # P(N(1, 2 s^2) > 0) with s = 1 and sqrt(2): 0.76025 and 0.69146.
        return task("auc", out(before[:, None]), labels).compare(out(after[:, None])).interval, 0.76025 - 0.69146

    assert 0.92 <= coverage(trial, 600) <= 0.98


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_interval_of_top1_contains_the_drop_and_mirrors(both: int, lost: int, won: int, neither: int) -> None:
    if not both + lost + won + neither:
        return
    before = np.repeat([True, True, False, False], [both, lost, won, neither])
    after = np.repeat([True, False, True, False], [both, lost, won, neither])
    low, high = metrics.newcombe_interval(before, after)
    assert -1 <= low <= float(before.mean() - after.mean()) <= high <= 1
    assert metrics.newcombe_interval(after, before) == pytest.approx((-high, -low), abs=1e-12)


def test_wilson_interval_has_its_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), pp. 857-872, table I.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert metrics.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_intervals_depend_on_the_seed_alone() -> None:
    other = out(softmax(RNG.normal(size=(40, 5))))
    one, again = (task("kl", PROBABILITIES).compare(other) for _ in range(2))
    assert one == again
    assert one.interval[0] < one.drop < one.interval[1]


# Rank correlation


def test_spearman_equals_its_definition_without_ties() -> None:
    a, b = RNG.permutation(30).astype(float), RNG.permutation(30).astype(float)
    expected = 1 - 6 * float(np.square(metrics.ranks(a) - metrics.ranks(b)).sum()) / (30 * (30**2 - 1))
    assert metrics.spearman(a, b) == pytest.approx(expected, rel=1e-12)


def test_ties_share_the_mean_of_their_ranks() -> None:
    assert metrics.ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_spearman_of_what_does_not_vary_is_unknown() -> None:
    assert np.isnan(metrics.spearman(np.ones(5), np.arange(5.0)))


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=20))
def test_spearman_sees_order_only(values: list[int]) -> None:
    a = np.array(values, float)
    if np.ptp(a):
        assert metrics.spearman(a, np.exp(a)) == pytest.approx(1, abs=1e-12)
        assert metrics.spearman(a, -(a**3)) == pytest.approx(-1, abs=1e-12)


# Parts


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 99), st.sampled_from([0.25, 0.5, 0.8]))
def test_split_is_disjoint_complete_and_has_every_class_twice(labels: list[int], seed: int, share: float) -> None:
    samples = Samples({"x": np.arange(len(labels), dtype=np.float32)[:, None]}, np.array(labels, np.int64))
    parts = split(samples, seed, share)
    calibrate, choose = ([int(row) for row in part.arrays["x"][:, 0]] for part in (parts.calibrate, parts.choose))
    assert sorted(calibrate + choose) == list(range(len(labels)))
    assert calibrate
    assert choose
    for part, rows in ((parts.calibrate, calibrate), (parts.choose, choose)):
        assert part.labels is not None
        assert part.labels.tolist() == [labels[row] for row in rows]
    for number in set(labels):
        if labels.count(number) >= 2:
            assert {labels[row] for row in calibrate} & {labels[row] for row in choose} >= {number}
    assert abs(len(calibrate) - share * len(labels)) <= 0.5 + 2 * len(set(labels))
    assert f"{len(calibrate)} samples to calibrate on and {len(choose)} others" in parts.sentence


def test_split_depends_on_the_seed() -> None:
    samples = Samples({"x": np.arange(100.0, dtype=np.float32)[:, None]})
    one, again, other = (split(samples, seed).calibrate.arrays["x"].tolist() for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert len(one) == 50


def test_one_sample_serves_both_parts_and_that_is_told() -> None:
    parts = split(Samples({"x": np.zeros((1, 2), np.float32)}), 0)
    assert parts.calibrate.count == parts.choose.count == 1
    assert "there is one sample only" in parts.warning
