"""Lanes in Verilator."""

import pytest

from hw.lanes import Lanes
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_lanes_match_golden(shape: str) -> None:
    assert run_testbench(Lanes(small(shape)), "lanes", shape=shape) == 1
