"""A network as float, quantized and integer model, made once in each run and shared by the rows that need no hardware."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from benchmarks.networks import MLPERF_TINY, Network
from compiler.importer import import_model
from compiler.lowering import Lowered, lower
from compiler.partition import partition
from passes.quantize import quantize

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Integers:
    """A network lowered to integers.

    Attributes:
        model: Canonical float graph.
        quantized: The same with Q/DQ pairs.
        lowered: Integer layers, and what runs on the host.
    """

    model: ir.Model
    quantized: ir.Model
    lowered: Lowered

    def run(self, samples: Floats) -> Floats:
        """First output of the network by the reference integers, float32 [N, ...]."""
        raise NotImplementedError


def integers(network: Network) -> Integers:
    """Import, partition, quantize on the calibration samples, lower."""
    return _integers(network.key)


@lru_cache
def _integers(key: str) -> Integers:
    network = next(network for network in MLPERF_TINY if network.key == key)
    model = import_model(network.path).model
    cut = partition(model)
    name = model.graph.inputs[0].name
    quantized, _ = quantize(model, cut.nodes, {str(name): network.calibration.read()})
    return Integers(model, quantized, lower(quantized, cut))


def float_outputs(network: Network, samples: Floats) -> Floats:
    """First output of the float file in onnxruntime, float32 [N, ...]."""
    return _onnxruntime(network.path.read_bytes(), samples)


def quantized_outputs(compiled: Integers, samples: Floats) -> Floats:
    """First output of the quantized model in onnxruntime, float32 [N, ...]."""
    return _onnxruntime(ir.to_proto(compiled.quantized).SerializeToString(), samples)


def _onnxruntime(model: bytes, samples: Floats) -> Floats:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: samples[i : i + 1]})[0] for i in range(len(samples))]
    return np.concatenate(rows)
