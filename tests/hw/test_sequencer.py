"""Sequencer and InstructionFetch in Verilator."""

import pytest

from hw.sequencer import InstructionFetch, Sequencer
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_sequencer_matches_golden(shape: str) -> None:
    assert run_testbench(Sequencer(small(shape)), "sequencer", shape=shape) == 2


def test_instruction_fetch_returns_what_was_written() -> None:
    assert run_testbench(InstructionFetch(small("4x2")), "instruction_fetch", shape="4x2") == 1
