"""The nine networks that the onnx package ships without weights, with random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.onnx_models import Array

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = tuple(sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx")))


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network with He-initialised weights, small biases, and BatchNormalization that changes little.

    In the file every weight is a ConstantOfShape node.
    """
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    shapes = {tensor.name: tensor for tensor in model.graph.initializer}
    roles = {name: (node.op_type, index) for node in model.graph.node for index, name in enumerate(node.input)}
    made = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    used = {node.input[0] for node in made}
    weights = [
        numpy_helper.from_array(_random(roles[node.output[0]], numpy_helper.to_array(shapes[node.input[0]]), rng), out)
        for node in made
        for out in node.output
    ]
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *weights])
    constants = {tensor.name for tensor in model.graph.initializer} | used
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = 4  # from which initializers are no inputs
    return model


def _random(role: tuple[str, int], shape: Array, rng: np.random.Generator) -> Array:
    op, index = role
    dims = tuple(int(size) for size in shape)
    if op in ("Conv", "Gemm") and index == 1:
        deviation = np.sqrt(2 / np.prod(dims[1:]))
        return rng.standard_normal(dims, np.float32) * np.float32(deviation)
    if op == "BatchNormalization":
        centre = {1: 1.0, 2: 0.0, 3: 0.0, 4: 1.0}[index]
        return (centre + 0.05 * rng.uniform(-1, 1, dims)).astype(np.float32)
    if op in ("Mul", "Unsqueeze"):
        return (1 + 0.05 * rng.uniform(-1, 1, dims)).astype(np.float32)
    return (0.01 * rng.standard_normal(dims)).astype(np.float32)
