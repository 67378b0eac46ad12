"""Guesses the shape of a network's input that the file leaves open, to be offered to the user, never to be used."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto, shape_inference

_SIDES = (224, 32, 28, 96, 64, 128, 160, 192, 256, 299, 320, 416, 512, 640, 16, 8, 48, 227, 240, 300, 384)
"""Of images, the most usual first."""
_LENGTHS = (16, 32, 64, 100, 128, 256, 512, 1)
"""Of anything else."""


def guess(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """A shape for input `name` that fits what the file says, with batch 1.

    Channels follow from the weights that read the input; an image is square; of usual sizes the first is taken with
    which no shape contradicts another.
    """
    declared = next(value for value in model.graph.input if value.name == name).type.tensor_type
    if not declared.HasField("shape"):
        return 1, 3, 224, 224
    known = [dim.dim_value if dim.dim_value > 0 else 0 for dim in declared.shape.dim]
    names = [dim.dim_param for dim in declared.shape.dim]
    _follow_weights(model, name, known)
    if known and not known[0]:
        known[0] = 1
    candidates = [_filled(known, names, size) for size in _sizes(known)]
    light = _without_weights(model)
    return next((shape for shape in candidates if _agrees(light, name, shape)), candidates[0])


def _sizes(known: list[int]) -> Iterator[int]:
    """For the dimensions that are open: first what makes an image square."""
    if len(known) == 4:
        yield from (size for size in known[2:] if size)
    yield from _SIDES if len(known) == 4 else _LENGTHS


def _filled(known: list[int], names: list[str], size: int) -> tuple[int, ...]:
    """`size` for the open dimensions, 1 for those that share their name with the batch."""
    batch = names[0] if names and known[0] == 1 else ""
    return tuple(given or (1 if batch and name == batch else size) for given, name in zip(known, names, strict=True))


def _follow_weights(model: onnx.ModelProto, name: str, known: list[int]) -> None:
    """Fill in the dimension along which constant weights sum."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if len(node.input) < 2 or node.input[0] != name or node.input[1] not in weights:
            continue
        shape = weights[node.input[1]]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Conv" and len(shape) == len(known):
            axis, size = 1, shape[1] * attributes.get("group", 1)
        elif node.op_type in ("MatMul", "Gemm") and len(shape) == 2 and not attributes.get("transA"):
            axis, size = -1, shape[1 if attributes.get("transB") else 0]
        else:
            continue
        if known and not known[axis]:
            known[axis] = size


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with inputs in the place of float weights, so that inference is quick."""
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    light.graph.name = "light"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.INT64, TensorProto.INT32):
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _agrees(model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> bool:
    """Whether inference finds no contradiction with this shape of the input."""
    declared = next(value for value in model.graph.input if value.name == name).type.tensor_type.shape
    for dim, size in zip(declared.dim, shape, strict=True):
        dim.dim_value = size
    try:
        shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return False
    return True
