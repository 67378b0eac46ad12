"""Stores large float weights as integers behind a DequantizeLinear: the file shrinks, the arithmetic stays float."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes.base import Notes, Rewrite
from passes.graph import Array
from passes.solvers.gptq import mse_scales

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
BITS_KEY = "edgec.bits"
_INT4 = ir.DataType.INT4.numpy()
_CHUNK = 1 << 16
"""Elements whose scales are searched at once: they stay in the cache."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_LONG_ROW = 32
"""A scale for each row of a table costs an eighth of its 8-bit codes at this length."""


class Fit(StrEnum):
    """How a scale is chosen: by the largest weight of its channel, or for the least squared error."""

    MINMAX = "minmax"
    MSE = "mse"


@dataclass(frozen=True)
class WeightOnlyConfig:
    """What is stored as integers, and how.

    Attributes:
        bits: Of a code: 2 to 8, or 16. Symmetric, narrow range: |code| < 2**(bits - 1).
        elements: A smaller tensor is left alone.
        fit: How scales are chosen; None is MINMAX from 8 bits on, where MSE takes ten times as long and gains less than
            a thousandth on real networks, and MSE below.
        error: A tensor with a larger relative error, ||w - stored|| / ||w||, is left alone.
    """

    bits: int = 8
    elements: int = 256
    fit: Fit | None = None
    error: float = math.inf

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")

    @property
    def limit(self) -> int:
        """Largest magnitude of a code."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def scales(self) -> Fit:
        """How scales are chosen."""
        return self.fit or (Fit.MINMAX if self.bits >= 8 else Fit.MSE)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that is stored as integers.

    Attributes:
        name: Of the float initializer.
        shape: Of it.
        axis: That has a scale for each index, None for one scale.
        error: ||w - stored|| / ||w||; 0 for a tensor of zeros.
        before_bytes, after_bytes: Of the float tensor, and of codes and scales.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None
    error: float
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, eq=False)
class _Codes:
    """real = scale * code.

    Attributes:
        values: Integers in the smallest type of ONNX that holds them, in the shape of the weights.
        scale: float32 [size of the axis], or [] for one scale.
        axis: Of the scales, or None.
        squared_error, squared_norm: Of all weights.
    """

    values: Array
    scale: NDArray[np.float32]
    axis: int | None
    squared_error: float
    squared_norm: float

    @property
    def error(self) -> float:
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


class StoreWeights(Rewrite):
    """Replace large float initializers by integers, symmetric, with a scale for each output channel.

    Weights of Conv, ConvTranspose, Gemm, MatMul and Einsum, W and R of recurrent nodes, and tables of Gather. What
    other nodes read, for instance element by element, is left alone: its errors do not average out.

    onnxruntime's default optimization turns DequantizeLinear -> MatMul (or Gemm without transB) into MatMulNBits, which
    quantizes the activations in silence. It does so for a matrix with scales along its last axis alone, so: Gemm gets
    transB = 1, and a MatMul's matrix becomes a stack of one, [1, K, N], which changes no shape where the other operand
    has three axes or more; elsewhere the MatMul becomes a Gemm, or gets a scale for each input instead.

    `skipped` names initializers, not nodes; `stored` says what became of the others.
    """

    name = "store-weights"

    def __init__(self, config: WeightOnlyConfig | None = None) -> None:
        super().__init__()
        self._config = config or WeightOnlyConfig()
        self.stored: tuple[StoredTensor, ...] = ()

    def requires(self, model: ir.Model) -> None:
        if (opset := model.graph.opset_imports.get("", 0)) < 21:
            raise ir.passes.PreconditionError(f"needs opset 21, the model has {opset}")

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        graph, config = model.graph, self._config
        _skip_subgraphs(model, config, notes)
        position = {node: index for index, node in enumerate(graph)}
        stored: list[StoredTensor] = []
        squared_error = squared_norm = 0.0
        for name, value in list(graph.initializers.items()):
            if not _is_candidate(value, config):
                continue
            if reason := _why_not(value, graph):
                notes.skipped[name] = reason
                continue
            weights = edit.constant(value)
            assert weights is not None
            codes = quantize_tensor(weights.astype(np.float32), _axis_for_all(value), config)
            described = _described(name, weights, codes)
            if reason := _why_not_stored(described, config):
                notes.skipped[name] = reason
                continue
            squared_error, squared_norm = squared_error + codes.squared_error, squared_norm + codes.squared_norm
            stored.append(described)
            _replace(value, codes, position, config, notes)
        self.stored = tuple(stored)
        if stored:
            notes.metrics["before_bytes"] = float(sum(tensor.before_bytes for tensor in stored))
            notes.metrics["after_bytes"] = float(sum(tensor.after_bytes for tensor in stored))
            notes.metrics["relative_error"] = math.sqrt(squared_error / squared_norm) if squared_norm else 0.0
            notes.metrics["largest_relative_error"] = max(tensor.error for tensor in stored)


def quantize_tensor(weights: NDArray[np.float32], axis: int | None, config: WeightOnlyConfig) -> _Codes:
    """Integer codes of `weights` with a scale for each index of `axis`, or one for all.

    Args:
        weights: float32, finite.
        axis: Of the scales; None for one.
        config: Bits and fit.
    """
    if axis is None:
        rows = weights.reshape(1, -1)
    else:
        rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    codes = np.empty(rows.shape, _container(config.bits))
    scale = np.empty(len(rows), np.float32)
    error = norm = 0.0
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)
        scale[start : start + step] = chosen = _scales(part, config)
        rounded = np.clip(np.rint(part / chosen.astype(np.float64)[:, None]), -config.limit, config.limit)
        codes[start : start + step] = rounded.astype(codes.dtype)
        error += float(np.square(rounded * chosen.astype(np.float64)[:, None] - part).sum())
        norm += float(np.square(part).sum())
    if axis is None:
        return _Codes(codes.reshape(weights.shape), scale.reshape(()), None, error, norm)
    moved = codes.reshape(weights.shape[axis], *np.delete(weights.shape, axis))
    return _Codes(np.ascontiguousarray(np.moveaxis(moved, 0, axis)), scale, axis, error, norm)


def _scales(rows: NDArray[np.float64], config: WeightOnlyConfig) -> NDArray[np.float32]:
    """One positive float32 for each row."""
    if config.scales is Fit.MSE:
        scale = mse_scales(rows, config.limit)
    else:
        peak = np.abs(rows).max(axis=1, initial=0.0)
        scale = np.where(peak > 0, peak, config.limit) / config.limit
    # A row of denormals may ask for a scale that float32 does not have.
    return np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)


def _container(bits: int) -> np.dtype[np.generic]:
    if bits <= 4:
        return _INT4
    return np.dtype(np.int8) if bits <= 8 else np.dtype(np.int16)


def _described(name: str, weights: Array, codes: _Codes) -> StoredTensor:
    bits = 4 if codes.values.dtype == _INT4 else 8 * codes.values.dtype.itemsize
    after = -(-codes.values.size * bits // 8) + codes.scale.nbytes
    return StoredTensor(name, weights.shape, codes.axis, codes.error, weights.nbytes, after)


def _why_not_stored(tensor: StoredTensor, config: WeightOnlyConfig) -> str | None:
    if tensor.error > config.error:
        return f"its relative error would be {tensor.error:.2g}, more than {config.error:.2g}"
    if tensor.after_bytes >= tensor.before_bytes:
        return f"codes and scales would take {tensor.after_bytes} bytes, not {tensor.before_bytes}"
    return None


# Which initializers


def _is_candidate(value: ir.Value, config: WeightOnlyConfig) -> bool:
    """A float initializer that is large, and no scale of other integers."""
    tensor = value.const_value
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return False
    readers = [use.node for use in value.uses()]
    is_scale = readers and all(edit.is_op(node, "QuantizeLinear", "DequantizeLinear") for node in readers)
    return tensor.size >= config.elements and not is_scale


def _why_not(value: ir.Value, graph: ir.Graph) -> str | None:
    """Why a float initializer of `graph` stays as it is."""
    weights = edit.constant(value)
    if weights is None or value.is_graph_output():
        return "it is an input or output of the network"
    if weights.dtype != np.float32:
        return f"it is {weights.dtype}; float32 alone is stored as integers"
    if not value.uses():
        return "nothing reads it"
    if not np.isfinite(weights).all():
        return "it has values that are NaN or infinite"
    for use in value.uses():
        if use.node.graph is not graph:
            return f"node '{use.node.name}' ({use.node.op_type}) reads it inside a subgraph"
        if reason := _why_not_reader(use.node, use.idx, weights.ndim):
            return reason
    return None


def _why_not_reader(node: ir.Node, index: int, ndim: int) -> str | None:
    where = f"node '{node.name}' ({node.op_type})"
    if edit.is_op(node, "Conv", "ConvTranspose", "Gemm") and index == 1:
        return None
    if edit.is_op(node, "MatMul", "Einsum"):
        return None if ndim > 1 else f"it is a vector: {where} reads it"
    if edit.is_op(node, *_RECURRENT) and index in (1, 2):
        return None
    if edit.is_op(node, "Gather") and index == 0:
        if ndim < 2:
            return f"it is a vector: {where} reads it"
        return f"{where} makes a constant of it" if _is_constant(edit.operand(node, 1)) else None
    if edit.is_op(node, "Conv", "ConvTranspose", "Gemm", *_RECURRENT):
        return f"it is no weight but a bias or state of {where}"
    return f"{where} reads it; products and tables alone are stored as integers, in whose sums errors average out"


def _is_constant(value: ir.Value | None) -> bool:
    """Whether `value` follows from initializers alone."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current is None or current in seen or edit.constant(current) is not None:
            continue
        seen.add(current)
        if (producer := current.producer()) is None:
            return False
        pending.extend(producer.inputs)
    return True


def _skip_subgraphs(model: ir.Model, config: WeightOnlyConfig, notes: Notes) -> None:
    for graph in model.graph.subgraphs():
        if graph is model.graph:
            continue
        for name, value in graph.initializers.items():
            if _is_candidate(value, config):
                notes.skipped[name] = "it lies inside a subgraph"


# Along which axis


def _axis_for_all(value: ir.Value) -> int | None:
    """The axis of the scales that suits every reader, or None where they differ."""
    axes = {_axis(use.node, use.idx, edit.shape_of(value) or ()) for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _axis(node: ir.Node, index: int, shape: tuple[int, ...]) -> int | None:
    """The axis of output channels, along which a factor may leave the sum; None where there is none."""
    if edit.is_op(node, "Conv"):
        return 0
    if edit.is_op(node, "ConvTranspose", *_RECURRENT):
        return 1
    if edit.is_op(node, "Gemm"):
        return 0 if edit.integer(node, "transB", 0) else 1
    if edit.is_op(node, "MatMul"):
        return _matmul_axis(node, index, len(shape))
    if edit.is_op(node, "Gather"):
        axis = edit.integer(node, "axis", 0) % len(shape)
        row = math.prod(shape) // max(1, shape[axis])
        return axis if row >= _LONG_ROW else (len(shape) - 1 if axis != len(shape) - 1 else 0)
    return _einsum_axis(node, index, shape)


def _matmul_axis(node: ir.Node, index: int, ndim: int) -> int:
    if index == 0:
        return ndim - 2
    return ndim - 1 if ndim > 2 or (_other_rank(node) or 1) > 1 else 0


def _other_rank(node: ir.Node) -> int | None:
    """Number of axes of the first operand; None where that is unknown."""
    value = node.inputs[0]
    return None if value is None or value.shape is None else len(value.shape)


def _einsum_axis(node: ir.Node, index: int, shape: tuple[int, ...]) -> int | None:
    """The largest axis that this operand alone brings into the result."""
    terms, arrow, result = edit.text(node, "equation", "").replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or index >= len(operands) or len(operands[index]) != len(shape):
        return None
    count = Counter("".join(operands))
    free = [axis for axis, letter in enumerate(operands[index]) if letter in result and count[letter] == 1]
    return max(free, key=lambda axis: shape[axis], default=None)


# Surgery


def _replace(
    value: ir.Value, codes: _Codes, position: dict[ir.Node, int], config: WeightOnlyConfig, notes: Notes
) -> None:
    """Put a DequantizeLinear of `codes` in front of the readers of `value`, in a form that onnxruntime leaves alone."""
    readers = sorted(value.uses(), key=lambda use: (position[use.node], use.idx))
    for form in dict.fromkeys(_form(use.node, use.idx, codes) for use in readers):
        same = [use for use in readers if _form(use.node, use.idx, codes) == form]
        result = _dequantized(value, codes, form, same[0].node, config)
        for use in same:
            use.node.replace_input_with(use.idx, result)
            _adapt(use.node, form)
            notes.change(use.node)
    graph = edit.graph_of(readers[0].node)
    notes.changed[:] = list(dict.fromkeys(notes.changed))
    del graph.initializers[str(value.name)]


class _Form(StrEnum):
    """How the codes are laid out."""

    AS_IS = "as is"
    TRANSPOSED = "transposed"
    STACKED = "stacked"
    BY_INPUT = "by input"


def _form(node: ir.Node, index: int, codes: _Codes) -> _Form:
    """The layout in which onnxruntime does not make MatMulNBits of this reader."""
    last = codes.axis is None or codes.axis == codes.values.ndim - 1
    if index != 1 or codes.values.ndim != 2 or not last:
        return _Form.AS_IS
    if edit.is_op(node, "Gemm") and not edit.integer(node, "transB", 0):
        return _Form.TRANSPOSED
    if edit.is_op(node, "MatMul"):
        other = _other_rank(node) or 1
        return _Form.STACKED if other > 2 else _Form.TRANSPOSED if other == 2 else _Form.BY_INPUT
    return _Form.AS_IS


def _dequantized(
    value: ir.Value, codes: _Codes, form: _Form, reader: ir.Node, config: WeightOnlyConfig
) -> ir.Value:
    """The output of a new DequantizeLinear in front of `reader`."""
    graph, values, scale, axis = edit.graph_of(reader), codes.values, codes.scale, codes.axis
    if form is _Form.TRANSPOSED:
        values, axis = np.ascontiguousarray(values.T), None if axis is None else 0
    elif form is _Form.STACKED:
        values, axis = values[None], None if axis is None else 2
    elif form is _Form.BY_INPUT:  # one scale for all, as every reader has its own axis: say it for each input
        scale, axis = np.full(len(values), scale, np.float32), 0
    stored = edit.new_initializer(graph, f"{value.name}_codes", values)
    inputs: list[ir.Value | None] = [stored, edit.new_initializer(graph, f"{value.name}_scale", scale)]
    node = edit.make("DequantizeLinear", inputs, f"{stored.name}_dq", values.shape)
    if axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
    if config.bits not in (4, 8, 16):
        node.metadata_props[BITS_KEY] = str(config.bits)
    graph.insert_before(reader, node)
    return node.outputs[0]


def _adapt(node: ir.Node, form: _Form) -> None:
    """Make a reader of transposed codes a Gemm(transB = 1)."""
    if form is not _Form.TRANSPOSED:
        return
    if edit.is_op(node, "MatMul"):
        node.op_type = "Gemm"
    node.attributes["transB"] = ir.AttrInt64("transB", 1)
