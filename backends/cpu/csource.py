"""The C around the kernels: the steps of a network, their order, the static memory plan, and the public header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.cpu.kernels import Kernel
from backends.cpu.plan import Call, Fill, Plan, Step

_TYPES = {"uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t"}


@dataclass(frozen=True)
class Names:
    """What the generated C calls things."""

    prefix: str
    kernels: dict[Kernel, str]


def threaded(plan: Plan, names: Names) -> str:
    """Steps as functions of a chunk, in one table: any thread may take any chunk of the present step."""
    groups = {
        "ENTER": plan.enter,
        "ENTER_FLOAT": plan.enter_float,
        "STEPS": plan.steps,
        "LEAVE": plan.leave,
        "LEAVE_FLOAT": plan.leave_float,
    }
    functions: list[str] = []
    rows: list[str] = []
    ranges: list[str] = []
    for group, steps in groups.items():
        ranges.append(f"enum {{ {group} = {len(rows)}, {group}_END = {len(rows) + len(steps)} }};")
        for step in steps:
            functions.append(_function(plan, names, step, len(rows)))
            rows.append(f"    {{step_{len(rows)}, {step.chunks}}},")
    return "\n".join([
        _top(plan, names),
        "#define SHARE(kernel, in, second, out, weights, scales, units) do { \\",
        "    int32_t begin = (int32_t)((int64_t)(units) * part / parts); \\",
        "    int32_t end = (int32_t)((int64_t)(units) * (part + 1) / parts); \\",
        "    if (begin < end) kernel((in), (second), (out), (weights), (scales), begin, end); \\",
        "} while (0)",
        "",
        *functions,
        "typedef void step_function(unsigned char *, const void *const *, void *const *, int, int);",
        "static const struct { step_function *run; int chunks; } steps[] = {",
        *rows,
        "};",
        *ranges,
        f"enum {{ INPUTS = {len(plan.graph.inputs)} }};",
        f"static const int input_sizes[] = {{{', '.join(str(tensor.size) for tensor in plan.graph.inputs)}}};",
        f"#define ARENA_BYTES {plan.arena.size}",
        f"#define NAME(function) {names.prefix}_##function",
        "",
    ])  # fmt: skip


def timed(plan: Plan, names: Names, steps: Sequence[Step]) -> str:
    """`double <prefix>_time(int step, int count)`: seconds of this thread that so many runs of a step take."""
    return "\n".join([
        "#include <time.h>",
        _top(plan, names),
        "#define SHARE(kernel, in, second, out, weights, scales, units) \\",
        "    kernel((in), (second), (out), (weights), (scales), 0, (units))",
        *(_function(plan, names, step, index) for index, step in enumerate(steps)),
        "typedef void step_function(unsigned char *, const void *const *, void *const *, int, int);",
        f"static step_function *const steps[] = {{{', '.join(f'step_{index}' for index in range(len(steps)))}}};",
        f"static unsigned char arena[{plan.arena.size}] __attribute__((aligned(64)));",
        "static double now(void) {",
        "    struct timespec t;",
        "    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);",
        "    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;",
        "}",
        f"double {names.prefix}_time(int step, int count) {{",
        "    double start = now();",
        "    for (int i = 0; i < count; i++) steps[step](arena, NULL, NULL, 0, 1);",
        "    return now() - start;",
        "}",
        "",
    ])  # fmt: skip


def _function(plan: Plan, names: Names, step: Step, number: int) -> str:
    lines = [
        f"/* {step.layer.replace('*/', '')} */",
        f"static void step_{number}(unsigned char *a, const void *const *in, void *const *out, int part, int parts) {{",
        f"    const unsigned char *c = {names.prefix}_constants;",
        "    (void)a; (void)c; (void)in; (void)out;",
        *(_fill(plan, fill) for fill in step.fills),
        *(_call(plan, names, call) for call in step.calls),
        "}",
        "",
    ]
    return "\n".join(lines)


def alone(plan: Plan, names: Names) -> tuple[str, str]:
    """For one processor without threads or heap: the steps one after the other, called with int8, and with float32.

    Two C files, so that a linker leaves out what is not called.
    """
    memory = f"unsigned char {names.prefix}_arena[{plan.arena.size}] __attribute__((aligned(16)))"
    share = (
        "#define SHARE(kernel, in, second, out, weights, scales, units) \\\n"
        "    kernel((in), (second), (out), (weights), (scales), 0, (units))\n"
        "enum { part = 0, parts = 1 };\n"
    )
    steps = f"void {names.prefix}_steps(void)"
    whole = [
        f"{memory};",
        share,
        f"{steps};",
        f"{steps} {{",
        *_pointers(names),
        *_lines(plan, names, plan.steps),
        "}",
        *_called(plan, names, ("infer", "run"), "int8_t", plan.enter, plan.leave),
    ]
    floats = [
        f"extern {memory};",
        share,
        f"{steps};",
        *_called(plan, names, ("infer_float", "run_float"), "float", plan.enter_float, plan.leave_float),
    ]
    return "\n".join([_top(plan, names), *whole, ""]), "\n".join([_top(plan, names), *floats, ""])


def _pointers(names: Names) -> list[str]:
    return [
        f"    unsigned char *const a = {names.prefix}_arena;",
        f"    const unsigned char *const c = {names.prefix}_constants;",
        "    (void)a; (void)c;",
    ]


def _called(
    plan: Plan, names: Names, functions: tuple[str, str], dtype: str, enter: Sequence[Step], leave: Sequence[Step]
) -> list[str]:
    many, one = (f"{names.prefix}_{function}" for function in functions)
    lines = [
        f"void {many}(const {dtype} *const *in, {dtype} *const *out) {{",
        *_pointers(names),
        *_lines(plan, names, enter),
        f"    {names.prefix}_steps();",
        *_lines(plan, names, leave),
        "}",
    ]
    if len(plan.graph.inputs) == len(plan.graph.outputs) == 1:
        lines.append(f"void {one}(const {dtype} *in, {dtype} *out) {{ {many}(&in, &out); }}")
    return lines


def _lines(plan: Plan, names: Names, steps: Sequence[Step]) -> list[str]:
    lines = []
    for step in steps:
        lines.append(f"    /* {step.layer.replace('*/', '')} */")
        lines += [_fill(plan, fill) for fill in step.fills]
        lines += [_call(plan, names, call) for call in step.calls]
    return lines


def _top(plan: Plan, names: Names) -> str:
    return "\n".join([
        f"/* Generated by edgec for {plan.machine.cpu}. */",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "void *memset(void *, int, size_t); /* string.h is not everywhere */",
        f'#include "{names.prefix}.h"',
        "",
        f"typedef {_TYPES[plan.machine.activation]} activation;",
        _BORDER,
        *(_declaration(name, names) for name in names.kernels.values()),
        f"extern const unsigned char {names.prefix}_constants[];",
        "",
    ])  # fmt: skip


def _declaration(name: str, names: Names) -> str:
    arguments = "const void *, const void *, void *, const void *, const void *, int32_t, int32_t"
    return f"void {names.prefix}_{name}({arguments});"


def _fill(plan: Plan, fill: Fill) -> str:
    place, size = fill.place, plan.machine.item_bytes
    _, height, width = place.shape
    top, left, bottom, right = place.border.pads
    pixel, row = place.map.pixel, place.map.row
    start = plan.arena.offsets[place.buffer] + (place.origin - top * row - left * pixel) * size
    counts = (row, height, (left + width + right) * pixel, top, bottom, left * pixel, right * pixel)
    return f"    border((activation *)(a + {start}), {', '.join(map(str, counts))}, {place.border.value}, part, parts);"


def _call(plan: Plan, names: Names, call: Call) -> str:
    constants = (f"c + {offset}" if offset >= 0 else "NULL" for offset in (call.weights, call.scales))
    arguments = [
        f"{names.prefix}_{names.kernels[call.kernel]}",
        _pointer(plan, call.input, "in"),
        f"c + {call.table}" if call.table >= 0 else _pointer(plan, call.second, "in"),
        _pointer(plan, call.output, "out"),
        *constants,
        str(call.kernel.units),
    ]
    return f"    SHARE({', '.join(arguments)});"


def _pointer(plan: Plan, reference: tuple[str, int] | None, callers: str) -> str:
    if reference is None:
        return "NULL"
    name, offset = reference
    if name.startswith("@"):
        return f"{callers}[{name[1:]}]"
    return f"a + {plan.arena.offsets[name] + offset * plan.machine.item_bytes}"


_BORDER = """
/* The rows above and below a map and the ends of its rows. */
static inline void put(activation *p, int count, int value) {
    if (sizeof(activation) == 1) memset(p, value, (size_t)count);
    else for (int i = 0; i < count; i++) p[i] = (activation)value;
}

static void border(activation *p, int row, int height, int width, int top, int bottom, int left, int right,
                   int value, int part, int parts) {
    int rows = top + height + bottom;
    for (int y = (int)((int64_t)rows * part / parts); y < (int)((int64_t)rows * (part + 1) / parts); y++) {
        activation *line = p + (int64_t)y * row;
        if (y < top || y >= top + height) put(line, width, value);
        else { put(line, left, value); put(line + width - right, right, value); }
    }
}
"""
