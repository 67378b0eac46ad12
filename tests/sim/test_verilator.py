"""Builds, their cache, and cocotb runs."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hw.config import array_config
from sim import verilator
from sim.verilator import SimError, ToolNotFound, build_harness, cocotb_test, find_tools

HERE = Path(__file__).parent
SLICE = HERE / "register_slice.v"
BROKEN = "module accelerator(input clk); assign nonsense = ; endmodule"

pytestmark = pytest.mark.verilator


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    return tmp_path


def run_slice(fault: int, testcase: str | None = None) -> int:
    return cocotb_test(SLICE, "register_slice", "register_slice_tb", python_path=[HERE], parameters={"FAULT": fault},
                       testcase=testcase)


def test_agents_transfer_and_the_runner_counts_tests() -> None:
    assert run_slice(0) == 3


@pytest.mark.parametrize(("fault", "testcase", "message"), [
    (1, "payloads_arrive_in_order_under_back_pressure", "valid fell before the payload was taken"),
    (2, "payloads_arrive_in_order_under_back_pressure", "the payload changed from 0x.* to 0x"),
    (3, "valid_does_not_wait_for_ready", "stream o: 0 of 60 payloads came in 2000 cycles"),
    (4, "one_payload_a_cycle_without_pauses", "stream o: 59 of 60 payloads came in 2000 cycles"),
])  # fmt: skip
def test_agents_find_a_broken_stream(fault: int, testcase: str, message: str) -> None:
    with pytest.raises(SimError, match=rf"register_slice_tb\.{testcase}: (.|\n)*{message}"):
        run_slice(fault, testcase)


@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_driver_runs_over_cocotbext_axi(pause: float) -> None:
    text = re.sub(r"CONFIG_ID = 0\b", f"CONFIG_ID = 32'd{array_config(8, 2).config_id}", (HERE / "toy.v").read_text())
    assert cocotb_test(text, "accelerator", "toy_tb", python_path=[HERE], environment={"PAUSE": str(pause)}) == 1


def test_cocotb_module_that_does_not_import_is_an_error() -> None:
    with pytest.raises(SimError, match="no_such_module"):
        cocotb_test(SLICE, "register_slice", "no_such_module", parameters={"FAULT": 0})


def test_cocotb_module_without_tests_is_an_error() -> None:
    with pytest.raises(SimError, match="sim.stream"):
        cocotb_test(SLICE, "register_slice", "sim.stream", parameters={"FAULT": 0})


def test_build_is_cached_by_content(empty_cache: Path) -> None:
    lines: list[str] = []
    text = (HERE / "toy.v").read_text()
    first = build_harness(text, progress=lines.append)
    assert len(lines) == 1
    assert build_harness(HERE / "toy.v", progress=lines.append) == first
    assert len(lines) == 1
    assert build_harness(text + "// another\n", progress=lines.append) != first
    assert len(lines) == 2
    assert first.is_relative_to(empty_cache)


def test_cache_keeps_what_was_used_last(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilator, "KEPT_BUILDS", 2)
    cache = empty_cache / "verilator"
    for age, name in enumerate(("build-killed", "harness-new", "cocotb-old", "cocotb-older")):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    built = build_harness(HERE / "toy.v").parent.name
    assert {path.name for path in cache.iterdir()} == {"harness-new", "cocotb-old", built, "lock", "objects"}


def test_parallel_requests_build_once(empty_cache: Path) -> None:
    lines: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(build_harness, HERE / "toy.v", progress=lines.append) for _ in range(4)]
    assert len({job.result() for job in jobs}) == 1
    assert len(lines) == 1


def test_failed_build_is_an_error_and_leaves_nothing(empty_cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(SimError, match=r"verilator failed with exit code 1(.|\n)*syntax error"):
            build_harness(BROKEN)
    assert [p.name for p in (empty_cache / "verilator").iterdir()] == ["lock"]
    with pytest.raises(SimError, match=r"the cocotb build of accelerator failed(.|\n)*syntax error"):
        cocotb_test(BROKEN, "accelerator", "toy_tb")


@pytest.mark.parametrize(("missing", "message", "remedy"), [
    (("g++", "clang++"), "a C\\+\\+ compiler \\(g\\+\\+ or clang\\+\\+\\) was not found", "install g++"),
    (("make",), "make was not found", "install make"),
])  # fmt: skip
def test_missing_tool_has_a_remedy(
    missing: tuple[str, ...], message: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(verilator.shutil, "which", lambda name: None if name in missing else which(name))
    find_tools.cache_clear()
    with pytest.raises(ToolNotFound, match=message) as caught:
        find_tools()
    find_tools.cache_clear()
    assert remedy in caught.value.__notes__[0]
