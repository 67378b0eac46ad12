"""Small float graphs in canonical form, built by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from tests.support.onnx_models import Array, model


def canonical(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
) -> ir.Model:
    """Opset 21, every shape known."""
    proto = model(nodes, inputs, outputs, weights, opset=21, ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def every_node(loaded: ir.Model, *but: str) -> frozenset[str]:
    """Names of all nodes, but for those of the operators `but`."""
    return frozenset(str(node.name) for node in loaded.graph if node.op_type not in but)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
