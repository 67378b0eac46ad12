"""Arrays of a .npz or .npy file, read a few rows at a time.

The files are not trusted: nothing is unpickled, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]

BYTES_MAX = 64 << 30
"""An array that would take more, read and converted to float32, is refused."""
WHOLE_BYTES_MAX = 4 << 30
"""The same for an array in Fortran order, which cannot be read row by row."""
CHUNK_BYTES = 16 << 20
"""As float64, which is what preprocessing computes in."""
LABELS = "y"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


class CalibrationError(ValueError):
    """Samples that cannot be read or do not fit the model."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An array that is read from its first row to its last, a few rows at a time.

    Attributes:
        name: For messages.
        shape: Of the whole.
        dtype: Of the elements.
        chunks: Reads it from the start: arrays [rows, *shape[1:]], in order. An array without axes is one row.
        file: The .npy file that holds it, and where its elements begin, when they lie there in C order; else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    chunks: Callable[[], Iterator[Array]]
    file: tuple[Path, int] | None = None


def failure(message: str, remedy: str) -> CalibrationError:
    """The error with its remedy."""
    error = CalibrationError(message)
    error.add_note(f"remedy: {remedy}")
    return error


def rows_at_once(row: Sequence[int]) -> int:
    """How many rows of this shape make a chunk."""
    return max(1, CHUNK_BYTES // (8 * max(1, int(np.prod([int(size) for size in row], dtype=object)))))


def open_arrays(path: Path, inputs: Sequence[str]) -> dict[str, Rows]:
    """The array of each input by the input's name, and the labels as "y" where the file has them.

    In a .npz file an input's array has the input's name, or `x` where there is one input. A .npy file holds the one
    input.

    Raises:
        CalibrationError: Names the file, the array, what was expected, and the remedy.
    """
    if not path.is_file():
        raise failure(f"{path}: no such file", "give a .npz or .npy file with sample inputs, or a folder of images")
    with _told(path):
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                return _open_npy(path, inputs)
        with zipfile.ZipFile(path) as archive:
            return _open_npz(path, archive, inputs)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What reading a damaged file raises, as errors that name it."""
    try:
        yield
    except zipfile.BadZipFile as error:
        problem = "damaged" if "CRC" in str(error) else "neither a .npz nor a .npy file"
        raise failure(f"{path}: {problem}", "write it with numpy.savez(path, x=inputs)") from None
    except (EOFError, OSError, zlib.error, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise failure(f"{path}: cannot be read: {error}", "write it again with numpy.savez(path, x=inputs)") from error


def _open_npy(path: Path, inputs: Sequence[str]) -> dict[str, Rows]:
    if len(inputs) != 1:
        raise failure(
            f"{path}: a .npy file holds one array, but the model has {len(inputs)} inputs: {', '.join(inputs)}",
            f"write numpy.savez(path, {', '.join(f'{name}=...' for name in inputs)})",
        )

    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with _told(path), path.open("rb") as file:
            yield file

    return {inputs[0]: _rows(path.name, f"{path}: array '{path.name}'", opened, path.stat().st_size, path)}


def _open_npz(path: Path, archive: zipfile.ZipFile, inputs: Sequence[str]) -> dict[str, Rows]:
    members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    wanted = {name: name if name in members else "x" for name in inputs}
    missing = [name for name, member in wanted.items() if member not in members or (member != name and len(inputs) > 1)]
    if missing:
        has = ", ".join(sorted(members)) or "nothing"
        also = " or 'x'" if len(inputs) == 1 and missing[0] != "x" else ""
        raise failure(
            f"{path}: no array '{missing[0]}'{also} for the model's input; the file has {has}",
            f"write numpy.savez(path, {', '.join(f'{name}=...' for name in inputs)})",
        )
    if LABELS in members and LABELS not in wanted:
        wanted[LABELS] = LABELS
    return {name: _member(path, archive.getinfo(members[member]), member) for name, member in wanted.items()}


def _member(path: Path, info: zipfile.ZipInfo, name: str) -> Rows:
    where = f"{path}: array '{name}'"
    if info.compress_type not in _METHODS:
        raise failure(f"{where} is compressed in another way than numpy does", "write it with numpy.savez_compressed")

    @contextmanager
    def opened() -> Iterator[IO[bytes]]:
        with _told(path), zipfile.ZipFile(path) as archive, archive.open(info) as file:
            yield file

    return _rows(name, where, opened, info.file_size, None)


def _rows(
    name: str, where: str, opened: Callable[[], AbstractContextManager[IO[bytes]]], size: int, file: Path | None
) -> Rows:
    """An array whose header was checked: its size in bytes against `size`, and that it holds numbers."""
    with opened() as stream:
        shape, is_fortran, dtype = _header(stream, where)
        start = stream.tell()
    elements = int(np.prod(shape, dtype=object)) if shape else 1
    limit = WHOLE_BYTES_MAX if is_fortran else BYTES_MAX
    if elements * max(dtype.itemsize, 4) > limit:
        raise failure(
            f"{where} has shape {list(shape)}: more than {limit >> 30} GiB",
            "give fewer samples" + (", in C order: numpy.ascontiguousarray(x)" if is_fortran else ""),
        )
    needed = elements * dtype.itemsize
    if size - start < needed:
        raise failure(f"{where} is truncated: {max(size - start, 0)} of {needed} bytes", "write the file again")

    def chunks() -> Iterator[Array]:
        with opened() as stream:
            stream.read(start)  # the header again: a member of an archive cannot be entered in the middle
            if is_fortran or not shape:
                flat = np.frombuffer(_exactly(stream, needed, where), dtype)
                yield flat.reshape(shape[::-1]).T if shape else flat
                return
            step, row = rows_at_once(shape[1:]), shape[1:]
            row_bytes = int(np.prod(row, dtype=object)) * dtype.itemsize if row else dtype.itemsize
            for first in range(0, shape[0], step):
                count = min(step, shape[0] - first)
                yield np.frombuffer(_exactly(stream, count * row_bytes, where), dtype).reshape(count, *row)

    return Rows(name, shape, dtype, chunks, None if file is None or is_fortran else (file, start))


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(stream)
    except ValueError as error:
        raise failure(f"{where} has no valid header: {error}", "write the file again with numpy.savez") from error
    if dtype.hasobject:
        raise failure(f"{where} holds Python objects, which are not read", "store numbers: array.astype('float32')")
    if dtype.kind not in "biuf":
        raise failure(f"{where} must hold numbers, not {dtype}", "store plain numbers: array.astype('float32')")
    if any(size < 0 for size in shape):
        raise failure(f"{where} has an impossible shape {shape}", "write the file again with numpy.savez")
    return tuple(int(size) for size in shape), is_fortran, dtype


def _exactly(stream: IO[bytes], count: int, where: str) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise failure(f"{where} is truncated: {len(data)} of {count} bytes", "write the file again")
    return data
