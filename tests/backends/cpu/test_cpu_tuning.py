"""Tiles: none changes a result, and the search for the fastest keeps the default unless another is clearly faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backends.cpu import backend, codegen, tiles, tuning
from backends.cpu.kernels import Conv, Depthwise, SparseConv
from backends.cpu.machine import Machine
from backends.cpu.plan import Plan, make_plan
from backends.cpu.tiles import Tile
from backends.layers import LayerGraph
from tests.backends.cpu.test_cpu_kernels import block_sparse
from tests.support.random_layers import random_graph, random_inputs

pytestmark = [pytest.mark.tvm, pytest.mark.slow]


def convolutions(seed: int) -> LayerGraph:
    return random_graph(seed, 5, kinds=("conv", "depthwise", "fully_connected"))


def shapes_of(plan: Plan) -> dict[str, tiles.Tileable]:
    return {tiles.shape_of(kernel): kernel for own in plan.tiles().values() for kernel in own}


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; the user's own is left alone."""
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiles"


def test_the_default_is_the_first_candidate_and_all_fit_the_registers() -> None:
    on = backend.machine("haswell")
    kinds = set()
    for graph in (*map(convolutions, range(6)), block_sparse(on)):
        for kernel in shapes_of(make_plan(graph, on)).values():
            found = tiles.candidates(kernel, on)
            kinds.add(type(kernel))
            assert found[0] == tiles.tile_of(kernel)
            assert len(set(found)) == len(found)
            assert all((tile.pixels + 1) * tile.vectors < on.registers for tile in found[1:])
            if isinstance(kernel, Conv) and kernel.rows == 1 and kernel.columns > 1:
                assert found[1] == replace(found[0], by_channel=not found[0].by_channel)
    assert kinds == {Conv, Depthwise, SparseConv}


@pytest.mark.parametrize(("cpu", "share"), [(None, 0.0), (None, 0.5), (None, 1.0), ("haswell", 0.3)])
def test_every_tile_computes_the_reference(cpu: str | None, share: float, tmp_path: Path) -> None:
    """The second, one of the middle and the last of the candidates, in every layer at once."""
    on = backend.machine(cpu)
    kinds = set()
    for number, graph in enumerate((convolutions(1), convolutions(4), block_sparse(on))):
        chosen = {}
        for shape, kernel in shapes_of(make_plan(graph, on)).items():
            others = tiles.candidates(kernel, on)[1:]
            if others:
                chosen[shape] = others[round(share * (len(others) - 1))]
                is_row = isinstance(kernel, Conv) and kernel.rows == 1 and kernel.columns > 1
                kinds.add((type(kernel), is_row))
        assert chosen
        plan = make_plan(graph, on, chosen)
        told = backend.tiles_of(plan).values()
        assert any("default" in text for text in told)
        folder = tmp_path / str(number)
        folder.mkdir()
        backend.write(plan, folder)
        library = backend.load(folder, graph, threads=2)
        try:
            verdict = backend.compare(library, folder, graph, random_inputs(graph, 0, 2))
        finally:
            library.close()
        assert [str(difference) for difference in verdict.differences] == []
        assert json.loads((folder / "bundle.json").read_text())["tiles"] == backend.tiles_of(plan)
    assert kinds >= {(Conv, False), (Conv, True), (Depthwise, False), (SparseConv, False)}


def test_what_was_found_is_found_again_without_the_clock(cache: Path) -> None:
    on, graph = backend.machine(None), convolutions(1)
    shapes = shapes_of(make_plan(graph, on))
    heard: list[tuple[str, int, int]] = []
    first = tuning.tune([graph], on, 2, "1", lambda *told: heard.append(told))
    assert (first.timed, first.known, first.warnings) == (len(shapes), 0, ())
    assert first.tiles.keys() == shapes.keys()
    assert all(tile in tiles.candidates(shapes[shape], on)[:2] for shape, tile in first.tiles.items())
    assert heard[-1] == ("tune", len(shapes), len(shapes))
    again = tuning.tune([graph], on, 2, "1", silent)
    assert (again.timed, again.known, again.tiles) == (0, len(shapes), first.tiles)
    assert len(list(cache.iterdir())) == 1
    wider = tuning.tune([graph], on, 3, "1", silent)
    assert wider.timed > 0
    assert tuning.tune([graph], on, 2, "1", silent).timed == 0  # a wider search answers a narrower one
    assert tuning.tune([graph], on, 2, "2", silent).timed == len(shapes)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", "other version", "no tile", "tile of 0", "tile that does not fit"])
def test_a_damaged_cache_is_told_and_made_anew(damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on, graph = backend.machine(None), convolutions(1)
    monkeypatch.setattr(tuning, "_clock", lambda *_: lambda step, runs: 1.0)
    shapes = shapes_of(make_plan(graph, on))
    tuning.tune([graph], on, 2, "1", silent)
    (path,) = cache.iterdir()
    sound = path.read_text()
    document = json.loads(sound)
    entry = next(iter(document["shapes"].values()))
    if damage == "other version":
        document["edgec"] = "0"
    elif damage == "no tile":
        del entry["tile"]
    elif damage.startswith("tile"):
        entry["tile"]["pixels"] = 0 if damage == "tile of 0" else 999
    path.write_text(json.dumps(document) if " " in damage else damage)
    assert path.read_text() != sound
    again = tuning.tune([graph], on, 2, "1", silent)
    if damage == "tile that does not fit":  # the rest of the file is of use
        assert (again.timed, again.warnings) == (1, ())
    else:
        assert again.timed == len(shapes)
        assert "cannot be read and is made anew" in again.warnings[0]
    assert path.read_text() == sound


def test_a_cache_that_cannot_be_written_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(tuning, "_clock", lambda *_: lambda step, runs: 1.0)
    found = tuning.tune([convolutions(1)], backend.machine(None), 2, "1", silent)
    assert found.timed > 0
    assert "cannot be written" in found.warnings[-1]


def clock(times: Sequence[float], once: float = 1.0) -> Callable[[int, int], float]:
    """A clock that does not run: step 1 takes `once` of its time in the first search."""
    calls = [0]

    def tell(step: int, runs: int) -> float:
        calls[0] += step == 1
        return times[step] * runs * (once if step == 1 and calls[0] <= 1 + tuning._ROUNDS else 1.0)

    return tell


@pytest.mark.parametrize(
    ("times", "once", "best"),
    [((1, 0.98, 1.1), 1.0, 0), ((1, 0.9, 1.1), 1.0, 1), ((1, 0.9, 0.8), 1.0, 2), ((1, 1, 1.2), 0.5, 0), ((1,), 1.0, 0)],
)
def test_the_default_is_kept_unless_another_is_clearly_faster_twice(
    times: tuple[float, ...], once: float, best: int
) -> None:
    candidates = [Tile(pixels) for pixels in range(1, 1 + len(times))]
    found = tuning._fastest(clock(times, once), candidates, range(len(times)))
    assert found.tile == candidates[best]
    assert found.ratio == pytest.approx(times[best])


def test_what_cannot_run_here_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    native = backend.machine(None)
    assert tuning.why_not_here(native) is None
    why = tuning.why_not_here(backend.machine(None, "arm64"))
    assert (why or "").startswith("kernels for aarch64 cannot be timed on this ")
    monkeypatch.setattr(codegen, "native_cpu", lambda: ("old", frozenset({"avx"})))
    lacking: Machine = replace(native, cpu="new", requires=("avx", "avx2"))
    assert tuning.why_not_here(lacking) == "this processor lacks avx2, which new has"
