"""Small accelerator shapes for testbenches, which read the shape from their environment."""

import os

from hw.config import AcceleratorConfig

SMALL = {
    "4x2": {"pixels": 4, "rows": 2, "drain_lanes": 2, "block_lanes": 2},
    "2x1": {"pixels": 2, "rows": 1, "drain_lanes": 1, "block_lanes": 1},
    "8x4": {"pixels": 8, "rows": 4, "drain_lanes": 1, "block_lanes": 4},
}
"""Two lanes drained or one, words of one byte, several weight blocks in a word or one."""


def small(name: str) -> AcceleratorConfig:
    """One of SMALL with memories of a few words."""
    return AcceleratorConfig(
        **SMALL[name], acc_bits=20, activation_words=64, weight_words=32, parameter_words=16, block_words=16,
        tap_words=8, table_words=2, instructions=8, coordinate_bits=5,
    )


def from_environment() -> AcceleratorConfig:
    """The shape that a test passed to its testbench as `shape`."""
    return small(os.environ["SHAPE"])
