"""RegisterFile in Verilator."""

import pytest

from hw.config import array_config
from hw.register_file import RegisterFile
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize(("pixels", "rows"), [(16, 8), (4, 1)])
def test_register_file_survives_any_order_of_channels(pixels: int, rows: int) -> None:
    component = RegisterFile(array_config(pixels, rows))
    assert run_testbench(component, "register_file", pixels=pixels, rows=rows) == 10
