"""What is wrong with a container, or with a file that is to become one."""

from __future__ import annotations


class ContainerError(ValueError):
    """A container that cannot be read, or an ONNX file that cannot be packed."""


def damaged(message: str) -> ContainerError:
    """The error for a container that is not as it was written."""
    error = ContainerError(f"not an intact edgec container: {message}")
    error.add_note("remedy: fetch or write the file again")
    return error
