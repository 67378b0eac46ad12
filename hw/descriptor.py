"""Where the bytes of a tensor are in the activation memory; the registers IN_* and OUT_* hold one of these."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.registers import Register

PHASES = 4


@dataclass(frozen=True)
class TensorDescriptor:
    """Placement of an int8 [channels, height, width] map; see registers.py.

    Phase i = 2 * (y & py) + (x & px) of the pixel (y, x). Channel c of the pixel is byte (byte[i] + c) % Q of word

        base[i] + ((byte[i] + c) // Q) * plane + (y >> py) * pitch + (x >> px)

    Attributes:
        base: First word of each phase; entries of unused phases are 0.
        byte: First byte (0 to Q - 1) in the word of each phase.
        plane: Words from one group of Q channels to the next.
        pitch: Words from one row to the next.
        width, height, channels: Shape of the map.
        phases: Bit 0 (px): columns are split by parity. Bit 1 (py): rows are.
    """

    base: tuple[int, int, int, int]
    plane: int
    pitch: int
    width: int
    height: int
    channels: int
    byte: tuple[int, int, int, int] = (0, 0, 0, 0)
    phases: int = 0

    def __post_init__(self) -> None:
        for name in ("base", "byte"):
            if len(getattr(self, name)) != PHASES:
                raise ValueError(f"{name} must have {PHASES} entries, not {len(getattr(self, name))}")
        for name in ("width", "height", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(*self.base, *self.byte, self.plane, self.pitch) < 0:
            raise ValueError("base, byte, plane and pitch must not be negative")
        if not 0 <= self.phases <= 3:
            raise ValueError(f"phases must be in [0, 3], not {self.phases}")

    @property
    def phase_x(self) -> int:
        """px: 1 when columns are split by parity."""
        return self.phases & 1

    @property
    def phase_y(self) -> int:
        """py: 1 when rows are split by parity."""
        return self.phases >> 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """[channels, height, width]."""
        return self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """Bytes of the map."""
        return self.channels * self.height * self.width

    def addresses(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Word and byte of every element, for words of `rows` bytes: two int64 [channels, height, width]."""
        c, y, x = np.ogrid[: self.channels, : self.height, : self.width]
        phase = 2 * (y & self.phase_y) + (x & self.phase_x)
        lane = np.asarray(self.byte, np.int64)[phase] + c
        word = (np.asarray(self.base, np.int64)[phase] + lane // rows * self.plane
                + (y >> self.phase_y) * self.pitch + (x >> self.phase_x))
        return word, lane % rows

    def registers(self, first: Register) -> dict[int, int]:
        """Register values; `first` is IN_BASE_0 or OUT_BASE_0."""
        values = (*self.base, *self.byte, self.plane, self.pitch, self.width, self.height, self.channels, self.phases)
        return {first + 4 * i: value for i, value in enumerate(values)}
