"""Layers that are cut into row tiles give the same integers on the RTL."""

import numpy as np
import pytest

from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from backends.fpga.schedule import Options
from backends.reference.interpreter import run
from hw.config import array_config
from sim.driver import Accelerator
from sim.harness import Harness
from sim.verify import verify
from tests.support.random_layers import random_graph, random_inputs

CONFIG = array_config(8, 2)
KINDS = ("conv", "depthwise", "max_pool", "residual")

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("seed", [2, 4, 6, 11])
def test_row_tiles_do_not_change_the_integers(seed: int) -> None:
    """Two tiles of the tallest map, and tiles of one row; every layer is compared, and its cycles."""
    graph = random_graph(seed, 4, kinds=KINDS)
    tensors = run(graph, random_inputs(graph, seed), keep="all")
    height = max(layer.output.shape[1] for layer in graph.layers)
    whole = build_program(graph, CONFIG)
    with Harness.from_verilog(verilog(CONFIG)) as harness:
        accelerator = Accelerator(harness, CONFIG)
        counts = [whole.pc_end]
        for rows in (-(-height // 2), 1):
            tiled = build_program(graph, CONFIG, Options(tile_rows=rows))
            accelerator.load_program(tiled)
            verdict = verify(accelerator, tiled, tensors)
            assert (verdict.mismatches, verdict.cycle_mismatches) == ((), ()), f"tiles of {rows} rows"
            assert verdict.elements > 100
            counts.append(tiled.pc_end)
        assert np.all(np.diff(counts) > 0), f"instructions: {counts}"
