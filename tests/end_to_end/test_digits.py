"""The bundled networks through the whole flow: compile, verify, evaluate, simulate, from the command line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.support.edgec import ROOT, edgec

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

EXAMPLES = ROOT / "examples"
CALIBRATION, TEST = EXAMPLES / "digits_calib.npz", EXAMPLES / "digits_test.npz"
NETWORKS = ("digits_cnn", "digits_mlp")


@pytest.fixture(scope="module", params=NETWORKS)
def artefact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundled network on an 8x2 array, verified."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    model = EXAMPLES / f"{request.param}.onnx"
    ran = edgec("compile", model, "--calib", CALIBRATION, "--array", "8x2", "-o", folder, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.stdout == (folder / "report.json").read_text()
    return folder


def test_compile_verifies_every_layer(artefact: Path) -> None:
    report = json.loads((artefact / "report.json").read_text())
    verify = report["verify"]
    stored = sum(int(np.prod(row["shape"])) for row in report["layers"])
    assert (verify["mismatches"], verify["cycle_mismatches"]) == (0, 0)
    assert verify["elements"] >= verify["inputs"] * stored
    assert verify["cycles"] == report["cycles"]
    assert verify["layers"] == len(report["layers"])


def test_artefact_has_all_its_parts(artefact: Path) -> None:
    files = set(json.loads((artefact / "manifest.json").read_text())["files"])
    parts = {"model.onnx", "tail.onnx", "rtl/accelerator.v", "program/program.json", "program/weight.bin"}
    assert parts | {"host/edgec_driver.c", "host/edgec_driver.py", "report.json", "report.html"} <= files
    assert not [name for name in files if str(artefact) in (artefact / name).read_text(errors="replace")]


def test_same_compile_gives_the_same_bytes(artefact: Path, tmp_path: Path) -> None:
    model = EXAMPLES / f"{artefact.name}.onnx"
    ran = edgec("compile", model, "--calib", CALIBRATION, "--array", "8x2", "-o", tmp_path / "again")
    assert ran.code == 0, ran.stderr
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (artefact / "manifest.json").read_bytes()


def test_eval_gives_four_stages_and_equal_integers(artefact: Path) -> None:
    ran = edgec("eval", artefact, "--data", TEST, "--json")
    assert ran.code == 0, ran.stderr
    evaluation = json.loads(ran.stdout)
    accuracy = {row["stage"]: row["value"] for row in evaluation["rows"] if row["unit"] == "%"}
    assert set(accuracy) == {"float", "quantized", "reference", "RTL"}
    assert evaluation["differs"] == 0
    assert accuracy["RTL"] == accuracy["reference"]
    assert accuracy["RTL"] >= accuracy["float"] - 1


def test_simulate_writes_the_outputs_of_the_network(artefact: Path, tmp_path: Path) -> None:
    ran = edgec("simulate", artefact, "--input", TEST, "--output", tmp_path / "y.npz", "--limit", "10")
    assert ran.code == 0, ran.stderr
    session = onnxruntime.InferenceSession(str(EXAMPLES / f"{artefact.name}.onnx"))
    with np.load(TEST) as data, np.load(tmp_path / "y.npz") as got:
        assert got.files == ["probabilities"]
        (expected,) = session.run(None, {"image": data["x"][:10]})
        assert got["probabilities"].shape == (10, 10)
        assert np.abs(got["probabilities"] - expected).max() < 0.2
        assert (got["probabilities"].argmax(1) == expected.argmax(1)).all()


def test_verify_takes_samples_and_writes_junit(artefact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.load(TEST)["x"][:2])
    junit = tmp_path / "verdict.xml"
    ran = edgec("verify", artefact, "--input", tmp_path / "x.npz", "--random", "1", "--junit", junit, "--json")
    assert ran.code == 0, ran.stderr
    verdict = json.loads(ran.stdout)
    assert (verdict["passed"], verdict["inputs"], verdict["random_inputs"]) == (True, 3, 1)
    assert 'failures="0"' in junit.read_text()


def test_changed_parameter_is_found(artefact: Path, tmp_path: Path) -> None:
    """model.onnx is the judge. The bit is the second highest of the first channel's multiplier."""
    mixed = tmp_path / "mixed"
    shutil.copytree(artefact, mixed)
    parameters = mixed / "program" / "parameter.bin"
    data = bytearray(parameters.read_bytes())
    data[1] ^= 0x40
    parameters.write_bytes(data)
    ran = edgec("verify", mixed, "--inputs", "2", "--random", "1")
    assert ran.code == 1, ran.stderr
    first = json.loads((artefact / "program" / "program.json").read_text())["layers"][0]["name"]
    assert f"layer '{first}'" in ran.stdout
    assert "parameter.bin is not as compile wrote it" in ran.stderr


def test_stopped_compile_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compiler.cli", "compile", EXAMPLES / "digits_cnn.onnx", "-v", "--array", "8x2"]
    with subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = list(takewhile(lambda line: line != "build\n", process.stderr))
        assert seen
        assert process.poll() is None, seen  # it is building, and has not ended
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
