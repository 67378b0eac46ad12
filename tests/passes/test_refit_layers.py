"""Every layer is fitted to the original's answers on what it reads now, and no other is touched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.channel_groups import ChannelGraph, remove
from passes.gram import collect_moments
from passes.prune_channels import PruneChannels
from passes.refit_layers import RefitLayers
from tests.passes.test_prune_channels import SAMPLES, layer_outputs, network
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import node, run

REMOVAL = {"a": [1, 6], "b": [2, 3], "d": [0]}


def error(result: ir.Model, original: ir.Model, name: str, rows: tuple[int, ...] | None = None) -> float:
    wanted = layer_outputs(original, name, SAMPLES["x"])
    chosen = wanted if rows is None else wanted[:, rows]
    return float(np.square(layer_outputs(result, name, SAMPLES["x"]) - chosen).mean())


def test_the_network_comes_nearer_to_its_original_than_with_separate_fits() -> None:
    original = network()
    moments = collect_moments(original, SAMPLES, ["b", "c", "d", "e"])
    separate = original.clone()
    PruneChannels(REMOVAL, moments)(separate)
    together = separate.clone()
    rows = ChannelGraph(original).rows(REMOVAL)
    step = RefitLayers(original, SAMPLES, rows)
    step(together)
    assert step.report.changed == ("b", "c", "d", "e")
    assert step.report.skipped == {"a": "it answers as before"}
    for name in ("b", "c", "d", "e"):
        assert error(together, original, name, rows.get(name)) < error(separate, original, name, rows.get(name))


def test_one_layer_is_an_ordinary_regression() -> None:
    original = network()
    result = original.clone()
    remove(result, {"b": [0, 4]})
    RefitLayers(original, SAMPLES, ChannelGraph(original).rows({"b": [0, 4]}), ridge=0.0)(result)
    inputs = layer_outputs(result, "br", SAMPLES["x"]).transpose(0, 2, 3, 1).reshape(-1, 4).astype(np.float64)
    wanted = layer_outputs(original, "c", SAMPLES["x"]).transpose(0, 2, 3, 1).reshape(-1, 8).astype(np.float64)
    design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(design, wanted, rcond=None)
    conv = next(n for n in result.graph if n.name == "c")
    np.testing.assert_allclose(conv.inputs[1].const_value.numpy()[:, :, 0, 0].T, solution[:-1], atol=1e-5)
    np.testing.assert_allclose(conv.inputs[2].const_value.numpy(), solution[-1], atol=1e-5)


def test_a_network_that_answers_as_before_stays_as_it_is() -> None:
    original = network()
    result, step = original.clone(), RefitLayers(original, SAMPLES)
    step(result)
    assert step.report.changed == ()
    assert set(step.report.skipped.values()) == {"it answers as before"}
    np.testing.assert_array_equal(
        run(result, {"x": SAMPLES["x"][:1]})["e"], run(original, {"x": SAMPLES["x"][:1]})["e"]
    )


def test_depthwise_layers_follow_too() -> None:
    """Group by group: what a depthwise Conv reads has changed, and it makes good for it."""
    weights = {"wa": normal(6, 3, 3, 3, seed=1), "wd": normal(6, 1, 3, 3, seed=2), "wz": normal(4, 6, 1, 1, seed=3)}
    nodes = [
        node("Conv", ["x", "wa"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "wd"], ["d"], group=6),
        node("Conv", ["d", "wz"], ["z"]),
    ]
    original = canonical(nodes, {"x": [1, 3, 8, 8]}, ["z"], weights)
    result = original.clone()
    changed = result.graph.initializers["wa"]
    changed.const_value = ir.Tensor(1.3 * normal(6, 3, 3, 3, seed=1), name="wa")
    remove(result, {"a": [2, 5]})
    rows = ChannelGraph(original).rows({"a": [2, 5]})
    before = error(result, original, "d", rows["d"])
    step = RefitLayers(original, SAMPLES, {"d": rows["d"]}, ridge=0.0)
    step(result)
    assert step.report.skipped["a"] == "it has 4 output channels, and is said to have others"
    assert error(result, original, "d", rows["d"]) < 1e-6 * before


def test_layers_that_cannot_be_fitted_are_named() -> None:
    original = network()
    result = original.clone()
    next(n for n in result.graph if n.name == "c").name = "new"
    step = RefitLayers(original, SAMPLES)
    step(result)
    assert step.report.skipped["new"] == "the original network has no such layer"
