"""AddressGenerator in Verilator."""

import pytest

from hw.addresses import AddressGenerator
from tests.support.hardware import run_testbench
from tests.support.shapes import SMALL, small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", SMALL)
def test_addresses_match_golden(shape: str) -> None:
    assert run_testbench(AddressGenerator(small(shape)), "addresses", shape=shape) == 2
