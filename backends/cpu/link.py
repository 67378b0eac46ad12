"""Compiles and links C by the compiler that the package ziglang brings."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 300


class LinkError(RuntimeError):
    """The C compiler refused what edgec generated."""


def cc(triple: str, arguments: Sequence[str | Path], folder: Path) -> None:
    """Run `zig cc` in a folder.

    Raises:
        LinkError: With what it said.
    """
    command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, *map(str, arguments)]
    _run(command, folder)


def archive(library: Path, objects: Sequence[Path], folder: Path) -> None:
    """A static library; the same objects give the same bytes."""
    command = [sys.executable, "-m", "ziglang", "ar", "rcsD", str(library), *map(str, objects)]
    _run(command, folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise LinkError(f"{' '.join(command[2:4])} took more than {_SECONDS} s") from error
    if ran.returncode:
        raise LinkError(f"{' '.join(command[2:4])} failed: {ran.stderr.strip()[-2000:]}")


def sections(path: Path) -> dict[str, int]:
    """Bytes of the sections of an ELF object, by name; equal names are added."""
    data = path.read_bytes()
    is_wide = data[4] == 2
    if is_wide:
        start, (size, count, names) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<HHH", data, 58)
    else:
        start, (size, count, names) = struct.unpack_from("<I", data, 32)[0], struct.unpack_from("<HHH", data, 46)

    def entry(index: int) -> tuple[int, int, int]:
        """(name, offset, bytes)."""
        at = start + index * size
        name = struct.unpack_from("<I", data, at)[0]
        return (name, *struct.unpack_from("<QQ" if is_wide else "<II", data, at + (24 if is_wide else 16)))

    texts = entry(names)[1]
    found: dict[str, int] = {}
    for index in range(count):
        name, _, length = entry(index)
        text = data[texts + name : data.index(b"\0", texts + name)].decode()
        found[text] = found.get(text, 0) + length
    return found
