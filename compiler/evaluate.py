"""What can be asked of an artefact: outputs for samples, a verdict, accuracy. Nothing but the folder is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.table import Table

from compiler import artefact, calibration, cpu, float_cpu, quality, simulation, stored
from compiler.artefact import ArtefactError
from compiler.calibration import Samples
from compiler.host import Inference, joined
from compiler.report import AccuracyRow, VerifyFacts
from compiler.stored import Stored
from passes import statistics

Progress = Callable[[str, int, int], None]
Maps = dict[str, NDArray[np.int8]]

EVALUATION_KIND, VERDICT_KIND, SIMULATION_KIND = "edgec-evaluation", "edgec-verdict", "edgec-simulation"
RUN_KIND = "edgec-run"
SCHEMA = 1
_MARGIN, _BEYOND, _NARROW = 0.1, 0.01, 0.05
"""Samples are suspicious when more than 1 % of the values are beyond the calibrated range by more than a tenth of its
width, or when all of them together span less than a twentieth of it."""


@dataclass(frozen=True)
class SimulationResult:
    """What a simulation of samples gave."""

    samples: int
    cycles: int
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        return {"kind": SIMULATION_KIND, "schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class RunResult:
    """What a run of samples on this processor gave."""

    samples: int
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        return {"kind": RUN_KIND, "schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class Evaluation:
    """Stages side by side.

    Attributes:
        samples: Evaluated.
        rows: One figure of one stage each.
        differs: Elements of the hardware's that differ from the reference, over all cuts; 0 is the only good answer.
        rtl: Whether the hardware was simulated.
    """

    samples: int
    rows: tuple[AccuracyRow, ...]
    differs: int
    rtl: bool
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        return {"kind": EVALUATION_KIND, "schema": SCHEMA, **asdict(self)}

    def table(self) -> Table:
        table = Table()
        table.add_column("stage")
        table.add_column("what")
        table.add_column("value", justify="right")
        for row in self.rows:
            table.add_row(row.stage, row.metric, row.text)
        if self.rtl:
            table.add_row(quality.RTL, "elements at the cuts that differ from the reference", f"{self.differs:,}")
        return table


def simulate_file(
    folder: Path, file: Path, output: Path | None, *, limit: int | None, wave: Path | None, progress: Progress
) -> SimulationResult:
    """Run the samples of a file through the simulated hardware; write the network's float outputs.

    Raises:
        CycleError: An instruction took another time than scheduled.
    """
    opened = _open_hardware(folder)
    samples = _read(opened, file, limit)
    floats = opened.host.checked({name: values.astype(np.float32) for name, values in samples.arrays.items()})
    with simulation.simulate(folder, wave=wave, progress=progress) as running:
        results = running.infer(opened.host, floats, progress).outputs
        cycles = running.cycles
    if output is not None:
        _write_npz(output, results)
    warnings = (*opened.warnings, *samples.warnings, *_range_warnings(opened, floats))
    return SimulationResult(len(next(iter(floats.values()))), cycles, tuple(results), warnings)


def run_file(
    folder: Path, file: Path, output: Path | None, *, limit: int | None, threads: int, progress: Progress
) -> RunResult:
    """Run the samples of a file on this processor; write the network's float outputs.

    Raises:
        BundleError, WrongProcessorError: The bundle cannot be loaded.
        HostError: The samples do not fit.
    """
    if float_cpu.is_float(folder):
        return _run_float(folder, file, output, limit=limit, threads=threads)
    opened = _open_cpu(folder)
    samples = _read(opened, file, limit)
    floats = {name: values.astype(np.float32) for name, values in samples.arrays.items()}
    results = _on_cpu(opened, floats, threads, progress)
    if output is not None:
        _write_npz(output, results)
    warnings = (*opened.warnings, *samples.warnings, *_range_warnings(opened, floats))
    return RunResult(len(next(iter(floats.values()))), tuple(results), warnings)


def _on_cpu(
    opened: Stored, floats: dict[str, NDArray[np.float32]], threads: int, progress: Progress, *, is_exact: bool = False
) -> dict[str, NDArray[np.float32]]:
    """The network's outputs, float32 [N, ...]."""
    session = cpu.Session(opened, threads=threads, is_exact=is_exact)
    total = len(next(iter(floats.values())))
    rows = []
    try:
        for index in range(total):
            rows.append(session.run({name: values[index : index + 1] for name, values in floats.items()}))
            progress("run", index + 1, total)
    finally:
        session.close()
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _run_float(folder: Path, file: Path, output: Path | None, *, limit: int | None, threads: int) -> RunResult:
    """Likewise, where nothing is an integer."""
    opened = float_cpu.open_float(folder)
    samples = _read_for(opened.manifest, opened.model, file, limit)
    results = float_cpu.run(folder / artefact.CPU, samples.arrays, threads=threads)
    if output is not None:
        _write_npz(output, results)
    warnings = (*opened.warnings, *samples.warnings)
    return RunResult(statistics.count(samples.arrays), tuple(results), warnings)


def _verify_float(
    folder: Path, *, limit: int, random: int, file: Path | None
) -> tuple[VerifyFacts, tuple[str, ...]]:
    """A float library against onnxruntime, on given or on random samples."""
    opened = float_cpu.open_float(folder)
    if file is None:
        samples = calibration.synthetic_samples(opened.model, seed=1, count=max(1, random))
        return float_cpu.verify(folder, opened.model, samples.arrays), opened.warnings
    given = _read_for(opened.manifest, opened.model, file, limit)
    return float_cpu.verify(folder, opened.model, given.arrays), (*opened.warnings, *given.warnings)


def _evaluate_float(folder: Path, data: Path, limit: int | None) -> Evaluation:
    """Float in onnxruntime, and as compiled."""
    opened = float_cpu.open_float(folder)
    samples = _read_for(opened.manifest, opened.model, data, limit)
    answers = {
        quality.FLOAT: quality.in_onnxruntime(opened.model, samples.arrays),
        quality.CPU: float_cpu.run(folder / artefact.CPU, samples.arrays),
    }
    verdict = float_cpu.verify(folder, opened.model, samples.arrays)
    rows = quality.compare(answers, samples.labels, "samples")
    count = statistics.count(samples.arrays)
    return Evaluation(count, rows, verdict.mismatches, False, (*opened.warnings, *samples.warnings))


def _open_cpu(folder: Path) -> Stored:
    opened = stored.open_artefact(folder)
    if opened.manifest.target != "cpu":
        error = ArtefactError(f"{folder} was compiled for target {opened.manifest.target!r}, which does not run here")
        error.add_note("remedy: compile with --target cpu, or use `edgec simulate` or `edgec verify`")
        raise error
    return opened


def verify_folder(
    folder: Path, *, limit: int, random: int, file: Path | None, wave: Path | None, progress: Progress
) -> tuple[VerifyFacts, tuple[str, ...]]:
    """Hardware or CPU against reference on kept or given samples, and on random inputs; and warnings."""
    if float_cpu.is_float(folder):
        return _verify_float(folder, limit=limit, random=random, file=file)
    is_cpu = (folder / artefact.CPU).is_dir()
    opened = stored.open_artefact(folder) if is_cpu else _open_hardware(folder)
    warnings = opened.warnings
    if file is None:
        inputs = {name: values[:limit] for name, values in opened.samples().items()}
    else:
        samples = _read(opened, file, None)
        warnings += samples.warnings
        floats = {n: v.astype(np.float32) for n, v in samples.arrays.items()}
        inputs = stored.sent(opened.lowered, _reference(opened, floats, progress))
    if not random and not len(next(iter(inputs.values()))):
        raise ArtefactError("there is nothing to verify with: --inputs and --random must not both be 0")
    if is_cpu:
        return cpu.verify(folder, opened.lowered, inputs, random=random), warnings
    facts = simulation.verify(folder, opened.lowered.graph, inputs, random=random, wave=wave, progress=progress)
    return facts, warnings


def evaluate(folder: Path, data: Path, *, limit: int | None, rtl: bool, progress: Progress) -> Evaluation:
    """Float, quantized, reference and hardware on labelled samples."""
    if float_cpu.is_float(folder):
        return _evaluate_float(folder, data, limit)
    opened = stored.open_artefact(folder)
    rtl = rtl and (folder / artefact.RTL).is_file()
    samples = _read(opened, data, limit)
    floats = {name: values.astype(np.float32) for name, values in samples.arrays.items()}
    expected = _reference(opened, floats, progress)
    answers = {
        quality.FLOAT: quality.in_onnxruntime(opened.float_model(), floats),
        quality.QUANTIZED: quality.in_onnxruntime(opened.quantized, floats),
        quality.REFERENCE: expected.outputs,
    }
    differs = 0
    if rtl:
        with simulation.simulate(folder, progress=progress) as running:
            got = running.infer(opened.host, floats, progress)
        differs = _differing(expected.tensors, got.tensors)
        answers[quality.RTL] = got.outputs
    if opened.manifest.target == "cpu":
        answers[quality.CPU] = _on_cpu(opened, floats, 1, progress, is_exact=True)
        wrong = [answers[quality.CPU][name] != answers[quality.REFERENCE][name] for name in answers[quality.CPU]]
        differs += sum(map(int, map(np.count_nonzero, wrong)))
    rows = quality.compare(answers, samples.labels, "samples")
    warnings = (*opened.warnings, *samples.warnings, *_range_warnings(opened, floats))
    return Evaluation(len(next(iter(floats.values()))), rows, differs, rtl, warnings)


def verify_json(facts: VerifyFacts) -> dict[str, object]:
    """What `edgec verify --json` prints."""
    return {"kind": VERDICT_KIND, "schema": SCHEMA, "passed": facts.passed, **asdict(facts)}


def junit(name: str, facts: VerifyFacts) -> str:
    """The verdict as JUnit XML: one test for the elements, one for the cycles."""
    failures = {"elements": facts.mismatches, "cycles": facts.cycle_mismatches}
    suite = ElementTree.Element(
        "testsuite", name="edgec verify", tests="2", failures=str(sum(map(bool, failures.values())))
    )
    for what, count in failures.items():
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=what)
        if count:
            ElementTree.SubElement(case, "failure", message=f"{count} differ").text = "\n".join(facts.differences)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _open_hardware(folder: Path) -> Stored:
    opened = stored.open_artefact(folder)
    if artefact.RTL in opened.manifest.files and not (folder / artefact.RTL).is_file():
        raise artefact.damaged(f"{folder / artefact.RTL} is missing")
    if not (folder / artefact.RTL).is_file():
        error = ArtefactError(f"{folder} has no {artefact.RTL}: target {opened.manifest.target!r} is not hardware")
        error.add_note("remedy: compile with --target fpga")
        raise error
    return opened


def _read(opened: Stored, file: Path, limit: int | None) -> Samples:
    """Samples with the preprocessing of the compile."""
    return _read_for(opened.manifest, opened.quantized, file, limit)


def _read_for(manifest: artefact.Manifest, model: ir.Model, file: Path, limit: int | None) -> Samples:
    how = manifest.preprocessing
    samples = calibration.read_samples(
        file, model, scale=how.scale, mean=how.mean, image_options=how.images
    )
    if limit is None:
        return samples
    labels = None if samples.labels is None else samples.labels[:limit]
    return Samples(quality.first(samples.arrays, limit), labels, samples.warnings)


def _reference(
    opened: Stored, samples: dict[str, NDArray[np.float32]], progress: Progress, batch: int = 32
) -> Inference:
    total = len(next(iter(samples.values())))
    rows = []
    for start in range(0, total, batch):
        rows.append(opened.host.reference({n: values[start : start + batch] for n, values in samples.items()}))
        progress("reference", min(start + batch, total), total)
    return joined(rows)


def _differing(expected: Maps, got: Maps) -> int:
    """Elements that differ; the program may store a vector where the graph has a map."""
    return sum(int(np.count_nonzero(got[name].reshape(e.shape) != e)) for name, e in expected.items())


def _range_warnings(opened: Stored, samples: dict[str, NDArray[np.float32]]) -> tuple[str, ...]:
    """Samples of another scale than those of calibration: the usual cause is forgotten preprocessing."""
    warnings = []
    for name, (low, high) in opened.manifest.input_ranges.items():
        values, width = samples[name], high - low
        beyond = float(np.mean((values < low - _MARGIN * width) | (values > high + _MARGIN * width)))
        is_narrow = width > 0 and float(np.ptp(values)) < _NARROW * width
        if beyond > _BEYOND or is_narrow:
            warnings.append(
                f"the values of '{name}' lie in [{values.min():.4g}, {values.max():.4g}], those of the calibration in "
                f"[{low:.4g}, {high:.4g}]: is their preprocessing the same (--input-scale, --input-mean of compile)?"
            )
    return tuple(warnings)


def _write_npz(path: Path, arrays: dict[str, NDArray[np.float32]]) -> None:
    """Complete or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
