"""Runs runtime-free networks under qemu: proof of their numbers, never of their speed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.base import Tensors
from backends.cpu.machine import Machine
from backends.layers import LayerGraph

_SECONDS = 120
_BOARDS = {
    "cortex-m3": "mps2-an385",
    "cortex-m4": "mps2-an386",
    "cortex-m7": "mps2-an500",
    "cortex-m55": "mps3-an547",
}


class EmulatorMissingError(RuntimeError):
    """qemu is not installed, or has no such processor."""


class EmulationError(RuntimeError):
    """A program did not run to its end under qemu."""


def check_installed(machine: Machine) -> None:
    """Raise, before any work, if programs for a machine cannot be run here."""
    command(machine, Path("example"))


def command(machine: Machine, program: Path) -> list[str]:
    """How to run a program.

    Raises:
        EmulatorMissingError: With what to install; or qemu has no board with the processor.
    """
    if machine.is_linux:
        is_wide = machine.triple.startswith("aarch64")
        return [_found("qemu-aarch64" if is_wide else "qemu-arm", "qemu-user"), "-cpu", "max", str(program)]
    if machine.cpu not in _BOARDS:
        raise EmulatorMissingError(f"no board of qemu proves a {machine.cpu}; there are {', '.join(_BOARDS)}")
    board = ["-M", _BOARDS[machine.cpu], "-nographic", "-monitor", "none", "-serial", "none"]
    semihosting = ["-semihosting-config", "enable=on,target=native"]
    return [_found("qemu-system-arm", "qemu-system-arm"), *board, *semihosting, "-kernel", str(program)]


def _found(name: str, package: str) -> str:
    place = shutil.which(name)
    if place is None:
        error = EmulatorMissingError(f"{name} is not installed: it runs what was built for another processor")
        error.add_note(f"remedy: apt-get install {package} (or your system's package of it)")
        raise error
    return place


def run(machine: Machine, program: Path, graph: LayerGraph, inputs: Mapping[str, NDArray[np.int8]]) -> Tensors:
    """int8 [N, C, H, W] by tensor name, sample after sample, through the example program.

    Raises:
        EmulatorMissingError, EmulationError: It cannot be run, or did not end well.
    """
    count = len(next(iter(inputs.values())))
    rows = [np.concatenate([inputs[t.name][i].ravel() for t in graph.inputs]) for i in range(count)]
    sent = b"".join(row.tobytes() for row in rows)
    folder = program.parent
    if not machine.is_linux:
        (folder / "input.bin").write_bytes(sent)
    line = command(machine, program.resolve())
    try:
        ran = subprocess.run(
            line,
            input=sent if machine.is_linux else b"",
            capture_output=True,
            cwd=folder,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EmulationError(f"{Path(line[0]).name} took more than {_SECONDS} s") from error
    if ran.returncode:
        raise EmulationError(f"{Path(line[0]).name} ended with {ran.returncode}: {ran.stderr.decode()[-500:]}")
    got = ran.stdout if machine.is_linux else (folder / "output.bin").read_bytes()
    if not machine.is_linux:
        (folder / "input.bin").unlink()
        (folder / "output.bin").unlink()
    size = sum(t.size for t in graph.outputs)
    if len(got) != count * size:
        raise EmulationError(f"the program wrote {len(got)} bytes, not {count * size}")
    table, results, first = np.frombuffer(got, np.int8).reshape(count, size), {}, 0
    for tensor in graph.outputs:
        results[tensor.name] = table[:, first : first + tensor.size].reshape(count, *tensor.shape)
        first += tensor.size
    return results
