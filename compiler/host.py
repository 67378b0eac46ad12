"""The host's part of an inference: float head and tail on onnxruntime, quantization and dequantization at the cuts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from backends.base import Tensors
from backends.layers import Tensor
from compiler.lowering import Lowered
from passes.graph import shape_of

Floats = dict[str, NDArray[np.float32]]


class HostError(ValueError):
    """Samples that do not fit the network's inputs."""


class Host:
    """Runs what surrounds the accelerator, sample by sample.

    Args:
        lowered: The network.
        inputs: Names and shapes of the network's inputs, with a batch axis of 1.
        outputs: Names of the network's outputs, in order.
    """

    def __init__(
        self, lowered: Lowered, inputs: Mapping[str, tuple[int, ...]], outputs: tuple[str, ...], *, threads: int = 1
    ) -> None:
        self._lowered, self._inputs, self._outputs = lowered, dict(inputs), outputs
        self._head = session(lowered.head, threads)
        self._tail = session(lowered.tail, threads)

    def prepare(self, samples: Mapping[str, NDArray[np.float32]]) -> Tensors:
        """Head and quantization.

        Args:
            samples: float32 [N, ...] by network input.

        Returns:
            int8 [N, C, H, W] by input tensor of the graph.
        """
        checked = self._checked(samples)
        values = {**checked, **_run(self._head, checked)}
        return {cut.tensor.name: cut.view.put(quantize(values[cut.value], cut.tensor)) for cut in self._lowered.inputs}

    def finish(self, tensors: Tensors, samples: Mapping[str, NDArray[np.float32]]) -> Floats:
        """Dequantization and tail.

        Args:
            tensors: int8 [N, C, H, W] by output tensor of the graph.
            samples: float32 [N, ...] by network input; the tail may read them.

        Returns:
            float32 [N, ...] by network output, under their ONNX names.
        """
        values: Floats = dict(samples) if self._tail is not None else {}
        for cut in self._lowered.outputs:
            values[cut.value] = dequantize(cut.view.take(tensors[cut.tensor.name]), cut.tensor)
        values |= _run(self._tail, values)
        return {name: values[name] for name in self._outputs}

    def _checked(self, samples: Mapping[str, NDArray[np.float32]]) -> Floats:
        checked = {}
        for name, shape in self._inputs.items():
            if name not in samples:
                raise HostError(f"input '{name}' is missing; given: {sorted(samples)}")
            if samples[name].shape[1:] != shape[1:]:
                raise HostError(
                    f"input '{name}': expected [N, {str(list(shape[1:]))[1:-1]}], got {samples[name].shape}"
                )
            checked[name] = samples[name].astype(np.float32, copy=False)
        return checked


def host_of(lowered: Lowered, model: ir.Model, *, threads: int = 1) -> Host:
    """The host of a network, whose inputs and outputs are those of `model`."""
    inputs = {value.name or "": shape_of(value) or () for value in model.graph.inputs}
    return Host(lowered, inputs, tuple(value.name or "" for value in model.graph.outputs), threads=threads)


def quantize(values: NDArray[np.float32], tensor: Tensor) -> NDArray[np.int8]:
    """QuantizeLinear: float32 division, half to even, zero point, saturation."""
    steps = np.rint(values.astype(np.float32, copy=False) / np.float32(tensor.scale))
    return np.clip(steps + tensor.zero_point, -128, 127).astype(np.int8)


def dequantize(codes: NDArray[np.int8], tensor: Tensor) -> NDArray[np.float32]:
    """DequantizeLinear in float32."""
    return (codes.astype(np.int32) - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)


def session(model: ir.Model | None, threads: int) -> onnxruntime.InferenceSession | None:
    if model is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    proto = ir.serde.serialize_model(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession | None, values: Mapping[str, NDArray[np.float32]]) -> Floats:
    """Each sample through a model of batch 1."""
    if session is None:
        return {}
    fed = [node.name for node in session.get_inputs()]
    names = [node.name for node in session.get_outputs()]
    count = len(values[fed[0]])
    rows = [session.run(names, {name: values[name][i : i + 1] for name in fed}) for i in range(count)]
    return {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}
