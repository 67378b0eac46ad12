from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import families
from benchmarks.artefacts import Ran, Workshop
from benchmarks.studies import Compression, Study
from passes.recipes.families import NAMES

GOOD = NAMES[0]


def _made(workshop: Workshop, study: Study, *options: str) -> Compression:
    """Files of 100 bytes; 110 without the one family that helps."""
    is_larger = options[-2:] == ("--without", GOOD)
    layer = {"op": "Conv", "recipe": "W8", "loss": 0.5, "reason": ""}
    return Compression(Path(), Ran(0, "", "", 1, 1), Path(), 110 if is_larger else 100, 1100, {"layers": [layer]})


def test_a_family_that_no_file_grows_without_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "compressed", _made)
    figures = list(families.figures(Workshop(tmp_path)))
    verdicts = {figure.what.split(":")[0]: figure for figure in figures[-len(NAMES) :]}
    assert list(verdicts) == list(NAMES)
    assert verdicts[GOOD].value == pytest.approx(1.1)
    assert "helps ResNet-8 most" in verdicts[GOOD].note
    assert all("never helps" in verdicts[name].note for name in NAMES[1:])
    assert all("alone 0.5 nats" in figure.note for figure in verdicts.values())
    assert len(figures) == 4 * (1 + 2 * len(NAMES)) + len(NAMES)


def test_a_failed_run_is_not_measured(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Compression(Path(), Ran(3, "", "no", 1, 1), Path(), failed="exit 3: no")
    monkeypatch.setattr(families, "compressed", lambda *_: failed)
    assert all(figure.value is None and figure.note == "exit 3: no" for figure in families.figures(Workshop(tmp_path)))


def test_a_quick_run_says_that_it_leaves_them_out(tmp_path) -> None:
    (figure,) = families.figures(Workshop(tmp_path, quick=True))
    assert figure.verdict == "none"


def test_a_family_that_no_plan_used_is_not_searched_without(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def made(workshop: Workshop, study: Study, *options: str) -> Compression:
        asked.append(options[-2:])
        found = _made(workshop, study, *options)
        return replace(found, report={**found.report, "probes": [{"families": [GOOD]}]})

    monkeypatch.setattr(families, "compressed", made)
    figures = list(families.figures(Workshop(tmp_path)))
    assert {name for option, name in asked if option == "--without"} == {GOOD}
    verdicts = {figure.what.split(":")[0]: figure for figure in figures[-len(NAMES) :]}
    assert verdicts[GOOD].value == pytest.approx(1.1)
    assert all(verdicts[name].value == 1.0 for name in NAMES[1:])
