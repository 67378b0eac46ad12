"""Which nodes of a network are quantized when no accelerator decides: all that have integer arithmetic."""

from __future__ import annotations

import onnx_ir as ir

from compiler.operators import QUANTIZERS, WEIGHTED, dynamic_inputs
from compiler.partition import unsupported


def quantizable(model: ir.Model) -> tuple[frozenset[str], dict[str, str]]:
    """Names of the nodes to quantize, and why the others stay float.

    A supported node is quantized where it hangs together, through supported nodes, with one that has weights: a lone
    Reshape or Add between float nodes gains nothing.
    """
    reasons = unsupported(model)
    computed = [node for node in model.graph if dynamic_inputs(node) and node.op_type not in QUANTIZERS]
    supported = {node for node in computed if node.name not in reasons}
    reached: set[ir.Node] = set()
    stack = [node for node in computed if node in supported and node.op_type in WEIGHTED]
    while stack:
        node = stack.pop()
        if node in reached:
            continue
        reached.add(node)
        stack += [other for other in (*node.predecessors(), *node.successors()) if other in supported]
    for node in supported - reached:
        reasons[str(node.name)] = "it hangs together with no layer that has weights"
    return frozenset(str(node.name) for node in reached), reasons
