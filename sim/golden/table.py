"""Golden model of Table."""

from collections.abc import Sequence


def look_up(entries: Sequence[int], a: int, *, use_table: bool, index: int) -> int:
    """`entries` are bytes, table * 256 + argument + 128; the result is int8."""
    if not use_table:
        return a
    entry = entries[index * 256 + a + 128]
    return entry - 256 if entry > 127 else entry
