"""One static memory plan: every buffer gets an offset in one arena, by its lifetime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """Of a buffer: its bytes, and the first and last step that touch it."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Arena:
    """Where each buffer is.

    Attributes:
        offsets: In bytes, aligned.
        size: In bytes, with slack.
    """

    offsets: Mapping[str, int]
    size: int


def place(lifetimes: Mapping[str, Lifetime], align: int, slack: int) -> Arena:
    """Largest buffers first, each in the lowest gap that is free for as long as it lives.

    Args:
        lifetimes: By name.
        align: Of every offset, in bytes.
        slack: Bytes behind the last buffer that vectors may read, and whose values have no effect.
    """
    offsets: dict[str, int] = {}
    for name in sorted(lifetimes, key=lambda name: (-lifetimes[name].size, lifetimes[name].first, name)):
        own = lifetimes[name]
        rivals = (other for other in offsets if _overlap(own, lifetimes[other]))
        offsets[name] = _lowest_gap(own.size, ((offsets[r], lifetimes[r].size) for r in rivals), align)
    end = max((offsets[name] + life.size for name, life in lifetimes.items()), default=0)
    return Arena(offsets, end + slack)


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


def _lowest_gap(size: int, taken: Iterable[tuple[int, int]], align: int) -> int:
    offset = 0
    for start, length in sorted(taken):
        if offset + size <= start:
            break
        offset = max(offset, -(-(start + length) // align) * align)
    return offset
