"""Convolutions of -1 and 1 as bits: they equal the reference, and are taken where the values are proven alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from backends.cpu import backend, binary
from backends.cpu.machine import Machine
from backends.cpu.plan import make_plan
from backends.fixed_point import Constant, requantize, round_half_even_shift
from backends.layers import Concat, Conv, LayerGraph, MaxPool, Pair, Requantize, Table, Tensor
from backends.reference import interpreter
from compiler.lowering import lower
from compiler.partition import partition
from tests.support.binary_network import binary_network
from tests.support.bundles import differences
from tests.support.edgec import edgec
from tests.support.onnx_models import imported
from tests.support.random_layers import random_inputs

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


def signs(rng: np.random.Generator, channels: int, spread: float, zero_point: int = 0) -> Requantize:
    """Steps of the accumulator between -1 and 1, up or down; thresholds beside 0, so that no value is rounded to 0."""
    real = 1e6 * (rng.integers(-int(spread), int(spread) + 1, channels) + 0.5)
    constant = Constant(np.zeros(channels, np.int64), real)
    return requantize(1e6 * rng.choice([-1, 1], channels), constant, zero_point=zero_point, low=-1, high=1)


def line(rng: np.random.Generator, channels: int) -> Requantize:
    """Many values, so that a wrong accumulator shows."""
    constant = Constant(rng.integers(-9, 10, channels), rng.normal(size=channels))
    return requantize(rng.choice([-1, 1], channels) * rng.uniform(0.3, 2, channels), constant)


def bipolar(rng: np.random.Generator, outputs: int, inputs: int, kernel: Pair) -> NDArray[np.int8]:
    return rng.choice([-1, 1], (outputs, inputs, *kernel)).astype(np.int8)


def binary_graph(seed: int) -> LayerGraph:
    """Borders, strides, dilation, channels that fill no word, pools, joined maps, and a fully connected layer."""
    rng = np.random.default_rng(seed)
    x = Tensor("x", (3, 9, 9), 1.0, 0)
    s, t = Tensor("s", (45, 9, 9), 1.0, 3), Tensor("t", (19, 9, 9), 1.0, 3)
    joined, pooled = Tensor("joined", (64, 9, 9), 1.0, 3), Tensor("pooled", (45, 5, 5), 1.0, 3)
    strided, dilated = Tensor("strided", (37, 5, 10), 1.0, 0), Tensor("dilated", (16, 9, 9), 1.0, 0)
    single, full = Tensor("single", (70, 9, 9), 1.0, 0), Tensor("full", (21, 1, 1), 1.0, 0)
    first = rng.integers(-127, 128, (45, 3, 1, 1)).astype(np.int8)
    return LayerGraph(
        "binary",
        (x,),
        (strided, dilated, single, full),
        (
            Conv("s", x, s, first, signs(rng, 45, 3000, 3)),
            Conv("t", s, t, bipolar(rng, 19, 45, (3, 3)), signs(rng, 19, 9, 3), pads=(1, 1, 1, 1)),
            Concat("joined", (s, t), joined, (1, 2), (0, 1)),
            MaxPool("pooled", s, pooled, (3, 3), (2, 2), (1, 1, 1, 1)),
            Conv("strided", joined, strided, bipolar(rng, 37, 64, (3, 3)), line(rng, 37), (2, 1), (1, 2, 1, 1)),
            Conv("dilated", t, dilated, bipolar(rng, 16, 19, (3, 3)), line(rng, 16), pads=(2,) * 4, dilations=(2, 2)),
            Conv("single", s, single, bipolar(rng, 70, 45, (1, 1)), line(rng, 70)),
            Conv("full", pooled, full, bipolar(rng, 21, 45, (5, 5)), line(rng, 21)),
        ),
    )


def as_bits(graph: LayerGraph, on: Machine) -> set[str]:
    """Names of the layers that run as bits."""
    steps = make_plan(graph, on).steps
    return {step.layer for step in steps if any(isinstance(call.kernel, binary.XnorConv) for call in step.calls)}


BINARY = {"t", "strided", "dilated", "single", "full"}


has_vnni = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
wide_bytes = pytest.param("cascadelake", marks=pytest.mark.skipif(not has_vnni, reason="the processor has no VNNI"))


@pytest.mark.parametrize("cpu", [None, wide_bytes, "haswell"])
def test_bits_compute_the_reference(cpu: str | None, tmp_path: Path) -> None:
    graph = binary_graph(0)
    on = backend.machine(cpu)
    inputs = random_inputs(graph, 0, 3)
    maps = interpreter.run(graph, inputs, keep="all")
    for name in ("s", "t", "joined", "pooled"):
        assert set(np.unique(maps[name])) == {-1, 1}
    assert min(len(np.unique(maps[name])) for name in ("strided", "dilated", "single", "full")) > 20
    assert as_bits(graph, on) == BINARY
    assert differences(graph, inputs, on, tmp_path) == []


@pytest.mark.parametrize(("target", "cpu"), [("arm64", "cortex-a72"), ("cortex-m", "cortex-m4")])
def test_bits_compute_the_reference_under_qemu(target: str, cpu: str | None, tmp_path: Path) -> None:
    graph, on = binary_graph(1), backend.machine(cpu, target)
    assert as_bits(graph, on) == BINARY
    backend.write(make_plan(graph, on), tmp_path)
    verdict = backend.compare_emulated(tmp_path, graph, random_inputs(graph, 0, 2))
    assert verdict.elements > 0
    assert [str(difference) for difference in verdict.differences] == []


def pair(requantized: Requantize, weights: NDArray[np.int8]) -> LayerGraph:
    """A layer that makes signs, and one that reads them."""
    x, s, y = Tensor("x", (32, 4, 4), 1.0, 0), Tensor("s", (32, 4, 4), 1.0, 0), Tensor("y", (32, 4, 4), 1.0, 0)
    rng = np.random.default_rng(0)
    first = rng.integers(-9, 9, (32, 32, 1, 1)).astype(np.int8)
    made, read = Conv("s", x, s, first, requantized), Conv("y", s, y, weights, line(rng, 32))
    return LayerGraph("pair", (x,), (y,), (made, read))


def test_a_weight_is_one_bit_and_bits_need_proof() -> None:
    on, rng = backend.machine("haswell"), np.random.default_rng(0)
    steps, weights = signs(rng, 32, 100), bipolar(rng, 32, 32, (1, 1))
    assert as_bits(pair(steps, weights), on) == {"y"}
    whole = pair(steps, weights)
    last = LayerGraph("alone", (whole.layers[0].output,), whole.outputs, whole.layers[1:])
    assert as_bits(last, on) == set(), "what a caller passes is not proven"
    assert make_plan(whole, on).weight_bytes - 2 * 32 * 32 == 32 * 32 // 8
    with_zero = weights.copy()
    with_zero[3, 5] = 0
    assert as_bits(pair(steps, with_zero), on) == set()
    assert as_bits(pair(replace(steps, high=2), weights), on) == set()
    meets_zero = replace(steps, offset=np.where(np.arange(32) == 7, 5 * steps.multiplier, steps.offset))
    assert as_bits(pair(meets_zero, weights), on) == set()


def test_a_table_of_signs_is_proof() -> None:
    rng = np.random.default_rng(0)
    x, s, y = Tensor("x", (16, 4, 4), 1.0, 0), Tensor("s", (16, 4, 4), 1.0, 0), Tensor("y", (8, 4, 4), 1.0, 0)
    table = np.where(np.arange(-128, 128) >= 0, 1, -1).astype(np.int8)
    for changed, found in ((1, {"y"}), (0, set())):
        table[128] = changed
        conv = Conv("y", s, y, bipolar(rng, 8, 16, (1, 1)), line(rng, 8))
        graph = LayerGraph("table", (x,), (y,), (Table("s", x, s, table.copy()), conv))
        assert as_bits(graph, backend.machine("haswell")) == found


def test_the_proof_is_what_trying_every_accumulator_finds() -> None:
    rng = np.random.default_rng(0)
    accumulators = np.arange(-5000, 5001)
    found = []
    for _ in range(300):
        multiplier, shift, zero = int(rng.integers(-40, 41)), int(rng.integers(0, 6)), int(rng.integers(-2, 3))
        offset = int(rng.integers(-300, 300))
        values = zero + round_half_even_shift(accumulators * multiplier + offset, shift)
        scale = Requantize(*(np.array([v], np.int64) for v in (multiplier, shift, offset)), zero, -1, 1)
        graph = pair(scale, np.ones((32, 32, 1, 1), np.int8))
        assert binary.is_bipolar(graph.layers[0].output, graph) == (0 not in values)
        found.append(0 in values)
    assert 30 < sum(found) < 270


def test_a_whole_binary_network_is_bits_after_its_first_binary_layer(tmp_path: Path) -> None:
    """The first of its binary convolutions reads what the host passes, which is not proven."""
    found = imported(binary_network(3, depth=3)[0]).model
    graph, on = lower(found, partition(found)).graph, backend.machine(None)
    assert len(as_bits(graph, on)) == sum(isinstance(layer, Conv) for layer in graph.layers) - 1 == 2
    assert differences(graph, random_inputs(graph, 0, 3), on, tmp_path) == []


def test_a_wide_binary_network_compiles_and_verifies(tmp_path: Path) -> None:
    model, _ = binary_network(3, channels=256)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32))
    out = tmp_path / "out"
    options = ("--no-verify", "-o", out)
    ran = edgec("compile", tmp_path / "net.onnx", "--target", "cpu", "--calib", tmp_path / "x.npz", *options)
    assert ran.code == 0, ran.stderr
    checked = edgec("verify", out, "--json")
    assert checked.code == 0, checked.stderr
    facts = json.loads(checked.stdout)
    assert (facts["mismatches"], facts["elements"] > 0) == (0, True)
    bundle = json.loads((out / "cpu" / "bundle.json").read_text())
    weights, expanded = 9 * 256 * 256, 2 if bundle["machine"]["weight"] == "int16" else 1
    assert bundle["bytes"]["weight_bytes"] == expanded * weights + weights // 8
