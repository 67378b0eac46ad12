"""A stored form in the file is the same network, in fewer bytes, and the importer finds the plain integers in it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes.storage.emit import emit
from passes.storage.forms import Codebook, Narrow, Planes, Storage, Vector
from tests.support.onnx_models import model, node
from tests.support.stored import check_stored, layer_of, quantized

CONV, DEPTHWISE, GEMM = (32, 16, 3, 3), (512, 1, 3, 3), (64, 96)


def _forms(shape: tuple[int, ...]) -> dict[str, Storage]:
    rng, rows, taps = np.random.default_rng(3), shape[0], math.prod(shape[1:])
    grid = (rows, 1, taps) if shape[1] == 1 and len(shape) > 2 else (1, rows, taps)
    entries = rng.integers(-127, 128, 200).astype(np.int8)
    length = 3 if taps == 9 else 4
    pairs = rng.integers(-127, 128, (16, length)).astype(np.int8)
    coefficients = rng.integers(-31, 32, (*grid[:2], 4)).astype(np.int8)

    def indices(count: int, run: int = 1) -> NDArray[np.uint8]:
        return rng.integers(0, count, (*grid[:2], taps // run), dtype=np.uint8)

    return {
        "narrow": Narrow(rng.integers(-8, 8, grid).astype(np.int8)),
        "codebook": Codebook(entries[:16], indices(16)),
        "vector": Vector(pairs, indices(16, length)),
        "two planes": Planes(coefficients[:, :, :2], indices(4)),
        "three planes": Planes(coefficients[:, :, :3], indices(8)),
    }


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        *itertools.product([CONV, GEMM], ["narrow", "codebook", "vector", "two planes", "three planes"]),
        *itertools.product([DEPTHWISE], ["narrow", "codebook", "vector"]),
    ],
)
def test_every_form_is_the_same_network_in_a_smaller_file(shape: tuple[int, ...], form: str, tmp_path: Path) -> None:
    check_stored(_forms(shape)[form], shape, tmp_path)


def test_a_form_that_makes_the_file_larger_is_left_out_and_the_graph_untouched() -> None:
    storage = Codebook(np.array([-1, 0, 1], np.int8), np.ones((1, 4, 9), np.uint8))
    network = quantized(storage.codes().reshape(4, 1, 3, 3).astype(np.int8))
    before = ir.to_proto(network).SerializeToString(deterministic=True)
    reason = emit(layer_of(network), storage)
    assert reason is not None
    assert "as codebook its codes would take" in reason
    assert ir.to_proto(network).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("taps", range(300, 360, 4))
def test_the_count_of_bytes_is_that_of_the_file(taps: int) -> None:
    """Around the break-even size the verdict is that of the files themselves."""
    storage = Codebook(np.arange(16, dtype=np.int8), np.random.default_rng(0).integers(0, 16, (1, 2, taps), np.uint8))
    network = quantized(storage.codes().reshape(2, taps).astype(np.int8))
    dense = ir.to_proto(network).ByteSize()
    reason = emit(layer_of(network), storage)
    stored = ir.to_proto(network).ByteSize()
    assert stored < dense if reason is None else stored == dense


def test_the_tables_of_planes_do_not_pay_for_the_nine_taps_of_a_depthwise_convolution() -> None:
    storage = _forms(DEPTHWISE)["three planes"]
    network = quantized(storage.codes().reshape(DEPTHWISE).astype(np.int8))
    reason = emit(layer_of(network), storage)
    assert reason is not None
    assert reason.startswith("as planes its codes would take ")


def test_other_codes_than_the_layers_are_an_error() -> None:
    network = quantized(np.zeros(GEMM, np.int8))
    with pytest.raises(ValueError, match="stands for other codes"):
        emit(layer_of(network), _forms(GEMM)["codebook"])


def test_float_weights_have_no_codes_to_store() -> None:
    proto = model([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": (1, 4)}, ["y"], {"w": np.ones((3, 4), np.float32)})
    layer = next(iter(ir.from_proto(proto).graph))
    assert emit(layer, _forms(GEMM)["narrow"]) == "its weights are no int8 initializer behind a DequantizeLinear"


def test_the_weights_of_a_matmul_lie_the_other_way_round_and_are_left_alone() -> None:
    network = ir.from_proto(
        model([node("MatMul", ["x", "w"], ["y"])], {"x": (1, 4)}, ["y"], {"w": np.ones((4, 3), np.float32)})
    )
    reason = emit(next(iter(network.graph)), _forms(GEMM)["narrow"])
    assert reason == "the weights of a MatMul are not stored row by row"
