"""Verilog without anything but the wheels: no yosys on the path, no environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_accelerator_needs_no_yosys_on_the_path() -> None:
    """As in a fresh virtual environment that nobody activated."""
    code = (
        "from hw.accelerator import to_verilog; from hw.config import array_config; "
        "print(to_verilog(array_config(2, 1)))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("YOSYS", "AMARANTH_USE_YOSYS")}
    environment = {**clean, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "module accelerator(" in ran.stdout
