"""Builds quantized (QDQ) ONNX graphs by hand, with scales that are powers of two.

Then float32 arithmetic is exact, ties included: onnxruntime and the integer layers must agree on every element.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.equivalence import compare_layers, verification_session
from compiler.host import host_of
from compiler.lowering import Lowered, lower
from compiler.partition import partition

Array = NDArray[np.generic]
Attribute = int | float | str | Sequence[int]


class QuantizedGraph:
    """A graph under construction; methods return names of values.

    Args:
        shape: Of the input "x", batch axis of 1 included.
        scale, zero_point: Of the input's Q/DQ pair; None leaves it out.
    """

    def __init__(self, *shape: int, scale: float | None = 0.25, zero_point: int = 3, seed: int = 0) -> None:
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.x = "x" if scale is None else self.pair("x", scale, zero_point)

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Attribute) -> str:
        """Add a node, named after its operator and number; its first output."""
        name = f"{op.lower()}{len(self.nodes)}"
        made = helper.make_node(op, list(inputs), [f"{name}_{i}" for i in range(outputs)], name, **attributes)
        self.nodes.append(made)
        return made.output[0]

    def constant(self, values: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def pair(self, value: str, scale: float = 0.5, zero_point: int = -5, dtype: type[np.generic] = np.int8) -> str:
        """QuantizeLinear and DequantizeLinear behind `value`."""
        parameters = [self.constant(np.array(scale, np.float32)), self.constant(np.array(zero_point, dtype))]
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *parameters), *parameters)

    def weights(self, *shape: int, scales: Sequence[float] | None = None, zero_point: int | None = None) -> str:
        """Random int8 weights behind DequantizeLinear; one scale, or one for each row."""
        codes = self.rng.integers(-127, 128, shape, dtype=np.int8)
        scale = np.array(0.03125 if scales is None else scales, np.float32)
        inputs = [self.constant(codes), self.constant(scale)]
        if zero_point is not None:
            inputs.append(self.constant(np.array(zero_point, np.int8)))
        return self.node("DequantizeLinear", *inputs, axis=0)

    def bias(self, size: int, step: float) -> str:
        """Random int32 bias at scale `step` behind DequantizeLinear."""
        codes = self.rng.integers(-2000, 2000, size).astype(np.int32)
        return self.node("DequantizeLinear", self.constant(codes), self.constant(np.array(step, np.float32)))

    def model(self, *outputs: str) -> ir.Model:
        """The checked model with inferred shapes."""
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        graph = helper.make_graph(self.nodes, "hand", [x], infos, self.constants)
        opset = helper.make_opsetid("", 21)
        proto = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(proto)
        return ir.serde.deserialize_model(proto)

    def samples(self, count: int = 4, reach: float = 32.0) -> dict[str, NDArray[np.float32]]:
        """Inputs over the whole int8 range at scale 0.25."""
        return {"x": self.rng.uniform(-reach, reach, (count, *self.shape[1:])).astype(np.float32)}


def lowered_exactly(graph: QuantizedGraph, *outputs: str, scales_are_exact: bool = True) -> Lowered:
    """Lower, and check every layer and the network's outputs against onnxruntime: not one element may differ."""
    model, samples = graph.model(*outputs), graph.samples()
    lowered = lower(model, partition(model))
    differences = compare_layers(model, lowered, samples)
    assert differences
    if scales_are_exact:
        assert [layer for layer in differences if layer.differing] == []
    else:
        assert max(layer.largest for layer in differences) <= 1
        assert sum(layer.differing for layer in differences) <= 0.001 * sum(layer.elements for layer in differences)
    if scales_are_exact:
        _check_outputs(model, lowered, samples)
    return lowered


def _check_outputs(model: ir.Model, lowered: Lowered, samples: dict[str, NDArray[np.float32]]) -> None:
    host = host_of(lowered, model)
    got = host.reference(samples).outputs
    session, names = verification_session(model), [value.name or "" for value in model.graph.outputs]
    rows = [session.run(names, {"x": x[None]}) for x in samples["x"]]
    for index, name in enumerate(names):
        np.testing.assert_array_equal(got[name], np.concatenate([row[index] for row in rows]))
