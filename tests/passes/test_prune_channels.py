"""Channels leave with the least error that the layers behind them can reach, and options say what that costs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.importer import import_model
from passes.base import run as run_passes
from passes.channel_groups import groups, remove
from passes.gram import collect_moments
from passes.problem import Importance
from passes.prune_channels import PruneChannels, counts, options
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node, run, session
from tests.support.shared import shared

SAMPLES = {"x": normal(48, 3, 8, 8, seed=7) + normal(48, 1, 1, 1, seed=8)}


def network() -> ir.Model:
    """A residual block, then a Gemm: one group runs through an Add, one stays inside, one is flattened."""
    weights: dict[str, Array] = {
        "wa": normal(8, 3, 3, 3, seed=1, scale=0.3),
        "ba": normal(8, seed=2),
        "wb": normal(6, 8, 3, 3, seed=3, scale=0.2),
        "bb": normal(6, seed=9),
        "wc": normal(8, 6, 1, 1, seed=4, scale=0.4),
        "wd": normal(5, 8, 3, 3, seed=5, scale=0.2),
        "we": normal(4, 20, seed=6),
    }
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["ar"]),
        node("Conv", ["ar", "wb", "bb"], ["b"], pads=[1] * 4),
        node("Relu", ["b"], ["br"]),
        node("Conv", ["br", "wc"], ["c"]),
        node("Add", ["c", "ar"], ["s"]),
        node("Conv", ["s", "wd"], ["d"]),
        node("MaxPool", ["d"], ["p"], kernel_shape=[3, 3], strides=[3, 3]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "we"], ["e"], transB=1),
    ]
    return canonical(nodes, {"x": [1, 3, 8, 8]}, ["e"], weights)


def layer_outputs(loaded: ir.Model, name: str, samples: Array) -> Array:
    """What a value holds on every sample, [N, ...]."""
    copy = ir.from_proto(ir.to_proto(loaded))
    value = next(v for n in copy.graph for v in n.outputs if v.name == name)
    if value not in copy.graph.outputs:
        copy.graph.outputs.append(value)
    return np.concatenate([run(copy, {"x": sample[None]})[name] for sample in samples])


def test_the_layers_behind_come_as_near_as_least_squares_can() -> None:
    """The refitted Conv equals a regression of its old outputs on what is left of its inputs."""
    loaded = network()
    moments = collect_moments(loaded, SAMPLES, ["c"])
    result = loaded.clone()
    PruneChannels({"b": [1, 4]}, moments, ridge=1e-9)(result)
    inputs = layer_outputs(loaded, "br", SAMPLES["x"])[:, [0, 2, 3, 5]].transpose(0, 2, 3, 1).reshape(-1, 4)
    wanted = layer_outputs(loaded, "c", SAMPLES["x"]).transpose(0, 2, 3, 1).reshape(-1, 8)
    design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1).astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, wanted.astype(np.float64), rcond=None)
    conv = next(n for n in result.graph if n.name == "c")
    weights, bias = (value.const_value.numpy() for value in conv.inputs[1:])
    np.testing.assert_allclose(weights[:, :, 0, 0].T, solution[:-1], atol=1e-5)
    np.testing.assert_allclose(bias, solution[-1], atol=1e-5)


def test_the_loss_of_an_option_is_the_error_that_is_measured() -> None:
    loaded = network()
    by_name = {group.name: group for group in groups(loaded)}
    moments = collect_moments(loaded, SAMPLES, ["c"])
    for option in options(loaded, by_name["b"], moments, [5, 3, 1], importance={"c": Importance.even(8)}):
        result = loaded.clone()
        PruneChannels({"b": option.removed}, moments)(result)
        before, after = (layer_outputs(m, "c", SAMPLES["x"]) for m in (loaded, result))
        measured = float(np.square(after - before).mean(axis=(0, 2, 3)).sum())
        assert measured == pytest.approx(option.loss, rel=1e-3)


def test_errors_that_all_positions_share_count_as_they_matter() -> None:
    """scattered * E[error^2] + shared * E[(mean error of a sample)^2], channels drawn to their average, and the refit
    minimizes it."""
    loaded = network()
    group = next(g for g in groups(loaded) if g.name == "b")
    moments = collect_moments(loaded, SAMPLES, ["c"])
    rows = np.linspace(0.5, 1.5, 8)
    weighed, counted = {"c": Importance(rows, 20 * rows)}, np.sqrt(rows * rows.mean())
    losses = {}
    for name, importance in (("weighed", weighed), ("plain", None)):
        result = loaded.clone()
        (option,) = options(loaded, group, moments, [3], importance=weighed)
        PruneChannels({"b": option.removed}, moments, importance=importance, ridge=1e-9)(result)
        errors = layer_outputs(result, "c", SAMPLES["x"]).astype(np.float64) - layer_outputs(loaded, "c", SAMPLES["x"])
        each, shared = np.square(errors).mean(axis=(0, 2, 3)), np.square(errors.mean(axis=(2, 3))).mean(axis=0)
        losses[name] = float((counted * (each + 20 * shared)).sum())
    assert losses["weighed"] == pytest.approx(option.loss, rel=1e-2)
    assert losses["weighed"] < losses["plain"]


@pytest.mark.parametrize("group", ["a", "b", "d"])
def test_a_refit_never_errs_more_than_plain_removal(group: str) -> None:
    loaded = network()
    found = next(g for g in groups(loaded) if g.name == group)
    readers = [member.node for member in found.consumers]
    moments = collect_moments(loaded, SAMPLES, readers)
    (option,) = options(loaded, found, moments, [found.size - 2])
    plain, fitted = loaded.clone(), loaded.clone()
    remove(plain, {group: option.removed})
    PruneChannels({group: option.removed}, moments)(fitted)
    errors = [0.0, 0.0]
    for reader in readers:
        wanted = layer_outputs(loaded, reader, SAMPLES["x"])
        for index, result in enumerate((plain, fitted)):
            errors[index] += float(np.square(layer_outputs(result, reader, SAMPLES["x"]) - wanted).sum())
    assert errors[1] < errors[0]


def test_a_channel_that_repeats_another_goes_without_a_trace() -> None:
    loaded = network()
    initial = loaded.graph.initializers
    for name in ("wb", "bb"):
        array = initial[name].const_value.numpy().copy()
        array[4] = 2 * array[1]
        initial[name].const_value = ir.Tensor(array, name=name)
    group = next(g for g in groups(loaded) if g.name == "b")
    moments = collect_moments(loaded, SAMPLES, ["c"])
    (option,) = options(loaded, group, moments, [5], ridge=1e-9)
    assert option.removed in ((1,), (4,))
    result = loaded.clone()
    PruneChannels({"b": option.removed}, moments, ridge=1e-9)(result)
    before, after = (layer_outputs(m, "e", SAMPLES["x"]) for m in (loaded, result))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


def test_several_groups_go_at_once_and_the_report_says_so() -> None:
    loaded = network()
    moments = collect_moments(loaded, SAMPLES, ["b", "c", "d", "e"])
    step = PruneChannels({"a": [0, 5], "b": [2], "d": []}, moments)
    (report,) = run_passes([step], loaded)
    onnx.checker.check_model(ir.to_proto(loaded), full_check=True)
    assert report.changed == ("a", "c", "b", "d")
    assert report.skipped == {}
    assert report.metrics["channels_removed"] == 3
    assert report.metrics["macs_before"] == 64 * (8 * 27 + 6 * 72 + 8 * 6) + 36 * 5 * 72 + 80
    assert report.metrics["macs_after"] == 64 * (6 * 27 + 5 * 54 + 6 * 5) + 36 * 5 * 54 + 80
    assert report.metrics["params_before"] == 8 * 28 + 6 * 73 + 8 * 6 + 5 * 72 + 80
    assert np.isfinite(run(loaded, {"x": SAMPLES["x"][:1]})["e"]).all()


def test_layers_without_moments_keep_their_weights_and_are_named() -> None:
    loaded = network()
    expected = loaded.clone()
    remove(expected, {"b": [3]})
    step = PruneChannels({"b": [3]})
    step(loaded)
    assert step.report.skipped == {"c": "it has no moments: its weights are not fitted anew"}
    feeds = {"x": SAMPLES["x"][:1]}
    np.testing.assert_array_equal(run(loaded, feeds)["e"], run(expected, feeds)["e"])


def test_options_are_nested_and_say_what_they_save() -> None:
    loaded = network()
    group = next(g for g in groups(loaded) if g.name == "a")
    moments = collect_moments(loaded, SAMPLES, ["b", "d"])
    found = options(loaded, group, moments, counts(8, 2))
    assert [len(option.kept) for option in found] == [6, 4, 2]
    assert all(set(later.kept) < set(earlier.kept) for earlier, later in zip(found, found[1:], strict=False))
    assert all(sorted(option.kept + option.removed) == list(range(8)) for option in found)
    losses = [option.loss for option in found]
    assert losses == sorted(losses)
    assert losses[0] > 0
    for option in found:
        gone = len(option.removed)
        assert option.macs_saved == gone * (64 * (27 + 6 * 9 + 6) + 36 * 5 * 9)
        assert option.params_saved == gone * (28 + 6 * 9 + 6 + 5 * 9)


def test_least_squares_chooses_better_than_magnitude() -> None:
    loaded = network()
    moments = collect_moments(loaded, SAMPLES, ["b", "c", "d", "e"])
    for group in groups(loaded):
        if group.reason is None:
            exact, plain = (
                options(loaded, group, moments, [group.size // 2], method=method)[0].loss
                for method in ("least squares", "magnitude")
            )
            assert exact <= plain


@pytest.mark.parametrize(
    ("group", "count", "message"),
    [
        ("e", 1, "no channel of 'e' can go: it is an output of the network"),
        ("a", 0, r"counts must be from 1 to 8, not \[0\]"),
        ("a", 9, r"counts must be from 1 to 8, not \[9\]"),
        ("a", 4, "the inputs of node 'b' were not measured"),
    ],
)
def test_impossible_options_are_refused(group: str, count: int, message: str) -> None:
    loaded = network()
    found = next(g for g in groups(loaded) if g.name == group)
    with pytest.raises(ValueError, match=message):
        options(loaded, found, {}, [count])


@pytest.mark.parametrize(
    ("size", "multiple", "expected"), [(16, 4, (12, 8, 4)), (6, 1, (5, 4, 3, 2, 1)), (10, 8, (8,)), (4, 8, ())]
)
def test_counts_are_multiples(size: int, multiple: int, expected: tuple[int, ...]) -> None:
    assert counts(size, multiple) == expected


def answers(loaded: ir.Model, name: str, images: Array) -> Array:
    """The most probable class of every image."""
    active = session(loaded)
    return np.asarray([active.run(None, {name: image[None]})[0].argmax() for image in images])


def test_resnet8_loses_a_quarter_of_its_inner_channels_and_keeps_its_answers() -> None:
    loaded = import_model(shared("models", "mlperf_tiny_resnet8.onnx")).model
    images = np.load(shared("data", "cifar10_train_8068.npz"))["x"][:320].astype(np.float32)
    name = str(loaded.graph.inputs[0].name)
    inner = [g for g in groups(loaded) if g.reason is None and len(g.producers) == len(g.consumers) == 1]
    readers = [member.node for group in inner for member in group.consumers]
    moments = collect_moments(loaded, {name: images[:64]}, readers)
    agreement = {}
    for method in ("least squares", "magnitude"):
        result = loaded.clone()
        removal = {g.name: options(loaded, g, moments, [g.size * 7 // 8], method=method)[0].removed for g in inner}
        PruneChannels(removal, moments if method == "least squares" else None)(result)
        before, after = ([run(m, {name: image[None]}) for image in images[64:]] for m in (loaded, result))
        same = [
            np.argmax(list(b.values())[0]) == np.argmax(list(a.values())[0]) for b, a in zip(before, after, strict=True)
        ]
        agreement[method] = np.mean(same)
    assert agreement["least squares"] > agreement["magnitude"]
    assert agreement["least squares"] >= 0.9
