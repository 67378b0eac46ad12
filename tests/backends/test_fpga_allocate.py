"""Tensors that live together never share a word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.base import DoesNotFitError
from backends.fpga.allocate import allocate, lifetimes
from backends.fpga.program import build_program, make_plan
from hw.config import AcceleratorConfig
from tests.support.accelerators import SHAPES
from tests.support.random_layers import random_graph


@pytest.mark.parametrize("seed", range(20))
def test_living_tensors_do_not_overlap(seed: int) -> None:
    config = SHAPES["8x2"]
    plan = make_plan(random_graph(seed, 7), config)
    lives = lifetimes(plan.graph, plan.operations, plan.layouts.maps)
    bases = allocate(plan.graph, plan.operations, plan.layouts.maps, config)
    for a in lives:
        for b in lives:
            if a.tensor < b.tensor and a.overlaps(b):
                assert bases[a.tensor] + a.words <= bases[b.tensor] or bases[b.tensor] + b.words <= bases[a.tensor]


def test_dead_tensors_share_words() -> None:
    config = SHAPES["8x2"]
    plan = make_plan(random_graph(2, 12, kinds=("residual",)), config)
    bases = allocate(plan.graph, plan.operations, plan.layouts.maps, config)
    maps = plan.layouts.maps
    used = max(bases[name] + maps[name].words for name in bases)
    assert max(plan.peak_words) <= used < sum(layout.words for layout in maps.values())


def test_a_small_memory_fits_exactly() -> None:
    roomy = SHAPES["4x4"]
    graph = random_graph(4, 1, kinds=("conv",))
    needed = max(make_plan(graph, roomy).peak_words)
    fits = replace(roomy, activation_words=max(8, -(-needed // 4) * 4))
    build_program(graph, fits)


def test_too_small_a_memory_names_the_layer_and_what_it_needs() -> None:
    graph = random_graph(4, 1, kinds=("conv",))
    small = replace(SHAPES["4x4"], activation_words=8)
    needed = max(make_plan(graph, small).peak_words) * 4
    with pytest.raises(DoesNotFitError, match=f"layer 't0': .* need {needed} bytes .* has 32") as caught:
        build_program(graph, small)
    assert f"remedy: --memory activations={needed}" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("field", "name", "option"),
    [("weight_words", "weight", "weights"), ("parameter_words", "parameter", "parameters"),
     ("block_words", "block", "blocks"), ("tap_words", "tap", "taps"), ("instructions", "program", "instructions")],
)  # fmt: skip
def test_every_memory_is_checked(field: str, name: str, option: str) -> None:
    config: AcceleratorConfig = replace(SHAPES["2x1"], **{field: 2})
    graph = random_graph(0, 6, kinds=("conv", "add", "table"))
    with pytest.raises(DoesNotFitError, match=f"layer 't[0-9]': the {name} memory needs [0-9]+ words") as caught:
        build_program(graph, config)
    assert f"{option}=" in caught.value.__notes__[0]
