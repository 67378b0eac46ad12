"""A network with our kernels in it becomes functions with arguments, one arena and one block of constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir.expr import GenericConst

from backends.base import Unsupported, UnsupportedOpError
from backends.cpu import memory
from backends.cpu.floats import elementary, graph, operators
from backends.cpu.floats.graph import Kernel, shape_of
from backends.cpu.floats.program import At, Call, Program, Tensor
from backends.cpu.machine import Machine

_REMEDY = "take it out of the network, or leave this part to onnxruntime"


def make_plan(module: Any, machine: Machine, names: tuple[tuple[str, ...], tuple[str, ...]]) -> Program:
    """Lower an imported module.

    Args:
        module: From `importing`.
        machine: That it runs on.
        names: Of the inputs and outputs.

    Raises:
        UnsupportedOpError: Something needs TVM's runtime, or shapes that only a run knows.
    """
    elementary.register()
    made = graph.network(module, machine)
    target = operators.target_of(machine)
    legal = operators.legalized(made.module, target)
    return _Planner(legal, made.kernels, machine).plan(names)


_ALIGN = 64
"""Bytes: a cache line, and the widest vector."""
_SMALL, _MOST_CHUNKS = 200_000, 16


def _chunks(work: int, units: int) -> int:
    """Into how many a step is cut; one, where handing it to another thread takes longer than doing it."""
    return 1 if work < _SMALL else max(1, min(units, work // (_SMALL // 2), _MOST_CHUNKS))


@dataclass
class _Constants:
    data: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)

    def add(self, values: Any) -> int:
        raw = np.ascontiguousarray(values).tobytes()
        key = raw if len(raw) < 4096 else repr(hash(raw)).encode() + raw[:64]
        found = self.known.get(key)
        if found is not None and self.data[found : found + len(raw)] == raw:
            return found
        self.data += bytes(-len(self.data) % _ALIGN)
        self.known[key] = len(self.data)
        self.data += raw
        return self.known[key]


@dataclass
class _Planner:
    module: Any
    kernels: dict[str, Kernel]
    machine: Machine
    places: dict[Any, At] = field(default_factory=dict)
    tuples: dict[Any, list[At]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    functions: dict[str, Any] = field(default_factory=dict)
    lowered: dict[str, tuple[operators.Operator, list[str]]] = field(default_factory=dict)
    constants: _Constants = field(default_factory=_Constants)
    macs: int = 0
    bad: list[Unsupported] = field(default_factory=list)

    def plan(self, names: tuple[tuple[str, ...], tuple[str, ...]]) -> Program:
        main = self.module["main"]
        for index, parameter in enumerate(main.params):
            self.places[parameter] = At("in", index)
        results = self._results(main)
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        if self.bad:
            raise UnsupportedOpError(tuple(dict.fromkeys(self.bad)))
        inputs = tuple(_tensor(n, p) for n, p in zip(names[0], main.params, strict=True))
        outputs = tuple(_tensor(n, r) for n, r in zip(names[1], results, strict=True))
        finals = [self._at(r) for r in results]
        calls, copies = _to_outputs(self.calls, finals, outputs)
        arena = memory.place(_lifetimes(calls, self.sizes), _ALIGN, _ALIGN)
        used = {call.function for call in calls}
        functions = {name: writer for name, writer in self.functions.items() if name in used}
        data = bytes(self.constants.data)
        return Program(
            self.machine, inputs, outputs, tuple(calls), tuple(copies), functions, arena, data, self.macs
        )

    def _results(self, main: Any) -> list[Any]:
        """The values that are returned; a tuple's parts are found through its binding."""
        last = main.body.body
        bound = {b.var: b.value for block in main.body.blocks for b in block.bindings}
        while last in bound and isinstance(bound[last], relax.Var | relax.Tuple):
            last = bound[last]
            if isinstance(last, relax.Tuple):
                return list(last.fields)
        return list(last.fields) if isinstance(last, relax.Tuple) else [last]

    # Bindings.

    def _bind(self, variable: Any, value: Any) -> None:
        if isinstance(value, relax.Var | GenericConst):
            self.places[variable] = self._at(value)
        elif isinstance(value, relax.Tuple):
            self.tuples[variable] = [self._at(f) for f in value.fields]
        elif isinstance(value, relax.TupleGetItem):
            self.places[variable] = self._part(value)
        elif isinstance(value, relax.Call):
            self._call(variable, value)
        else:
            self._refuse(str(type(value).__name__), "is control flow")

    def _call(self, variable: Any, call: Any) -> None:
        name = getattr(call.op, "name", "")
        if name == "relax.call_dps_packed":
            symbol = str(call.args[0].global_symbol)
            self._own(symbol, variable, call)
        elif name == "relax.call_tir":
            self._operator(variable, call)
        elif name == "relax.reshape":
            self.places[variable] = self._at(call.args[0])
        else:
            self._refuse(name or "a call", "TVM has no operator of static shape for it")

    def _own(self, symbol: str, variable: Any, call: Any) -> None:
        kernel = self.kernels.get(symbol)
        if kernel is None:
            self._refuse(symbol, "needs TVM's runtime")
            return
        output = self._new(variable)
        given = [self._at(a) for a in call.args[1].fields]
        source, *rest = given
        has_second = not isinstance(kernel, graph.Pool) and kernel.finish.has_second
        second = rest.pop(0) if has_second else None
        weights, bias = rest if rest else (None, None)
        name = symbol.removeprefix(graph.PREFIX)
        self.functions[name] = kernel
        chunks = _chunks(kernel.work, kernel.units)
        self.macs += 0 if isinstance(kernel, graph.Pool) else kernel.macs
        self.calls.append(Call(name, (source, second, output, weights, bias), kernel.units, chunks))

    def _operator(self, variable: Any, call: Any) -> None:
        symbol = call.args[0].name_hint
        if len(call.args) > 2:
            self._refuse(symbol, "has shapes that only a run knows")
            return
        if symbol not in self.lowered:
            try:
                made = operators.operator(self.module[symbol], self.machine)
            except operators.ForeignCallError as error:
                self._refuse(symbol, f"TVM's code for it needs {error}")
                return
            names = [f"{symbol}_{i}" for i in range(len(made.nests))]
            self.lowered[symbol] = (made, names)
            self.functions |= dict(zip(names, made.nests))
        made, names = self.lowered[symbol]
        kind = variable.ty
        if isinstance(kind, relax.TupleType):
            parts = [self._space(t) for t in kind.fields]
            self.tuples[variable] = parts
        else:
            parts = [self._new(variable)]
        scratch = [self._buffer(s.size) for s in made.scratch]
        given = [*(self._at(a) for a in call.args[1].fields), *parts, *scratch]
        for name, nest in zip(names, made.nests):
            arguments = tuple(given[i] for i in nest.arguments)
            work = 4 * sum(self.sizes[str(at.what)] for at in arguments if at.where == "arena")
            self.calls.append(Call(name, arguments, nest.units, _chunks(work, nest.units)))

    def _refuse(self, op: str, reason: str) -> None:
        self.bad.append(Unsupported(op, op.removeprefix("relax."), reason, _REMEDY))

    def _part(self, value: Any) -> At:
        parts = self.tuples.get(value.tuple_value)
        return parts[value.index] if parts else At("constants", 0)  # of what was refused

    # Memory.

    def _at(self, value: Any) -> At:
        if isinstance(value, GenericConst):
            return At("constants", self.constants.add(value.value.numpy()))
        return self.places.get(value, At("constants", 0))

    def _new(self, variable: Any) -> At:
        self.places[variable] = self._space(variable.ty)
        return self.places[variable]

    def _space(self, kind: Any) -> At:
        shape = shape_of(_Typed(kind))
        if shape is None:
            self._refuse("a value", "has a shape that only a run knows")
            return self._buffer(0)
        return self._buffer(int(np.prod(shape, dtype=np.int64)) * _item_bytes(str(kind.dtype)))

    def _buffer(self, size: int) -> At:
        name = f"b{len(self.sizes)}"
        self.sizes[name] = max(size, 1)
        return At("arena", name)


@dataclass
class _Typed:
    ty: Any


def _item_bytes(dtype: str) -> int:
    return max(1, tvm.DataType(dtype).bits // 8)


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, GenericConst):
        return Tensor(name, tuple(value.value.shape), str(value.value.dtype))
    return Tensor(name, shape_of(value) or (), str(value.ty.dtype))


def _to_outputs(
    calls: list[Call], finals: list[At], outputs: tuple[Tensor, ...]
) -> tuple[list[Call], list[tuple[At, int, int]]]:
    """What is computed into the arena and is an output is computed into the caller's memory."""
    moved: dict[At, At] = {}
    copies = []
    for index, place in enumerate(finals):
        if place.where == "arena" and place not in moved:
            moved[place] = At("out", index)
        else:
            copies.append((moved.get(place, place), index, outputs[index].bytes))
    changed = [
        replace(c, arguments=tuple(moved.get(a, a) if a is not None else None for a in c.arguments))
        for c in calls
    ]
    return changed, copies


def _lifetimes(calls: list[Call], sizes: Mapping[str, int]) -> dict[str, memory.Lifetime]:
    spans: dict[str, tuple[int, int]] = {}
    for index, call in enumerate(calls):
        for place in call.arguments:
            if place is not None and place.where == "arena":
                first, _ = spans.get(str(place.what), (index, index))
                spans[str(place.what)] = (first, index)
    return {name: memory.Lifetime(sizes[name], *span) for name, span in spans.items()}
