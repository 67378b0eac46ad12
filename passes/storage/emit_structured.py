"""ONNX expressions of circulant matrices and shared filters; importing this module makes `storage.emit` know them.

What they need of int8 (Gather, Concat, Neg, Transpose, Slice, Reshape) onnxruntime runs at every optimization level.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.graph import shape_of
from passes.solvers.symmetry import FIRST_FLIPPED, LAST_FLIPPED, NEGATED, TRANSPOSED
from passes.storage.emit import Expression, emit, write
from passes.storage.structured_forms import CirculantBlocks, SharedFilters

__all__ = ["emit"]

_SMALL_INDEX = 512
"""Elements up to which a stored index of bytes is smaller than the nodes that compute it."""
_INT8, _INT32 = ir.DataType.INT8, ir.DataType.INT32


@write.register
def _(storage: CirculantBlocks, expression: Expression) -> ir.Value:
    """Gather along the diagonals of every block, blocks put side by side, the border cut off."""
    blocks, groups = storage.blocks, len(storage.parameters)
    # A matrix of one block row or column need not be built beyond its own size.
    high = blocks.rows if blocks.down == 1 else blocks.block
    wide = blocks.channels if blocks.across == 1 else blocks.block
    shape = (groups, blocks.down, blocks.across, blocks.positions, blocks.block)
    parameters = expression.constant("diagonals", storage.parameters.reshape(shape))
    diagonal = _diagonals(expression, high, wide, blocks.block)
    value = expression.node("Gather", [parameters, diagonal], (*shape[:4], high, wide), _INT8, axis=4)
    value = _moved(expression, value, (0, 1, 4, 2, 5, 3))
    built = (groups, blocks.down * high, blocks.across * wide, blocks.positions)
    if built[1:3] != (blocks.rows, blocks.channels):
        value = expression.reshape(value, built, _INT8)
        value = _cut(expression, value, (blocks.rows, blocks.channels))
    return expression.reshaped(value, _INT8)


def _diagonals(expression: Expression, high: int, wide: int, block: int) -> ir.Value:
    """(i - j) mod block, int32 [high, wide]: stored where that is small, otherwise computed."""
    if high * wide <= _SMALL_INDEX and block <= 256:
        index = (np.arange(high)[:, None] - np.arange(wide)) % block
        return expression.indices(index, block)
    zero, one = (expression.constant(name, np.array(n, np.int32)) for name, n in (("zero", 0), ("one", 1)))
    size = expression.constant("block", np.array(block, np.int32))
    counted = {
        n: expression.node("Range", [zero, expression.constant("length", np.array(n, np.int32)), one], (n,), _INT32)
        for n in dict.fromkeys((high, wide))
    }
    down, along = counted[high], counted[wide]
    column = expression.reshape(down, (high, 1), _INT32)
    return expression.node(
        "Mod", [expression.node("Sub", [column, along], (high, wide), _INT32), size], (high, wide), _INT32
    )


@write.register
def _(storage: SharedFilters, expression: Expression) -> ir.Value:
    """The filters followed by what each turn makes of all before it, one turn after the other; then Gather."""
    value = expression.constant("filters", storage.filters)
    index, count = storage.leader.astype(np.int64).ravel(), len(storage.filters)
    last = storage.filters.ndim - 1
    for bit in (TRANSPOSED, FIRST_FLIPPED, LAST_FLIPPED, NEGATED):
        is_turned = (storage.orientation.ravel() & bit) > 0
        if not is_turned.any():
            continue
        match bit:
            case 1:
                turned = _moved(expression, value, (*range(last - 1), last, last - 1))
            case 2:
                turned = _mirrored(expression, value, last - 1)
            case 4:
                turned = _mirrored(expression, value, last)
            case _:
                turned = expression.node("Neg", [value], shape_of(value) or (), _INT8)
        index, count = index + count * is_turned, 2 * count
        value = expression.node("Concat", [value, turned], (count, *storage.filters.shape[1:]), _INT8, axis=0)
    stored = index.astype(np.uint8 if count <= 256 else np.uint16)
    rows = expression.cast(expression.constant("filter", stored), stored.shape, _INT32)
    value = expression.node("Gather", [value, rows], (len(index), *storage.filters.shape[1:]), _INT8, axis=0)
    return expression.reshaped(value, _INT8)


def _moved(expression: Expression, value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    """Transposed; as it is where the elements stay in order, to be reshaped."""
    shape = shape_of(value) or ()
    result = tuple(shape[axis] for axis in order)
    long = [axis for axis in order if shape[axis] > 1]
    if long == sorted(long):
        return value
    return expression.node("Transpose", [value], result, _INT8, perm=list(order))


def _mirrored(expression: Expression, value: ir.Value, axis: int) -> ir.Value:
    """Backwards along an axis of a kernel, which is short: an index takes fewer bytes than Slice with its operands."""
    shape = shape_of(value) or ()
    back = expression.constant("back", np.arange(shape[axis], dtype=np.int32)[::-1])
    return expression.node("Gather", [value, back], shape, _INT8, axis=axis)


def _cut(expression: Expression, value: ir.Value, ends: tuple[int, int]) -> ir.Value:
    """The first elements along axes 1 and 2."""
    shape = shape_of(value) or ()
    operands = {"starts": (0, 0), "ends": ends, "axes": (1, 2)}
    constants = [expression.constant(name, np.array(numbers, np.int32)) for name, numbers in operands.items()]
    return expression.node("Slice", [value, *constants], (shape[0], *ends, *shape[3:]), _INT8)
