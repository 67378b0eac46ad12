"""Containers and ONNX files on disk: read, written in one step, and what they weigh."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from compiler.container.errors import ContainerError
from compiler.container.file import Sizes, unpack_with_sizes
from compiler.model_file import FILE_BYTES_MAX


@dataclass(frozen=True)
class Decompressed:
    """What `decompress` did.

    Attributes:
        container, onnx: Paths.
        container_bytes, onnx_bytes: Sizes of the files.
        parts: Where the container's bytes go.
    """

    container: Path
    onnx: Path
    container_bytes: int
    onnx_bytes: int
    parts: Sizes

    def facts(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "container": str(self.container), "onnx": str(self.onnx)}


def decompress(container: Path, destination: Path) -> Decompressed:
    """Write the ONNX file of a container; nothing is written unless all of it is right.

    Raises:
        ContainerError: `container` cannot be read or is damaged, or `destination` cannot be written.
    """
    data = _read(container)
    try:
        result, parts = unpack_with_sizes(data)
    except ContainerError as error:
        error.add_note(f"in {container}")
        raise
    write_atomically(destination, result)
    return Decompressed(container, destination, len(data), len(result), parts)


def write_atomically(destination: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all.

    Raises:
        ContainerError: The disk refuses.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=f".{destination.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(data)
                file.flush()
                umask = os.umask(0)
                os.umask(umask)
                temporary.chmod(0o666 & ~umask)
                os.replace(temporary, destination)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as cause:
        error = ContainerError(f"{destination} cannot be written: {cause.strerror}")
        error.add_note("remedy: name another file with -o, or make room there")
        raise error from cause


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ContainerError(f"{path} is larger than any container: {path.stat().st_size} bytes")
        return path.read_bytes()
    except OSError as cause:
        error = ContainerError(f"{path} cannot be read: {cause.strerror}")
        error.add_note("remedy: name a file that `edgec compress` wrote")
        raise error from cause
