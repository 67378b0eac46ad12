"""Networks to compress: what calibrates, what chooses, what judges, and how the judges measure.

The three sets of samples never meet. Judging looks at a file alone: what `edgec decompress` makes of model.edgec, or
what another tool wrote, run in onnxruntime.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from benchmarks.artefacts import Ran, Workshop, edgec
from benchmarks.networks import AD, KWS, RESNET8, VWW, Floats, Network, Samples
from compiler.metrics import METRICS, Comparison, Kind, Task
from passes.statistics import session

MISSED_BUDGET = 7
"""Exit code of a compression whose nearest result is written all the same."""
REFUSED = (3, 4, 5)
"""Exit codes that name what is wrong with a file."""


@dataclass(frozen=True)
class Study:
    """A network and its three sets.

    Attributes:
        network: What is compressed.
        calibration: For ranges and rounding.
        choosing: Where --max-drop is measured; None lets edgec divide `calibration`.
        judging: Only looked at here.
        drop: The loss that the user allows, as on the command line.
        options: Metric, where the samples do not settle it.
    """

    network: Network
    calibration: Samples
    choosing: Samples | None
    judging: tuple[Samples, ...]
    drop: str
    options: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.network.key

    @property
    def title(self) -> str:
        return self.network.title


IC_STUDY = Study(
    RESNET8,
    Samples("cifar10_train_8068.npz", stop=512),
    Samples("cifar10_train_8068.npz", start=4000, stop=6000),
    (Samples("cifar10_devtest_500.npz"),),
    "0.75pt",  # the images to choose by are of the training set, where the network is surer than on others
)
KWS_STUDY = Study(KWS, Samples("kws_calib_200.npz"), None, (Samples("kws_devtest_400.npz"),), "1.0pt")
VWW_STUDY = Study(
    VWW,
    Samples("photos_calib_96.npz", scale=1 / 255),
    None,
    (Samples("vww_judge_600.npz", scale=1 / 255),),
    "0.1",  # of the margin between the classes, in nats: 60 crops of six photos are too few to count flips on
    ("--metric", "margin"),
)
AD_STUDY = Study(
    AD,
    Samples("ad_calib_aug_1000.npz", stop=500),
    None,
    (Samples("ad_calib_aug_1000.npz", start=500), Samples("ad_calib_196.npz")),
    "0.005",  # half of what the judging sets may lose: one of them is another recording than the calibration's
    ("--metric", "rank"),
)
STUDIES = (IC_STUDY, KWS_STUDY, VWW_STUDY, AD_STUDY)


@dataclass(frozen=True)
class Compression:
    """What `edgec compress` made of a network, or why there is nothing.

    Attributes:
        folder: The artefact.
        ran: The compress command.
        decoded: The ONNX file that `edgec decompress` made of the container.
        packed_bytes: Of the container.
        float_bytes: Of the source file's float32 initialisers.
        report: Its report.json.
        failed: Why there is no file to judge, or None.
    """

    folder: Path
    ran: Ran
    decoded: Path
    packed_bytes: int = 0
    float_bytes: int = 0
    report: dict = field(default_factory=dict, compare=False)
    failed: str | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the fp32 initialisers over bytes of the container, all of it."""
        return self.float_bytes / self.packed_bytes

    @property
    def is_missed(self) -> bool:
        """Whether edgec says that a budget is not kept to."""
        return self.ran.code == MISSED_BUDGET

    @property
    def note(self) -> str:
        """What the set says that chose, for the reader who compares it with the one that judges."""
        quality = self.report.get("quality") or {}
        unit = quality.get("unit", "")
        shown = quality.get("drop")
        value = "?" if shown is None else f"{shown * (100 if unit in ('pt', '%') else 1):.3g}{unit}"
        missed = ", budget missed" if self.is_missed else ""
        return f"drop on the {quality.get('samples', 0)} samples that chose {value}{missed}; {self.ran.seconds:.0f} s"


def compressed(workshop: Workshop, study: Study, *options: str) -> Compression:
    """Compress with the command line and decode what it wrote; once for each set of options in a run."""
    return workshop.once(("compress", study.key, *options), lambda: _compressed(workshop, study, options))


def _compressed(workshop: Workshop, study: Study, options: tuple[str, ...]) -> Compression:
    given: list[str | Path] = ["--calib", samples_file(workshop, study, "calib", study.calibration)]
    if study.choosing is not None:
        given += ["--eval", samples_file(workshop, study, "choose", study.choosing)]
    return compress_file(workshop, study.key, study.network.path, *given, *study.options, *options)


def compress_file(workshop: Workshop, name: str, model: Path, *options: str | Path) -> Compression:
    """Compress a model file into a new folder of the workshop and decode what was written."""
    out = workshop.folder / f"{name}-compressed"
    number = 0
    while out.exists():
        number += 1
        out = workshop.folder / f"{name}-compressed-{number}"
    ran = edgec("compress", model, *options, "-o", out)
    decoded, container = out.with_suffix(".decoded.onnx"), out / "model.edgec"
    if ran.code not in (0, MISSED_BUDGET):
        return Compression(out, ran, decoded, failed=f"edgec compress: exit {ran.code}: {ran.complaint}")
    decoding = edgec("decompress", container, "-o", decoded)
    if decoding.code:
        why = f"edgec decompress: exit {decoding.code}: {decoding.complaint}"
        return Compression(out, ran, decoded, failed=why)
    report = json.loads((out / "report.json").read_text())
    return Compression(out, ran, decoded, container.stat().st_size, float_bytes(model), report)


def samples_file(workshop: Workshop, study: Study, role: str, samples: Samples) -> Path:
    """The samples as a user has them: x as float, and y where they are labelled."""
    with np.load(samples.path) as data:
        labels = {"y": samples.column("y")} if "y" in data.files else {}
    return workshop.samples(f"{study.key}-{role}", samples.read(), **labels)


def float_bytes(model: Path) -> int:
    """Bytes of a file's float32 initialisers."""
    tensors = onnx.load(model).graph.initializer
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors if tensor.data_type == TensorProto.FLOAT)


# Judging


def answers(model: Path, samples: Floats) -> Floats:
    """First output of a file in onnxruntime, as the file says and one sample at a time; float32 [N, ...]."""
    active = session(model.read_bytes())
    name, output = active.get_inputs()[0].name, active.get_outputs()[0].name
    rows = [active.run([output], {name: samples[index : index + 1]})[0] for index in range(len(samples))]
    return np.concatenate([np.asarray(row, np.float32) for row in rows])


def judged(study: Study, kind: Kind, model: Path, judging: int = 0, against: Path | None = None) -> Comparison:
    """A file beside the float network (or beside another file) on samples that only judge.

    Args:
        study: Whose judging samples they are.
        kind: Metric.
        model: ONNX file.
        judging: Which of its sets.
        against: The other file; None for the float network.
    """
    samples = study.judging[judging]
    x = samples.read()
    before = answers(against or study.network.path, x)
    return task(kind, before, x, samples).compare({"output": answers(model, x)})


def task(kind: Kind, before: Floats, x: Floats, samples: Samples) -> Task:
    """The metric over samples whose answers by the float network are known."""
    labels: NDArray[np.int64] | None = samples.column("y").astype(np.int64) if kind == "top-1" else None
    return Task(METRICS[kind], {"output": before}, {"input": x}, labels)
