"""TVM's own operators as plain functions: legalized, fused, inlined, and cut into loops that threads can share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import ir, relax, s_tir, tirx

from backends.cpu.machine import Machine

_VECTOR = 16
"""Elements of a row that LLVM is given at once; it makes what the processor has of them."""


def target_of(machine: Machine) -> Any:
    """For TVM."""
    about: dict[str, object] = {"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu}
    if machine.features:
        about["mattr"] = list(machine.features)
    if machine.float_abi:
        about["mfloat-abi"] = machine.float_abi
    return tvm.target.Target(about)


def legalized(module: Any, target: Any) -> Any:
    """Every operator as TIR, neighbours fused, constants folded."""
    steps = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.backend.DispatchSortScan(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
    ]
    with target:
        for step in steps:
            module = step(module)
    return module


@dataclass(frozen=True)
class Scratch:
    """Memory that lives while an operator runs."""

    size: int


@dataclass(frozen=True, eq=False)
class Nest:
    """One function of an operator.

    Attributes:
        function: Takes its pointers, then `begin` and `end`.
        arguments: For each pointer, an index into the operator's parameters, or after them its scratch.
        units: Pieces of work that threads share.
    """

    function: Any
    arguments: tuple[int, ...]
    units: int

    def write(self, name: str, machine: Machine) -> Any:
        """The PrimFunc under a name."""
        return self.function.with_attr("global_symbol", name)


@dataclass(frozen=True, eq=False)
class Operator:
    """What a PrimFunc of TVM became."""

    nests: tuple[Nest, ...]
    scratch: tuple[Scratch, ...]


class ForeignCallError(ValueError):
    """An operator that calls a function of TVM's runtime."""


def operator(function: Any, machine: Machine) -> Operator:
    """Lower a PrimFunc of static shapes.

    Raises:
        ForeignCallError: It needs TVM's runtime.
    """
    _refuse_foreign(function)
    try:
        flat = _lowered(_scheduled(function))
    except RuntimeError as error:  # TVM's internal errors: buffers with offsets of their own, for one
        raise ForeignCallError("memory in a way that only TVM's runtime can give") from error
    _refuse_foreign(flat)
    head, statements = _split(flat.body)
    scratch = [s.buffer for s in head if isinstance(s, tirx.AllocBuffer)]
    buffers = [(buffer, index) for index, buffer in enumerate([*flat.params, *scratch])]
    for declared in head:
        if isinstance(declared, tirx.DeclBuffer):
            owner = declared.data.args[0]
            buffers.append((declared.buffer, next(i for known, i in buffers if known.same_as(owner))))
    nests = tuple(_nest(statement, buffers) for statement in statements)
    return Operator(nests, tuple(Scratch(_bytes(buffer)) for buffer in scratch))


def _bytes(buffer: Any) -> int:
    count = 1
    for size in buffer.shape:
        count *= int(size)
    return count * max(1, tvm.DataType(str(buffer.dtype)).bits // 8)


# Scheduling


def _scheduled(function: Any) -> Any:
    """Elementwise steps go into their consumers; the outer loops become one that threads share."""
    schedule = s_tir.Schedule(ir.IRModule({"main": function.with_attr("global_symbol", "main")}))
    try:
        root = schedule.get_sblock("root")
    except s_tir.schedule.ScheduleError:  # written as loops already
        return function
    for block in schedule.get_child_blocks(root):
        _inline(schedule, block)
    for block in schedule.get_child_blocks(root):
        _share(schedule, block)
    return schedule.mod["main"]


def _inline(schedule: Any, block: Any) -> None:
    """Into its one consumer, unless that would compute an element more than once."""
    consumers = schedule.get_consumers(block)
    if len(consumers) != 1 or not (_is_elementwise(schedule, block) and _is_elementwise(schedule, consumers[0])):
        return
    try:
        schedule.compute_inline(block)
    except s_tir.schedule.ScheduleError:
        return


def _is_elementwise(schedule: Any, block: Any) -> bool:
    return all(int(v.iter_type) == 0 for v in schedule.get(block).iter_vars)


def _share(schedule: Any, block: Any) -> None:
    kinds = [int(v.iter_type) for v in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    spatial = 0
    while spatial < len(kinds) and kinds[spatial] == 0:
        spatial += 1
    if len(loops) != len(kinds) or not spatial:
        return
    is_elementwise = spatial == len(kinds)
    extents = [int(schedule.get(loop).extent) for loop in loops]
    try:
        if is_elementwise and extents[-1] % _VECTOR == 0:
            outer, inner = schedule.split(loops[-1], [None, _VECTOR])
            fused = schedule.fuse(*loops[:-1], outer)
            schedule.vectorize(inner)
        else:
            fused = schedule.fuse(*loops[:spatial])
        schedule.parallel(fused)
    except s_tir.schedule.ScheduleError:
        return


# Lowering


def _lowered(function: Any) -> Any:
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    ]
    module = ir.IRModule({"main": function})
    return tvm.transform.Sequential(passes)(module)["main"]


def _split(body: Any) -> tuple[list[Any], list[Any]]:
    """Declarations at the top, and the statements between which threads meet."""
    head, rest = [], []
    pending = [body]
    while pending:
        statement = pending.pop(0)
        if isinstance(statement, tirx.SeqStmt):
            pending = [*statement.seq, *pending]
        elif isinstance(statement, tirx.AllocBuffer | tirx.DeclBuffer):
            head.append(statement)
        else:
            rest.append(statement)
    if any(isinstance(s, tirx.Bind) for s in rest):  # what follows may need its value
        rest = [tirx.SeqStmt(rest)] if len(rest) > 1 else rest
    return head, rest


def _refuse_foreign(function: Any) -> None:
    text = function.script()
    if "elem_offset" in text:
        raise ForeignCallError("memory in a way that only TVM's runtime can give")
    found = sorted(set(_FOREIGN.findall(text)))
    if found:
        raise ForeignCallError(f"function {', '.join(found)}")


_FOREIGN = re.compile(r"call_c?packed\w*\(\"([^\"]*)\"")


def _nest(statement: Any, buffers: Sequence[tuple[Any, int]]) -> Nest:
    """A function of one statement, with the pointers that it uses."""
    used: dict[int, list[Any]] = {}

    for free in tirx.analysis.undefined_vars(statement, []):
        for known, index in buffers:
            if known.same_as(free):
                used.setdefault(index, []).append(known)
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    units = 1
    if isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL:
        units = int(statement.extent)
        kind = str(statement.loop_var.ty.dtype)
        first, count = (value if kind == "int32" else tirx.Cast(kind, value) for value in (begin, end - begin))
        statement = tirx.For(statement.loop_var, first, count, tirx.ForKind.SERIAL, statement.body)
    pointers, declared = [], []
    for index in sorted(used):
        kind = str(used[index][0].ty.dtype)
        pointer = tirx.Var(f"p{index}", ir.PointerType(ir.PrimType(kind)))
        pointers.append(pointer)
        declared += [tirx.DeclBuffer(buffer, data=pointer) for buffer in used[index]]
    function = tirx.PrimFunc([*pointers, begin, end], tirx.SeqStmt([*declared, statement]))
    function = function.with_attr("calling_conv", 2).with_attr("tirx.noalias", True)
    return Nest(function, tuple(sorted(used)), units)
