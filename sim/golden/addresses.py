"""Golden model of AddressGenerator: the loop of hw.isa over one weight stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hw.config import AcceleratorConfig


@dataclass
class TapWalk:
    """Where a weight stream is.

    Attributes:
        config: The accelerator.
        taps: Fields of every tap word.
        tap_base: First tap of the instruction.
        in_plane: Words from one group of Q input channels to the next.
    """

    config: AcceleratorConfig
    taps: Sequence[Mapping[str, int]]
    tap_base: int
    in_plane: int
    _channel: int = field(default=0, init=False)
    _tap: int = field(default=0, init=False)

    def step(self, first: int, delta: int, end_tap: int, base: int) -> tuple[int, int, Mapping[str, int]]:
        """One weight block: (address of lane 0, byte, its tap)."""
        if first:
            self._channel, self._tap = 0, self.tap_base
        self._channel += delta
        tap = self.taps[self._tap % len(self.taps)]
        k = (tap["channel"] + self._channel) % (1 << self.config.channel_bits)
        rows = self.config.rows
        address = (base + tap["offset"] + k // rows * self.in_plane) % (1 << self.config.address_bits)
        self._channel, self._tap = (0, self._tap + 1) if end_tap else (self._channel + 1, self._tap)
        return address, k % rows, tap
