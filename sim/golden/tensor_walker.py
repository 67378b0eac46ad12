"""Golden model of TensorWalker."""

from dataclasses import dataclass

from hw.config import AcceleratorConfig
from hw.descriptor import TensorDescriptor


@dataclass(frozen=True)
class Position:
    """Where one byte of a map is."""

    address: int
    byte: int
    last: bool


def positions(descriptor: TensorDescriptor, config: AcceleratorConfig) -> list[Position]:
    """Every byte of the map in NCHW order; addresses wrap at the width of an address."""
    words, bytes_ = descriptor.addresses(config.rows)
    pairs = list(zip(words.ravel().tolist(), bytes_.ravel().tolist(), strict=True))
    mask = (1 << config.address_bits) - 1
    return [Position(word & mask, byte, index == len(pairs) - 1) for index, (word, byte) in enumerate(pairs)]
