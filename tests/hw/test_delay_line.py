"""DelayLine in Verilator."""

import pytest

from hw.delay_line import DelayLine
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize("cycles", [2, 3, 4, 9])
def test_delay_line_delays(cycles: int) -> None:
    assert run_testbench(DelayLine(40, cycles), "delay_line", width=40, cycles=cycles) == 1


def test_delay_of_one_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycles must be at least 2, not 1"):
        DelayLine(8, 1)
