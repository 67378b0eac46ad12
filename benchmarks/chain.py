"""A network as float, quantized and integer model, made once in a run and shared by rows that need no hardware."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.networks import MLPERF_TINY, Network
from compiler.equivalence import verification_session
from compiler.host import host_of
from compiler.importer import import_model
from compiler.lowering import Lowered, lower
from compiler.partition import partition
from passes.quantize import quantize
from passes.remove_dead_channels import RemoveDeadChannels

Floats = NDArray[np.float32]
_BATCH = 50


@dataclass(frozen=True, eq=False)
class Integers:
    """A network lowered to integers.

    Attributes:
        input: Name of the network's input.
        model: Canonical float graph.
        quantized: The same with Q/DQ pairs.
        lowered: Integer layers, and what runs on the host.
    """

    input: str
    model: ir.Model
    quantized: ir.Model
    lowered: Lowered

    def run(self, samples: Floats) -> Floats:
        """First output of the network by the reference integers and the host's part, float32 [N, ...]."""
        host, rows = host_of(self.lowered, self.model), []
        for first in range(0, len(samples), _BATCH):
            fed = {self.input: samples[first : first + _BATCH]}
            outputs = host.reference(fed).outputs
            rows.append(next(iter(outputs.values())))
        return np.concatenate(rows)


def integers(network: Network) -> Integers:
    """Import, remove dead channels, cut, quantize, lower: what `edgec compile` does before it builds."""
    return _integers(network.key)


@lru_cache
def _integers(key: str) -> Integers:
    network = next(network for network in MLPERF_TINY if network.key == key)
    model = import_model(network.path).model
    RemoveDeadChannels()(model)
    cut = partition(model)
    name = str(model.graph.inputs[0].name)
    quantized, _ = quantize(model, cut.nodes, {name: network.calibration.read()})
    return Integers(name, model, quantized, lower(quantized, cut))


def float_outputs(network: Network, samples: Floats) -> Floats:
    """First output of the float file in onnxruntime, float32 [N, ...]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.path, options, providers=["CPUExecutionProvider"])
    return _row_by_row(session, samples)


def quantized_outputs(compiled: Integers, samples: Floats) -> Floats:
    """First output of the quantized model in onnxruntime, float32 [N, ...]."""
    return _row_by_row(verification_session(compiled.quantized), samples)


def _row_by_row(session: onnxruntime.InferenceSession, samples: Floats) -> Floats:
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: samples[i : i + 1]})[0] for i in range(len(samples))])
