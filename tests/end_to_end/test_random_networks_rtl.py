"""Random small networks on the RTL of an 8x2 array: every stored tensor and every cycle counter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from hw.config import array_config
from sim.driver import Accelerator, infer
from sim.harness import Harness
from sim.program import Program
from sim.verify import verify
from tests.end_to_end.test_random_networks import CASES, NIGHTLY_CASES
from tests.support.cases import Case, case
from tests.support.random_networks import coverage_table

pytestmark = pytest.mark.verilator

CONFIG = array_config(8, 2)
SAMPLES = 2
NIGHTLY = [pytest.param(number, marks=pytest.mark.nightly) for number in range(CASES, NIGHTLY_CASES)]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """One simulation for all the networks: what one leaves in the memories is what the next one finds."""
    with Harness.from_verilog(verilog(CONFIG), x_initial="unique", seed=20_231) as harness:
        harness.reset()
        yield harness


@pytest.mark.parametrize("number", [*range(CASES), *NIGHTLY])
def test_rtl_computes_the_integers(harness: Harness, number: int) -> None:
    """Layer by layer, then in one go; the host's ports stall at random in every second case."""
    drawn = case(number)
    program = build_program(drawn.lowered.graph, CONFIG)
    harness.stall(0.3 if number % 2 else 0.0, number)
    accelerator = Accelerator(harness, CONFIG)
    accelerator.load_program(program)
    for index in range(SAMPLES):
        reference = {name: values[index] for name, values in drawn.tensors.items()}
        verdict = verify(accelerator, program, reference)
        assert verdict.passed, f"{drawn}: {verdict.mismatches} {verdict.cycle_mismatches}"
        assert _differing(accelerator, program, drawn, index) == [], str(drawn)


def test_networks_swap_on_one_accelerator(harness: Harness) -> None:
    """A, B, A by loading programs alone; each gives what it gives on an accelerator that ran nothing else."""
    harness.stall(0.0)
    shared = Accelerator(harness, CONFIG)
    for number in (1, 2, 1):
        program = build_program(case(number).lowered.graph, CONFIG)
        shared.load_program(program)
        assert _differing(shared, program, case(number), 0) == []
        with Harness.from_verilog(verilog(CONFIG), x_initial="unique", seed=number) as fresh:
            fresh.reset()
            alone = Accelerator(fresh, CONFIG)
            alone.load_program(program)
            assert _differing(alone, program, case(number), 0) == []


@pytest.mark.nightly
def test_nightly_cases_tell_what_they_cover(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell for number in range(NIGHTLY_CASES) for cell in case(number).network.cells]
    with capsys.disabled():
        print(f"\n{coverage_table(cells)}")
    assert cells


def _differing(accelerator: Accelerator, program: Program, drawn: Case, index: int) -> list[str]:
    """Outputs of a whole run that are not the reference's."""
    inputs = {name: drawn.tensors[name][index].reshape(place.shape) for name, place in program.inputs.items()}
    outputs, _ = infer(accelerator, program, inputs)
    return [
        name for name, got in outputs.items() if not np.array_equal(got.ravel(), drawn.tensors[name][index].ravel())
    ]
