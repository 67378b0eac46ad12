"""A network without any runtime: a static library, a header, one array for all maps, constants in .rodata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.cpu import codegen, csource, link
from backends.cpu.machine import HWCAP, Machine
from backends.cpu.plan import Plan
from backends.cpu.shared import constants_source, prefix_of

_OPTIONS = ("-Os", "-g0", "-std=c11", "-fno-sanitize=undefined", "-ffunction-sections", "-fdata-sections")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """Bytes of a runtime-free network, the C library and the float interface left out.

    Attributes:
        text: Code.
        rodata: Packed weights, scales and tables.
        arena: All maps.
    """

    text: int
    rodata: int
    arena: int


def build(plan: Plan, name: str, folder: Path) -> Path:
    """Write objects, library, header and examples into a folder; the library."""
    prefix = prefix_of(name)
    machine = plan.machine
    kernels, floats = plan.kernels(), plan.float_kernels()
    own = {kernel: called for kernel, called in kernels.items() if kernel not in floats}
    codegen.compile_kernels(own, machine, f"{prefix}_", folder / "kernels.o")
    only_float = {kernel: called for kernel, called in kernels.items() if kernel in floats}
    codegen.compile_kernels(only_float, machine, f"{prefix}_", folder / "kernels_float.o")
    (folder / "constants.bin").write_bytes(plan.constants + bytes(machine.align))
    (folder / "constants.S").write_text(constants_source(prefix, plan.constants))
    (folder / f"{prefix}.h").write_text(header(plan, prefix))
    for suffix, source in zip(("", "_float"), csource.alone(plan, csource.Names(prefix, kernels)), strict=True):
        (folder / f"{prefix}{suffix}.c").write_text(source)
        _compile(machine, f"{prefix}{suffix}.c", f"{prefix}{suffix}.o", folder)
    _compile(machine, "constants.S", "constants.o", folder)
    objects = [f"{prefix}.o", f"{prefix}_float.o", "kernels.o", "kernels_float.o", "constants.o"]
    if machine.is_linux:
        (folder / "missing.c").write_text(_missing(machine, prefix))
        _compile(machine, "missing.c", "missing.o", folder)
        objects.append("missing.o")
    library = folder / f"lib{prefix}.a"
    link.archive(library, [folder / name for name in objects], folder)
    _example(plan, prefix, folder)
    return library


def size(plan: Plan, name: str, folder: Path) -> Size:
    """Of what a program with int8 calls takes from the library."""
    text = rodata = 0
    for file in (f"{prefix_of(name)}.o", "kernels.o", "constants.o"):
        for section, count in link.sections(folder / file).items():
            if section.startswith(".text") and "tvm.fp16" not in section:
                text += count
            elif section.startswith(".rodata"):
                rodata += count
    return Size(text, rodata, plan.arena.size)


def zig_target(machine: Machine) -> tuple[str, ...]:
    """The triple that zig calls it, and further options."""
    cpu = machine.cpu.replace("-", "_")
    if machine.triple.startswith("aarch64"):
        return ("aarch64-linux-musl", f"-mcpu={cpu}")
    if machine.is_linux:
        return ("arm-linux-musleabihf", f"-mcpu={cpu}")
    abi = "eabihf" if machine.float_abi == "hard" else "eabi"
    return (f"thumb-freestanding-{abi}", f"-mcpu={cpu}")


def _compile(machine: Machine, source: str, target: str, folder: Path) -> None:
    triple, *options = zig_target(machine)
    link.cc(triple, [*options, *_OPTIONS, "-c", source, "-o", target], folder)


def _missing(machine: Machine, prefix: str) -> str:
    """A function that names what the processor lacks, or returns NULL."""
    checks = [f'    if (!(has & {HWCAP[name]}ul)) return "{name}";' for name in machine.requires]
    return "\n".join([
        "#include <stddef.h>",
        "#include <sys/auxv.h>",
        f"const char *{prefix}_missing(void);",
        f"const char *{prefix}_missing(void) {{",
        "    unsigned long has = getauxval(AT_HWCAP);",
        "    (void)has;",
        *checks,
        "    return NULL;",
        "}",
        "",
    ])  # fmt: skip


def _example(plan: Plan, prefix: str, folder: Path) -> None:
    """A main that reads samples and writes results; on bare metal with start-up code and a linker script."""
    sizes = {"IN_BYTES": sum(t.size for t in plan.graph.inputs), "OUT_BYTES": sum(t.size for t in plan.graph.outputs)}
    defines = "".join(f"#define {key} {value}\n" for key, value in sizes.items())
    names = f"#define INFER {prefix}_infer\n#define MISSING {prefix}_missing\n"
    source = defines + _tables(plan) + f'#include "{prefix}.h"\n' + names
    main = "main_linux.c" if plan.machine.is_linux else "main_bare.c"
    (folder / "example.c").write_text(source + (_HERE / main).read_text())
    if not plan.machine.is_linux:
        (folder / "example.ld").write_text((_HERE / "bare.ld").read_text())


def _tables(plan: Plan) -> str:
    rows = []
    for kind, tensors in (("IN", plan.graph.inputs), ("OUT", plan.graph.outputs)):
        starts = [sum(t.size for t in tensors[:i]) for i in range(len(tensors))]
        rows.append(f"#define {kind}_STARTS {{{', '.join(map(str, starts))}}}\n#define {kind}_COUNT {len(starts)}\n")
    return "".join(rows)


def link_example(machine: Machine, name: str, folder: Path) -> Path:
    """Link the example with the library; the program."""
    prefix = prefix_of(name)
    triple, *options = zig_target(machine)
    arguments = [*options, *_OPTIONS, "example.c", f"lib{prefix}.a", "-o", "example", "-Wl,--gc-sections"]
    arguments += ["-static"] if machine.is_linux else ["-nostdlib", "-nostartfiles", "-Wl,-T,example.ld"]
    link.cc(triple, arguments, folder)
    return folder / "example"


def header(plan: Plan, prefix: str) -> str:
    """The public interface."""
    tensors = {"in": plan.graph.inputs, "out": plan.graph.outputs}
    told = "\n".join(
        f"   {kind} {i}: {t.name} {list(t.shape)}, real = {t.scale:.9g} * (q - {t.zero_point})"
        for kind, several in tensors.items()
        for i, t in enumerate(several)
    )
    single = ""
    if len(plan.graph.inputs) == len(plan.graph.outputs) == 1:
        single = f"""
void {prefix}_run(const int8_t *in, int8_t *out);
void {prefix}_run_float(const float *in, float *out);"""
    if plan.machine.is_linux:
        single += f"""
/* What this processor lacks, or NULL: ask before the first call. */
const char *{prefix}_missing(void);"""
    guard = prefix.upper() + "_H"
    return f"""/* Generated by edgec for {plan.machine.cpu}.
   Maps are [channel][y][x] of one sample; one inference at a time.
{told.replace("*/", "* /")} */
#ifndef {guard}
#define {guard}
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif
/* Bytes of the one array for all maps, which is inside the library; nothing is allocated. */
#define {prefix.upper()}_ARENA_BYTES {plan.arena.size}
void {prefix}_infer(const int8_t *const *in, int8_t *const *out);
void {prefix}_infer_float(const float *const *in, float *const *out);{single}
#ifdef __cplusplus
}}
#endif
#endif
"""
