"""Layouts: polyphase where strides want it, packed where words are saved, free of drain conflicts."""

from __future__ import annotations

import numpy as np
import pytest

from backends.fixed_point import Constant, requantize
from backends.fpga.geometry import Affine, fit, sweeps
from backends.fpga.program import make_plan
from backends.layers import Conv, LayerGraph, Pads, Pair, Tensor
from hw.config import array_config
from tests.support.accelerators import SHAPES
from tests.support.random_layers import random_graph

CONFIG = array_config(16, 8)


def conv(name: str, x: Tensor, outputs: int, kernel: int, stride: int, pads: Pads) -> Conv:
    size: Pair = (
        (x.shape[1] + pads[0] + pads[2] - kernel) // stride + 1,
        (x.shape[2] + pads[1] + pads[3] - kernel) // stride + 1,
    )
    scale = requantize(np.full(outputs, 0.01), Constant(np.zeros(outputs, np.int64), np.zeros(outputs)))
    weights = np.ones((outputs, x.shape[0], kernel, kernel), np.int8)
    y = Tensor(f"{name}_y", (outputs, *size), 1.0, 0)
    return Conv(name, x, y, weights, scale, (stride, stride), pads)


def test_a_small_input_of_stride_2_packs_its_phases_as_channels() -> None:
    x = Tensor("x", (3, 96, 96), 1.0, 0)
    layer = conv("c", x, 8, 3, 2, (0, 0, 1, 1))
    layout = make_plan(LayerGraph("g", (x,), (layer.output,), (layer,)), CONFIG).layouts.maps["x"]
    assert layout.packed
    assert layout.words == 2 * 48 * 48
    assert layout.descriptor(100, 8).byte == (0, 3, 6, 1)
    assert layout.descriptor(100, 8).base == (100, 100, 100, 100 + 48 * 48)


def test_stride_2_runs_at_full_rate() -> None:
    x = Tensor("x", (8, 32, 32), 1.0, 0)
    layer = conv("c", x, 8, 3, 2, (0, 0, 1, 1))
    plan = make_plan(LayerGraph("g", (x,), (layer.output,), (layer,)), CONFIG)
    ((step,),) = plan.steps
    assert (step.fields["drop_x"], step.fields["groups"], step.streams[0].count) == (1, 16, 72)


def test_readers_of_both_strides_share_one_layout() -> None:
    x = Tensor("x", (8, 16, 16), 1.0, 0)
    slow, fast = conv("slow", x, 8, 3, 1, (1, 1, 1, 1)), conv("fast", x, 8, 3, 2, (0, 0, 1, 1))
    plan = make_plan(LayerGraph("g", (x,), (slow.output, fast.output), (slow, fast)), CONFIG)
    assert plan.layouts.maps["x"].phases == (1, 1)
    assert [len(steps) for steps in plan.steps] == [4, 1]  # stride 1: once for each parity of row and column
    one = plan.steps[0][0].cycles
    assert sum(step.cycles for step in plan.steps[0]) == 4 * one


def test_phases_that_a_layer_writes_lie_in_different_banks() -> None:
    for seed in range(40):
        plan = make_plan(random_graph(seed, 6, kinds=("conv",)), SHAPES["16x8"])
        for steps in plan.steps:
            for step in steps:
                if step.fields.get("out_phase_x") and not step.fields["single_drain"]:
                    assert step.fields["phase_x"] % 16 != 0


@pytest.mark.parametrize("phases", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
def test_sweeps_compute_each_output_once_from_its_own_input(stride: int, phases: int) -> None:
    found = {}
    for sweep in sweeps(3, 14, stride, phases):
        for index, output in enumerate(sweep.outputs):
            position = index * sweep.drop
            assert output not in found
            found[output] = sweep.source(-1) + position * (1 << phases)
    assert found == {output: output * stride - 1 for output in range(3, 14)}


@pytest.mark.parametrize("phases", [0, 1])
def test_bounds_are_the_positions_inside_the_map(phases: int) -> None:
    for sweep in sweeps(0, 9, 2, phases):
        for tap in range(-3, 4):
            low, high = sweep.bounds(tap, 15)
            inside = [p for p in range(sweep.size) if 0 <= sweep.source(tap) + p * (1 << phases) < 15]
            assert list(range(low, high)) == inside


def test_fit_prefers_plain_steps() -> None:
    assert fit([5, 7, 9], 15) == Affine(5, 0, 0, 2)


def test_fit_finds_phases_also_from_an_odd_origin() -> None:
    assert fit([100, 1, 101, 2], 15) == Affine(100, 1, -99, 1)


def test_fit_refuses_what_the_writer_cannot_do() -> None:
    with pytest.raises(ValueError, match="not affine"):
        fit([0, 1, 3, 4, 7], 15)
