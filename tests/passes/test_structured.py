"""Circulant matrices and shared filters in the file are the same network, in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.solvers.circulant import Blocks, toeplitz
from passes.storage_structured import CirculantBlocks, SharedFilters
from passes.structured import emit
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
