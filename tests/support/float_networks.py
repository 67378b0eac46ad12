"""Networks with one branch for each case of the float kernels, so that one compile tests them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class ConvCase:
    """A convolution; `size` may be of one axis. `after` are operators behind it."""

    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    groups: int = 1
    batch: int = 1
    after: tuple[str, ...] = ()


CONVOLUTIONS = (
    ConvCase(3, 19, (13, 17), (3, 3), (2, 2), (1, 1, 1, 1), after=("Relu",)),
    ConvCase(3, 8, (20, 23), (7, 7), (2, 2), (3, 3, 3, 3)),
    ConvCase(16, 16, (9, 14), (3, 3), pads=(1, 1, 1, 1), after=("Add", "Relu")),
    ConvCase(5, 33, (7, 7), (1, 1), after=("Clip",)),
    ConvCase(32, 160, (11, 11), (1, 1), after=("Relu",)),
    ConvCase(6, 10, (9, 9), (1, 1), (2, 2)),
    ConvCase(7, 9, (12, 10), (5, 2), (3, 1), (2, 0, 1, 1)),
    ConvCase(4, 6, (15, 16), (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    ConvCase(5, 7, (16, 19), (3, 2), (2, 3), (0, 3, 4, 0), (3, 2)),
    ConvCase(8, 12, (9, 10), (3, 3), pads=(1, 1, 1, 1), groups=4),
    ConvCase(34, 68, (5, 6), (3, 3), groups=2),
    ConvCase(35, 35, (10, 11), (3, 3), pads=(1, 1, 1, 1), groups=35, after=("Relu",)),
    ConvCase(16, 16, (12, 9), (5, 5), (2, 2), (2, 2, 2, 2), groups=16, after=("Add",)),
    ConvCase(9, 9, (11, 13), (3, 3), (1, 2), (2, 4, 2, 4), (2, 2), groups=9),
    ConvCase(5, 15, (8, 9), (3, 3), pads=(1, 1, 1, 1), groups=5),
    ConvCase(3, 5, (4, 40), (1, 25), pads=(0, 12, 0, 12)),
    ConvCase(2, 3, (6, 6), (6, 6)),
    ConvCase(2, 3, (3, 3), (5, 5), pads=(2, 2, 2, 2)),
    ConvCase(6, 8, (31,), (5,), (2,), (2, 1), (1,)),
    ConvCase(8, 8, (30,), (3,), (1,), (1, 1), (1,), groups=8, after=("Relu",)),
    ConvCase(4, 20, (9, 8), (3, 3), pads=(1, 1, 1, 1), batch=3, after=("Add", "Relu")),
    ConvCase(10, 10, (9, 8), (3, 3), pads=(1, 1, 1, 1), groups=10, batch=2, after=("Clip",)),
)


def convolutions(seed: int = 0) -> onnx.ModelProto:
    """Inputs "x0", "x1" ... and outputs "y0", "y1" ..., one pair for each of CONVOLUTIONS."""
    rng = np.random.default_rng(seed)
    nodes, inputs, weights = [], [], []
    for i, case in enumerate(CONVOLUTIONS):
        shape = (case.batch, case.inputs, *case.size)
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape))
        kernel = rng.standard_normal((case.outputs, case.inputs // case.groups, *case.kernel), np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(case.outputs, np.float32), f"b{i}"))
        axes = len(case.size)
        nodes.append(
            helper.make_node(
                "Conv",
                [f"x{i}", f"w{i}", f"b{i}"],
                [f"c{i}"],
                name=f"conv{i}",
                kernel_shape=case.kernel,
                strides=case.strides[:axes],
                pads=case.pads[: 2 * axes],
                dilations=case.dilations[:axes],
                group=case.groups,
            )
        )
        value = f"c{i}"
        for op in case.after:
            made = f"{op.lower()}{i}"
            operands = {"Add": [value, f"r{i}"], "Clip": [value, "low", "high"]}.get(op, [value])
            if op == "Add":
                nodes.append(helper.make_node("Sigmoid", [value], [f"r{i}"], name=f"sigmoid{i}"))
                nodes.append(helper.make_node("Neg", [value], [f"n{i}"], name=f"neg{i}"))
                operands = [f"s{i}", f"r{i}"]
                nodes.append(_second(case, i, rng, weights))
            nodes.append(helper.make_node(op, operands, [made], name=made))
            value = made
        nodes.append(helper.make_node("Identity", [value], [f"y{i}"], name=f"identity{i}"))
    weights += [numpy_helper.from_array(np.float32(v), name) for name, v in (("low", -0.5), ("high", 2.5))]
    return _model(nodes, inputs, weights, [f"y{i}" for i in range(len(CONVOLUTIONS))])


def _second(case: ConvCase, i: int, rng: np.random.Generator, weights: list[onnx.TensorProto]) -> onnx.NodeProto:
    """A second convolution of the first one's output, that can take the residual in."""
    kernel = rng.standard_normal((case.outputs, case.outputs, *[1] * len(case.size)), np.float32)
    weights.append(numpy_helper.from_array(kernel, f"v{i}"))
    return helper.make_node("Conv", [f"n{i}", f"v{i}"], [f"s{i}"], name=f"second{i}")


POOLS = (
    ("MaxPool", (10, 11), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", (9, 10), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", (9, 10), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    ("AveragePool", (9, 10), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", (10, 10), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    (
        "AveragePool",
        (10, 10),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
    ),
    ("AveragePool", (9, 10), {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    ("GlobalAveragePool", (7, 5), {}),
    ("GlobalMaxPool", (7, 5), {}),
)


def others(seed: int = 0) -> onnx.ModelProto:
    """Pools behind a convolution, products with and without constant weights, and what only TVM has."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
        return name

    nodes, inputs, outputs = [], [], []
    weights: list[onnx.TensorProto] = []

    def given(name: str, *shape: int) -> str:
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def node(op: str, operands: list[str], **attributes: object) -> str:
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(op, operands, [name], name=name, **attributes))
        return name

    for i, (op, size, attributes) in enumerate(POOLS):
        value = node("Conv", [given(f"p{i}", 1, 4, *size), weight(f"pw{i}", 19, 4, 1, 1)])
        outputs.append(node(op, [value], **attributes))
    outputs.append(node("Gemm", [given("g", 5, 37), weight("gw", 21, 37), weight("gb", 21)], transB=1, alpha=0.5))
    outputs.append(node("Relu", [node("MatMul", [given("m", 2, 3, 40), weight("mw", 40, 130)])]))
    outputs.append(node("MatMul", [given("a", 2, 7, 9), given("b", 2, 9, 5)]))
    outputs.append(node("Softmax", [node("MatMul", [given("v", 1, 65), weight("vw", 65, 10)])], axis=-1))
    first = node("Conv", [given("s", 1, 6, 8, 9), weight("sw", 8, 6, 1, 1)])
    gate = node("Sigmoid", [node("Conv", [node("GlobalAveragePool", [first]), weight("sv", 8, 8, 1, 1)])])
    gated = node("Mul", [first, gate])
    joined = node("Concat", [gated, node("HardSwish", [first])], axis=1)
    outputs.append(node("Transpose", [joined], perm=[0, 2, 3, 1]))
    outputs.append(node("ConvTranspose", [joined, weight("tw", 16, 3, 3, 3)], strides=[2, 2], pads=[1, 1, 1, 1]))
    outputs.append(node("PRelu", [joined, weight("slope", 16, 1, 1)]))
    outputs.append(node("InstanceNormalization", [joined, weight("is", 16), weight("ib", 16)]))
    outputs.append(node("LayerNormalization", [given("l", 1, 6, 24), weight("ls", 24), weight("lb", 24)], axis=-1))
    return _model(nodes, inputs, weights, outputs)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    outputs: list[str],
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "net", inputs, values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)
