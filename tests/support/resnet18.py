"""The structure of ResNet-18 (He et al., CVPR 2016, table 1) with seeded weights, BatchNormalization folded away."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class _Builder:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, source: str, inputs: int, outputs: int, kernel: int, stride: int, gain: float = 2.0) -> str:
        index = len(self.nodes)
        deviation = np.sqrt(gain / (inputs * kernel * kernel))
        shape = (outputs, inputs, kernel, kernel)
        weight = self.constant(f"w{index}", self.rng.standard_normal(shape, np.float32) * np.float32(deviation))
        bias = self.constant(f"b{index}", 0.05 * self.rng.standard_normal(outputs))
        pad = kernel // 2
        return self.node(
            "Conv", [source, weight, bias], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
        )

    def block(self, source: str, inputs: int, outputs: int, stride: int) -> str:
        hidden = self.node("Relu", [self.conv(source, inputs, outputs, 3, stride)])
        hidden = self.conv(hidden, outputs, outputs, 3, 1, gain=0.5)
        if stride != 1 or inputs != outputs:
            source = self.conv(source, inputs, outputs, 1, stride, gain=1.0)
        return self.node("Relu", [self.node("Add", [hidden, source])])


def resnet18(size: int = 224, classes: int = 1000, seed: int = 0) -> onnx.ModelProto:
    """float32 input "x" [1, 3, size, size], output "y" [1, classes]; 1.81 G MACs and 11.7 M weights at the defaults."""
    made = _Builder(seed)
    value = made.node("Relu", [made.conv("x", 3, 64, 7, 2)])
    value = made.node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inputs = 64
    for outputs, stride in _STAGES:
        value = made.block(value, inputs, outputs, stride)
        value = made.block(value, outputs, outputs, 1)
        inputs = outputs
    value = made.node("Flatten", [made.node("GlobalAveragePool", [value])])
    weight = made.constant("fc", made.rng.standard_normal((512, classes)) * np.sqrt(1 / 512))
    bias = made.constant("fc_bias", 0.05 * made.rng.standard_normal(classes))
    made.nodes.append(helper.make_node("Gemm", [value, weight, bias], ["y"], name="gemm"))
    graph = helper.make_graph(
        made.nodes,
        "resnet18",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        made.weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
