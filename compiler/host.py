"""The host's part of an inference: float layers on onnxruntime, quantization and dequantization at the cuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from backends.base import Tensors
from backends.layers import Tensor
from backends.reference import interpreter
from compiler.lowering import Lowered
from compiler.segments import Cut
from passes.graph import shape_of

Floats = dict[str, NDArray[np.float32]]
_Values = dict[str, NDArray[np.generic]]
Enter: TypeAlias = Callable[[int, Tensors], Tensors]
"""Runs a segment, given its index and its graph's inputs: int8 [N, C, H, W] by tensor name; the graph's outputs."""


class HostError(ValueError):
    """Samples that do not fit the network's inputs, or of which the host makes what has no int8."""


@dataclass(frozen=True, eq=False)
class Inference:
    """What a network gave.

    Attributes:
        outputs: float32 (or the network's own type) [N, ...] by network output, in the network's order.
        tensors: int8 [N, C, H, W] of everything that crossed a cut, in either direction, by tensor name.
    """

    outputs: Floats
    tensors: Tensors


class Host:
    """Runs whole networks: the float layers itself, the segments on whatever executes them.

    Args:
        lowered: The network.
        inputs: Names and shapes of the network's inputs, with a batch axis of 1.
        outputs: Names of the network's outputs, in order.
    """

    def __init__(
        self, lowered: Lowered, inputs: Mapping[str, tuple[int, ...]], outputs: tuple[str, ...], *, threads: int = 1
    ) -> None:
        self._segments, self._inputs, self._outputs = lowered.segments, dict(inputs), outputs
        self._before = [session(segment.host, threads) for segment in lowered.segments]
        self._tail = session(lowered.tail, threads)

    def run(self, samples: Mapping[str, NDArray[np.float32]], enter: Enter) -> Inference:
        """One inference of each sample: host and segments in turn.

        Args:
            samples: float32 [N, ...] by network input.
            enter: Executes a segment.

        Raises:
            HostError: As `checked`, or a value that enters a segment is not a number.
        """
        checked = self.checked(samples)
        count = len(next(iter(checked.values())))
        rows: list[_Values] = [{name: array[i : i + 1] for name, array in checked.items()} for i in range(count)]
        tensors: Tensors = {}
        for index, segment in enumerate(self._segments):
            _compute(self._before[index], rows)
            tensors |= {cut.tensor.name: _sent(cut, rows) for cut in segment.inputs}
            tensors |= enter(index, {tensor.name: tensors[tensor.name] for tensor in segment.graph.inputs})
            for cut in segment.outputs:
                for row, codes in zip(rows, tensors[cut.tensor.name], strict=True):
                    row[cut.value] = dequantize(cut.view.take(codes[None]), cut.tensor)
        _compute(self._tail, rows)
        outputs = {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in self._outputs}
        return Inference(cast(Floats, outputs), tensors)

    def reference(self, samples: Mapping[str, NDArray[np.float32]]) -> Inference:
        """`run` with the segments by the definition of the arithmetic."""
        return self.run(samples, lambda index, tensors: interpreter.run(self._segments[index].graph, tensors))

    def checked(self, samples: Mapping[str, NDArray[np.float32]]) -> Floats:
        """The network's inputs among `samples`, as float32.

        Raises:
            HostError: One is missing, or of another shape.
        """
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


def joined(inferences: Sequence[Inference]) -> Inference:
    """Inferences of single samples as one."""
    first = inferences[0]
    return Inference(
        {name: np.concatenate([i.outputs[name] for i in inferences]) for name in first.outputs},
        {name: np.concatenate([i.tensors[name] for i in inferences]) for name in first.tensors},
    )


def quantize(values: NDArray[np.float32], tensor: Tensor) -> NDArray[np.int8]:
    """QuantizeLinear: float32 division, half to even, zero point, saturation."""
    steps = np.rint(values.astype(np.float32, copy=False) / np.float32(tensor.scale))
    return np.clip(steps + tensor.zero_point, -128, 127).astype(np.int8)


def dequantize(codes: NDArray[np.int8], tensor: Tensor) -> NDArray[np.float32]:
    """DequantizeLinear in float32."""
    return (codes.astype(np.int32) - tensor.zero_point).astype(np.float32) * np.float32(tensor.scale)


def session(model: ir.Model | None, threads: int) -> onnxruntime.InferenceSession | None:
    """A float model of the host's in onnxruntime, or None for none."""
    if model is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    proto = ir.serde.serialize_model(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _compute(session: onnxruntime.InferenceSession | None, rows: list[_Values]) -> None:
    """Add to the values of each sample what a model of batch 1 makes of them."""
    if session is None:
        return
    fed = [node.name for node in session.get_inputs()]
    names = [node.name for node in session.get_outputs()]
    for row in rows:
        row |= dict(zip(names, session.run(names, {name: row[name] for name in fed}), strict=True))


def _sent(cut: Cut, rows: list[_Values]) -> NDArray[np.int8]:
    """int8 [N, C, H, W] of a value that the host quantizes."""
    values = np.concatenate([row[cut.value].astype(np.float32, copy=False) for row in rows])
    if np.isnan(values).any():
        raise HostError(f"value '{cut.value}' enters the accelerator and is not a number")
    return cut.view.put(quantize(values, cut.tensor))
