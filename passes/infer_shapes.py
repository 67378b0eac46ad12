"""Static shapes and types for every value."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.base import Notes, Rewrite


class InferShapes(Rewrite):
    """Infer the shape and type of every value; contradictions between nodes and shapes are an error."""

    name = "infer-shapes"

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()
        self._strict = strict

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        infer(model, strict=self._strict)


def infer(model: ir.Model, *, strict: bool = True) -> None:
    """Infer shapes in place, those of reshapes by constants included."""
    common.ShapeInferencePass(check_type=strict, strict_mode=strict, data_prop=True)(model)
