"""Reshape, Transpose, Slice and the like as bookkeeping: where each element of an ONNX value is in its stored map.

A stored map is [C, H, W]. A value that only rearranges it (or takes a part) is a View: the same map, the value's own
shape, and for each of its elements the flat position in the map. No data moves; readers permute their weights, or ask
for a map of its own where whole channels are selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends.layers import Shape
from passes.graph import constant, integer, ints, operand, shape_of

Order: TypeAlias = NDArray[np.int64]

RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
SELECTING = frozenset({"Slice", "Split", "Gather"})
LAYOUT = RESHAPING | SELECTING | {"Transpose"}


@dataclass(frozen=True, eq=False)
class View:
    """A value as a rearrangement of a stored map.

    Attributes:
        chw: Of the stored map.
        shape: Of the value, with its batch axis of 1.
        order: int64 of `shape`, flat positions in the map; None for the map's own order.
    """

    chw: Shape
    shape: tuple[int, ...]
    order: Order | None = None

    @property
    def is_map(self) -> bool:
        """Whether the value is the map itself: [1, C, H, W], [1, C, L] or [1, C]."""
        return self.order is None and map_shape(self.shape) == self.chw

    def positions(self) -> Order:
        """int64 of `shape`, also for the map's own order."""
        if self.order is not None:
            return self.order
        return np.arange(int(np.prod(self.shape)), dtype=np.int64).reshape(self.shape)

    def channels(self) -> Order | None:
        """The map's channel that each channel of the value is, or None where it is not made of whole channels."""
        own = map_shape(self.shape)
        if own is None or own[1:] != self.chw[1:]:
            return None
        plane = own[1] * own[2]
        positions = self.positions().reshape(own[0], plane)
        first = positions[:, 0]
        is_whole = (first % plane == 0).all() and (positions - first[:, None] == np.arange(plane)).all()
        return first // plane if is_whole else None

    def same_order(self, other: View) -> bool:
        """Whether two values of one shape have each element at the same place of equal maps."""
        if self.chw != other.chw or self.shape != other.shape:
            return False
        if self.order is None or other.order is None:
            return self.order is other.order
        return bool(np.array_equal(self.order, other.order))

    def take(self, flat: NDArray[np.int8]) -> NDArray[np.int8]:
        """The value's elements [N * shape[0], *shape[1:]] from maps [N, C, H, W]."""
        rows = flat.reshape(len(flat), -1)
        if self.order is not None:
            rows = rows[:, self.order.ravel()]
        return rows.reshape(len(flat) * self.shape[0], *self.shape[1:])

    def put(self, values: NDArray[np.int8]) -> NDArray[np.int8]:
        """Maps [N, C, H, W] from the value's elements [N, *shape[1:]]; the value must cover the map."""
        rows = values.reshape(len(values), -1)
        if self.order is not None:
            placed = np.empty((len(values), int(np.prod(self.chw))), np.int8)
            placed[:, self.order.ravel()] = rows
            rows = placed
        return rows.reshape(len(values), *self.chw)


def map_shape(shape: tuple[int, ...]) -> Shape | None:
    """[1, C, H, W], [1, C, L] and [1, C] as (C, H, W), (C, 1, L) and (C, 1, 1); None for other shapes."""
    if not 2 <= len(shape) <= 4 or shape[0] != 1:
        return None
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    return (shape[1], 1, shape[2]) if len(shape) == 3 else (shape[1], 1, 1)


def whole(shape: tuple[int, ...]) -> View | None:
    """A value that is a map of its own, or None for a shape that no map has."""
    chw = map_shape(shape)
    return None if chw is None else View(chw, shape)


def why_no_view(node: ir.Node) -> str | None:
    """Why a LAYOUT node is not mere bookkeeping, or None."""
    if any(shape_of(output) is None for output in node.outputs):
        return "its output shape is not known"
    if node.op_type in ("Slice", "Gather"):
        names = ("starts", "ends", "axes", "steps") if node.op_type == "Slice" else ("indices",)
        for index, name in enumerate(names, start=1):
            if operand(node, index) is not None and constant(operand(node, index)) is None:
                return f"its {name} are computed at run time"
    return None


def rearrange(node: ir.Node, view: View, output: int = 0) -> View:
    """The view of output `output` of a LAYOUT node that reads `view`."""
    shape = shape_of(node.outputs[output])
    assert shape is not None
    if node.op_type in RESHAPING:
        return View(view.chw, shape, None if view.order is None else view.order.reshape(shape))
    positions = _rearranged(node, view.positions(), output).reshape(shape)
    flat = positions.ravel()
    is_own = flat.size == np.prod(view.chw) and bool((flat == np.arange(flat.size)).all())
    return View(view.chw, shape, None if is_own else np.ascontiguousarray(positions))


def _rearranged(node: ir.Node, positions: Order, output: int) -> Order:
    rank = positions.ndim
    match node.op_type:
        case "Transpose":
            return positions.transpose(ints(node, "perm", tuple(reversed(range(rank)))))
        case "Gather":
            indices = constant(node.inputs[1])
            assert indices is not None
            return positions.take(indices.astype(np.int64), axis=integer(node, "axis", 0))
        case "Split":
            return _split(node, positions, output)
    return _sliced(node, positions)


def _split(node: ir.Node, positions: Order, output: int) -> Order:
    axis = integer(node, "axis", 0) % positions.ndim
    shapes = [shape_of(value) for value in node.outputs]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    start = sum(sizes[:output])
    return positions.take(np.arange(start, start + sizes[output]), axis=axis)


def _sliced(node: ir.Node, positions: Order) -> Order:
    starts, ends, axes, steps = (_constant_ints(node, index) for index in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[i] if axes else i) % positions.ndim
        taken = _slice_indices(positions.shape[axis], start, end, steps[i] if steps else 1)
        positions = positions.take(np.array(taken, np.int64), axis=axis)
    return positions


def _slice_indices(size: int, start: int, end: int, step: int) -> range:
    """The indices that ONNX Slice takes; unlike numpy, it moves a start outside the axis to its nearest end."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _constant_ints(node: ir.Node, index: int) -> list[int] | None:
    array = constant(operand(node, index))
    return None if array is None else [int(i) for i in array.ravel()]
