"""Circulant matrices and shared filters in the file are the same network, in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.gram import collect_moments
from passes.graph import constant, operand
from passes.layer import layers
from passes.low_rank import EXACT, Choice, LowRank, Method, options, window_of
from passes.quantize import quantize_with
from passes.recipes.base import Problem
from passes.recipes.structured import Circulant, Toeplitz, recognised
from passes.solvers.circulant import Blocks, toeplitz
from passes.solvers.symmetry import oriented
from passes.statistics import sqnr
from passes.storage.emit_structured import emit
from passes.storage.structured_forms import CirculantBlocks, SharedFilters
from tests.support.canonical import canonical, every_node, normal
from tests.support.onnx_models import node, run
from tests.support.stored import check_stored, layer_of, quantized


def circulant(blocks: Blocks, groups: int = 1) -> CirculantBlocks:
    shape = (groups, blocks.down, blocks.row_parameters)
    return CirculantBlocks(blocks, np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8))


def shared(leaders: int, rows: int, shape: tuple[int, ...], turns: list[int], groups: int = 1) -> SharedFilters:
    rng = np.random.default_rng(0)
    return SharedFilters(
        rng.integers(-127, 128, (leaders, *shape)).astype(np.int8),
        rng.integers(0, leaders, (groups, rows)).astype(np.uint16),
        rng.choice(turns, (groups, rows)).astype(np.uint8),
    )


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [
        (Blocks(48, 64, 1, 8), (48, 64)),
        (Blocks(32, 16, 9, 4), (32, 16, 3, 3)),
        (Blocks(33, 18, 9, 4), (33, 18, 3, 3)),
        (Blocks(40, 40, 1, 40), (40, 40, 1, 1)),
        (Blocks(96, 50, 1, 96), (96, 50)),
        (Blocks(50, 96, 1, 96), (50, 96)),
        (toeplitz(40, 60), (40, 60)),
        (toeplitz(24, 40, 9), (24, 40, 3, 3)),
        (toeplitz(300, 20), (300, 20)),
        (Blocks(64, 64, 5, 32), (64, 64, 5)),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else f"b{value.block}",
)
def test_a_circulant_layer_is_the_same_network(blocks: Blocks, shape: tuple[int, ...], tmp_path: Path) -> None:
    proto, saved = check_stored(circulant(blocks), shape, tmp_path)
    assert not _wide_initializers(proto)
    assert saved > 0.8 * (blocks.rows * blocks.channels * blocks.positions - blocks.parameters) - 1500


def _wide_initializers(proto: onnx.ModelProto) -> list[str]:
    """Initializers of 4 or 8 bytes an element that are no scalar, shape or scale."""
    wide = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return [t.name for t in proto.graph.initializer if t.data_type in wide and np.prod(t.dims) > 6]


def test_every_group_has_its_own_circulants(tmp_path: Path) -> None:
    check_stored(circulant(Blocks(16, 16, 9, 4), groups=3), (48, 16, 3, 3), tmp_path, groups=3)


@pytest.mark.parametrize(
    ("shape", "turns"),
    [
        ((16, 3, 3), [0]),
        ((16, 3, 3), [0, 8]),
        ((16, 3, 3), list(range(16))),
        ((16, 3, 3), [3, 5]),
        ((8, 3, 5), [0, 2, 4, 6, 12]),
        ((24, 7), [0, 4]),
        ((64,), [0, 8]),
        ((64, 1, 1), [0, 8]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_shared_filters_are_the_same_network(shape: tuple[int, ...], turns: list[int], tmp_path: Path) -> None:
    check_stored(shared(24, 96, shape, turns), (96, *shape), tmp_path)


def test_depthwise_filters_are_shared_across_groups(tmp_path: Path) -> None:
    storage = shared(20, 1, (1, 3, 3), list(range(16)), groups=600)
    check_stored(storage, (600, 1, 3, 3), tmp_path)


def test_more_than_256_variants_have_an_index_of_two_bytes(tmp_path: Path) -> None:
    check_stored(shared(200, 400, (16, 3, 3), [0, 8]), (400, 16, 3, 3), tmp_path)


def test_what_would_be_larger_is_left_out_and_the_graph_untouched() -> None:
    storage = circulant(Blocks(8, 8, 1, 4))
    network = quantized(storage.codes().reshape(8, 8).astype(np.int8))
    before = ir.to_proto(network).SerializeToString(deterministic=True)
    reason = emit(layer_of(network), storage)
    assert reason is not None
    assert reason.startswith("as circulant its codes would take ")
    assert ir.to_proto(network).SerializeToString(deterministic=True) == before


def test_stored_forms_that_contradict_themselves_are_errors() -> None:
    with pytest.raises(ValueError, match=r"parameters \[1, 2, 3\] of a form that has \[2, 8\]"):
        CirculantBlocks(Blocks(8, 8, 1, 4), np.zeros((1, 2, 3), np.int8))
    filters = np.zeros((2, 4, 3, 5), np.int8)
    with pytest.raises(ValueError, match="filter 2 of 2"):
        SharedFilters(filters, np.full((1, 3), 2, np.uint16), np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a kernel \[3, 5\] cannot be turned by 1"):
        SharedFilters(filters, np.zeros((1, 3), np.uint16), np.ones((1, 3), np.uint8))


def hidden() -> ir.Model:
    """A random network in which four layers have a structure."""
    rng = np.random.default_rng(7)
    originals = rng.normal(size=(4, 16, 3, 3))
    turned = [oriented(originals[n % 4], int(rng.integers(0, 16))) for n in range(48)]
    low = np.einsum("rch,orw->ochw", rng.normal(size=(5, 48, 3)), rng.normal(size=(48, 5, 3)))
    blocks, diagonals = Blocks(48, 48, 1, 8), toeplitz(64, 48)
    weights = {
        "w_first": rng.normal(size=(16, 3, 3, 3)),
        "w_turned": np.array(turned),
        "w_circulant": blocks.expand(rng.normal(size=(6, blocks.row_parameters))).reshape(48, 48, 1, 1),
        "w_low": low,
        "w_toeplitz": diagonals.expand(rng.normal(size=(1, diagonals.row_parameters))),
        "w_last": rng.normal(size=(10, 64)),
    }
    arrays: dict[str, np.ndarray] = {
        name: (array / np.sqrt(array[0].size)).astype(np.float32) for name, array in weights.items()
    }
    arrays |= {f"b_{name[2:]}": normal(len(array), seed=3, scale=0.1) for name, array in arrays.items()}

    def conv(source: str, name: str, **attributes: object) -> list[onnx.NodeProto]:
        made = node("Conv", [source, f"w_{name}", f"b_{name}"], [name], **attributes)
        return [made, node("Relu", [name], [f"{name}_relu"])]

    nodes = [
        *conv("x", "first", pads=[1, 1, 1, 1]),
        *conv("first_relu", "turned", pads=[1, 1, 1, 1], strides=[2, 2]),
        *conv("turned_relu", "circulant"),
        *conv("circulant_relu", "low", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", ["low_relu"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("Gemm", ["flat", "w_toeplitz", "b_toeplitz"], ["toeplitz"], transB=1),
        node("Relu", ["toeplitz"], ["toeplitz_relu"]),
        node("Gemm", ["toeplitz_relu", "w_last", "b_last"], ["last"], transB=1),
    ]
    return canonical(nodes, {"x": [1, 3, 12, 12]}, ["last"], arrays)


SAMPLES = {"x": normal(24, 3, 12, 12, seed=11)}


def problems(network: ir.Model) -> dict[str, Problem]:
    known = layers(network)
    moments = collect_moments(network, SAMPLES, list(known))
    found = {}
    for each in network.graph:
        if (layer := known.get(str(each.name))) is not None:
            weights = constant(operand(each, 1))
            assert weights is not None
            hessian = moments[str(each.name)].hessian(0.1)
            importance = np.ones((layer.groups, layer.rows))
            found[str(each.name)] = Problem(layer.matrix(weights), hessian, importance, layer.kernel)
    return found


def test_structures_hidden_in_a_random_network_are_found_and_used_and_the_codes_stay(tmp_path: Path) -> None:
    network = hidden()
    found = {name: recognised(about) for name, about in problems(network).items()}
    assert {name: recipe.name for name, recipe in found.items() if recipe} == {
        "turned": "shared filters 4 of 48 + W8",
        "circulant": Circulant(8, is_tied=True).name,
        "toeplitz": Toeplitz(is_tied=True).name,
    }
    recipes = {name: recipe for name, recipe in found.items() if recipe}
    quantized_network = quantize_with(network, every_node(network), SAMPLES, recipes=recipes)
    assert not quantized_network.report.skipped
    result = quantized_network.model
    dense = ir.to_proto(result).SerializeToString()
    before = run(result, {"x": SAMPLES["x"][:1]})["last"]
    plain = quantize_with(network, every_node(network), SAMPLES).model
    assert sqnr(network, result, SAMPLES)["last"] > sqnr(network, plain, SAMPLES)["last"] - 3
    for each in result.graph:
        if (storage := quantized_network.storages.get(str(each.name))) is not None:
            assert emit(each, storage) is None  # type: ignore[arg-type]
    stored = ir.to_proto(result)
    onnx.checker.check_model(stored, full_check=True)
    # 48 filters of 144 weights come from 4, 2304 weights from 288, 3072 from 111.
    # The names and types of the new nodes take some of that back.
    assert len(dense) - stored.ByteSize() > 0.5 * (44 * 144 + 2016 + 2961)
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(run(result, {"x": SAMPLES["x"][:1]})["last"], before)


def test_a_low_rank_hidden_in_a_random_network_is_found_and_the_output_stays() -> None:
    network, choices = hidden(), {}
    about = problems(network)
    for each in list(network.graph):
        window = window_of(each)
        if isinstance(window, str):
            continue
        energy = about[str(each.name)].loss(0 * about[str(each.name)].weights)
        exact = [o for o in options(about[str(each.name)], window) if o.loss <= EXACT * energy]
        if exact:
            choices[str(each.name)] = min(exact, key=lambda option: option.macs).choice
    # Four filters in sixteen orientations are 25 different ones but for the sign; circulants have full rank.
    assert choices == {"low": Choice(Method.SPATIAL, (5,)), "turned": Choice(Method.SVD, (25,))}
    expected = run(network, {"x": SAMPLES["x"][:1]})["last"]
    LowRank(choices, about)(network)
    got = run(network, {"x": SAMPLES["x"][:1]})["last"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
