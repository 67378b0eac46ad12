"""Requantize in Verilator."""

import pytest

from hw.config import AcceleratorConfig
from hw.requantize import Requantize
from tests.support.hardware import run_testbench

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize(("acc_bits", "technology"), [(24, "generic"), (32, "ecp5")])
def test_requantize_matches_golden(acc_bits: int, technology: str) -> None:
    component = Requantize(AcceleratorConfig(acc_bits=acc_bits, technology=technology))
    assert run_testbench(component, "requantize", technology, acc_bits=acc_bits) == 3
