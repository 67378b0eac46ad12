"""Writes TIR: a thin layer over TVM's statement and expression nodes, with vectors of a fixed number of lanes.

Functions get plain C signatures (calling convention 2 passes arguments as they are), so that nothing of TVM is needed
where they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class _Late:
    """A module that is imported when it is first used: loading TVM takes seconds, and what only runs needs none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


ir, tirx = _Late("tvm.ir"), _Late("tvm.tirx")

Expr = Any
"""A TIR expression; TVM's classes have no useful types."""

_LARGE = 1 << 30
_PLAIN_C = 2


class Writer:
    """One function `name(parameters...)` being written, statement by statement; loop counters have the type `index`."""

    def __init__(self, name: str, index: str) -> None:
        self.name, self._index = name, index
        self._parameters: list[Any] = []
        self._head: list[Any] = []
        self._blocks: list[list[Any]] = [[]]
        self._count = 0

    # The signature.

    def pointer(self, name: str, dtype: str) -> Expr:
        """A parameter `dtype *name`; returned as a buffer."""
        data = tirx.Var(name, ir.PointerType(ir.PrimType(dtype)))
        self._parameters.append(data)
        buffer = tirx.decl_buffer((_LARGE,), dtype, f"{name}_buffer", data=data)
        self._head.append(tirx.DeclBuffer(buffer, data=data))
        return buffer

    def integer(self, name: str) -> Expr:
        """A parameter `int32_t name`, as an index."""
        variable = tirx.Var(name, "int32")
        self._parameters.append(variable)
        if self._index == "int32":
            return variable
        wide = tirx.Var(f"{name}_index", self._index)
        self._head.append(tirx.Bind(wide, tirx.Cast(self._index, variable)))
        return wide

    def function(self) -> Any:
        """The finished PrimFunc."""
        (body,) = self._blocks
        made = tirx.PrimFunc(self._parameters, _sequence([*self._head, *body]))
        made = made.with_attr("global_symbol", self.name).with_attr("calling_conv", _PLAIN_C)
        return made.with_attr("tirx.noalias", True)

    # Statements.

    @contextmanager
    def loop(self, start: Expr, stop: Expr) -> Iterator[Expr]:
        """for (i = start; i < stop; i++)."""
        self._count += 1
        variable = tirx.Var(f"i{self._count}", self._index)
        self._blocks.append([])
        yield variable
        body = _sequence(self._blocks.pop())
        extent = stop - start if not (isinstance(start, int) and start == 0) else stop
        limits = [tirx.IntImm(self._index, v) if isinstance(v, int) else v for v in (start, extent)]
        self._add(tirx.For(variable, *limits, tirx.ForKind.SERIAL, body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if (condition)."""
        self._blocks.append([])
        yield
        self._add(tirx.IfThenElse(condition, _sequence(self._blocks.pop()), None))

    def unrolled(self, count: int, most: int) -> Iterator[Expr]:
        """Indices 0 to count - 1: written out if they are few, else one loop."""
        if count <= most:
            yield from range(count)
        else:
            with self.loop(0, count) as index:
                yield index

    def local(self, size: int, dtype: str) -> Expr:
        """Scratch; in registers, where all indices are constant."""
        self._count += 1
        buffer = tirx.decl_buffer((size,), dtype, f"local{self._count}", scope="local")
        self._add(tirx.AllocBuffer(buffer))
        return buffer

    def let(self, value: Expr) -> Expr:
        """Name a value; a number is its own name."""
        if isinstance(value, int):
            return value
        self._count += 1
        variable = tirx.Var(f"v{self._count}", dtype_of(value))
        self._add(tirx.Bind(variable, value))
        return variable

    def store(self, buffer: Expr, index: Expr, value: Expr) -> None:
        """buffer[index ...] = value, as many elements as the value has lanes."""
        count = lanes_of(value)
        self._add(tirx.BufferStore(buffer, value, [_span(index, count)]))

    def _add(self, statement: Any) -> None:
        self._blocks[-1].append(statement)


def load(buffer: Expr, index: Expr, lanes: int = 1) -> Expr:
    """buffer[index], or `lanes` neighbours as a vector."""
    return tirx.BufferLoad(buffer, [_span(index, lanes)])


def load_part(buffer: Expr, index: Expr, lanes: int, count: int) -> Expr:
    """The first `count` of `lanes` neighbours, 0 in the other lanes: nothing is read beyond them."""
    if count == lanes:
        return load(buffer, index, lanes)
    pieces: list[Expr] = []
    done = 0
    for size in (32, 16, 8, 4, 2, 1):
        if size <= count - done:
            pieces.append(load(buffer, index + done, size))
            done += size
    pieces.append(constant(0, dtype_of(pieces[0]).partition("x")[0], lanes))  # TIR wants as many as come out
    order = [*range(count), *[count] * (lanes - count)]
    return tirx.Shuffle(pieces, [_index(lane) for lane in order])


def constant(value: float, dtype: str, lanes: int = 1) -> Expr:
    """A number, in every lane."""
    number = tirx.FloatImm(dtype, float(value)) if dtype.startswith("float") else tirx.IntImm(dtype, int(value))
    return spread(number, lanes)


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def cast(value: Expr, dtype: str) -> Expr:
    """To another element type, the same lanes."""
    lanes = lanes_of(value)
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def reinterpret(value: Expr, dtype: str) -> Expr:
    """The same bits; `dtype` with its lanes."""
    return tirx.reinterpret(dtype, value)


def intrinsic(dtype: str, name: str, *arguments: Expr) -> Expr:
    """An LLVM intrinsic without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def named(value: Expr, use: Callable[[Expr], Expr]) -> Expr:
    """use(value), computed once."""
    variable = tirx.Var("named", dtype_of(value))
    return tirx.Let(variable, value, use(variable))


def multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, rounded once where the processor can."""
    return intrinsic(dtype_of(c), "llvm.fmuladd", a, b, c)


def quotient(a: Expr, b: int) -> Expr:
    """Of integers that are not negative."""
    return tirx.truncdiv(a, tirx.IntImm(dtype_of(a), b))


def remainder(a: Expr, b: int) -> Expr:
    """Of integers that are not negative."""
    return tirx.truncmod(a, tirx.IntImm(dtype_of(a), b))


def part(vector: Expr, first: int, count: int) -> Expr:
    """`count` neighbouring lanes of a vector."""
    if count == lanes_of(vector):
        return vector
    if isinstance(vector, tirx.Broadcast):
        return spread(vector.value, count)
    return tirx.Shuffle([vector], [_index(first + i) for i in range(count)])


def shuffled(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Lanes of vectors laid side by side."""
    return tirx.Shuffle(list(vectors), [_index(lane) for lane in lanes])


def clamp(value: Expr, low: Expr, high: Expr) -> Expr:
    return tirx.max(tirx.min(value, high), low)


def largest(a: Expr, b: Expr) -> Expr:
    return tirx.max(a, b)


def smallest(a: Expr, b: Expr) -> Expr:
    return tirx.min(a, b)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    return tirx.Select(condition, yes, no)


def dtype_of(value: Expr) -> str:
    """With lanes, as "int32x16"."""
    return str(value.ty.dtype) if hasattr(value, "ty") else str(value.dtype)


def lanes_of(value: Expr) -> int:
    _, _, lanes = dtype_of(value).partition("x")
    return int(lanes or 1)


def _index(value: Expr) -> Expr:
    return tirx.IntImm("int32", value) if isinstance(value, int) else value


def _span(index: Expr, lanes: int) -> Expr:
    first = _index(index)
    return first if lanes == 1 else tirx.Ramp(first, tirx.IntImm(dtype_of(first), 1), lanes)


def _sequence(statements: list[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(_index(0))
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
