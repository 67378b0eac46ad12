"""Networks with nodes for the host in the middle, from the command line: compile, verify, simulate, eval, inspect."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from compiler import artefact as layout
from compiler.stored import open_artefact, serialized
from hw.isa import Memory, instruction_layout
from sim.harness import Harness
from sim.program import Program
from tests.support.edgec import edgec
from tests.support.qdq import QuantizedGraph

SHAPE, SAMPLES = (1, 3, 6, 6), 12
TARGET, DIFFERS, USAGE = 5, 1, 2


def conv(graph: QuantizedGraph, x: str, channels_in: int, channels_out: int, **attributes: list[int]) -> str:
    weights = graph.rng.normal(size=(channels_out, channels_in, 3, 3)).astype(np.float32) / 3
    return graph.node("Conv", x, graph.constant(weights), **{"pads": [1, 1, 1, 1], **attributes})


def network() -> tuple[QuantizedGraph, str]:
    """Conv, CumSum, Conv, Softmax, Conv; the CumSum is added again after the last one, so it passes an entry by."""
    graph = QuantizedGraph(*SHAPE, scale=None)
    early = graph.node("CumSum", graph.node("Relu", conv(graph, "x", 3, 4)), graph.constant(np.array(1)))
    y = graph.node("Softmax", conv(graph, early, 4, 4), axis=1)
    y = graph.node("Add", conv(graph, y, 4, 4), early)
    y = graph.node("Flatten", graph.node("GlobalAveragePool", y))
    y = graph.node("Gemm", y, graph.constant(graph.rng.normal(size=(4, 5)).astype(np.float32)))
    return graph, graph.node("Softmax", y, axis=1)


def write(folder: Path, model: ir.Model, *shape: int) -> tuple[Path, Path]:
    """The model's file, and samples with labels."""
    rng, (path, data) = np.random.default_rng(5), (folder / "net.onnx", folder / "data.npz")
    path.write_bytes(serialized(model))
    samples = rng.normal(size=(SAMPLES, *(shape or SHAPE)[1:])).astype(np.float32)
    np.savez(data, x=samples, y=rng.integers(0, 5, SAMPLES))
    return path, data


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(artefact of `network` on an 8x2 array, verified; samples)."""
    folder = tmp_path_factory.mktemp("cut")
    graph, y = network()
    path, data = write(folder, graph.model(y))
    ran = edgec("compile", path, "--calib", data, "--array", "8x2", "-o", folder / "out")
    assert ran.code == 0, ran.stderr
    assert "after entry 1" in ran.stdout
    return folder / "out", data


@pytest.mark.slow
@pytest.mark.verilator
def test_report_says_what_runs_where(compiled: tuple[Path, Path]) -> None:
    report = json.loads((compiled[0] / "report.json").read_text())
    turns = [(turn["on"], turn["model"]) for turn in report["segments"]]
    on_accelerator = ("accelerator", None)
    assert turns == [
        on_accelerator,
        ("host", "middle1.onnx"),
        on_accelerator,
        ("host", "middle2.onnx"),
        on_accelerator,
        ("host", "tail.onnx"),
    ]
    entries = [turn for turn in report["segments"] if turn["on"] == "accelerator"]
    assert sum(turn["cycles"] for turn in entries) == report["cycles"] == report["verify"]["cycles"]
    assert [name for turn in entries for name in turn["steps"]] == [row["name"] for row in report["layers"]]
    assert sum(turn["macs"] for turn in entries) == report["macs"]
    assert entries[0]["instructions"][0] == 0
    assert [turn["instructions"][0] for turn in entries[1:]] == [turn["instructions"][1] for turn in entries[:-1]]
    assert [(node["op"], node["side"], node["after"]) for node in report["host_nodes"]] == [
        ("CumSum", "middle", 1),
        ("Softmax", "middle", 2),
        ("Softmax", "tail", 3),
    ]
    passing = [cut["tensor"] for turn in entries for cut in turn["inputs"] if cut["value"] is None]
    assert passing == [entries[1]["inputs"][0]["tensor"]]
    assert report["verify"]["mismatches"] == report["verify"]["cycle_mismatches"] == 0
    assert report["warnings"] == []


@pytest.mark.slow
@pytest.mark.verilator
def test_simulate_verify_and_eval_agree(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    """The hardware's outputs are those of the reference, and of onnxruntime up to rounding."""
    folder, data = compiled
    ran = edgec("simulate", folder, "--input", data, "--output", tmp_path / "y.npz", "--json")
    assert ran.code == 0, ran.stderr
    report = json.loads((folder / "report.json").read_text())
    assert json.loads(ran.stdout)["cycles"] == report["cycles"]
    with np.load(data) as file:
        samples = file["x"]
    opened = open_artefact(folder)
    expected = opened.host.reference({"x": samples}).outputs
    with np.load(tmp_path / "y.npz") as found:
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = [np.concatenate(rows) for rows in zip(*(session.run(None, {"x": x[None]}) for x in samples))]
    assert np.abs(theirs - next(iter(expected.values()))).max() < 0.05
    assert edgec("verify", folder, "--input", data, "--random", "2").code == 0
    ran = edgec("eval", folder, "--data", data, "--json")
    assert (ran.code, json.loads(ran.stdout)["differs"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.verilator
def test_a_fault_in_the_last_entry_alone_is_found(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = compiled
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    program = Program.load(damaged / "program")
    fields = instruction_layout(program.config).unpack(program.images[Memory.PROGRAM][-1])
    parameters = list(program.images[Memory.PARAMETER])
    parameters[fields["parameter_base"]] ^= 1 << 14  # of the first channel's multiplier
    replace(program, images={**program.images, Memory.PARAMETER: parameters}).save(damaged / "program")
    ran = edgec("verify", damaged, "--json")
    assert ran.code == DIFFERS, ran.stderr
    last = json.loads((folder / "report.json").read_text())["layers"][-1]["name"]
    assert all(last in difference for difference in json.loads(ran.stdout)["differences"][:1])
    assert edgec("eval", damaged, "--data", data).code == DIFFERS


@pytest.mark.slow
@pytest.mark.verilator
def test_inspect_lists_all_entries(compiled: tuple[Path, Path]) -> None:
    ran = edgec("inspect", compiled[0], "--program", "--json")
    found = json.loads(ran.stdout)
    assert ran.code == 0, ran.stderr
    assert found["altered"] == []
    assert len(found["instructions"]) == found["report"]["segments"][-2]["instructions"][1]
    told = edgec("inspect", compiled[0])
    assert (told.code, "host (after entry 2)" in told.stdout) == (0, True)
    assert "<h2>In turn</h2>" in (compiled[0] / "report.html").read_text()


@pytest.fixture
def board(compiled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """host/edgec_inference.py as a board imports it."""
    monkeypatch.syspath_prepend(str(compiled[0] / "host"))
    yield importlib.import_module("edgec_inference")
    for name in ("edgec_inference", "edgec_driver", "edgec_registers"):
        sys.modules.pop(name)


@pytest.mark.slow
@pytest.mark.verilator
def test_the_host_folder_runs_whole_inferences(compiled: tuple[Path, Path], board: object) -> None:
    """Nothing but files of the artefact, and the same bytes."""
    folder, data = compiled
    with np.load(data) as file:
        x = file["x"][:1]
    expected = open_artefact(folder).host.reference({"x": x}).outputs
    with Harness.from_verilog(folder / layout.RTL, x_initial="unique", seed=3) as harness:
        harness.reset()
        network = board.Network(harness, folder)  # type: ignore[attr-defined]
        for _ in range(2):
            outputs, cycles = network.infer({"x": x})
            for name, values in expected.items():
                np.testing.assert_array_equal(outputs[name], values)
    assert cycles == json.loads((folder / "report.json").read_text())["cycles"]


def test_same_compile_gives_the_same_bytes(tmp_path: Path) -> None:
    graph, y = network()
    path, data = write(tmp_path, graph.model(y))
    for name in ("first", "second"):
        ran = edgec("compile", path, "--calib", data, "--array", "8x2", "--no-verify", "-o", tmp_path / name)
        assert ran.code == 0, ran.stderr
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("first", "second")]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("command", ["compile", "check"])
def test_no_host_keeps_the_error(tmp_path: Path, command: str) -> None:
    graph, y = network()
    path, data = write(tmp_path, graph.model(y))
    more = ("--calib", data, "-o", tmp_path / "out") if command == "compile" else ()
    ran = edgec(command, path, *more, "--no-host")
    assert ran.code == TARGET
    for words in ("(CumSum)", "(Softmax)", "no accelerator layer executes this operator", "remedy", "--no-host"):
        assert words in ran.stderr
    assert not (tmp_path / "out").exists()


def test_no_host_keeps_head_and_tail(tmp_path: Path) -> None:
    graph = QuantizedGraph(*SHAPE, scale=None)
    path, _ = write(tmp_path, graph.model(graph.node("Softmax", conv(graph, "x", 3, 4), axis=1)))
    assert edgec("check", path, "--no-host").code == 0


def test_much_work_on_the_host_is_a_warning(tmp_path: Path) -> None:
    graph = QuantizedGraph(1, 12, scale=None)
    sizes = ((8, 12), (1, 24, 4), (1, 24, 6), (6, 3))
    first, w, r, last = (graph.constant(graph.rng.normal(size=size).astype(np.float32) / 2) for size in sizes)
    rows = graph.node("Reshape", graph.node("Gemm", "x", first, transB=1), graph.constant(np.array([2, 1, 4])))
    graph.node("LSTM", rows, w, r, outputs=3, hidden_size=6)
    state = graph.node("Reshape", graph.nodes[-1].output[1], graph.constant(np.array([1, 6])))
    path, data = write(tmp_path, graph.model(graph.node("Gemm", state, last)), 1, 12)
    ran = edgec("compile", path, "--calib", data, "--no-verify", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.stderr
    report = json.loads(ran.stdout)
    on_host, on_accelerator = 2 * 24 * (4 + 6), 12 * 8 + 6 * 3
    assert (report["host_macs"], report["macs"]) == (on_host, on_accelerator)
    (warning,) = report["warnings"]
    assert f"{on_host:,} of {on_host + on_accelerator:,}: lstm" in warning
    assert warning.startswith("81 % of the multiply-accumulates run on the host")


def test_what_the_array_refuses_runs_on_the_host(tmp_path: Path) -> None:
    """A stride that the instruction has no field for is known only when there are integer layers."""
    graph = QuantizedGraph(1, 3, 40, 40, scale=None)
    y = conv(graph, conv(graph, "x", 3, 2), 2, 2, strides=[17, 17])
    path, _ = write(tmp_path, graph.model(conv(graph, y, 2, 2)))
    ran = edgec("check", path, "--json")
    assert ran.code == 0, ran.stderr
    (node,) = json.loads(ran.stdout)["host_nodes"]
    assert (node["op"], node["side"], node["reason"]) == ("Conv", "middle", "a stride of 17 drops too many positions")
    ran = edgec("check", path, "--no-host")
    assert (ran.code, "a stride of 17" in ran.stderr) == (TARGET, True)


@pytest.mark.slow
def test_what_the_array_refuses_is_not_compressed_for_it(tmp_path: Path) -> None:
    graph = QuantizedGraph(1, 3, 40, 40, scale=None)
    y = conv(graph, conv(graph, "x", 3, 2), 2, 2, strides=[17, 17])
    path, data = write(tmp_path, graph.model(conv(graph, y, 2, 2)), 1, 3, 40, 40)
    ran = edgec("compile", path, "--calib", data, "--weights", "4", "--no-verify", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.stderr
    assert [node["op"] for node in json.loads(ran.stdout)["host_nodes"]] == ["Conv"]
    assert edgec("eval", tmp_path / "out", "--data", data, "--no-rtl").code == 0


@pytest.mark.slow
def test_a_compressed_network_is_cut_too(tmp_path: Path) -> None:
    graph, y = network()
    path, data = write(tmp_path, graph.model(y))
    ran = edgec("compile", path, "--calib", data, "--weights", "4", "--no-verify", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.stderr
    assert len([turn for turn in json.loads(ran.stdout)["segments"] if turn["on"] == "accelerator"]) == 3
    assert edgec("eval", tmp_path / "out", "--data", data, "--no-rtl").code == 0


def test_the_reference_target_is_cut_in_the_same_places(tmp_path: Path) -> None:
    graph, y = network()
    path, data = write(tmp_path, graph.model(y))
    ran = edgec("compile", path, "--calib", data, "--target", "reference", "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.stderr
    assert [turn["on"] for turn in json.loads(ran.stdout)["segments"]] == ["accelerator", "host"] * 3
    assert edgec("eval", tmp_path / "out", "--data", data).code == 0
    assert edgec("simulate", tmp_path / "out", "--input", data).code == USAGE


@pytest.mark.tvm
def test_a_processor_enters_its_layers_several_times_too(tmp_path: Path) -> None:
    graph, y = network()
    path, data = write(tmp_path, graph.model(y))
    out = tmp_path / "out"
    made = edgec("compile", path, "--calib", data, "--target", "cpu", "-o", out)
    assert made.code == 0, made.stderr
    assert sorted(each.name for each in (out / layout.CPU).glob("entry*")) == ["entry0", "entry1", "entry2"]
    ran = edgec("run", out, "--input", data, "--output", tmp_path / "y.npz")
    assert ran.code == 0, ran.stderr
    with np.load(data) as file:
        samples = file["x"]
    session = onnxruntime.InferenceSession(out / layout.FLOAT)
    (output,) = session.get_outputs()
    wanted = np.concatenate([session.run(None, {"x": x[None]})[0] for x in samples])
    with np.load(tmp_path / "y.npz") as file:
        got = file[output.name]
    assert np.square(got - wanted).sum() <= 1e-3 * np.square(wanted).sum()
    judged = edgec("eval", out, "--data", data, "--json")
    assert judged.code == 0, judged.stderr
    rows = [row for row in json.loads(judged.stdout)["rows"] if row["metric"].startswith("SQNR")]
    values = {row["stage"]: row["value"] for row in rows}
    assert values["CPU"] == values["reference"]
    assert edgec("verify", out).code == 0
