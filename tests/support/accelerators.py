"""Accelerator shapes for tests: generous memories, so that random graphs fit."""

from __future__ import annotations

from hw.config import AcceleratorConfig

_ROOM: dict[str, int] = {
    "instructions": 1024,
    "tap_words": 8192,
    "parameter_words": 4096,
    "block_words": 8192,
    "table_words": 16,
    "weight_words": 1 << 16,
}


def roomy(pixels: int, rows: int, *, drain_lanes: int = 2, block_lanes: int = 0) -> AcceleratorConfig:
    """A P x Q array with room for any graph of tests.support.random_layers."""
    return AcceleratorConfig(
        pixels=pixels,
        rows=rows,
        drain_lanes=drain_lanes,
        block_lanes=block_lanes or pixels // 2,
        activation_words=(1 << 19) // rows,
        **_ROOM,
    )


SHAPES = {
    "16x8": roomy(16, 8),
    "8x2": roomy(8, 2),
    "4x4": roomy(4, 4),
    "2x1": roomy(2, 1, drain_lanes=1),
    "8x16": roomy(8, 16, block_lanes=8),
}
