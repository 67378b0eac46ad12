"""Row `determinism`: the same bytes whatever the threads."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.artefacts import Workshop, edgec
from benchmarks.figures import Figure, at_least
from benchmarks.studies import IC_STUDY, KWS_STUDY, MISSED_BUDGET, STUDIES, Study, samples_file

ROW = "determinism"


def figures(workshop: Workshop) -> Iterator[Figure]:
    """W4 rounding and the budget search; the search of ResNet-8 takes long, so that --quick leaves it out."""
    yield _same(workshop, IC_STUDY, "--weights", "4")
    for study in (KWS_STUDY,) if workshop.quick else STUDIES:
        yield _same(workshop, study, "--max-drop", study.drop)


def _same(workshop: Workshop, study: Study, *options: str) -> Figure:
    """1 where 1 and 2 threads, of edgec and of the BLAS under it, give the same container and report."""
    what = f"{study.title}: edgec compress {' '.join(options)} with 1 and 2 threads"
    files = []
    for threads in ("1", "2"):
        out = workshop.folder / f"{study.key}-{'-'.join(options).strip('-')}-{threads}-threads"
        calib = samples_file(workshop, study, "calib", study.calibration)
        choose = () if study.choosing is None else ("--eval", samples_file(workshop, study, "choose", study.choosing))
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = ["compress", study.network.path, "--calib", calib, *choose, *study.options, *options]
        ran = edgec(*command, "--threads", threads, "-o", out, environment=environment)
        if ran.code not in (0, MISSED_BUDGET):
            return Figure(ROW, what, None, note=f"exit {ran.code}: {ran.complaint}")
        files.append([(out / name).read_bytes() for name in ("model.edgec", "model.onnx", "report.json")])
    differing = [name for name, one, two in zip(("model.edgec", "model.onnx", "report.json"), *files) if one != two]
    note = f"differing: {', '.join(differing)}" if differing else f"{len(files[0][0]):,} B"
    return Figure(ROW, what, float(not differing), "", at_least(1), note=note)
