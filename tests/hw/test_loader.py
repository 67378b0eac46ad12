"""Loader in Verilator."""

import pytest

from hw.config import array_config
from hw.loader import Loader
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize(("pixels", "rows"), [(8, 2), (16, 8), (4, 1)])
def test_loader_writes_what_arrives(pixels: int, rows: int) -> None:
    component = Loader(array_config(pixels, rows))
    assert run_testbench(component, "loader", pixels=pixels, rows=rows) == 6
