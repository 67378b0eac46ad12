"""`--target cpu` and its relatives through the command line, and random networks through the whole chain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from backends.cpu import backend, codegen
from backends.cpu.plan import make_plan
from compiler import cli
from tests.support.cases import case
from tests.support.edgec import ROOT, edgec

pytestmark = pytest.mark.tvm

CASES, NIGHTLY_CASES = 15, 300
MODEL, CALIB, TEST = (ROOT / "examples" / name for name in ("digits_cnn.onnx", "digits_calib.npz", "digits_test.npz"))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network, compiled for this processor."""
    folder = tmp_path_factory.mktemp("cpu") / "out"
    ran = edgec("compile", MODEL, "--target", "cpu", "--calib", CALIB, "-o", folder)
    assert ran.code == 0, ran.stderr
    assert "equal to the reference" in ran.stdout
    return folder


def test_run_gives_what_the_quantized_model_gives(artefact: Path, tmp_path: Path) -> None:
    results = tmp_path / "y.npz"
    ran = edgec("run", artefact, "--input", TEST, "--output", results, "--limit", "40", "--threads", "2")
    assert ran.code == 0, ran.stderr
    session = onnxruntime.InferenceSession(artefact / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.load(TEST)["x"][:40].astype(np.float32)
    name = session.get_outputs()[0].name
    wanted = np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in x])
    got = np.load(results)[name]
    assert got.shape == wanted.shape
    assert np.mean(got.argmax(axis=1) == wanted.argmax(axis=1)) > 0.97


def test_verify_and_eval_judge_the_library(artefact: Path) -> None:
    ran = edgec("verify", artefact, "--random", "2", "--json")
    facts = json.loads(ran.stdout)
    assert (ran.code, facts["passed"], facts["mismatches"]) == (0, True, 0)
    ran = edgec("eval", artefact, "--data", TEST, "--limit", "60", "--json")
    evaluation = json.loads(ran.stdout)
    assert (ran.code, evaluation["differs"]) == (0, 0)
    assert {row["stage"] for row in evaluation["rows"]} >= {"reference", "CPU"}


def test_a_changed_kernel_is_found(artefact: Path, tmp_path: Path) -> None:
    """Verification must be able to fail: the library of other weights stands in the artefact."""
    import shutil

    from compiler import stored

    copy = tmp_path / "changed"
    shutil.copytree(artefact, copy)
    graph = stored.open_artefact(copy).lowered.graph
    for layer in graph.layers:
        if hasattr(layer, "weights"):
            layer.weights[0] = -layer.weights[0]
            break
    backend.write(make_plan(graph, backend.machine(None)), copy / "cpu")
    ran = edgec("verify", copy)
    assert ran.code == 1
    assert "the reference has" in ran.stdout


def test_report_and_manifest_name_processor_and_bytes(artefact: Path) -> None:
    report = json.loads((artefact / "report.json").read_text())
    assert report["target"]["name"] == "cpu"
    assert report["target"]["config"]["mcpu"] == backend.machine(None).cpu
    assert set(report["footprint"]) == {"arena_bytes", "constant_bytes", "weight_bytes"}
    assert json.loads((artefact / "manifest.json").read_text())["options"]["mcpu"] == backend.machine(None).cpu


def test_not_a_number_and_wrong_shapes_are_refused(artefact: Path, tmp_path: Path) -> None:
    x = np.load(TEST)["x"][:2].astype(np.float32)
    x[1, ..., 0] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    ran = edgec("run", artefact, "--input", tmp_path / "nan.npz")
    assert ran.code == 3
    np.savez(tmp_path / "shape.npz", x=x[:, :, 1:])
    ran = edgec("run", artefact, "--input", tmp_path / "shape.npz")
    assert ran.code == 3


def test_microcontrollers_get_a_proven_library_or_a_reason(tmp_path: Path) -> None:
    ran = edgec("compile", MODEL, "--target", "cortex-m", "--calib", CALIB, "-o", tmp_path / "m4", "--json")
    assert ran.code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["verify"]["mismatches"] == 0
    assert report["verify"]["elements"] > 0
    bytes_of = report["footprint"]
    assert bytes_of["flash_bytes"] == bytes_of["text_bytes"] + bytes_of["rodata_bytes"]
    ran = edgec("run", tmp_path / "m4", "--input", TEST)
    assert (ran.code, "does not run here" in ran.stderr) == (2, True)
    for option, size in (("--ram", "256"), ("--flash", "1K")):
        ran = edgec("compile", MODEL, "--target", "cortex-m", option, size, "--no-verify", "-o", tmp_path / "no")
        assert ran.code == 5
        assert f"{option} has" in ran.stderr
        assert not (tmp_path / "no").exists()


def test_unknown_processors_and_missing_tools_have_exit_codes(tmp_path: Path) -> None:
    ran = edgec("compile", MODEL, "--target", "cpu", "--mcpu", "z80", "-o", tmp_path / "out")
    assert (ran.code, "'z80'" in ran.stderr) == (2, True)
    ran = edgec("compile", MODEL, "--target", "arm64", "-o", tmp_path / "out", environment={"PATH": str(tmp_path)})
    assert (ran.code, "apt-get install qemu-user" in ran.stderr) == (6, True)


def test_tuned_tiles_are_proven_told_and_kept(tmp_path: Path) -> None:
    cache = {"EDGEC_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "out"
    ran = edgec("compile", MODEL, "--target", "cpu", "--tune", "3", "-v", "-o", out, environment=cache)
    assert ran.code == 0, ran.stderr
    assert "\ntune\n" in ran.stderr
    assert "equal to the reference" in ran.stdout
    assert "another tile than by default in " in ran.stdout
    tiles = json.loads((out / "cpu" / "bundle.json").read_text())["tiles"]
    report = json.loads((out / "report.json").read_text())
    assert (report["tiles"], report["target"]["config"]["tune"]) == (tiles, 3)
    assert len(tiles) == 7
    assert json.loads((out / "manifest.json").read_text())["options"]["tune"] == "3"
    assert len(list((tmp_path / "cache" / "tiles").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--target arm64", "kernels for aarch64 cannot be timed on this x86_64 machine"),
        ("--target armv7", "kernels for armv7l cannot be timed on this x86_64 machine"),
        ("--target cortex-m", "kernels for thumbv7em cannot be timed on this x86_64 machine"),
        ("--target cpu --mcpu znver4", "this processor lacks "),
        ("--target fpga", "'fpga' has no kernels to time"),
        ("--target reference", "'reference' has no kernels to time"),
        ("--target cpu --float", "float kernels have no tiles to choose from"),
    ],
)
def test_tuning_for_what_does_not_run_here_is_refused(
    options: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codegen, "native_cpu", lambda: ("x86-64", frozenset[str]()))
    command = ["compile", str(MODEL), *options.split(), "--tune", "4", "-o", str(tmp_path / "out")]
    ran = CliRunner().invoke(cli.cli, command)
    assert (ran.exit_code, f"--tune: {why}" in ran.stderr) == (2, True), ran.stderr
    assert "remedy: leave " in ran.stderr
    assert not (tmp_path / "out").exists()


def _judge(number: int, folder: Path) -> None:
    drawn = case(number)
    graph = drawn.lowered.graph
    plan = make_plan(graph, backend.machine(None))
    backend.write(plan, folder)
    library = backend.load(folder, graph)
    inputs = {tensor.name: drawn.tensors[tensor.name][:4] for tensor in graph.inputs}
    verdict = backend.compare(library, folder, graph, inputs)
    library.close()
    assert [str(difference) for difference in verdict.differences] == [], str(drawn)


@pytest.mark.parametrize("number", range(CASES))
def test_random_networks_equal_the_reference(number: int, tmp_path: Path) -> None:
    _judge(number, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("number", range(CASES, NIGHTLY_CASES))
def test_many_random_networks_equal_the_reference(number: int, tmp_path: Path) -> None:
    _judge(number, tmp_path)


ARM = [("arm64", "cortex-a72"), ("arm64", "cortex-a76"), ("armv7", None), ("cortex-m", "cortex-m4"),
       ("cortex-m", "cortex-m55")]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("target", "cpu"), ARM)
@pytest.mark.parametrize("number", range(50))
def test_random_networks_equal_the_reference_under_qemu(
    number: int, target: str, cpu: str | None, tmp_path: Path
) -> None:
    drawn = case(number)
    graph = drawn.lowered.graph
    backend.write(make_plan(graph, backend.machine(cpu, target)), tmp_path)
    inputs = {tensor.name: drawn.tensors[tensor.name][:3] for tensor in graph.inputs}
    verdict = backend.compare_emulated(tmp_path, graph, inputs)
    assert [str(difference) for difference in verdict.differences] == [], str(drawn)
