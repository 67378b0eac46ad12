"""Structure hidden in a random network is found by `edgec compress`, used, and costs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.cli import OK, cli
from tests.support.onnx_models import model, node, run, save

Floats = NDArray[np.float32]
CHANNELS = 32


@dataclass(frozen=True)
class Planted:
    """One kind of structure.

    Attributes:
        make: Weights [CHANNELS, CHANNELS, *kernel] from a random generator.
        family: That is to find it.
        recipe: What the report calls it, in part.
        is_exact: Whether 8 bits hold the weights but for float noise.
    """

    make: Callable[[np.random.Generator], Floats]
    family: str
    recipe: str
    is_exact: bool = False


def circulant(rng: np.random.Generator) -> Floats:
    i, j = np.arange(CHANNELS)[:, None], np.arange(CHANNELS)
    return rng.normal(size=CHANNELS)[(i - j) % CHANNELS][:, :, None, None].astype(np.float32)


def block_circulant(rng: np.random.Generator) -> Floats:
    i, j = np.arange(CHANNELS)[:, None], np.arange(CHANNELS)
    blocks = rng.normal(size=(CHANNELS // 4, CHANNELS // 4, 4))
    return blocks[i // 4, j // 4, (i - j) % 4][:, :, None, None].astype(np.float32)


def toeplitz(rng: np.random.Generator) -> Floats:
    i, j = np.arange(CHANNELS)[:, None], np.arange(CHANNELS)
    return rng.normal(size=2 * CHANNELS - 1)[i - j + CHANNELS - 1][:, :, None, None].astype(np.float32)


def negated(rng: np.random.Generator) -> Floats:
    half = rng.normal(size=(CHANNELS // 2, CHANNELS, 3, 3))
    return np.concatenate([half, -half]).astype(np.float32)


def rotated(rng: np.random.Generator) -> Floats:
    quarter = rng.normal(size=(CHANNELS // 4, CHANNELS, 3, 3))
    return np.concatenate([np.rot90(quarter, turn, (2, 3)) for turn in range(4)]).astype(np.float32)


def ternary(rng: np.random.Generator) -> Floats:
    signs = rng.choice([-1.0, 0.0, 1.0], (CHANNELS, CHANNELS, 3, 3), p=[0.2, 0.6, 0.2])
    return (signs * rng.uniform(0.3, 1.0, (CHANNELS, 1, 1, 1))).astype(np.float32)


def sixteen_values(rng: np.random.Generator) -> Floats:
    levels = rng.choice(np.arange(-120, 121), 16, replace=False) / 120
    shares = 0.65 ** np.arange(16)
    return rng.choice(levels, (CHANNELS, CHANNELS, 3, 3), p=shares / shares.sum()).astype(np.float32)


PLANTED = {
    "circulant": Planted(circulant, "circulant", "circulant"),
    "block-circulant": Planted(block_circulant, "circulant", "circulant 4"),
    "toeplitz": Planted(toeplitz, "circulant", "Toeplitz"),
    "negated": Planted(negated, "shared", "shared filters 16 of 32"),
    "rotated": Planted(rotated, "shared", "shared filters 8 of 32"),
    "ternary": Planted(ternary, "ternary", "ternary", is_exact=True),
    "sixteen-values": Planted(sixteen_values, "codebook", "codebook", is_exact=True),
}


def network(weights: Floats, rng: np.random.Generator) -> onnx.ModelProto:
    """Random, but for the layer in its middle."""
    side = weights.shape[2] // 2

    def scaled(array: Floats) -> Floats:
        return array / np.float32(np.sqrt(np.square(array).sum() / len(array)))

    arrays = {
        "first": scaled(rng.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)),
        "middle": weights / np.float32(2.0 ** np.round(np.log2(np.sqrt(np.square(weights).sum() / len(weights))))),
        "last": scaled(rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32)),
        "dense": scaled(rng.normal(size=(10, CHANNELS)).astype(np.float32)),
        "bias": rng.normal(size=CHANNELS, scale=0.1).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "first", "bias"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "middle", "bias"], ["c"], name="planted", pads=[side] * 4),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "last", "bias"], ["e"], pads=[1, 1, 1, 1]),
        node("Relu", ["e"], ["f"]),
        node("GlobalAveragePool", ["f"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("Gemm", ["h", "dense"], ["y"], transB=1),
    ]
    return model(nodes, {"x": ["N", 3, 10, 10]}, ["y"], arrays)


def compressed(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """The report of a run that must succeed."""
    command = ["compress", str(folder / "model.onnx"), "--calib", str(folder / "x.npz"), "-o", str(folder / name)]
    ran = CliRunner().invoke(cli, [*command, "--metric", "relative-error", *options], catch_exceptions=False)
    assert ran.exit_code == OK, ran.output
    found: dict[str, Any] = json.loads((folder / name / "report.json").read_text())
    return found


def answers(path: Path, samples: Floats) -> Floats:
    return np.concatenate([run(path, {"x": each[None]})["y"] for each in samples])


def error(path: Path, folder: Path, samples: Floats) -> float:
    wanted = answers(folder / "model.onnx", samples)
    return float(np.square(answers(path, samples) - wanted).sum() / np.square(wanted).sum())


def stored_weights(path: Path, shape: tuple[int, ...]) -> Floats:
    """Real weights of the one planted layer, recomputed by onnxruntime from what the file stores."""
    proto = onnx.load(path)
    convs = [each for each in proto.graph.node if each.op_type == "Conv"]
    name = convs[1].input[1]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    found = run(proto, {"x": np.zeros((1, 3, 10, 10), np.float32)})[name]
    assert found.shape == shape
    return found


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_structure_is_found_used_and_free(kind: str, tmp_path: Path) -> None:
    planted, rng = PLANTED[kind], np.random.default_rng(11)
    proto = network(planted.make(rng), rng)
    save(proto, tmp_path)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(96, 3, 10, 10)).astype(np.float32))
    fresh = rng.normal(size=(32, 3, 10, 10)).astype(np.float32)
    plain = compressed(tmp_path, "plain")
    # 2 bits without ternary's exact scales would nearly do, and save a few bytes: that is another family's success.
    limit = ["--max-drop", "0.001"]
    best = compressed(tmp_path, "best", *limit, "--without", "fixed-point")

    layer = best["layers"][1]
    assert planted.recipe in layer["recipe"]
    assert layer["recipe"].endswith("as found")
    assert best["parts"]["total"] < plain["parts"]["total"]
    weights = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}["middle"]
    got = stored_weights(tmp_path / "best" / "model.onnx", weights.shape)
    width = re.search(r"W(\d)", layer["recipe"])
    step = np.abs(weights).max() / (2 ** (int(width[1]) - 1) - 1 if width else 127)
    if planted.is_exact:
        assert np.abs(got - weights).max() <= 1e-4 * np.abs(weights).max()
    else:  # rounded with an eye on the inputs, so not to the nearest
        assert np.sqrt(np.square(got - weights).mean()) <= step / 2

    alone = compressed(tmp_path, "alone", "--only", planted.family, *limit)
    assert alone["layers"][1]["recipe"].startswith(planted.recipe.split()[0])
    before, after = (error(tmp_path / name / "model.onnx", tmp_path, fresh) for name in ("plain", "alone"))
    assert after <= max(4 * before, 1e-3)


def test_a_hidden_rank_is_found_where_bytes_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    low = rng.normal(size=(CHANNELS, 3)) @ rng.normal(size=(3, CHANNELS * 9))
    proto = network(low.reshape(CHANNELS, CHANNELS, 3, 3).astype(np.float32), rng)
    save(proto, tmp_path)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(96, 3, 10, 10)).astype(np.float32))
    fresh = rng.normal(size=(32, 3, 10, 10)).astype(np.float32)
    limit = ["--max-drop", "0.001"]
    best = compressed(tmp_path, "best", *limit)
    whole = compressed(tmp_path, "whole", *limit, "--without", "low-rank")
    layer = best["layers"][1]
    assert layer["rank"] == 3
    assert layer["recipe"].startswith("svd 3, ")
    assert best["parts"]["total"] < 0.7 * whole["parts"]["total"]
    assert best["after"]["macs"] < 0.7 * whole["after"]["macs"]
    rows = [each for each in best["passes"] if each["name"] == "low-rank"]  # of the pass, and of the family
    assert rows
    assert {each["outcome"] for each in rows} == {"kept"}
    assert 1 in [each["changed"] for each in rows]
    assert error(tmp_path / "best" / "model.onnx", tmp_path, fresh) <= 2e-3


def test_a_hidden_rank_is_found_where_multiplications_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    low = rng.normal(size=(CHANNELS, 2)) @ rng.normal(size=(2, CHANNELS))
    proto = network(low[:, :, None, None].astype(np.float32), rng)
    save(proto, tmp_path)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(96, 3, 10, 10)).astype(np.float32))
    fresh = rng.normal(size=(32, 3, 10, 10)).astype(np.float32)
    plain = compressed(tmp_path, "plain")
    saved = 100 * (CHANNELS * CHANNELS - 4 * 2 * CHANNELS)  # rank 4: the least multiple of the target
    found = compressed(tmp_path, "split", "--only", "low-rank", "--max-macs", str(plain["after"]["macs"] - saved))
    assert found["after"]["macs"] <= plain["after"]["macs"] - saved
    assert {each["outcome"] for each in found["passes"] if each["name"] == "low-rank"} == {"kept"}
    before, after = (error(tmp_path / name / "model.onnx", tmp_path, fresh) for name in ("plain", "split"))
    assert after <= max(4 * before, 1e-3)
