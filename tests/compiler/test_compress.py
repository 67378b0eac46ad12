"""`edgec compress` as a whole: what its report says of the file, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from click.testing import CliRunner

from compiler import compression
from compiler.cli import MISSED, OK, USAGE, cli
from compiler.compress import _families, compress
from compiler.compression import Budget, Compressed, CompressOptions
from compiler.importer import import_model
from passes import graph as edit
from passes.layer import layers
from passes.recipes.base import Coded, Problem, RecipeError
from passes.recipes.coded import Ternary
from passes.recipes.families import NAMES
from passes.recipes.uniform import Uniform
from tests.support.canonical import normal
from tests.support.onnx_models import model, node, save


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The network and its samples, as arguments: a layer of 3 x 3, one of 1 x 1 and one after a global pool."""
    nodes = [
        node("Conv", ["x", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "v"], ["c2"]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "u"], ["y"], transB=1),
    ]
    weights = {"w": normal(16, 8, 3, 3) / 8, "v": normal(24, 16, 1, 1, seed=1) / 4, "u": normal(4, 24, seed=2)}
    np.savez(tmp_path / "samples.npz", x=normal(24, 8, 8, 8, seed=3))
    path = save(model(nodes, {"x": [1, 8, 8, 8]}, ["y"], weights), tmp_path)
    return ["compress", str(path), "--calib", str(tmp_path / "samples.npz"), "-o", str(tmp_path / "out")]


def report(given: list[str], *options: str, code: int = OK) -> dict:
    ran = CliRunner().invoke(cli, [*given, *options])
    assert ran.exit_code == code, ran.output
    return json.loads((Path(given[-1]) / "report.json").read_text())


def test_multiplications_of_every_part_of_a_split_layer_count(given: list[str]) -> None:
    found = report(given, "--only", "low-rank", "--max-macs", "70000")
    written = import_model(Path(given[-1]) / "model.onnx", {}).model
    nodes = {str(each.name): each for each in written.graph}
    known = layers(written)
    assert len(known) > len(found["layers"])
    macs = sum(layer.macs(edit.shape_of(nodes[name].outputs[0]) or ()) for name, layer in known.items())
    assert found["after"]["macs"] == macs <= 70000
    split = next(each for each in found["layers"] if each["rank"] is not None)
    assert split["recipe"].endswith("W8")
    parts = found["parts"]
    coded = parts["codes"] + parts["codebooks"] + parts["scales"] + parts["biases"]
    assert math.isclose(sum(each["after"]["bytes"] for each in found["layers"]), coded, abs_tol=len(known))


@pytest.mark.parametrize("family", ["ternary", "prune", "codebook"])
def test_without_a_guard_a_family_is_used_in_every_layer(given: list[str], family: str) -> None:
    found = report(given, "--only", family, "--no-guard", "--max-drop", "0.001")
    offers = {"ternary": "ternary", "prune": "OBS", "codebook": "codebook"}
    assert all(offers[family] in each["recipe"] for each in found["layers"]), [e["recipe"] for e in found["layers"]]


def test_a_family_needs_no_budget(given: list[str]) -> None:
    found = report(given, "--only", "ternary", "--no-guard")
    assert {each["recipe"] for each in found["layers"]} == {"ternary"}


def test_channels_alone_want_to_know_how_many_multiplications(given: list[str]) -> None:
    ran = CliRunner().invoke(cli, [*given, "--only", "channels", "--max-drop", "1%"])
    assert ran.exit_code == USAGE
    assert "channels alone: nothing says how many multiplications to keep" in ran.output
    assert "--max-macs" in ran.output


def test_fewest_multiplications_without_a_drop_to_spend_are_refused(given: list[str]) -> None:
    ran = CliRunner().invoke(cli, [*given, "--fewest-macs"])
    assert ran.exit_code == USAGE
    assert "--fewest-macs has no drop to spend" in ran.output
    assert not Path(given[-1]).exists()


def test_multiplications_that_no_family_can_save_are_missed(given: list[str]) -> None:
    found = report(given, "--only", "fixed-point", "--max-macs", "1000", code=MISSED)
    assert f"the fewest multiplications of any plan are {found['after']['macs']}, not 1000" in found["limits"]["missed"]


def test_a_drop_that_not_even_the_whole_network_keeps_to_is_missed(given: list[str]) -> None:
    """Activations of 4 bits cost more than that, so nothing is left for multiplications."""
    found = report(given, "--fewest-macs", "--max-drop", "0.000001", "--activations", "4", code=MISSED)
    assert found["quality"]["drop"] > 1e-6
    assert found["limits"]["missed"][0].startswith("no plan surely keeps to 0.000001")
    assert found["after"]["macs"] == found["before"]["macs"]


def test_compile_tells_a_missed_size(given: list[str]) -> None:
    options = ["--max-size", "100", "--target", "reference", "--only", "fixed-point"]
    ran = CliRunner().invoke(cli, ["compile", *given[1:], *options])
    assert ran.exit_code == MISSED, ran.output
    folder = Path(given[-1])
    size = (folder / "model.edgec").stat().st_size
    assert f"the nearest file has {size} bytes, not 100" in json.loads((folder / "report.json").read_text())["missed"]
    assert json.loads((folder / "manifest.json").read_text())["options"]["max_size"] == "100"


def test_a_compressed_network_can_be_inspected_but_not_verified(given: list[str]) -> None:
    report(given)
    shown = CliRunner().invoke(cli, ["inspect", given[-1]])
    assert shown.exit_code == OK, shown.output
    assert "model.edgec" in shown.output
    refused = CliRunner().invoke(cli, ["verify", given[-1]])
    assert refused.exit_code == USAGE
    assert "was not compiled for a target" in refused.output


def test_a_front_is_measured_beside_a_budget(given: list[str]) -> None:
    found = report(given, "--only", "fixed-point", "--max-drop", "0.01", "--pareto", "4")
    assert len(found["probes"]) >= 4
    assert sum(each["is_chosen"] for each in found["front"]) == 1


def test_a_layer_that_falls_back_is_reported_as_what_it_is(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Ternary, problem: Problem, scale: np.ndarray) -> Coded:
        raise RecipeError("not today")

    monkeypatch.setattr(Ternary, "codes", refuse)
    folder = Path(given[-1])
    options = CompressOptions(calibration=folder.parent / "samples.npz", families=("fixed-point",))
    monkeypatch.setattr(compression, "Uniform", lambda bits=8, **_: Ternary() if bits == 5 else Uniform(bits))
    found = compress(Path(given[1]), folder, replace(options, weights=5), lambda what, done, total: None)
    for layer in found.layers:
        assert (layer.recipe, layer.bits) == ("W8", 8)
        assert layer.reason == "ternary: not today; it is W8 instead"


def test_a_size_is_kept_to_and_made_use_of(given: list[str]) -> None:
    found = report(given, "--only", "entropy", "--max-size", "1300")
    assert 0.97 * 1300 < found["parts"]["total"] <= 1300
    assert (Path(given[-1]) / "model.edgec").stat().st_size == found["parts"]["total"]


def test_every_family_of_a_search_has_its_outcome_and_a_reason(given: list[str]) -> None:
    found = report(given, "--without", "ternary", "--metric", "relative-error", "--max-drop", "0.005")
    outcomes = {each["name"]: each for each in found["passes"] if each["name"] in NAMES}
    assert set(outcomes) == set(NAMES)
    used = [each for each in outcomes.values() if each["outcome"] == "kept"]
    assert sum(each["changed"] for each in used) >= len(found["layers"])
    assert outcomes["ternary"]["outcome"] == "off"
    assert outcomes["ternary"]["reason"] == "left out by --only or --without"
    others = [each for each in outcomes.values() if each["outcome"] != "kept"]
    assert all(each["reason"] for each in others)


def test_a_family_that_only_refused_plans_have_was_rolled_back() -> None:
    def trial(families: tuple[str, ...], drop: float, refused: str) -> SimpleNamespace:
        recipes = {str(n): SimpleNamespace(family=family) for n, family in enumerate(families)}
        return SimpleNamespace(
            recipes=recipes, families=families, drop=drop, bytes=1000, refused=refused, quantized=refused
        )

    trials = [
        trial(("entropy", "entropy"), 0.001, ""),
        trial(("vector", "entropy"), 0.02, "drops 0.02, more than 0.01"),
        trial(("vector", "vector"), 0.03, "drops 0.03, more than 0.01"),
    ]
    structure = SimpleNamespace(removal={}, ranks={}, families=())
    made = SimpleNamespace(trials=trials, quantized="", refused={}, shaped=SimpleNamespace(structure=structure))
    options = CompressOptions(budget=Budget(max_drop="0.01"))
    found = {each.name: each for each in _families(cast(Compressed, made), options)}
    assert (found["entropy"].outcome, found["entropy"].changed) == ("kept", 2)
    assert (found["vector"].outcome, found["vector"].drop) == ("rolled back", 0.02)
    assert found["vector"].reason == "the plan of 1,000 bytes that has it in 1 layers drops 0.02, more than 0.01"
    assert found["prune"].outcome == "no change"


def test_narrow_codes_are_a_codebook_only_where_that_saves_much_of_the_loss(given: list[str]) -> None:
    both = report(given, "--weights", "4")
    shutil.rmtree(given[-1])
    plain = report(given, "--weights", "4", "--without", "codebook")
    assert {each["recipe"] for each in plain["layers"]} == {"W4"}
    recipes = {each["recipe"] for each in both["layers"]}
    assert len(recipes) == 1
    is_better = both["quality"]["drop"] <= 0.6 * plain["quality"]["drop"]
    assert recipes == ({"codebook 16"} if is_better else {"W4"})


def test_compile_keeps_to_a_size(given: list[str]) -> None:
    """The file of an artefact has all names, so it is what the search weighs."""
    ran = CliRunner().invoke(
        cli, ["compile", *given[1:], "--max-size", "2800", "--target", "reference", "--only", "entropy"]
    )
    assert ran.exit_code == OK, ran.output
    assert (Path(given[-1]) / "model.edgec").stat().st_size <= 2800
    assert json.loads((Path(given[-1]) / "report.json").read_text())["missed"] == []
