"""Reader in Verilator."""

import pytest

from hw.config import array_config
from hw.reader import Reader
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize(("pixels", "rows", "read_latency"), [(8, 2, 6), (16, 8, 1), (4, 1, 11)])
def test_reader_sends_what_is_in_memory(pixels: int, rows: int, read_latency: int) -> None:
    component = Reader(array_config(pixels, rows), read_latency)
    assert run_testbench(component, "reader", pixels=pixels, rows=rows, read_latency=read_latency) == 6


def test_read_latency_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="read_latency must be at least 1, not 0"):
        Reader(array_config(8, 2), 0)
