"""The artefact folder: atomic, honest about its contents, and careful with other people's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compiler import artefact
from compiler.artefact import ArtefactError, Manifest, Preprocessing

MADE = Manifest(
    "net", "fpga", "0.1.0", Preprocessing((0.5,), (1.0, 2.0)), {"x": (0.0, 1.5)}, {"array": "8x2"}, {"numpy": "2"}
)


def write(destination: Path, text: str = "a") -> None:
    with artefact.writing(destination) as folder:
        (folder / "rtl").mkdir()
        (folder / "rtl" / "accelerator.v").write_text(text)
        artefact.seal(folder, MADE)


def test_manifest_round_trips_and_names_every_file(tmp_path: Path) -> None:
    write(tmp_path / "out")
    manifest = artefact.load(tmp_path / "out")
    assert manifest.preprocessing == MADE.preprocessing
    assert manifest.input_ranges == {"x": (0.0, 1.5)}
    assert manifest.options == {"array": "8x2"}
    assert list(manifest.files) == ["rtl/accelerator.v"]
    assert artefact.altered_files(tmp_path / "out", manifest) == []


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), artefact.writing(tmp_path / "deep" / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_previous_artefact(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), artefact.writing(tmp_path / "out"):
        raise KeyboardInterrupt
    assert (tmp_path / "out/rtl/accelerator.v").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_previous_artefact_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(artefact, "_exchange", lambda folder, place: False)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new")
    assert (tmp_path / "out/rtl/accelerator.v").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match="is not empty and not an edgec artefact"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_artefact_with_a_foreign_file_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match=r"has files that edgec did not write: notes\.txt"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out/manifest.json").is_file()


def test_destination_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ArtefactError, match="is a file, not a folder"):
        artefact.check_destination(tmp_path / "out")
    with pytest.raises(ArtefactError, match="is a file, not a folder"):
        artefact.check_destination(tmp_path / "out" / "deeper")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_destination_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtefactError, match="cannot be written"):
        artefact.check_destination(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_change_of_a_file_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "out")
    manifest = artefact.load(tmp_path / "out")
    (tmp_path / "out/rtl/accelerator.v").write_text("b")
    assert artefact.altered_files(tmp_path / "out", manifest) == ["rtl/accelerator.v"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema must be 1, not 99"),
        ({"kind": "other"}, "is not an edgec manifest"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "is outside the artefact"),
        ({"files": []}, "expected an object"),
        ({"network": None, "preprocessing": {"colour": [1]}}, "is damaged"),
    ],
)
def test_bad_manifest_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    write(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtefactError, match=message):
        artefact.load(tmp_path / "out")


def test_folder_without_manifest_is_not_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"it has no manifest\.json") as caught:
        artefact.load(tmp_path)
    assert caught.value.__notes__ == ["remedy: name a folder that `edgec compile -o` wrote"]
