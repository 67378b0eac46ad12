"""Runs the command line in a process of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """What a command left.

    Attributes:
        code: Exit code.
        stdout: Its result.
        stderr: Its progress and errors, line breaks of the terminal undone.
    """

    code: int
    stdout: str
    stderr: str


def edgec(*arguments: str | Path, environment: dict[str, str] | None = None, timeout_s: float = 600) -> Ran:
    """Run `edgec` with `arguments`; `environment` changes the present one."""
    command = [sys.executable, "-m", "compiler.cli", *map(str, arguments)]
    changed = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400", "NO_COLOR": "1", **(environment or {})}
    ran = subprocess.run(command, env=changed, capture_output=True, text=True, timeout=timeout_s, check=False)
    return Ran(ran.returncode, ran.stdout, ran.stderr)
