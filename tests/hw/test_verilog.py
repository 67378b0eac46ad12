"""Verilog without anything but the wheels, and always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from hw.accelerator import to_verilog
from hw.config import array_config
print(to_verilog(array_config(2, 1)))
"""
@pytest.mark.slow
def test_accelerator_needs_no_yosys_on_the_path() -> None:
    """As in a fresh virtual environment that nobody activated."""
    clean = {name: value for name, value in os.environ.items() if name not in ("YOSYS", "AMARANTH_USE_YOSYS")}
    environment = {**clean, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "module accelerator(" in ran.stdout


@pytest.mark.slow
def test_verilog_does_not_depend_on_the_order_of_hashes() -> None:
    """An artefact is the same bytes in every process; the cache of Verilog would hide that it is not."""
    texts = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
        texts.add(ran.stdout)
    assert len(texts) == 1
