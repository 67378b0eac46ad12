"""Kernels to an object file, by TVM's LLVM. The one module that starts the code generator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from backends.cpu.kernels import Kernel
from backends.cpu.machine import Machine


class MissingExtraError(RuntimeError):
    """The packages of `edgec[cpu]` are not installed."""


def check_installed() -> None:
    """Raise MissingExtraError, before any work, if this cannot generate code."""
    for module in ("tvm_ffi", "ziglang"):
        try:
            import_module(module)
        except ImportError as error:
            missing = MissingExtraError(f"the CPU targets need the package of {module!r}, which is not installed")
            missing.add_note("remedy: pip install 'edgec[cpu]'")
            raise missing from error


def native_cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this processor, and the features that it really has: a virtual machine may hide some."""
    import tvm

    cpu = str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
    found = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return cpu, frozenset(str(name) for name, has in found.items() if int(has))


def features(triple: str, cpu: str) -> frozenset[str]:
    """What LLVM knows a processor to have.

    Raises:
        ValueError: LLVM does not know it; the note lists those that it knows.
    """
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    with target:
        known = [str(name) for name in tvm.get_global_func("target.llvm_get_cpu_archlist")(target)]
        if cpu not in known:
            error = ValueError(f"--mcpu: LLVM knows no {triple.partition('-')[0]} processor {cpu!r}")
            error.add_note(f"remedy: choose one of {', '.join(known)}")
            raise error
    named = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    found = tvm.get_global_func("target.llvm_get_cpu_features")(named)
    return frozenset(str(name) for name in found)


def compile_kernels(
    kernels: Mapping[Kernel, str], machine: Machine, prefix: str, path: Path, *, assembly: Path | None = None
) -> None:
    """Write an object file with one function `<prefix><name>` for each kernel."""
    import tvm
    from tvm import ir, tirx

    functions = {prefix + name: kernel.write(prefix + name, machine) for kernel, name in kernels.items()}
    about: dict[str, object] = {"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu}
    if machine.features:
        about["mattr"] = list(machine.features)
    if not machine.is_linux:
        about["vector-width"] = 128
    if machine.float_abi:
        about["mfloat-abi"] = machine.float_abi
    target = tvm.target.Target(about)
    module = tirx.transform.BindTarget(target)(ir.IRModule(functions))
    module = tirx.transform.LowerIntrin()(module)
    built = tvm.get_global_func("target.build.llvm")(module, target)
    built.write_to_file(str(path), "o")
    if assembly is not None:
        assembly.write_text(built.inspect_source("asm"))


def identifier(name: str) -> str:
    """A network's name as part of a C identifier."""
    return re.sub(r"[^0-9a-zA-Z]", "_", name) or "network"


