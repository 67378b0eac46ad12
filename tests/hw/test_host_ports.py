"""The whole 8x2 accelerator in Verilator, driven through its AXI ports by independent bus models."""

from pathlib import Path

import numpy as np
import pytest

from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from backends.reference.interpreter import run
from hw.config import array_config
from hw.isa import Elementwise, Memory, Mode, instruction_layout
from sim.program import Program
from sim.verilator import cocotb_test
from tests.support.hardware import ROOT, TESTBENCHES
from tests.support.random_layers import random_graph, random_inputs

CONFIG = array_config(
    8, 2, activation_words=4096, weight_words=512, parameter_words=64, block_words=64, tap_words=64, table_words=2,
    instructions=32,
)
SEEDS = (0, 42, 43)


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    return [build_program(random_graph(seed, 4), CONFIG) for seed in SEEDS]


def test_the_programs_use_every_mode(programs: list[Program]) -> None:
    layout = instruction_layout(CONFIG)
    fields = [layout.unpack(word) for program in programs for word in program.images[Memory.PROGRAM]]
    assert {f["mode"] for f in fields} == set(Mode)
    assert {f["elementwise"] for f in fields} >= {Elementwise.NONE, Elementwise.ADD}
    for flag in ("maximum", "reduce", "use_table", "single_drain"):
        assert {f[flag] for f in fields} == {0, 1}, flag


@pytest.mark.verilator
@pytest.mark.slow
def test_programs_are_exact_through_the_ports(tmp_path: Path, programs: list[Program]) -> None:
    for seed, program in zip(SEEDS, programs, strict=True):
        graph = random_graph(seed, 4)
        folder = tmp_path / f"seed{seed}"
        program.save(folder)
        np.savez(folder / "tensors.npz", **run(graph, random_inputs(graph, seed), keep="all"))
    ran = cocotb_test(
        verilog(CONFIG), "accelerator", "host_ports_tb", python_path=[TESTBENCHES, ROOT],
        environment={"CASES": str(tmp_path)},
    )
    assert ran == 2 * len(SEEDS) + 2
