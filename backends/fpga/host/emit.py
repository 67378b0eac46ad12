"""Writes the `host` folder of an artefact: register names, drivers, and the network as C arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hw.config import ABI_VERSION
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.registers import ID_VALUE, Register, StatusBit
from sim.driver import CLEAR_ERROR, START
from sim.program import Program, pack_words

HOST_FOLDER = Path("host")
SOURCES = ("edgec_driver.h", "edgec_driver.c", "edgec_driver.py", "edgec_inference.py")
BYTES_PER_LINE = 24

Quantization = Mapping[str, tuple[float, int]]
"""Tensor name -> scale and zero_point: real = scale * (q - zero_point)."""


def emit_host(
    program: Program, folder: Path, quantization: Quantization | None = None, steps: Sequence[str] = ()
) -> tuple[Path, ...]:
    """Write `host/` into an artefact; the files, relative to `folder`.

    Args:
        program: The network.
        folder: The artefact.
        quantization: Of the inputs and outputs, for the C header.
        steps: What an inference does, for the C header; see `network_header`.
    """
    here = Path(__file__).parent
    texts = {name: (here / name).read_text(encoding="utf-8") for name in SOURCES} | {
        "edgec_registers.h": register_header(),
        "edgec_registers.py": register_module(),
        "edgec_network.h": network_header(program, quantization or {}, steps),
        "edgec_network.c": network_source(program),
    }
    (folder / HOST_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / HOST_FOLDER / name).write_text(text, encoding="utf-8")
    return tuple(HOST_FOLDER / name for name in sorted(texts))


def register_header() -> str:
    """The register map as C macros."""
    lines = [
        "/* The register map (byte addresses), generated. */",
        "#ifndef EDGEC_REGISTERS_H",
        "#define EDGEC_REGISTERS_H",
        "",
        f"#define EDGEC_ID_VALUE 0x{ID_VALUE:08x}u",
        f"#define EDGEC_CONTROL_START {START}u",
        f"#define EDGEC_CONTROL_CLEAR_ERROR {CLEAR_ERROR}u",
        "",
    ]
    lines += [f"#define EDGEC_REG_{register.name} 0x{register:02x}u" for register in Register]
    lines += ["", *(f"#define EDGEC_STATUS_{bit.name} (1u << {bit:d})" for bit in StatusBit)]
    lines += ["", *(f"#define EDGEC_MEMORY_{memory.name} {memory:d}u" for memory in Memory), "", "#endif"]
    return "\n".join(lines) + "\n"


def register_module() -> str:
    """The register map as a Python module."""
    tables = {"REGISTERS": Register, "STATUS": StatusBit, "MEMORIES": Memory}
    lines = [
        '"""The register map (byte addresses), generated."""',
        "",
        f"ID_VALUE = 0x{ID_VALUE:08X}",
        f"CONTROL_START = {START}",
        f"CONTROL_CLEAR_ERROR = {CLEAR_ERROR}",
    ]
    for name, members in tables.items():
        lines += [f"{name} = {{", *(f'    "{m.name}": 0x{m.value:02X},' for m in members), "}"]
    return "\n".join(lines) + "\n"


def network_header(program: Program, quantization: Quantization, steps: Sequence[str] = ()) -> str:
    """Declares the network; macros name its inputs and outputs, of each entry where there are several.

    Args:
        program: The network.
        quantization: Of the inputs and outputs.
        steps: What an inference does, a sentence for each step, for the reader.
    """
    lines = [
        *_opening(steps),
        "#ifndef EDGEC_NETWORK_H",
        "#define EDGEC_NETWORK_H",
        "",
        '#include "edgec_driver.h"',
        "",
        "extern const edgec_network edgec_program;",
        "",
    ]
    for number, entry in enumerate(program.entries):
        prefix = "EDGEC" if len(program.entries) == 1 else f"EDGEC_ENTRY_{number}"
        for kind, tensors in (("INPUT", entry.inputs), ("OUTPUT", entry.outputs)):
            for index, (name, place) in enumerate(tensors.items()):
                lines += _tensor_macros(f"{prefix}_{kind}_{index}", name, place, quantization.get(name))
    return "\n".join([*lines, "#endif", ""])


def network_source(program: Program) -> str:
    """Defines the network: images and tensor descriptors."""
    images = {memory: words for memory, words in sorted(program.images.items()) if words}
    data = {m: pack_words(words, memory_shape(program.config, m)[1]) for m, words in images.items()}
    lines = ["/* The network, generated. */", '#include "edgec_network.h"', '#include "edgec_registers.h"', ""]
    for memory, image in data.items():
        # A union aligns the bytes for DMA in C99.
        lines += [
            f"static const union {{ uint8_t bytes[{len(image)}]; uint32_t beat; }} {_array(memory)} = {{{{",
            *_byte_lines(image),
            "}};",
            "",
        ]
    lines += [
        "static const edgec_image images[] = {",
        *(
            f"    {{EDGEC_MEMORY_{m.name}, {len(words)}u, {_array(m)}.bytes, {len(data[m])}u}},"
            for m, words in images.items()
        ),
        "};",
        "",
    ]
    for number, entry in enumerate(program.entries):
        lines += _tensor_array(f"inputs_{number}", entry.inputs.values())
        lines += _tensor_array(f"outputs_{number}", entry.outputs.values())
    entries = [
        f"{entry.pc_start}u, {entry.pc_end}u, {len(entry.inputs)}u, {len(entry.outputs)}u, inputs_{n}, outputs_{n}"
        for n, entry in enumerate(program.entries)
    ]
    first = program.entries[0]
    lines += ["static const edgec_entry entries[] = {", *(f"    {{{entry}}}," for entry in entries), "};", ""]
    lines += [
        f"const edgec_network edgec_program = {{{ABI_VERSION}u, 0x{program.config.config_id:08x}u, "
        f"{first.pc_end}u, {len(images)}u,",
        f"    {len(first.inputs)}u, {len(first.outputs)}u, images, inputs_0, outputs_0, {len(entries)}u, entries}};",
        "",
    ]
    return "\n".join(lines)


def _opening(steps: Sequence[str]) -> list[str]:
    if not steps:
        return ["/* The network, generated. */"]
    told = [f" * {index}. {_comment(step)}" for index, step in enumerate(steps, start=1)]
    return ["/* The network, generated. One inference:", " *", *told, " */"]


def _comment(text: str) -> str:
    """Without what could end a comment: a tensor's name is the model's and may hold anything."""
    return re.sub(r"[^\w .,:;()/\[\]-]", "?", text).replace("*/", "?")


def _tensor_macros(
    prefix: str, name: str, place: TensorDescriptor, quantization: tuple[float, int] | None
) -> list[str]:
    channels, height, width = place.shape
    lines = [
        f"/* {_comment(name)}: int8 [{channels}][{height}][{width}] */",
        f"#define {prefix}_SIZE {place.size}u",
        f"#define {prefix}_BYTES {-(-place.size // 4) * 4}u",
    ]
    if quantization:
        scale, zero_point = quantization
        lines += [f"#define {prefix}_SCALE {float(scale)!r}", f"#define {prefix}_ZERO_POINT ({zero_point})"]
    return [*lines, ""]


def _tensor_array(name: str, places: Iterable[TensorDescriptor]) -> list[str]:
    return [f"static const edgec_tensor {name}[] = {{", *(f"    {_initializer(place)}," for place in places), "};", ""]


def _initializer(place: TensorDescriptor) -> str:
    lists = ["{" + ", ".join(map(str, values)) + "}" for values in (place.base, place.byte)]
    rest = (place.plane, place.pitch, place.width, place.height, place.channels, place.phases)
    return "{" + ", ".join([*lists, *map(str, rest)]) + "}"


def _array(memory: Memory) -> str:
    return f"image_{memory.name.lower()}"


def _byte_lines(data: bytes) -> list[str]:
    rows = (data[i : i + BYTES_PER_LINE] for i in range(0, len(data), BYTES_PER_LINE))
    return ["    " + ",".join(map(str, row)) + "," for row in rows]
