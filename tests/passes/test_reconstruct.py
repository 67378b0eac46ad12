"""Layer after layer: the bias takes up the mean, later layers make good for earlier ones, recipes are obeyed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes import quantize as quantizing
from passes import reconstruct, statistics
from passes.gram import Gatherer, Moments, collect_moments
from passes.layer import Layer
from passes.problem import Importance
from passes.quantize import QuantizeConfig, Quantized, quantize, quantize_with
from passes.quantize_weights import accumulator_fits
from passes.recipes.base import Coded, Problem, Recipe, RecipeError
from passes.recipes.uniform import Uniform
from passes.reconstruct import _explained, _followed, _slope
from passes.scale_grid import step_of
from passes.scales import ActivationConfig
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import Array, node

LAYERS = ("c1", "c2", "c3", "y")
PLAIN = QuantizeConfig(equalize=None)


def network(seed: int = 0) -> ir.Model:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], group=12, pads=[2] * 4, dilations=[2, 2]),
        node("Conv", ["c2", "w3"], ["c3"]),
        node("Flatten", ["c3"], ["f"]),
        node("Gemm", ["f", "w4"], ["y"], transB=1),
    ]
    weights = {
        "w1": normal(12, 8, 3, 3, seed=seed),
        "b1": normal(12, seed=seed + 1),
        "w2": normal(12, 1, 3, 3, seed=seed + 2),
        "w3": normal(6, 12, 1, 1, seed=seed + 3),
        "w4": normal(10, 150, seed=seed + 4),
    }
    weights["w3"][:, ::3] = 0
    return canonical(nodes, {"x": [1, 8, 9, 9]}, ["y"], weights)


def inputs(count: int, seed: int) -> dict[str, Array]:
    """Far from zero on average, and positions that hang together."""
    return {"x": np.abs(normal(count, 8, 9, 9, seed=seed)) + normal(count, 1, 9, 9, seed=seed + 1)}


SAMPLES, FRESH = inputs(48, 7), inputs(48, 70)


def made(
    recipe: Recipe | None = None, config: QuantizeConfig = PLAIN, seed: int = 0, **how: dict[str, Importance]
) -> Quantized:
    loaded = network(seed)
    recipes = None if recipe is None else dict.fromkeys(LAYERS, recipe)
    return quantize_with(loaded, every_node(loaded), SAMPLES, recipes=recipes, config=config, **how)  # type: ignore[arg-type]


def codes(result: ir.Model) -> dict[str, tuple[Array, Array]]:
    """Integer weights and scales of every layer."""
    found = {}
    for layer in result.graph:
        if layer.op_type in ("Conv", "Gemm"):
            values = layer.inputs[1].producer().inputs  # type: ignore[union-attr]
            found[str(layer.name)] = tuple(value.const_value.numpy() for value in values[:2])  # type: ignore[union-attr]
    return found


def error(result: ir.Model, samples: dict[str, Array], value: str = "y", seed: int = 0) -> float:
    """Mean squared error of a float value, relative to its variance."""
    inside = "y_float" if value == "y" else value
    pairs = zip(
        statistics.run(network(seed), samples, [value]), statistics.run(result, samples, [inside]), strict=True
    )
    exact, got = (np.stack(each) for each in zip(*((a[value], b[inside]) for a, b in pairs), strict=True))
    return float(np.square(exact - got).mean() / exact.var())


@pytest.mark.parametrize("seed", [0, 10, 20])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_layers_err_less_on_new_samples_than_with_the_nearest_integer(seed: int, bits: int) -> None:
    nearest = made(Uniform(bits, is_nearest=True), replace(PLAIN, follow=False), seed).model
    better = made(Uniform(bits), seed=seed).model
    assert error(better, FRESH, "c1", seed) < 0.9 * error(nearest, FRESH, "c1", seed)
    assert error(better, FRESH, "c2", seed) < error(nearest, FRESH, "c2", seed)
    if bits < 8:  # at 8 bits most of what is left comes from rounding activations
        assert error(better, FRESH, "y", seed) < 0.9 * error(nearest, FRESH, "y", seed)


@pytest.mark.parametrize(("bits", "most"), [(2, 1.0), (3, 1.0), (4, 1.01)])
def test_layers_that_make_good_for_what_was_before_bring_the_network_closer(bits: int, most: float) -> None:
    """At 4 bits there is next to nothing to make good for in three layers that read noise."""
    alone, following = (made(Uniform(bits), replace(PLAIN, follow=follow)).model for follow in (False, True))
    assert error(following, FRESH) < most * error(alone, FRESH)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bits", [2, 8])
def test_the_mean_of_every_channel_is_right(name: str, bits: int) -> None:
    """What is left is at most half a step of the int32 bias; with the nearest integers it is far more."""
    inside = "y_float" if name == "y" else name
    exact = statistics.collect(network(), SAMPLES, means=[name]).means[name]
    errors = {}
    for is_on in (False, True):
        result = made(Uniform(bits), replace(PLAIN, reconstruct=is_on)).model
        layer = next(n for n in result.graph if n.name == name)
        step = layer.inputs[2].producer().inputs[1].const_value.numpy()  # type: ignore[union-attr]
        mean = statistics.collect(result, SAMPLES, means=[inside]).means[inside]
        errors[is_on] = np.abs(mean - exact) / step
    assert (errors[True] <= 0.51).all()
    assert errors[False].max() > 2


def test_eight_bits_stay_beside_the_target_and_zeros_stay() -> None:
    """Without following, the target is the float weight."""
    loaded = network()
    rounded = codes(made(config=replace(PLAIN, follow=False)).model)
    nearest = codes(made(config=replace(PLAIN, reconstruct=False)).model)
    for layer, name in zip(LAYERS, ("w1", "w2", "w3", "w4"), strict=True):
        values, scale = rounded[layer]
        exact = loaded.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        exact = exact / scale.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float64)
        assert np.abs(values - exact).max() <= 1.001
        assert not values[exact == 0].any()
        assert (values != nearest[layer][0]).any()
        np.testing.assert_array_equal(scale, nearest[layer][1])


def test_zeros_stay_also_where_the_target_follows() -> None:
    for bits in (3, 8):
        values, _ = codes(made(Uniform(bits)).model)["c3"]
        assert not values[:, ::3].any()
        assert values.any()


def test_every_accumulator_fits() -> None:
    for values, _ in codes(made(config=replace(PLAIN, acc_bits=17)).model).values():
        assert accumulator_fits(values, 17).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_codes_have_the_bits_that_were_asked(bits: int) -> None:
    for values, _ in codes(made(Uniform(bits)).model).values():
        assert values.dtype == np.int8
        assert np.abs(values).max() <= 2 ** (bits - 1) - 1
    assert max(np.abs(values).max() for values, _ in codes(made(Uniform(bits)).model).values()) == 2 ** (bits - 1) - 1


def test_more_bits_err_less() -> None:
    errors = [error(made(Uniform(bits)).model, FRESH) for bits in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


def test_each_layer_has_its_own_recipe() -> None:
    loaded = network()
    recipes: dict[str, Recipe] = {"c1": Uniform(2), "y": Uniform(4)}
    result = quantize_with(loaded, every_node(loaded), SAMPLES, recipes=recipes, config=PLAIN)
    largest = {name: int(np.abs(values).max()) for name, (values, _) in codes(result.model).items()}
    assert largest["c1"] == 1
    assert largest["y"] == 7
    assert min(largest["c2"], largest["c3"]) > 100
    assert set(result.losses) == set(LAYERS)


@dataclass(frozen=True)
class _Refusing:
    """A recipe that fits a depthwise layer alone."""

    is_late: bool = False

    name = "doublet"
    limit = 7

    def scales(self, problem: Problem) -> NDArray[np.float64]:
        if problem.weights.shape[0] == 1 and not self.is_late:
            raise RecipeError("it is no depthwise layer")
        return Uniform(4).scales(problem)

    def codes(self, problem: Problem, scale: NDArray[np.float64]) -> Coded:
        if problem.weights.shape[0] == 1:
            raise RecipeError("it is no depthwise layer")
        return Coded(Uniform(4).codes(problem, scale).codes, "as doublets")


@pytest.mark.parametrize("is_late", [False, True])
def test_a_recipe_that_does_not_fit_gives_way_to_eight_bits_and_says_why(is_late: bool) -> None:
    result = made(_Refusing(is_late))
    plain = made()
    assert result.storages == {"c2": "as doublets"}
    values = codes(result.model)
    np.testing.assert_array_equal(values["c1"][0], codes(plain.model)["c1"][0])
    assert np.abs(values["c2"][0]).max() <= 7
    step = reconstruct.Reconstruct
    assert step.name == "reconstruct"


def test_the_reason_is_in_the_report_of_the_pass() -> None:
    loaded = network()
    calibrated = quantizing.Calibrated.of(loaded, every_node(loaded), SAMPLES, PLAIN)
    step = reconstruct.Reconstruct(
        calibrated.aims, calibrated.wanted, calibrated.samples, recipes={"c1": _Refusing(), "c2": _Refusing()}
    )
    step(calibrated.base.clone())
    assert step.report.skipped == {"c1": "doublet: it is no depthwise layer; it is W8 instead"}
    assert set(step.report.changed) == set(LAYERS)


def test_losses_are_those_of_the_errors_on_what_the_layer_reads() -> None:
    """Without following: tr(D H D^T) with H of what the layer reads."""
    loaded = network()
    result = made(Uniform(3), replace(PLAIN, follow=False))
    moments = collect_moments(result.model, SAMPLES, ["c1"])["c1"]
    values, scale = codes(result.model)["c1"]
    exact = loaded.graph.initializers["w1"].const_value.numpy()  # type: ignore[union-attr]
    delta = (values * scale.reshape(-1, 1, 1, 1).astype(np.float64) - exact).reshape(1, 12, 72)
    expected = np.einsum("grt,gtu,gru->", delta, moments.hessian(0.1), delta)
    assert result.losses["c1"] == pytest.approx(expected, rel=1e-4)


def test_importance_scales_the_loss() -> None:
    plain = made(Uniform(3))
    importance = {name: Importance(np.full(size, 5.0), np.zeros(size)) for name, size in zip(LAYERS, (12, 12, 6, 10))}
    weighed = made(Uniform(3), importance=importance)
    for name in LAYERS:
        assert weighed.losses[name] == pytest.approx(5 * plain.losses[name], rel=1e-9)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_coarse_scales_and_biases_are_cheap_to_write_and_cost_little(bits: int) -> None:
    fine, coarse = (made(Uniform(bits), replace(PLAIN, is_coarse=is_coarse)).model for is_coarse in (False, True))
    # Steps are up to a ninth coarser, and less than half a step is cut off the largest weights.
    assert error(coarse, FRESH) < 1.3 * error(fine, FRESH)
    by_name = {n.name: n for n in coarse.graph}
    previous, distinct = {"c1": "x", "c2": "r1", "c3": "c2", "y": "f"}, {"c1": "r1"}
    for name in LAYERS:
        source = float(by_name[f"{previous[name]}_q"].inputs[1].const_value.numpy())  # type: ignore[union-attr]
        target = float(by_name[f"{distinct.get(name, name)}_q"].inputs[1].const_value.numpy())  # type: ignore[union-attr]
        assert all(step_of(float(s), source, target) is not None for s in codes(coarse)[name][1])


def test_a_network_of_which_a_part_stays_float() -> None:
    loaded = network()
    result, report = quantize(loaded, every_node(loaded, "Gemm"), SAMPLES, PLAIN)
    assert "y" not in report.changed
    assert "w4" in result.graph.initializers
    assert error(result, FRESH, "c3") < 0.01


def test_two_inputs_from_the_host_and_a_concat() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Softmax", ["x"], ["s"]),
        node("Conv", ["s", "w"], ["b"]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    loaded = canonical(nodes, {"x": [1, 8, 9, 9]}, ["y"], {"w": normal(2, 8, 1, 1)})
    result, _ = quantize(loaded, every_node(loaded, "Softmax"), SAMPLES)
    assert statistics.sqnr(loaded, result, FRESH)["y"] > 30


def test_small_networks_that_read_few_positions_are_reconstructed_on_more_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = canonical([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": [1, 40]}, ["y"], {"w": normal(3, 40)})
    aims = quantizing.Calibrated.of(dense, every_node(dense), {"x": np.ones((2, 40), np.float32)}, PLAIN).aims
    assert quantizing.affordable(dense, aims, PLAIN) == 64
    assert quantizing.affordable(dense, aims, replace(PLAIN, samples_of_few=4096)) == 160
    assert quantizing.affordable(dense, aims, replace(PLAIN, samples_of_few=100)) == 100
    loaded = network()
    aims = quantizing.Calibrated.of(loaded, every_node(loaded), SAMPLES, PLAIN).aims
    assert quantizing.affordable(loaded, aims, replace(PLAIN, samples_of_few=4096)) == 4 * 150
    monkeypatch.setattr(quantizing, "WORK", 10**5)
    assert quantizing.affordable(loaded, aims, replace(PLAIN, samples_of_few=4096)) == 64


def test_large_networks_are_reconstructed_on_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = network()
    aims = quantizing.Calibrated.of(loaded, every_node(loaded), SAMPLES, PLAIN).aims
    assert quantizing.affordable(loaded, aims, PLAIN) == 64
    largest = 12 * 5 * 5 * 4
    monkeypatch.setattr(quantizing, "MEMORY", 5 * largest)
    assert quantizing.affordable(loaded, aims, PLAIN) == 5
    assert quantizing.affordable(loaded, aims, replace(PLAIN, positions=10)) == 12
    monkeypatch.setattr(quantizing, "MEMORY", 1)
    assert quantizing.affordable(loaded, aims, PLAIN) == 1


def test_channels_with_very_many_weights_are_rounded_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = codes(made(config=replace(PLAIN, reconstruct=False)).model)
    monkeypatch.setattr(reconstruct, "TAPS_MAX", 149)
    np.testing.assert_array_equal(codes(made(Uniform(8)).model)["y"][0], nearest["y"][0])
    result = made(Uniform(4))
    assert [np.abs(codes(result.model)[name][0]).max() for name in ("y", "c1")] == [7, 7]
    assert "y" not in result.losses


def test_wide_codes_of_many_weights_are_rounded_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = codes(made(config=replace(PLAIN, reconstruct=False)).model)
    monkeypatch.setattr(reconstruct, "WIDE_MAX", 10 * 150 - 1)
    result = made(Uniform(8))
    np.testing.assert_array_equal(codes(result.model)["y"][0], nearest["y"][0])
    assert "y" not in result.losses
    assert "c1" in result.losses
    assert "y" in made(Uniform(4)).losses


def test_the_calibrated_network_is_never_changed() -> None:
    """One calibration serves many plans, in any order."""
    loaded = network()
    calibrated = quantizing.Calibrated.of(loaded, every_node(loaded), SAMPLES, PLAIN)
    before = ir.to_proto(calibrated.base).SerializeToString()
    first = calibrated.quantized({"c1": Uniform(2)})
    calibrated.quantized(dict.fromkeys(LAYERS, Uniform(3)))
    again = calibrated.quantized({"c1": Uniform(2)})
    assert ir.to_proto(first.model).SerializeToString() == ir.to_proto(again.model).SerializeToString()
    assert ir.to_proto(calibrated.base).SerializeToString() == before


def test_dead_channels_keep_their_float_bias() -> None:
    loaded = network()
    weights = loaded.graph.initializers["w1"]
    array = weights.const_value.numpy().copy()  # type: ignore[union-attr]
    array[3] *= 1e-9
    weights.const_value = ir.Tensor(array, name="w1")
    result = quantize_with(loaded, every_node(loaded), SAMPLES, recipes={"c1": Uniform(4)}, config=PLAIN).model
    values, scale = codes(result)["c1"]
    layer = next(n for n in result.graph if n.name == "c1")
    bias, step = (v.const_value.numpy() for v in layer.inputs[2].producer().inputs[:2])  # type: ignore[union-attr]
    assert not values[3].any()
    exact = loaded.graph.initializers["b1"].const_value.numpy()[3]  # type: ignore[union-attr]
    assert bias[3] * step[3] == pytest.approx(exact, rel=1e-4)
    assert scale[3] > 0


@pytest.mark.parametrize("activations", [ActivationConfig(bits=16), ActivationConfig(symmetric=True)])
def test_other_activations_are_made_good_for_likewise(activations: ActivationConfig) -> None:
    config = replace(PLAIN, activations=activations)
    nearest = made(Uniform(4, is_nearest=True), replace(config, follow=False)).model
    assert error(made(Uniform(4), config).model, FRESH) < error(nearest, FRESH)


def noisy(noise: float, rows: int = 6, taps: int = 10) -> tuple[Array, Moments]:
    """Weights, and moments of a layer that reads its inputs with noise and is to answer as if there were none."""
    weights = normal(rows, taps, seed=3).astype(np.float64)
    gatherer = Gatherer(Layer("Gemm", (rows, taps)))
    for clean, disturbance in zip(normal(4000, taps), normal(4000, taps, seed=1) * noise, strict=True):
        gatherer.add((clean + disturbance)[None], (clean @ weights.T)[None, :, None].astype(np.float32))
    return weights[None], gatherer.moments()


def slope(weights: Array, moments: Moments) -> Array:
    """Of the regression of each row's answers on the wanted ones."""
    assert moments.cross_covariance is not None
    return np.einsum("grt,grt->gr", weights, moments.cross_covariance) / moments.answer_variance


def test_what_noise_shrinks_is_drawn_out_again_half_the_way() -> None:
    weights, moments = noisy(0.4)
    found = slope(_followed(weights, moments, is_wary=False), moments)
    damping = 0.1 * 1.16
    np.testing.assert_allclose(found, np.sqrt((1 + damping) / (1.16 + damping)), rtol=0.02)
    assert (found < 1).all()


def test_against_noise_alone_eight_bits_hardly_move() -> None:
    weights, moments = noisy(0.4)
    wary, other = (_followed(weights, moments, is_wary=each) for each in (True, False))
    # 0.16 of noise are 0.16 of error, of which the best weights leave 0.16 / 1.16.
    share = _explained(weights, weights / 1.16, moments)
    assert share == pytest.approx(1 - 1 / 1.16, rel=0.1)
    assert np.linalg.norm(wary / np.sqrt(_slope(wary, moments))[:, :, None] - weights) < 0.05 * np.linalg.norm(weights)
    assert (slope(wary, moments) > slope(other, moments)).all()
