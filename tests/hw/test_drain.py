"""Drain in Verilator."""

import pytest

from hw.drain import Drain
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_drain_matches_golden(shape: str) -> None:
    assert run_testbench(Drain(small(shape)), "drain", shape=shape) == 1
