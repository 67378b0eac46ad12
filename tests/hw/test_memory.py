"""Memory in Verilator, the ECP5 one with behavioural cells; how it is cut into blocks."""

import pytest

from hw.config import ConfigError
from hw.ecp5_memory import bands
from hw.memory import Memory
from tests.support.hardware import run_testbench


@pytest.mark.verilator
@pytest.mark.parametrize(("width", "depth", "technology", "granularity", "output_register"), [
    (40, 600, "generic", 8, True),
    (40, 600, "verilog", 8, True),
    (20, 300, "verilog", None, False),
    (64, 512, "ecp5", 8, True),  # an activation bank: byte enables, two blocks
    (24, 2600, "ecp5", 8, False),  # lanes in bands of 2048, 512 and a rest
    (76, 4608, "ecp5", None, True),  # the weight memory in small: three bands
    (8, 2048, "ecp5", None, True),  # a table
    (21, 1024, "ecp5", None, False),  # 18 bits wide, the last block partly used
    (3, 9000, "ecp5", None, True),  # 2 and 1 bit wide
    (4, 4096, "ecp5", None, False),  # 4 bits wide
])  # fmt: skip
def test_memory_reads_what_was_written(
    width: int, depth: int, technology: str, granularity: int | None, output_register: bool
) -> None:
    memory = Memory(width, depth, technology, granularity=granularity, output_register=output_register)
    ran = run_testbench(
        memory, "memory", technology,
        width=width, depth=depth, granules=width // granularity if granularity else 1, latency=memory.latency,
    )
    assert ran == 1


@pytest.mark.parametrize(("width", "depth", "blocks", "parts"), [
    (576, 4608, 144, 3), (36, 512, 1, 1), (8, 2048, 1, 1), (568, 512, 16, 1), (9, 2049, 2, 2),
])  # fmt: skip
def test_bands_use_the_fewest_blocks_and_then_the_fewest_bands(width: int, depth: int, blocks: int, parts: int) -> None:
    found = bands(width, depth)
    assert sum(-(-width // band.bits) for band in found) == blocks
    assert len(found) == parts


@pytest.mark.parametrize("width", [1, 7, 36, 71, 576])
@pytest.mark.parametrize("depth", [2, 512, 513, 5000, 40000])
def test_bands_cover_the_memory_and_are_aligned(width: int, depth: int) -> None:
    found = bands(width, depth)
    assert found[0].start == 0
    for band, after in zip(found, found[1:], strict=False):
        assert band.start + band.words == after.start
    assert found[-1].start < depth <= found[-1].start + found[-1].words
    assert all(band.start % band.words == 0 for band in found)


def test_granularity_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="granularity must divide the width 20, not 8"):
        Memory(20, 16, granularity=8)


def test_ecp5_granularity_beyond_a_lane_is_refused() -> None:
    with pytest.raises(ConfigError, match="granularity must be at most 9 on ecp5, not 10"):
        Memory(20, 16, "ecp5", granularity=10)
