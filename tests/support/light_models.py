"""The nine networks that the onnx package ships without weights, with random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
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


def with_batch_statistics(model: onnx.ModelProto, samples: Array) -> onnx.ModelProto:
    """The network with the mean and variance that every BatchNormalization sees on a batch, so that signals keep size.

    Args:
        model: Float network of one input; intact afterwards.
        samples: float32 [N, ...]: one batch. What follows the last BatchNormalization may be made for a single sample.
    """
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not norms:
        return model
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    last = max(index for index, node in enumerate(probe.graph.node) if node.op_type == "BatchNormalization")
    nodes = [made for node in list(probe.graph.node)[: last + 1] for made in _normalized(node)]
    del probe.graph.node[:]
    probe.graph.node.extend(nodes)
    wanted = [f"{node.output[0]}_{kind}" for node in norms for kind in ("mean", "var")]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted)
    probe.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(samples)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = dict(zip(wanted, session.run(wanted, {probe.graph.input[0].name: samples}), strict=True))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in norms:
        for name, kind in ((node.input[3], "mean"), (node.input[4], "var")):
            tensors[name].CopyFrom(numpy_helper.from_array(seen[f"{node.output[0]}_{kind}"].ravel(), name))
    return result


def _normalized(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A BatchNormalization by the statistics of the batch itself, before scale and bias; other nodes as they are."""
    if node.op_type != "BatchNormalization":
        return [node]
    source, scale, bias = node.input[:3]
    out = node.output[0]
    make = onnx.helper.make_node
    return [
        make("ReduceMean", [source], [f"{out}_mean"], axes=[0, 2, 3], keepdims=1),
        make("Sub", [source, f"{out}_mean"], [f"{out}_centred"]),
        make("Mul", [f"{out}_centred"] * 2, [f"{out}_square"]),
        make("ReduceMean", [f"{out}_square"], [f"{out}_var"], axes=[0, 2, 3], keepdims=1),
        make("Sqrt", [f"{out}_var"], [f"{out}_deviation"]),
        make("Div", [f"{out}_centred", f"{out}_deviation"], [f"{out}_unit"]),
        make("Unsqueeze", [scale], [f"{out}_scale"], axes=[1, 2]),
        make("Unsqueeze", [bias], [f"{out}_bias"], axes=[1, 2]),
        make("Mul", [f"{out}_unit", f"{out}_scale"], [f"{out}_scaled"]),
        make("Add", [f"{out}_scaled", f"{out}_bias"], [out]),
    ]
