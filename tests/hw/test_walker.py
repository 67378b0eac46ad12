"""LaneWalker and WriteWalker in Verilator."""

import pytest

from hw.walker import LaneWalker, WriteWalker
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_lane_walker_matches_golden(shape: str) -> None:
    assert run_testbench(LaneWalker(small(shape)), "lane_walker", shape=shape) == 2


@pytest.mark.parametrize("shape", ["4x2", "2x1"])
def test_write_walker_matches_golden(shape: str) -> None:
    assert run_testbench(WriteWalker(small(shape)), "write_walker", shape=shape) == 2
