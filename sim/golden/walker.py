"""Golden models of LaneWalker and WriteWalker: the closed formulas of hw.isa."""

from collections.abc import Iterator
from dataclasses import dataclass

from hw.config import AcceleratorConfig


def lane_positions(config: AcceleratorConfig, group: int, pitch: int) -> list[tuple[int, int]]:
    """(x, y) of each lane in a group of positions."""
    first = group * config.pixels
    return [(n % pitch, n // pitch) for n in range(first, first + config.pixels)]


@dataclass(frozen=True)
class Walk:
    """The instruction fields that place results; see hw.isa."""

    pitch: int
    columns: int
    rows: int
    drop_x: int
    drop_y: int
    out_base: int
    out_plane: int
    out_pitch: int
    out_step: int
    out_phase_x: int
    out_phase_y: int
    phase_x: int
    phase_y: int


def result(config: AcceleratorConfig, walk: Walk, block: int, n: int) -> int | None:
    """Word address of position `n` of a block, or None where its result is not kept."""
    y, x = divmod(n, walk.pitch)
    if x >= walk.columns or y >= walk.rows or x % walk.drop_x or y % walk.drop_y:
        return None
    u, v, px, py = x // walk.drop_x, y // walk.drop_y, walk.out_phase_x, walk.out_phase_y
    address = walk.out_base + block * walk.out_plane + (v & py) * walk.phase_y + (u & px) * walk.phase_x
    return (address + (v >> py) * walk.out_pitch + (u >> px) * walk.out_step) % (1 << config.address_bits)


def results(config: AcceleratorConfig, walk: Walk, blocks: int, positions: int) -> Iterator[int | None]:
    """`result` of every position of every block, in drain order."""
    for block in range(blocks):
        for n in range(positions):
            yield result(config, walk, block, n)
