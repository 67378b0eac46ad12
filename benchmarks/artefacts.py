"""Compiles networks with the command line, as a user does, once for each set of options."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from benchmarks.networks import Network

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

# A child's peak memory counts what its parent held when it forked, so a small process stands in between.
_STARTER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    file.write(str(used.ru_maxrss))
sys.exit(code if code >= 0 else 128 - code)
"""


@dataclass(frozen=True)
class Ran:
    """A command that ended.

    Attributes:
        code: Exit code.
        stdout, stderr: What it wrote.
        seconds: Wall clock.
        cpu_seconds: Of the command and all that it started.
        peak_bytes: Most memory that one of its processes held; 0 where that is not known.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0

    @property
    def complaint(self) -> str:
        """The last line of what it said on stderr."""
        return (self.stderr.strip().splitlines() or ["no message"])[-1]


@dataclass(frozen=True)
class Compiled:
    """An artefact folder, or why there is none.

    Attributes:
        folder: Where it stands.
        ran: The compile command.
        report: Its report.json; empty when the compile failed.
    """

    folder: Path
    ran: Ran
    report: dict

    @property
    def failed(self) -> str | None:
        """Why there is no artefact, or None."""
        return f"exit {self.ran.code}: {self.ran.complaint}" if self.ran.code else None


@dataclass
class Workshop:
    """A folder of artefacts that the rows of one run share.

    Attributes:
        folder: Of artefacts and sample files.
        quick: Smaller counts of simulated samples, for a first look.
    """

    folder: Path
    quick: bool = False
    _made: dict[tuple[str, ...], Compiled] = field(default_factory=dict)
    _kept: dict[tuple[str, ...], object] = field(default_factory=dict)

    def compile(self, network: Network, *options: str, model: Path | None = None) -> Compiled:
        """Compile `network` (or a changed `model` of it) without the verify, unless that was done before."""
        key = (str(model or network.path), *options)
        if key not in self._made:
            out = self.folder / f"{len(self._made)}-{network.key}"
            calib = self.samples(network.key, network.calibration.read())
            command = ["compile", str(model or network.path), "--target", "fpga", "-o", str(out), "--calib", str(calib)]
            ran = edgec(*command, "--no-verify", *options)
            report = json.loads((out / "report.json").read_text()) if ran.code == 0 else {}
            self._made[key] = Compiled(out, ran, report)
        return self._made[key]

    def once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """What `make` gives, made the first time that this key, which names its type too, is asked for."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])

    def samples(self, name: str, x: np.ndarray, **others: np.ndarray) -> Path:
        """A data file of float samples `x`, and labels where given."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            np.savez(path, **{"x": x, **others})  # type: ignore[arg-type]
        return path


def edgec(*arguments: str | Path, environment: dict[str, str] | None = None, timeout_s: float = 3600) -> Ran:
    """Run the command line in a process of its own; `environment` changes the present one."""
    return run([sys.executable, "-m", "compiler.cli", *map(str, arguments)], environment, timeout_s)


def run(command: Sequence[str], environment: dict[str, str] | None = None, timeout_s: float = 3600) -> Ran:
    """Run a command and measure it; a command that takes longer is ended, with exit code 124."""
    changed = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", **(environment or {})}
    with tempfile.NamedTemporaryFile("r") as peak:
        started = [sys.executable, "-I", "-S", "-c", _STARTER, peak.name, *command]
        spent, start = children_cpu(), time.monotonic()
        process = subprocess.Popen(
            started, env=changed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        stdout, stderr, is_late = _output(process, timeout_s)
        code = 124 if is_late else process.returncode
        stderr += f"\nnot done within {timeout_s:.0f} s" if is_late else ""
        seconds, used = time.monotonic() - start, children_cpu() - spent
        return Ran(code, stdout, stderr, seconds, used, 1024 * int(peak.read() or 0))


def _output(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str, bool]:
    """What a process wrote, and whether it had to be ended. It leads a group, which never outlives this call."""
    try:
        return *process.communicate(timeout=timeout_s), False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return *process.communicate(), True
    except BaseException:  # an interrupt of the benchmarks does not reach another session by itself
        os.killpg(process.pid, signal.SIGKILL)
        raise


def children_cpu() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
