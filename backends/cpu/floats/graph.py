"""An imported network with our own kernels in it; maps between them stay [n, y, x, c].

Convolutions, GEMM and pools become calls. A convolution is held back as long as its consumer can still go into it: a
bias, a second map that is added, bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir.expr import GenericConst

from backends.cpu import packing
from backends.cpu.floats.kernels import Conv, Depthwise, Finish, Pool, Strides, Window
from backends.cpu.floats.packing import bias as bias_of
from backends.cpu.floats.packing import weights as weights_of
from backends.cpu.machine import Machine

Kernel = Conv | Depthwise | Pool
Array = NDArray[Any]

PREFIX = "edgec."
_MOST_TAPS = 16
"""Kernel columns beyond which a padded copy costs less than code for the ends of rows."""

_UNARY = frozenset(
    "relax." + name
    for names in (
        ["abs", "acos", "acosh", "asin", "asinh", "astype", "atan", "atanh", "ceil", "clip", "cos", "cosh", "erf"],
        ["exp", "floor", "log", "negative", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square"],
        ["tan", "tanh", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.silu", "nn.softplus"],
    )
    for name in names
)
_BINARY = frozenset(
    "relax." + name for name in ("add", "divide", "maximum", "minimum", "multiply", "power", "subtract")
)
_MOVES = frozenset("relax." + name for name in ("expand_dims", "permute_dims", "reshape", "squeeze"))
_FOLDS: dict[str, Any] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.less": np.less,
    "relax.greater": np.greater,
    "relax.equal": np.equal,
    "relax.where": np.where,
    "relax.astype": lambda a: a,
    "relax.take": np.take,
}


@dataclass
class Networked:
    """The new module, and the kernels that its calls name."""

    module: Any
    kernels: dict[str, Kernel]


@dataclass(eq=False)
class _Held:
    """A convolution that has not been emitted.

    Attributes:
        shape: [n, y, x, c] of the output.
        logical: Of the ONNX value.
    """

    kernel: Conv | Depthwise
    input: Any
    weights: Array
    bias: Array
    shape: tuple[int, ...]
    logical: tuple[int, ...]
    second: Any = None
    is_open: bool = True


@dataclass(eq=False)
class _Value:
    """A tensor of the network, in the layouts in which it exists."""

    plain: Any = None
    pixels: Any = None
    held: _Held | None = None


@dataclass
class _Network:
    """Walks the bindings of one function."""

    machine: Machine
    builder: Any
    uses: dict[Any, int]
    values: dict[Any, _Value] = field(default_factory=dict)
    constants: dict[Any, Array] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    known: dict[Kernel, str] = field(default_factory=dict)
    functions: dict[Any, Any] = field(default_factory=dict)
    shapes: dict[Any, tuple[int, ...] | None] = field(default_factory=dict)

    # Values in one layout or the other.

    def array(self, expr: Any) -> Array | None:
        """A constant's elements."""
        if isinstance(expr, GenericConst):
            return expr.value.numpy()
        return self.constants.get(expr)

    def plain(self, expr: Any) -> Any:
        """As the ONNX file means it."""
        if not isinstance(expr, relax.Var):
            return self._rebuilt(expr)
        if expr in self.constants:
            return _const(self.constants[expr])
        if expr in self.shapes:
            return relax.ShapeExpr(self.shapes[expr])
        value = self._emitted(expr)
        if value.plain is None:
            made = value.pixels
            n, h, w, c = sized(made)
            if h * w > 1 and c > 1:
                made = self.builder.emit(relax.op.permute_dims(made, [0, 3, 1, 2]))
            if shape_of(made) != shape_of(expr):
                made = self.builder.emit(relax.op.reshape(made, shape_of(expr)))
            value.plain = made
        return value.plain

    def _rebuilt(self, expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.plain(part) for part in expr.fields])
        return self.functions.get(expr, expr) if isinstance(expr, relax.GlobalVar) else expr

    def pixels(self, expr: Any) -> Any:
        """[n, y, x, c]."""
        constant = self.array(expr)
        if constant is not None:
            return _const(_to_pixels(constant, 4))
        value = self._emitted(expr)
        if value.pixels is None:
            n, c, *size = sized(expr)
            h, w = size if len(size) == 2 else (1, size[0])
            made = value.plain
            if h * w > 1 and c > 1:
                if len(size) != 2:
                    made = self.builder.emit(relax.op.reshape(made, (n, c, h, w)))
                value.pixels = self.builder.emit(relax.op.permute_dims(made, [0, 2, 3, 1]))
            else:
                value.pixels = self.builder.emit(relax.op.reshape(made, (n, h, w, c)))
        return value.pixels

    def has_pixels(self, expr: Any) -> bool:
        """Whether [n, y, x, c] costs nothing."""
        value = self.values.get(expr) if isinstance(expr, relax.Var) else None
        return value is not None and (value.pixels is not None or _is_map(value.held))

    def _emitted(self, expr: Any) -> _Value:
        value = self.values[expr]
        if value.held is not None:
            held, value.held = value.held, None
            name = self._name(held.kernel)
            packed = weights_of(held.kernel, held.weights), bias_of(held.kernel, held.bias)
            seconds = [] if held.second is None else [held.second]
            made = self._call(name, [held.input, *seconds, *map(_const, packed)], held.shape)
            if _is_map(held):
                value.pixels = made
            else:
                value.plain = self.builder.emit(relax.op.reshape(made, held.logical))
        return value

    def _name(self, kernel: Kernel) -> str:
        if kernel not in self.known:
            self.known[kernel] = f"{PREFIX}{type(kernel).__name__.lower()}{len(self.known)}"
            self.kernels[self.known[kernel]] = kernel
        return self.known[kernel]

    def _call(self, name: str, inputs: list[Any], shape: tuple[int, ...]) -> Any:
        return self.builder.emit(relax.op.call_dps_packed(name, inputs, out_ty=relax.TensorType(shape, "float32")))

    # One binding.

    def bind(self, variable: Any, call: Any) -> None:
        """Emit what a binding means."""
        name = call.op.name if isinstance(call, relax.Call) and hasattr(call.op, "name") else ""
        if name == "relax.shape_of" and shape_of(call.args[0]) is not None:
            self.shapes[variable] = shape_of(call.args[0])
            return
        if (folded := self._folded(name, call, variable)) is not None:
            self.constants[variable] = folded
            return
        value = self._own(name, call, variable)
        if value is None:
            value = _Value(plain=self.builder.emit(self._general(call)))
        self.values[variable] = value

    def _folded(self, name: str, call: Any, variable: Any) -> Array | None:
        """Of constants alone: TVM would compile a function for each, and run it once."""
        shape = shape_of(variable)
        if shape is None or not isinstance(call, relax.Call):
            return None
        if name == "relax.shape_to_tensor" and call.args[0] in self.shapes:
            return np.array(self.shapes[call.args[0]], np.int64)
        if name in _MOVES and (array := self.array(call.args[0])) is not None:
            axes = call.attrs.axes if name == "relax.permute_dims" else None
            if name == "relax.permute_dims":
                return array.transpose(None if axes is None else [int(a) for a in axes])
            return array.reshape(shape)
        if name not in _FOLDS:
            return None
        arrays = [array for array in map(self.array, call.args) if array is not None]
        if len(arrays) != len(call.args):
            return None
        if name == "relax.take":
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            found = np.take(arrays[0], arrays[1], axis, mode="wrap")
        else:
            found = _FOLDS[name](*arrays)
        return found.astype(_dtype(variable)).reshape(shape)

    def _general(self, call: Any) -> Any:
        name = getattr(call.op, "name", "") if isinstance(call, relax.Call) else ""
        if name == "relax.take" and call.attrs.axis is not None:
            source, indices = (self.plain(a) for a in call.args)  # "fast", the importer's mode, reads anywhere
            return relax.op.take(source, indices, int(call.attrs.axis), "clip")
        if isinstance(call, relax.Call):
            return relax.Call(call.op, [self.plain(a) for a in call.args], call.attrs, call.ty_args)
        if isinstance(call, relax.TupleGetItem):
            return relax.TupleGetItem(self.plain(call.tuple_value), call.index)
        return self.plain(call)

    def _own(self, name: str, call: Any, variable: Any) -> _Value | None:
        if not isinstance(call, relax.Call) or _dtype(variable) != "float32" or not shape_of(variable):
            return None
        match name:
            case "relax.nn.conv2d" | "relax.nn.conv1d":
                return self._conv(call, variable)
            case "relax.matmul":
                return self._matmul(call, variable)
            case "relax.nn.max_pool2d" | "relax.nn.avg_pool2d":
                return self._pool(name, call, variable)
            case "relax.nn.adaptive_avg_pool2d":
                return self._global_pool(call, variable)
            case "relax.mean":
                return self._mean(call, variable)
            case "relax.concat":
                return self._concat(call)
            case "relax.take":
                return self._take_channels(call, variable)
        if name in _BINARY and (absorbed := self._absorbed(name, call, variable)) is not None:
            return absorbed
        if name in ("relax.nn.relu", "relax.clip") and (bounded := self._bounded(name, call)) is not None:
            return bounded
        if name in _UNARY or name in _BINARY:
            return self._elementwise(name, call, variable)
        return None

    # Convolutions.

    def _conv(self, call: Any, variable: Any) -> _Value | None:
        weights = self.array(call.args[1])
        if weights is None or weights.dtype != np.float32 or shape_of(call.args[0]) is None:
            return None
        attrs, flat = call.attrs, weights.ndim == 3
        strides, dilations = _pair(attrs.strides, flat), _pair(attrs.dilation, flat)
        pads = _pads(attrs.padding, flat)
        weights = weights[:, :, None] if flat else weights
        groups, kernel = int(attrs.groups), (weights.shape[2], weights.shape[3])
        n, channels, *size = sized(call.args[0])
        height, width = size if not flat else (1, size[0])
        _, outputs, *out = sized(variable)
        rows, columns = out if not flat else (1, out[0])
        is_depthwise = groups == channels == outputs
        if kernel[1] > _MOST_TAPS and (pads[1] or pads[3]):
            padded = self.builder.emit(relax.op.nn.pad(self.pixels(call.args[0]), _pad_width(pads)))
            height, width, pads = height + pads[0] + pads[2], width + pads[1] + pads[3], (0, 0, 0, 0)
            source, given = _dense(height, width, channels), padded
        elif not self.has_pixels(call.args[0]) and channels <= 4 and not is_depthwise and not flat:
            source = Strides(channels * height * width, width, 1, height * width)
            given = self.plain(call.args[0])
        else:
            source, given = _dense(height, width, channels), self.pixels(call.args[0])
        window = Window((height, width), kernel, strides, dilations, (pads[0], pads[1]))
        shape, logical = (n, rows, columns, outputs), sized(variable)
        bias = np.zeros(outputs, np.float32)
        if is_depthwise:
            pixels = packing.depthwise_pixels(self.machine, columns)
            made: Conv | Depthwise = Depthwise(
                n, rows, columns, channels, window, Finish(), pixels, self.machine.lanes
            )
        else:
            if kernel == strides == (1, 1) and not any(pads) and source.channel == 1:
                rows, columns = _one_line(rows, columns)
                window = replace(window, size=(rows, columns))
                source = _dense(rows, columns, channels)
            made = self._tiled(n, rows, columns, channels // groups, outputs // groups, groups, window, source)
        return _Value(held=_Held(made, given, weights, bias, shape, logical))

    def _tiled(
        self, n: int, rows: int, columns: int, inputs: int, outputs: int, groups: int, window: Window, source: Strides
    ) -> Conv:
        pixels, vectors = packing.tile(self.machine, outputs, columns)
        lanes = self.machine.lanes
        return Conv(
            n, rows, columns, inputs, outputs, groups, window, source, Finish(), pixels, vectors, lanes
        )

    def _matmul(self, call: Any, variable: Any) -> _Value | None:
        weights, given = self.array(call.args[1]), shape_of(call.args[0])
        if weights is None or weights.dtype != np.float32 or given is None or len(given) < 2:
            return None
        if weights.ndim < 2 or any(size != 1 for size in weights.shape[:-2]) or weights.ndim > len(given):
            return None
        depth, outputs = weights.shape[-2:]
        lines = int(np.prod(given[:-1]))
        rows, columns = _one_line(1, lines)
        window = Window((rows, columns), (1, 1), (1, 1), (1, 1), (0, 0))
        kernel = self._tiled(1, rows, columns, depth, outputs, 1, window, _dense(rows, columns, depth))
        packed = weights.reshape(depth, outputs).T[:, :, None, None]
        bias = np.zeros(outputs, np.float32)
        source = self.plain(call.args[0])
        return _Value(held=_Held(kernel, source, packed, bias, (lines, outputs), sized(variable)))

    def _absorbed(self, name: str, call: Any, variable: Any) -> _Value | None:
        """An addition that goes into the convolution before it."""
        if name != "relax.add":
            return None
        for own, other in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
            held = self._held(own)
            if held is None or held.logical != shape_of(variable):
                continue
            constant = self.array(other)
            if constant is not None:
                bias = _per_channel(constant, held)
                if bias is not None and held.second is None:
                    return self._take(own, replace(held, bias=held.bias + bias))
            elif held.second is None and shape_of(other) == held.logical and _dtype(other) == "float32":
                second = self.pixels(other) if _is_map(held) else self.plain(other)
                kernel = replace(held.kernel, finish=replace(held.kernel.finish, has_second=True))
                return self._take(own, replace(held, kernel=kernel, second=second))
        return None

    def _bounded(self, name: str, call: Any) -> _Value | None:
        """Relu or Clip that goes into the convolution before it."""
        held = self._held(call.args[0])
        if held is None:
            return None
        low: float | None = 0.0
        high: float | None = None
        if name == "relax.clip":
            low, high = (_number(a) for a in call.args[1:3])
            if low is None or high is None:
                return None
            most = float(np.finfo(np.float32).max)
            low, high = (v if abs(v) < most else None for v in (low, high))
        kernel = replace(held.kernel, finish=replace(held.kernel.finish, low=low, high=high))
        return self._take(call.args[0], replace(held, kernel=kernel, is_open=False))

    def _held(self, expr: Any) -> _Held | None:
        value = self.values.get(expr) if isinstance(expr, relax.Var) else None
        held = value.held if value is not None else None
        return held if held is not None and held.is_open and self.uses[expr] == 1 else None

    def _take(self, expr: Any, held: _Held) -> _Value:
        self.values[expr].held = None
        return _Value(held=held)

    # Pools.

    def _pool(self, name: str, call: Any, variable: Any) -> _Value | None:
        attrs = call.attrs
        if attrs.layout != "NCHW" or shape_of(call.args[0]) is None:
            return None
        pads = _pads(attrs.padding, False)
        kernel, strides = _pair(attrs.pool_size, False), _pair(attrs.strides, False)
        kind = "max" if name.endswith("max_pool2d") else "average"
        counts = kind == "average" and bool(attrs.count_include_pad)
        return self._pooled(kind, call.args[0], variable, kernel, strides, _pair(attrs.dilation, False), pads, counts)

    def _pooled(
        self, kind: Any, given: Any, variable: Any, kernel: Any, strides: Any, dilations: Any, pads: Any, counts: bool
    ) -> _Value:
        n, channels, height, width = sized(given)
        _, _, rows, columns = sized(variable)
        window = Window((height, width), kernel, strides, dilations, (pads[0], pads[1]))
        padded = (height + pads[0] + pads[2], width + pads[1] + pads[3])
        made = Pool(kind, n, rows, columns, channels, window, counts, padded, self.machine.lanes)
        return _Value(pixels=self._call(self._name(made), [self.pixels(given)], (n, rows, columns, channels)))

    def _global_pool(self, call: Any, variable: Any) -> _Value | None:
        shape = shape_of(call.args[0])
        if shape is None or sized(variable)[2:] != (1, 1) or call.attrs.layout != "NCHW":
            return None
        size = shape[2:]
        return self._pooled("average", call.args[0], variable, size, size, (1, 1), (0, 0, 0, 0), False)

    def _mean(self, call: Any, variable: Any) -> _Value | None:
        shape, axes = shape_of(call.args[0]), call.attrs.axis
        if shape is None or len(shape) != 4 or axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
            return None
        if not self.has_pixels(call.args[0]):
            return None
        n, channels, height, width = shape
        size = (height, width)
        window = Window(size, size, (1, 1), (1, 1), (0, 0))
        made = Pool("average", n, 1, 1, channels, window, False, size, self.machine.lanes)
        pixels = self._call(self._name(made), [self.pixels(call.args[0])], (n, 1, 1, channels))
        if call.attrs.keepdims:
            return _Value(pixels=pixels)
        return _Value(plain=self.builder.emit(relax.op.reshape(pixels, shape_of(variable))))

    # What is the same in every layout.

    def _elementwise(self, name: str, call: Any, variable: Any) -> _Value | None:
        shape = sized(variable)
        tensors = list(call.args) if name in _BINARY else [call.args[0]]
        if len(shape) not in (3, 4) or not any(self.has_pixels(t) for t in tensors):
            return None
        converted = []
        for tensor in tensors:
            constant, own = self.array(tensor), shape_of(tensor)
            if constant is not None:
                converted.append(_const(_to_pixels(constant, len(shape))))
            elif own is not None and len(own) == len(shape):
                converted.append(self.pixels(tensor))
            else:
                return None
        rest = [] if name in _BINARY else list(call.args[1:])
        return _Value(pixels=self.builder.emit(relax.Call(call.op, [*converted, *rest], call.attrs, call.ty_args)))

    def _concat(self, call: Any) -> _Value | None:
        parts = call.args[0]
        if not isinstance(parts, relax.Tuple) or call.attrs.axis is None:
            return None
        shapes = [shape_of(p) or () for p in parts.fields]
        if any(len(s) != 4 for s in shapes) or int(call.attrs.axis) % 4 != 1:
            return None
        if not all(self.has_pixels(p) for p in parts.fields):
            return None
        together = relax.op.concat([self.pixels(p) for p in parts.fields], axis=3)
        return _Value(pixels=self.builder.emit(together))


    def _take_channels(self, call: Any, variable: Any) -> _Value | None:
        indices, shape = self.array(call.args[1]), shape_of(call.args[0])
        if indices is None or indices.ndim != 1 or call.attrs.axis is None or shape is None or len(shape) != 4:
            return None
        if int(call.attrs.axis) % 4 != 1 or not self.has_pixels(call.args[0]):
            return None
        source = self.pixels(call.args[0])
        return _Value(pixels=self.builder.emit(relax.op.take(source, _const(indices), 3, "clip")))


def network(module: Any, machine: Machine) -> Networked:
    """Put our own kernels into an imported module."""
    main = module["main"]
    uses: dict[Any, int] = {}

    def count(expr: Any) -> None:
        for operand in _operands(expr):
            if isinstance(operand, relax.Var):
                uses[operand] = uses.get(operand, 0) + 1

    relax.analysis.post_order_visit(main.body, count)
    builder = relax.BlockBuilder()
    walk = _Network(machine, builder, uses)
    for name, function in module.functions.items():  # operators that the importer has already made TIR of
        if name.name_hint != "main":
            walk.functions[name] = builder.add_func(function, name.name_hint)
    parameters = [relax.Var(p.name, p.ty) for p in main.params]
    for old, new in zip(main.params, parameters):
        walk.values[old] = _Value(plain=new)
    with builder.function("main", parameters):
        with builder.dataflow():
            for block in main.body.blocks:
                for binding in block.bindings:
                    walk.bind(binding.var, binding.value)
            result = builder.emit_output(walk.plain(main.body.body))
        builder.emit_func_output(result)
    return Networked(builder.finalize(), walk.kernels)


def _operands(expr: Any) -> Sequence[Any]:
    if isinstance(expr, relax.Call):
        return expr.args
    if isinstance(expr, relax.Tuple):
        return expr.fields
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    if isinstance(expr, relax.SeqExpr):
        return [expr.body]
    return []


def _const(array: Array) -> Any:
    """Of the array's own type, which TVM takes from Python's for a scalar."""
    return relax.const(np.array(array, order="C"), str(array.dtype))


def sized(expr: Any) -> tuple[int, ...]:
    """Static shape of a tensor that is known to have one."""
    shape = shape_of(expr)
    assert shape is not None
    return shape


def shape_of(expr: Any) -> tuple[int, ...] | None:
    """Static shape of a tensor, or None."""
    kind = getattr(expr, "ty", None)
    shape = getattr(kind, "shape", None)
    if shape is None or not hasattr(shape, "values"):
        return None
    try:
        return tuple(int(v) for v in shape.values)
    except TypeError:
        return None


def _dtype(expr: Any) -> str:
    return str(getattr(getattr(expr, "ty", None), "dtype", ""))


def _is_map(held: _Held | None) -> bool:
    return held is not None and len(held.shape) == 4


def _dense(height: int, width: int, channels: int) -> Strides:
    return Strides(height * width * channels, width * channels, channels, 1)


def _one_line(rows: int, columns: int) -> tuple[int, int]:
    """Where rows follow each other without a gap, they may be cut anew: as long as tiles can be of one size."""
    count = rows * columns
    good = [c for c in range(1, min(count, 128) + 1) if count % c == 0]
    long = [c for c in good if c >= min(24, count)]
    return (count // min(long), min(long)) if long else (1, count)


def _pair(values: Any, flat: bool) -> tuple[int, int]:
    found = [int(v) for v in values]
    return (1, found[0]) if flat else (found[0], found[-1])


def _pads(values: Any, flat: bool) -> tuple[int, int, int, int]:
    """(top, left, bottom, right)."""
    found = [int(v) for v in values]
    if flat:
        return (0, found[0], 0, found[-1])
    if len(found) == 4:
        return (found[0], found[1], found[2], found[3])
    return (found[0], found[-1], found[0], found[-1])


def _pad_width(pads: tuple[int, int, int, int]) -> list[int]:
    return [0, 0, pads[0], pads[2], pads[1], pads[3], 0, 0]


def _to_pixels(array: Array, rank: int) -> Array:
    """A constant that is broadcast against [n, c, (y,) x], for [n, y, x, c]."""
    if array.ndim == 0:
        return array
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    full = full if rank == 4 else full[:, :, None]
    return np.ascontiguousarray(full.transpose(0, 2, 3, 1))


def _per_channel(constant: Array, held: _Held) -> Array | None:
    """One number for each output channel, or None."""
    channels = held.shape[-1]
    axis = 1 if _is_map(held) else len(held.logical) - 1
    if constant.ndim > len(held.logical) or constant.dtype != np.float32:
        return None
    full = constant.reshape((1,) * (len(held.logical) - constant.ndim) + constant.shape)
    if any(size != 1 for i, size in enumerate(full.shape) if i != axis):
        return None
    return np.broadcast_to(full.reshape(-1), (channels,))


def _number(expr: Any) -> float | None:
    value = getattr(expr, "value", expr)
    try:
        return float(getattr(value, "value", value))
    except TypeError:
        return None
