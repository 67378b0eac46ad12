"""TensorWalker in Verilator."""

import pytest

from hw.config import array_config
from hw.tensor_walker import TensorWalker
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize(("pixels", "rows"), [(8, 2), (16, 8), (4, 1)])
def test_tensor_walker_matches_golden(pixels: int, rows: int) -> None:
    component = TensorWalker(array_config(pixels, rows))
    assert run_testbench(component, "tensor_walker", pixels=pixels, rows=rows) == 6
