"""Random little networks under random families and budgets: `edgec compress` keeps its promises, or says it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from compiler import container
from compiler.cli import MISSED, OK, USAGE, cli
from compiler.compression import NAMES
from tests.support.onnx_models import model, node, run, save

RUNS, NIGHTLY = 25, 300
SIDE = 6


def network(rng: np.random.Generator) -> onnx.ModelProto:
    """Two to four weighted layers, some of them depthwise, strided, without bias, dead in part, or of tiny weights."""
    first = channels = int(rng.integers(1, 4))
    side, value = SIDE, "x"
    arrays: dict[str, np.ndarray] = {}
    nodes = []
    for index in range(int(rng.integers(1, 4))):
        is_depthwise = channels > 1 and rng.random() < 0.3
        group, wide = (channels, channels) if is_depthwise else (1, int(rng.integers(1, 9)))
        kernel = int(rng.choice([1, 3]))
        stride = int(rng.choice([1, 2]))
        weights = rng.normal(size=(wide, channels // group, kernel, kernel))
        weights *= 10.0 ** rng.uniform(-3, 1)
        if rng.random() < 0.2:
            weights[int(rng.integers(wide))] = 0
        if rng.random() < 0.2:
            weights = np.sign(weights)
        arrays[f"w{index}"] = weights.astype(np.float32)
        inputs = [value, f"w{index}"]
        if rng.random() < 0.7:
            arrays[f"b{index}"] = rng.normal(size=wide).astype(np.float32)
            inputs.append(f"b{index}")
        pads = [kernel // 2] * 4
        nodes.append(node("Conv", inputs, [f"c{index}"], group=group, strides=[stride] * 2, pads=pads))
        value = f"c{index}"
        if rng.random() < 0.7:
            nodes.append(node("Relu", [value], [f"r{index}"]))
            value = f"r{index}"
        channels, side = wide, (side + 2 * pads[0] - kernel) // stride + 1
    nodes.append(node("Flatten", [value], ["flat"]))
    arrays["dense"] = rng.normal(size=(int(rng.integers(2, 6)), channels * side * side)).astype(np.float32)
    nodes.append(node("Gemm", ["flat", "dense"], ["y"], transB=1))
    return model(nodes, {"x": ["N", first, SIDE, SIDE]}, ["y"], arrays)


def settings(rng: np.random.Generator) -> list[str]:
    """Families, budget and widths."""
    chosen: list[str] = []
    match int(rng.integers(4)):
        case 0:
            chosen += ["--without", str(rng.choice(NAMES))]
        case 1 | 2:
            chosen += ["--only", str(rng.choice(NAMES))]
    match int(rng.integers(4)):
        case 0:
            chosen += ["--max-drop", str(rng.choice(["0.001", "0.05", "0.5"]))]
        case 1:
            chosen += ["--max-size", str(int(rng.integers(300, 4000)))]
        case 2:
            chosen += ["--max-macs", str(int(rng.integers(1, 20000)))]
    chosen += ["--activations", str(rng.choice(["8", "8", "16"])), "--seed", str(int(rng.integers(100)))]
    return chosen


def check(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    proto = network(rng)
    path = save(proto, folder)
    shape = [each.dim_value or 24 for each in proto.graph.input[0].type.tensor_type.shape.dim]
    samples = rng.normal(size=shape).astype(np.float32)
    np.savez(folder / "x.npz", x=samples)
    options = settings(rng)
    command = ["compress", str(path), "--calib", str(folder / "x.npz"), "-o", str(folder / "out"), "--threads", "1"]
    ran = CliRunner().invoke(cli, [*command, "--metric", "relative-error", *options])
    told = f"seed {seed}: {' '.join(options)}\n{ran.output}"
    if options[:2] == ["--only", "channels"] and "--max-macs" not in options:
        assert ran.exit_code == USAGE, told  # nothing says how many multiplications to keep
        assert "--max-macs" in ran.output, told
        assert not (folder / "out").exists(), told
        return
    assert ran.exit_code in (OK, MISSED), told
    report = json.loads((folder / "out" / "report.json").read_text())
    missed = report["limits"]["missed"]
    assert bool(missed) == (ran.exit_code == MISSED), told
    data = (folder / "out" / "model.onnx").read_bytes()
    packed = (folder / "out" / "model.edgec").read_bytes()
    assert container.unpack(packed) == data, told
    if "--max-size" in options and not missed:
        assert len(packed) <= int(options[options.index("--max-size") + 1]), told
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    answer = run(folder / "out" / "model.onnx", {"x": samples[:1]})["y"]
    assert np.isfinite(answer).all(), told
    assert answer.shape == run(path, {"x": samples[:1]})["y"].shape, told


@pytest.mark.parametrize("seed", range(RUNS))
def test_compression_keeps_its_promises(seed: int, tmp_path: Path) -> None:
    check(tmp_path, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(RUNS, NIGHTLY))
def test_compression_keeps_its_promises_through_the_night(seed: int, tmp_path: Path) -> None:
    check(tmp_path, seed)
