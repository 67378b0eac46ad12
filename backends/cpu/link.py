"""Compiles and links C by the compiler that the package ziglang brings."""

from __future__ import annotations

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
