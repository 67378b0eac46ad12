"""The network inside an artefact: model.onnx and its relatives, and how to get the integers back from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from compiler import artefact, turns
from compiler.artefact import ArtefactError, Manifest, damaged
from compiler.host import Host, Inference, host_of
from compiler.lowering import Lowered, lower
from compiler.partition import partition

SAMPLES_KEPT = 8
"""Calibration samples that an artefact keeps, as the accelerator's int8 inputs, for `edgec verify`."""

Maps = dict[str, NDArray[np.int8]]


@dataclass(frozen=True, eq=False)
class Stored:
    """An artefact that was opened.

    Attributes:
        folder: Of the artefact.
        manifest: Its own.
        quantized: model.onnx.
        lowered: The integers that model.onnx stands for: the same graph as at compile time.
        host: What surrounds the accelerator.
        warnings: Files that are not as compile wrote them.
    """

    folder: Path
    manifest: Manifest
    quantized: ir.Model
    lowered: Lowered
    host: Host
    warnings: tuple[str, ...]

    def samples(self) -> Maps:
        """The kept calibration samples, int8 [N, C, H, W] of everything that the host sends, by tensor name."""
        path = self.folder / artefact.SAMPLES
        try:
            with np.load(path, allow_pickle=False) as file:
                return {tensor.name: file[f"input{i}"] for i, tensor in enumerate(self.lowered.graph.inputs)}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise damaged(f"{path} cannot be read: {error}") from error

    def float_model(self) -> ir.Model:
        """The network before quantization."""
        return read_model(self.folder / artefact.FLOAT)


def serialized(model: ir.Model) -> bytes:
    """The bytes of an ONNX file; the same model gives the same bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def write_network(folder: Path, model: ir.Model, quantized: ir.Model, lowered: Lowered) -> None:
    """Write the float and quantized network, and what the host runs."""
    parts = (*(segment.host for segment in lowered.segments), lowered.tail)
    files = {artefact.host_file(turn, len(parts) - 1): part for turn, part in enumerate(parts)}
    for name, part in ({artefact.FLOAT: model, artefact.MODEL: quantized} | files).items():
        if part is not None:
            (folder / name).write_bytes(serialized(part))
    (folder / artefact.SEGMENTS).write_text(turns.to_json(lowered, quantized), encoding="utf-8")


def write_samples(folder: Path, lowered: Lowered, model: ir.Model, samples: Mapping[str, NDArray[np.generic]]) -> Maps:
    """Write everything that the host sends for the first samples; it, int8 [N, C, H, W] by tensor name."""
    few = {name: values[:SAMPLES_KEPT].astype(np.float32) for name, values in samples.items()}
    inputs = sent(lowered, host_of(lowered, model).reference(few))
    arrays = {f"input{i}": values for i, values in enumerate(inputs.values())}
    np.savez_compressed(folder / artefact.SAMPLES, **arrays)  # type: ignore[arg-type]
    return inputs


def sent(lowered: Lowered, inference: Inference) -> Maps:
    """Of what crossed the cuts, what the host quantized; in the order of the graph's inputs."""
    return {tensor.name: inference.tensors[tensor.name] for tensor in lowered.graph.inputs}


def open_artefact(folder: Path) -> Stored:
    """Read an artefact, and lower its quantized model again.

    Raises:
        ArtefactError: Not an artefact, damaged, or without integer layers.
    """
    manifest = artefact.load(folder)
    if manifest.target == artefact.COMPRESSED:
        error = ArtefactError(f"{folder} holds a compressed network, which was not compiled for a target")
        error.add_note(f"remedy: run its {artefact.MODEL} in onnxruntime, or compile that file")
        raise error
    warnings = tuple(f"{folder / name} is not as compile wrote it" for name in artefact.altered_files(folder, manifest))
    quantized = read_model(folder / artefact.MODEL)
    lowered = lower(quantized, partition(quantized))
    return Stored(folder, manifest, quantized, lowered, host_of(lowered, quantized), warnings)


def read_report(folder: Path) -> dict:
    """report.json.

    Raises:
        ArtefactError: It is missing or damaged.
    """
    try:
        return json.loads((folder / artefact.REPORT_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(f"{folder / artefact.REPORT_JSON} cannot be read: {error}") from error


def read_model(path: Path) -> ir.Model:
    """An ONNX file of an artefact.

    Raises:
        ArtefactError: It is missing or damaged.
    """
    try:
        return ir.serde.deserialize_model(onnx.ModelProto.FromString(path.read_bytes()))
    except Exception as error:
        raise damaged(f"{path} cannot be read: {error}") from error
