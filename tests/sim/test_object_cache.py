"""The compiler launcher, with a shell script for a compiler that counts its runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.verilator import OBJECT_CACHE, strip_initial_values

COMPILER = """#!/bin/sh
echo run >> "$(dirname "$0")/runs"
for word in "$@"; do case "$before" in -o) echo "$@" > "$word";; esac; before="$word"; done
grep -q broken "$word" && exit 3
exit 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A compiler, a library source and a model source."""
    (tmp_path / "cc").write_text(COMPILER)
    (tmp_path / "cc").chmod(0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "verilated.cpp").write_text("library")
    (tmp_path / "include" / "verilated_broken.cpp").write_text("broken")
    (tmp_path / "Vmodel.cpp").write_text("model")
    return tmp_path


def compile_(folder: Path, source: str, flag: str = "-O1", cache: bool = True) -> int:
    """Run the launcher; the number of times that the compiler has run so far, or minus its exit code."""
    environment = {**os.environ, **({"EDGEC_OBJECT_CACHE": str(folder / "objects")} if cache else {})}
    command = [sys.executable, OBJECT_CACHE, folder / "cc", flag, "-c", "-o", folder / "out.o", folder / source]
    done = subprocess.run(command, env=environment, check=False)
    return -done.returncode or len((folder / "runs").read_text().splitlines())


def test_library_object_is_compiled_once_for_each_set_of_flags(folder: Path) -> None:
    assert compile_(folder, "include/verilated.cpp") == 1
    first = (folder / "out.o").read_text()
    (folder / "out.o").unlink()
    assert compile_(folder, "include/verilated.cpp") == 1
    assert (folder / "out.o").read_text() == first
    assert compile_(folder, "include/verilated.cpp", "-O3") == 2


def test_library_object_follows_the_library(folder: Path) -> None:
    assert compile_(folder, "include/verilated.cpp") == 1
    (folder / "include" / "verilated.h").write_text("changed")
    assert compile_(folder, "include/verilated.cpp") == 2


def test_model_and_runs_without_a_cache_always_compile(folder: Path) -> None:
    assert [compile_(folder, "Vmodel.cpp") for _ in range(2)] == [1, 2]
    assert [compile_(folder, "include/verilated.cpp", cache=False) for _ in range(2)] == [3, 4]


def test_failed_compile_is_not_kept(folder: Path) -> None:
    assert [compile_(folder, "include/verilated_broken.cpp") for _ in range(2)] == [-3, -3]
    assert len((folder / "runs").read_text().splitlines()) == 2


VERILOG = """  reg [7:0] a = 8'h03;
  reg \\b$1  = 1'h0;
  initial begin
    rom[0] = 8'h00;
    rom[1] = 8'h10;
  end
  initial begin
    ram[0] = 8'h00;
    ram[1] = 8'b00000000;
  end
  assign c[0] = 1'h0;
"""


def test_zeros_of_memories_are_stripped_and_nothing_else() -> None:
    kept = strip_initial_values(VERILOG).splitlines()
    assert [line for line in VERILOG.splitlines() if line not in kept] == [
        "    ram[0] = 8'h00;", "    ram[1] = 8'b00000000;",
    ]  # fmt: skip
    assert kept.count("  initial begin") == 1


def test_register_values_are_stripped_on_request() -> None:
    kept = strip_initial_values(VERILOG, registers=True)
    assert "  reg [7:0] a;\n  reg \\b$1 ;\n" in kept
    assert "rom[0] = 8'h00;" in kept
    assert "assign c[0] = 1'h0;" in kept
