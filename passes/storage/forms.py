"""The forms in which the integers of a layer can be stored in less than a byte each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

INDICES_MAX = 256
"""An index is a byte."""


class Storage(Protocol):
    """A compact form of integer codes. Implementations are frozen dataclasses."""

    @property
    def form(self) -> str:
        """Its name in reports and in metadata_props, for instance "codebook"."""

    def codes(self) -> NDArray[np.int32]:
        """The integers that it stands for, int32 [groups, rows, taps]."""


@dataclass(frozen=True, eq=False)
class Narrow:
    """Codes that fit four bits as they are.

    Attributes:
        values: int8 [groups, rows, taps], -8 to 7.
    """

    values: NDArray[np.int8]
    form = "narrow"

    def __post_init__(self) -> None:
        if self.values.size and not (int(self.values.min()) >= -8 and int(self.values.max()) <= 7):
            raise ValueError(f"codes from {self.values.min()} to {self.values.max()} do not fit 4 bits")

    def codes(self) -> NDArray[np.int32]:
        return self.values.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Every code is one of a few that the whole layer shares.

    Attributes:
        entries: int8 [k], k up to 256.
        indices: uint8 [groups, rows, taps].
    """

    entries: NDArray[np.int8]
    indices: NDArray[np.uint8]
    form = "codebook"

    def __post_init__(self) -> None:
        _check_indices(self.indices, len(self.entries))

    def codes(self) -> NDArray[np.int32]:
        return self.entries[self.indices].astype(np.int32)


@dataclass(frozen=True, eq=False)
class Vector:
    """Every run of d codes along the taps is one of a few that the whole layer shares.

    Attributes:
        entries: int8 [k, d], k up to 256.
        indices: uint8 [groups, rows, taps / d].
    """

    entries: NDArray[np.int8]
    indices: NDArray[np.uint8]
    form = "vector"

    def __post_init__(self) -> None:
        _check_indices(self.indices, len(self.entries))

    def codes(self) -> NDArray[np.int32]:
        groups, rows, _ = self.indices.shape
        return self.entries[self.indices].reshape(groups, rows, -1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Planes:
    """Every code is a sum of +-coefficients of its row, one for each binary plane.

    Attributes:
        coefficients: int8 [groups, rows, n], n up to 4; their magnitudes sum to at most 127 in each row.
        signs: uint8 [groups, rows, taps]; bit i is set where plane i adds, clear where it subtracts.
    """

    coefficients: NDArray[np.int8]
    signs: NDArray[np.uint8]
    form = "planes"

    def __post_init__(self) -> None:
        count = self.coefficients.shape[2]
        if not 1 <= count <= 4:
            raise ValueError(f"{count} planes; 1 to 4 can be stored")
        if np.abs(self.coefficients.astype(np.int64)).sum(axis=2).max(initial=0) > 127:
            raise ValueError("the coefficients of a row sum to more than 127")
        _check_indices(self.signs, 1 << count)

    def table(self) -> NDArray[np.int8]:
        """The code of every combination of signs, int8 [groups, rows, 2**n]."""
        combinations = np.arange(1 << self.coefficients.shape[2])
        signs = 2 * (combinations[:, None] >> np.arange(self.coefficients.shape[2]) & 1) - 1
        return (self.coefficients.astype(np.int64) @ signs.T).astype(np.int8)

    def codes(self) -> NDArray[np.int32]:
        return np.take_along_axis(self.table(), self.signs.astype(np.int64), axis=2).astype(np.int32)


def _check_indices(indices: NDArray[np.uint8], count: int) -> None:
    if count > INDICES_MAX:
        raise ValueError(f"{count} entries; an index reaches {INDICES_MAX}")
    if indices.size and int(indices.max()) >= count:
        raise ValueError(f"index {indices.max()} of {count} entries")
