"""Array in Verilator."""

import pytest

from hw.array import Array
from tests.support.hardware import run_testbench
from tests.support.shapes import small

pytestmark = pytest.mark.verilator


@pytest.mark.parametrize("shape", ["4x2", "2x1"])
def test_array_matches_golden(shape: str) -> None:
    assert run_testbench(Array(small(shape)), "array", shape=shape) == 4
