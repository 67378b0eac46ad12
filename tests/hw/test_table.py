"""Table in Verilator."""

import pytest

from hw.config import AcceleratorConfig
from hw.table import Table
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize("tables", [5, 8])
def test_table_matches_golden(tables: int) -> None:
    assert run_testbench(Table(AcceleratorConfig(table_words=tables)), "table", tables=tables) == 2
