"""Elementwise in Verilator."""

import pytest

from hw.config import AcceleratorConfig
from hw.elementwise import Elementwise
from tests.support.hardware import run_testbench

pytestmark = pytest.mark.verilator


def test_elementwise_matches_golden() -> None:
    assert run_testbench(Elementwise(AcceleratorConfig()), "elementwise") == 5
