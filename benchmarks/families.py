"""Row `families`: what each method family does for the smallest file within the bound, alone and by its absence."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure
from benchmarks.studies import STUDIES, Compression, Study, compressed
from passes.recipes.families import NAMES

ROW = "families"
HELPS = 1.005
"""A family helps where the file is larger without it by this factor; less is chance."""


def figures(workshop: Workshop) -> Iterator[Figure]:
    """A table for each network, and which families never help. With --quick it is left out: it takes hours."""
    if workshop.quick:
        yield Figure(ROW, "every family alone and left out", None, note="takes hours: not in --quick")
        return
    for study in STUDIES:
        yield from table(workshop, study)
    for family in NAMES:
        yield _help(workshop, family)


def table(workshop: Workshop, study: Study) -> Iterator[Figure]:
    """One network: the full search, then each family alone, then the search without it."""
    yield _smallest(f"{study.title}: all families", _run(workshop, study))
    for family in NAMES:
        yield _smallest(f"{study.title}: {family} alone", _run(workshop, study, "--only", family))
    for family in NAMES:
        made, note = _without(workshop, study, family)
        yield _smallest(f"{study.title}: without {family}", made, note)


def _run(workshop: Workshop, study: Study, *options: str) -> Compression:
    return compressed(workshop, study, "--max-drop", study.drop, *options)


def _without(workshop: Workshop, study: Study, family: str) -> tuple[Compression, str]:
    """The search without a family. Where no plan of the full search used it, every choice would be the same again."""
    whole = _run(workshop, study)
    plans = whole.report.get("probes", [])
    if plans and not any(family in plan["families"] for plan in plans):
        return whole, "no plan of the full search uses it: the same file"
    return _run(workshop, study, "--without", family), ""


def _smallest(what: str, made: Compression, note: str = "") -> Figure:
    if made.failed:
        return Figure(ROW, what, None, "x", note=made.failed)
    recipes = [layer["recipe"] for layer in made.report["layers"]]
    counts = ", ".join(f"{recipes.count(name)} {name}" for name in sorted(set(recipes)))
    return Figure(ROW, what, made.ratio, "x", note=note or f"{made.note}; {counts}")


def _help(workshop: Workshop, family: str) -> Figure:
    """By how much files grow without a family, at most over the networks, and what it loses in a layer when alone."""
    what = f"{family}: file without it over file with it, at most"
    gains, losses = {}, []
    for study in STUDIES:
        runs = [_run(workshop, study), _without(workshop, study, family)[0], _run(workshop, study, "--only", family)]
        if failed := next((made.failed for made in runs if made.failed), None):
            return Figure(ROW, what, None, note=failed)
        whole, without, alone = runs
        gains[study.title] = without.packed_bytes / whole.packed_bytes
        losses += [layer["loss"] for layer in alone.report["layers"] if layer["loss"] is not None]
    title = max(gains, key=lambda name: gains[name])
    verdict = f"helps {title} most" if gains[title] >= HELPS else "never helps"
    loss = f"a layer's median loss alone {statistics.median(losses):.2g} nats" if losses else "no layer alone"
    return Figure(ROW, what, gains[title], "", note=f"{verdict}; {loss}")
