"""Compiled programs against the reference, executed by the golden machine: every element of every stored tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import DoesNotFitError
from backends.fpga.program import build_program, make_plan
from backends.fpga.schedule import Options
from backends.layers import LayerGraph, MaxPool, Tensor
from backends.reference import interpreter
from hw.config import AcceleratorConfig
from hw.isa import Memory
from sim.golden.machine import run_program
from tests.support.accelerators import SHAPES
from tests.support.random_layers import KINDS, random_graph, random_inputs


def differences(graph: LayerGraph, config: AcceleratorConfig, seed: int, options: Options) -> tuple[list[str], int]:
    """Names of stored tensors that differ from the reference, and the elements compared."""
    inputs = random_inputs(graph, seed)
    reference = interpreter.run(graph, inputs, keep="all")
    program = build_program(graph, config, options)
    stored = run_program(program, {name: values[0] for name, values in inputs.items()}, seed=seed)
    wrong = [name for name, got in stored.items() if not np.array_equal(got.ravel(), reference[name][0].ravel())]
    return wrong, sum(values.size for values in stored.values())


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**20), layers=st.integers(1, 7), dense=st.booleans(), tile_rows=st.sampled_from([0, 1, 3]))
def test_random_graphs_compute_the_integers_of_the_reference(
    shape: str, seed: int, layers: int, dense: bool, tile_rows: int
) -> None:
    wrong, compared = differences(random_graph(seed, layers), SHAPES[shape], seed, Options(dense, tile_rows))
    assert compared > 0
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer_computes_the_integers_of_the_reference(kind: str) -> None:
    for seed in range(8):
        graph = random_graph(seed, 2, kinds=(kind, "conv") if kind in ("add", "mul") else (kind,))
        for config in (SHAPES["16x8"], SHAPES["4x4"]):
            assert differences(graph, config, seed, Options())[0] == []


def test_random_graphs_reach_every_way_of_executing() -> None:
    seen: Counter[str] = Counter()
    for seed in range(120):
        plan = make_plan(random_graph(seed, 6), SHAPES["4x4"])
        for layout in plan.layouts.maps.values():
            seen.update({"polyphase": any(layout.phases), "packed": layout.packed})
        for op, steps in zip(plan.operations, plan.steps, strict=True):
            seen.update({"fused": len(op.layers) > 1, "swapped": op.swapped, "broadcast": op.broadcast})
            for step in steps:
                f = step.fields
                conflict = f.get("single_drain", 0) and not f["elementwise"] and not f["use_table"] and f["mode"] != 2
                seen.update(
                    {
                        f"mode {f['mode']}": 1,
                        "phases written": f.get("out_phase_x", 0) | f.get("out_phase_y", 0),
                        "phases from an odd origin": f.get("phase_x", 0) < 0 or f.get("phase_y", 0) < 0,
                        "drain conflict": bool(conflict),
                        "dropped": f["drop_x"] > 1 or f["drop_y"] > 1,
                        "reduced": f.get("reduce", 0),
                        "stored zeros": any(stream.padding for stream in step.streams),
                    }
                )
    assert [name for name, count in seen.items() if not count] == []


def test_a_flipped_weight_changes_a_tensor() -> None:
    graph = random_graph(3, 1, kinds=("conv",))
    inputs = {name: values[0] for name, values in random_inputs(graph, 3).items()}
    program = build_program(graph, SHAPES["8x2"], Options(dense=True))
    good = run_program(program, inputs)
    words = list(program.images[Memory.WEIGHT])
    words[0] ^= 1 << 6
    bad = run_program(replace(program, images={**program.images, Memory.WEIGHT: words}), inputs)
    assert any(not np.array_equal(good[name], bad[name]) for name in good)


def test_row_tiles_give_identical_integers() -> None:
    graph = random_graph(11, 1, kinds=("conv",))
    height = graph.outputs[0].shape[1]
    inputs = {name: values[0] for name, values in random_inputs(graph, 0).items()}
    whole = build_program(graph, SHAPES["8x2"])
    tiles = build_program(graph, SHAPES["8x2"], Options(tile_rows=-(-height // 2)))
    assert len(tiles.instructions) == 2 * len(whole.instructions)
    one, two = (run_program(program, inputs)[graph.outputs[0].name] for program in (whole, tiles))
    assert np.array_equal(one, two)


def test_the_same_graph_gives_the_same_program() -> None:
    graph = random_graph(5, 6)
    assert build_program(graph, SHAPES["16x8"]) == build_program(graph, SHAPES["16x8"])


def test_maps_taller_than_coordinates_are_computed_in_tiles() -> None:
    config = replace(SHAPES["4x4"], coordinate_bits=4)
    x = Tensor("x", (3, 40, 13), 1.0, 5)
    y = Tensor("y", (3, 40, 13), 1.0, 0)
    layer = MaxPool("pool", x, y, (3, 3), pads=(1, 1, 1, 1))
    graph = LayerGraph("g", (x,), (y,), (layer,))
    assert len(build_program(graph, config).instructions) == 3
    assert differences(graph, config, 0, Options())[0] == []


def test_a_map_wider_than_coordinates_is_refused() -> None:
    x, y = Tensor("x", (3, 4, 20), 1.0, 5), Tensor("y", (3, 4, 20), 1.0, 5)
    graph = LayerGraph("g", (x,), (y,), (MaxPool("pool", x, y, (1, 1)),))
    with pytest.raises(
        DoesNotFitError, match="layer 'pool': needs pitch of 20, the accelerator counts to 15"
    ) as caught:
        build_program(graph, replace(SHAPES["4x4"], coordinate_bits=4))
    assert caught.value.__notes__ == ["remedy: generate the accelerator with coordinate_bits=5"]
