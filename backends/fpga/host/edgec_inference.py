"""Whole inferences on a board that runs Python: the host's layers in onnxruntime, the others on the accelerator.

    network = Network(transport, "artefact")
    outputs, cycles = network.infer({"input": values})           # float32, one sample, with its batch axis of 1

`transport` is that of edgec_driver.py. The files are those of the artefact: segments.json says what happens in which
order, and how each tensor that passes between host and accelerator is quantized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from edgec_driver import Accelerator, Transport  # type: ignore[import-not-found]

Array = np.ndarray
Cut = Mapping[str, Any]


class Network:
    """A network with its parts on host and accelerator; loads all of them on construction."""

    def __init__(self, transport: Transport, folder: str | Path) -> None:
        folder = Path(folder)
        self._order = json.loads((folder / "segments.json").read_text(encoding="utf-8"))
        models = {*(segment["model"] for segment in self._order["segments"]), self._order["tail"]} - {None}
        self._sessions = {name: _session(folder / name) for name in sorted(models)}
        self._accelerator = Accelerator(transport, folder / "program")

    def infer(self, samples: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
        """One sample: ({output: array}, cycles of the accelerator)."""
        values, tensors, total = dict(samples), {}, 0
        for index, segment in enumerate(self._order["segments"]):
            self._compute(segment["model"], values)
            tensors.update({cut["tensor"]: quantize(values[cut["value"]], cut) for cut in segment["quantize"]})
            outputs, cycles = self._accelerator.enter(index, tensors)
            tensors.update(outputs)
            values.update({cut["value"]: dequantize(tensors[cut["tensor"]], cut) for cut in segment["dequantize"]})
            total += cycles
        self._compute(self._order["tail"], values)
        return {name: values[name] for name in self._order["outputs"]}, total

    def _compute(self, model: str | None, values: dict[str, Array]) -> None:
        """Add what a model of the host makes of the values."""
        if model is None:
            return
        session = self._sessions[model]
        names = [node.name for node in session.get_outputs()]
        fed = {node.name: values[node.name] for node in session.get_inputs()}
        values.update(zip(names, session.run(names, fed)))


def quantize(values: Array, cut: Cut) -> Array:
    """int8 [C, H, W] of a float value: float32 division, half to even, zero point, saturation."""
    steps = np.rint(values.astype(np.float32) / np.float32(cut["scale"]))
    codes = np.clip(steps + cut["zero_point"], -128, 127).astype(np.int8).ravel()
    if cut["order"] is not None:
        placed = np.empty_like(codes)
        placed[cut["order"]] = codes
        codes = placed
    return codes.reshape(cut["map"])


def dequantize(codes: Array, cut: Cut) -> Array:
    """The float value of an int8 [C, H, W] map."""
    flat = codes.ravel() if cut["order"] is None else codes.ravel()[cut["order"]]
    centred = (flat.astype(np.int32) - cut["zero_point"]).astype(np.float32)
    return (centred * np.float32(cut["scale"])).reshape(cut["shape"])


def _session(path: Path) -> Any:
    """As edgec itself runs it: no rewrites that change the arithmetic."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
