"""Golden model of Lanes."""

from collections.abc import Sequence


def operands(
    words: Sequence[bytes], inside: Sequence[int], byte: int, pad_value: int, *, depthwise: int, broadcast: int
) -> list[list[int]]:
    """Operand of each lane and row.

    Args:
        words: Q bytes of each lane.
        inside: Whether each lane's position is inside the map.
        byte: Which byte all rows take, unless `depthwise`.
        pad_value: For lanes that are outside.
        depthwise: Row r takes byte r.
        broadcast: All lanes take `byte` of lane 0.
    """
    rows = len(words[0])
    if broadcast:
        return [[_signed(words[0][byte])] * rows for _ in words]
    return [
        ([_signed(value) for value in word] if depthwise else [_signed(word[byte])] * rows)
        if inside[lane] else [pad_value] * rows
        for lane, word in enumerate(words)
    ]


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte
