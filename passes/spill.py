"""Arrays of many samples that may be too large for memory: they lie in a file without a name then."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray


class Rows:
    """float32 arrays of one shape, one for each sample, in a file; [N, ...] as far as reading row by row goes.

    Read and written, not mapped: pages of a map count as memory of this process.

    Args:
        store: Where they lie.
        count: N.
        shape: Of one.
    """

    def __init__(self, store: Store, count: int, shape: tuple[int, ...]) -> None:
        self._file, self._count, self._shape = store.file, count, shape
        self._bytes = 4 * math.prod(shape)
        self._first = store.reserve(count * self._bytes)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[index] for index in range(self._count))

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        data = os.pread(self._file.fileno(), self._bytes, self._first + index * self._bytes)
        return np.frombuffer(data, np.float32).reshape(self._shape)

    def __setitem__(self, index: int, values: NDArray[np.float32]) -> None:
        data = np.ascontiguousarray(np.broadcast_to(values, self._shape), np.float32).tobytes()
        written, place = 0, self._first + index * self._bytes
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], place + written)


class Store:
    """A temporary file for many `Rows`; it is gone when the last of them is."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="edgec-")  # noqa: SIM115
        self._end = 0

    def reserve(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        first = self._end
        self._end += size
        return first
