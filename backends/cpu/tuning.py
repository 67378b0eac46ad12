"""Tiles by the clock instead of by formula: a search for each distinct layer shape on this processor, and its cache."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from backends.cpu import codegen, csource, shared, tiles
from backends.cpu.kernels import Kernel
from backends.cpu.machine import Machine
from backends.cpu.plan import Plan, Step, make_plan
from backends.cpu.tiles import Tile, Tileable
from backends.layers import LayerGraph

Progress = Callable[[str, int, int], None]

CLEARLY = 0.97
"""A tile replaces the default if it takes at most this share of its time, twice."""
_ROUNDS, _SECONDS = 15, 100e-6
"""Measurements of every candidate, in turns, and how long each is at least."""
_X86 = "x86_64-unknown-linux-gnu"


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        tile: The fastest, or the default.
        ratio: Its time to that of the default.
        candidates: How many were timed, at most.
    """

    tile: Tile
    ratio: float
    candidates: int


@dataclass(frozen=True)
class Tuned:
    """Of all layers of some graphs.

    Attributes:
        tiles: Shape of a layer to the tile that it should have.
        timed, known: How many shapes were timed, and how many were in the cache.
        warnings: A cache that could not be read or written.
    """

    tiles: Mapping[str, Tile]
    timed: int
    known: int
    warnings: tuple[str, ...] = ()


def why_not_here(machine: Machine) -> str | None:
    """Why kernels for a machine cannot be timed on this processor; None if they can."""
    if machine.triple != _X86 or platform.machine() != "x86_64":
        return f"kernels for {machine.triple.partition('-')[0]} cannot be timed on this {platform.machine()} machine"
    _, has = codegen.native_cpu()
    lacks = [name for name in machine.requires if name not in has]
    return f"this processor lacks {', '.join(lacks)}, which {machine.cpu} has" if lacks else None


def tune(graphs: Sequence[LayerGraph], machine: Machine, most: int, version: str, progress: Progress) -> Tuned:
    """The fastest tile of each distinct layer shape.

    Args:
        graphs: Whose layers are tuned.
        machine: Whose kernels can run here; see `why_not_here`.
        most: Candidates for a shape, the default among them.
        version: Of edgec: kernels of another version may have other best tiles.
        progress: Told how many shapes are done.
    """
    cache = Cache(machine, version)
    known, warnings = cache.read()
    found: dict[str, Found] = {}
    timed = 0
    for graph in graphs:
        plan = make_plan(graph, machine)
        shapes = {tiles.shape_of(kernel): kernel for own in plan.tiles().values() for kernel in own}
        for shape, kernel in shapes.items():
            if (cached := known.get(shape)) and _fits(cached, kernel, machine, most):
                found[shape] = cached
        missing = {shape: kernel for shape, kernel in shapes.items() if shape not in found}
        if missing:
            new = _search(plan, missing, most, progress)
            found, timed = found | new, timed + len(new)
            warnings += cache.add(new)
    return Tuned({s: f.tile for s, f in found.items()}, timed, len(found) - timed, tuple(dict.fromkeys(warnings)))


def _fits(known: Found, kernel: Tileable, machine: Machine, most: int) -> bool:
    """Whether a cached result is of a search that was as wide, and a tile that the kernel can have."""
    possible = tiles.candidates(kernel, machine)
    return known.candidates >= min(most, len(possible)) and known.tile in possible


# Measuring


def _search(plan: Plan, shapes: Mapping[str, Tileable], most: int, progress: Progress) -> dict[str, Found]:
    """Time candidates of the shapes where they stand in a plan: its maps, its constants, one thread."""
    tried = {shape: tiles.candidates(kernel, plan.machine)[:most] for shape, kernel in shapes.items()}
    progress("tune", 0, len(tried))
    steps: list[Step] = []
    numbers: dict[str, list[int]] = {shape: [] for shape in tried}
    for turn in range(max(map(len, tried.values()))):
        chosen = {shape: candidates[turn] for shape, candidates in tried.items() if turn < len(candidates)}
        varied = make_plan(plan.graph, plan.machine, chosen)
        assert varied.constants == plan.constants
        for shape in chosen:
            numbers[shape].append(len(steps))
            steps.append(_alone(varied, shape))
    with tempfile.TemporaryDirectory(prefix="edgec-tune-") as folder:
        clock = _clock(plan, steps, Path(folder))
        found = {}
        for shape, candidates in tried.items():
            found[shape] = _fastest(clock, candidates, numbers[shape])
            progress("tune", len(found), len(tried))
    return found


def _alone(plan: Plan, shape: str) -> Step:
    """The calls of one shape in the first step that has it."""
    for step in plan.steps:
        calls = tuple(c for c in step.calls if c.tiled is not None and tiles.shape_of(c.tiled[0]) == shape)
        if calls:
            return replace(step, calls=calls, fills=())
    raise AssertionError(shape)


Clock = Callable[[int, int], float]
"""(step, runs) to seconds of this thread."""


def _clock(plan: Plan, steps: Sequence[Step], folder: Path) -> Clock:
    """Steps as a library that times itself."""
    kernels: dict[Kernel, str] = {}
    for step in steps:
        for call in step.calls:
            kernels.setdefault(call.kernel, f"kernel{len(kernels)}")
    prefix = "edgec_tuned"
    source = csource.timed(plan, csource.Names(prefix, kernels), steps)
    library = ctypes.CDLL(str(shared.assemble(plan, kernels, prefix, source, folder)))
    function = getattr(library, f"{prefix}_time")
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_double
    return lambda step, runs: float(function(step, runs))


def _fastest(clock: Clock, candidates: Sequence[Tile], numbers: Sequence[int]) -> Found:
    """The first candidate is the default. The best of all has to win again, against the default alone."""
    if len(candidates) > 1:
        ratios = _ratios(clock, numbers)
        best = min(range(1, len(candidates)), key=ratios.__getitem__)
        if ratios[best] <= CLEARLY:
            again = _ratios(clock, [numbers[0], numbers[best]])[1]
            if again <= CLEARLY:
                return Found(candidates[best], round(again, 4), len(candidates))
    return Found(candidates[0], 1.0, len(candidates))


def _ratios(clock: Clock, numbers: Sequence[int]) -> list[float]:
    """Time of each to that of the first: the median of rounds in which all take turns."""
    runs = 1
    for number in numbers:
        clock(number, 2)
    while clock(numbers[0], runs) < _SECONDS:
        runs *= 2
    rounds = [[clock(number, runs) for number in numbers] for _ in range(_ROUNDS)]
    return [median(row[i] / row[0] for row in rounds) for i in range(len(numbers))]


# What is known already


class Cache:
    """${EDGEC_CACHE:-~/.cache/edgec}/tiles: a file for each machine and version of edgec.

    A file that is damaged counts as none, with a warning, and is written anew.
    """

    def __init__(self, machine: Machine, version: str) -> None:
        about = asdict(machine) | {"dot": machine.dot.value}
        self._about = json.loads(json.dumps({"edgec": version, "machine": about}))
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        root = Path(os.environ.get("EDGEC_CACHE") or Path.home() / ".cache" / "edgec").expanduser()
        self.path = root / "tiles" / f"{machine.cpu}-{digest[:16]}.json"

    def read(self) -> tuple[dict[str, Found], tuple[str, ...]]:
        """Shape to what was found for it, and what is wrong with the file."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if {name: document[name] for name in self._about} != self._about:
                raise ValueError("it is of another processor or version")
            return {shape: _found(values) for shape, values in document["shapes"].items()}, ()
        except FileNotFoundError:
            return {}, ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            return {}, (f"the tile cache {self.path} cannot be read and is made anew: {told}",)

    def add(self, new: Mapping[str, Found]) -> tuple[str, ...]:
        """Put results beside those that the file has now; what is wrong, if it cannot be written."""
        known, _ = self.read()
        document = {**self._about, "shapes": {s: asdict(f) for s, f in sorted((known | dict(new)).items())}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".new", delete=False) as file:
                file.write(json.dumps(document, indent=1) + "\n")
            try:
                Path(file.name).replace(self.path)
            except OSError:
                Path(file.name).unlink()
                raise
        except OSError as error:
            return (f"the tile cache {self.path} cannot be written: {error.strerror or error}",)
        return ()


def _found(values: Mapping) -> Found:
    tile = Tile(**values["tile"])
    numbers = (tile.pixels, tile.vectors, values["candidates"])
    if not all(type(number) is int and number > 0 for number in numbers) or type(tile.by_channel) is not bool:
        raise ValueError(f"{values} is no result of a search")
    return Found(tile, float(values["ratio"]), values["candidates"])
