"""Order, names, and nothing unused."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.base import Notes, Rewrite


class Tidy(Rewrite):
    """Remove unused nodes and initializers, sort the rest, and give every node and value a unique name."""

    name = "tidy"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        common.RemoveUnusedNodesPass()(model)
        common.TopologicalSortPass()(model)
        common.NameFixPass()(model)
