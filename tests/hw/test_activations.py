"""Activations in Verilator."""

import pytest

from hw.activations import Activations
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_activations_match_golden(shape: str) -> None:
    assert run_testbench(Activations(small(shape)), "activations", shape=shape) == 2
