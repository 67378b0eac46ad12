"""Write down every window: kernel, strides, dilations, pads and group, nothing left automatic."""

from __future__ import annotations

import onnx_ir as ir

from passes.base import Notes, Rewrite
from passes.graph import integer, ints, is_op, shape_of, text


class ExplicitWindows(Rewrite):
    """Give Conv, MaxPool and AveragePool explicit attributes, `auto_pad` computed from the static shapes."""

    name = "explicit-windows"

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        for node in model.graph:
            if not is_op(node, "Conv", "MaxPool", "AveragePool"):
                continue
            if reason := _why_not(node):
                notes.skip(node, reason)
            elif _spell_out(node):
                notes.change(node)


def _why_not(node: ir.Node) -> str | None:
    if shape_of(node.inputs[0]) is None:
        return "the shape of its input is unknown"
    if is_op(node, "Conv") and shape_of(node.inputs[1]) is None:
        return "the shape of its weights is unknown"
    return None


def _spell_out(node: ir.Node) -> bool:
    before = dict(node.attributes)
    kernel = _kernel(node)
    ones = (1,) * len(kernel)
    strides, dilations = ints(node, "strides", ones), ints(node, "dilations", ones)
    pads = _pads(node, kernel, strides, dilations)
    _set(node, "kernel_shape", kernel)
    _set(node, "strides", strides)
    _set(node, "dilations", dilations)
    _set(node, "pads", pads)
    if is_op(node, "Conv"):
        node.attributes["group"] = ir.AttrInt64("group", integer(node, "group", 1))
    node.attributes.pop("auto_pad", None)
    return set(before) != set(node.attributes)


def _set(node: ir.Node, name: str, values: tuple[int, ...]) -> None:
    node.attributes[name] = ir.AttrInt64s(name, list(values))


def _kernel(node: ir.Node) -> tuple[int, ...]:
    if is_op(node, "Conv"):
        return (shape_of(node.inputs[1]) or ())[2:]
    return ints(node, "kernel_shape")


def _pads(
    node: ir.Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    mode = text(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return ints(node, "pads", (0,) * (2 * len(kernel)))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    begins, ends = [], []
    spatial = (shape_of(node.inputs[0]) or ())[2:]
    for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return (*begins, *ends)
