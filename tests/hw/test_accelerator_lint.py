"""Verilator's lint of the whole accelerator: only classes that the generated text cannot avoid."""

import re
import subprocess
from pathlib import Path

import pytest

from backends.fpga.emit import verilog
from hw.config import array_config
from sim.verilator import find_tools

pytestmark = pytest.mark.verilator

UNAVOIDABLE = {
    "WIDTHEXPAND": "yosys writes operators without extending their operands; Verilog's own rules do it",
    "WIDTHTRUNC": "yosys writes sums wider than what they are assigned to; the top bits are unused",
    "UNUSEDSIGNAL": "bits of a product, a word or a counter that nobody reads; synthesis drops them",
    "PROCASSINIT": "every register has an initial value, as the block RAM of an FPGA has",
    "CASEINCOMPLETE": "a Switch without a default keeps the value assigned before it",
    "CMPCONST": "bank P - 1 is never below lane 0's bank, one comparison of P",
    "DECLFILENAME": "one file holds every module",
}
"""Class of warning -> why it is there. LATCH, UNDRIVEN, MULTIDRIVEN, UNOPTFLAT and all others are faults."""


@pytest.mark.parametrize(("pixels", "rows"), [(8, 2), (16, 8)])
def test_lint_shows_only_what_cannot_be_avoided(tmp_path: Path, pixels: int, rows: int) -> None:
    source = tmp_path / "accelerator.v"
    source.write_text(verilog(array_config(pixels, rows)), encoding="utf-8")
    done = subprocess.run(
        [find_tools().verilator, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", "accelerator", source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"^%(?:Warning|Error)-?(\w*):.*$", done.stderr, re.MULTILINE)
    assert found, "lint looked at nothing"
    others = [line for line in done.stderr.splitlines() if re.match(r"%(Warning|Error)", line)
              and not re.match(rf"%Warning-({'|'.join(UNAVOIDABLE)}):", line)]  # fmt: skip
    assert not others, "\n".join(others[:10])
    assert found.count("CMPCONST") <= 1
