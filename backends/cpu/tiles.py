"""The tiles that a kernel could have: by formula, and what may be tried instead. Results are the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from backends.cpu import packing
from backends.cpu.kernels import Bounds, Conv, Depthwise, SparseConv
from backends.cpu.machine import Machine

Tileable = Conv | Depthwise
_K = TypeVar("_K", Conv, Depthwise, Tileable)
_MOST_VECTORS, _MOST_PIXELS = 12, 16


@dataclass(frozen=True)
class Tile:
    """Output pixels x vectors of channels that are in registers at a time.

    Attributes:
        by_channel: Of one long row: blocks of channels are the outer loop and the units of threads, instead of tiles of
            pixels.
    """

    pixels: int
    vectors: int = 1
    by_channel: bool = False

    def __str__(self) -> str:
        return f"{self.pixels}x{self.vectors}{' by channels' if self.by_channel else ''}"


def shape_of(kernel: Tileable) -> str:
    """What makes two layers the same to a tuner: everything but weights, scales and bounds, with the default tile."""
    return repr(replace(kernel, bounds=Bounds(0, 0, 0)))


def tile_of(kernel: Tileable) -> Tile:
    """That a kernel has."""
    if isinstance(kernel, Depthwise):
        return Tile(kernel.pixels)
    return Tile(kernel.pixels, kernel.vectors, kernel.by_channel)


def with_tile(kernel: _K, tile: Tile) -> _K:
    """The same layer in another tile."""
    if isinstance(kernel, Depthwise):
        return replace(kernel, pixels=tile.pixels)
    return replace(kernel, pixels=tile.pixels, vectors=tile.vectors, by_channel=tile.by_channel)


def candidates(kernel: Tileable, machine: Machine) -> list[Tile]:
    """Every tile worth a try: the kernel's own first, then its other order of loops, then by estimated cost."""
    own = tile_of(kernel)
    if isinstance(kernel, Depthwise):
        pixels = range(1, min(kernel.columns, machine.registers // 2) + 1)
        others = sorted(map(Tile, pixels), key=lambda t: (-(-kernel.columns // t.pixels) * (t.pixels + 1), -t.pixels))
        return [own, *(tile for tile in others if tile != own)]
    orders = (own.by_channel, not own.by_channel) if kernel.rows == 1 and kernel.columns > 1 else (own.by_channel,)
    count = 1 if isinstance(kernel, SparseConv) else -(-kernel.channels // kernel.lanes)
    found = [
        Tile(pixels, vectors, order)
        for vectors in range(1, min(count, _MOST_VECTORS) + 1)
        for pixels in range(1, min(kernel.columns, _MOST_PIXELS) + 1)
        if (pixels + 1) * vectors < machine.registers
        for order in orders
    ]

    def rank(tile: Tile) -> tuple[bool, bool, float]:
        is_other_order = (tile.pixels, tile.vectors) == (own.pixels, own.vectors)
        cost = packing.row_cost(count, kernel.columns, tile.pixels, tile.vectors)
        return tile != own, not is_other_order, cost

    return sorted({own, *found}, key=lambda tile: (*rank(tile), tile.pixels, tile.by_channel != own.by_channel))
