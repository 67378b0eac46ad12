"""Writes the `host` folder of an artefact: register names, drivers, and the network as C arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hw.config import ABI_VERSION
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.registers import ID_VALUE, Register, StatusBit
from sim.driver import CLEAR_ERROR, START
from sim.program import Program, pack_words

HOST_FOLDER = Path("host")
SOURCES = ("edgec_driver.h", "edgec_driver.c", "edgec_driver.py")
BYTES_PER_LINE = 24

Quantization = Mapping[str, tuple[float, int]]
"""Tensor name -> scale and zero_point: real = scale * (q - zero_point)."""


def emit_host(program: Program, folder: Path, quantization: Quantization | None = None) -> tuple[Path, ...]:
    """Write `host/` into an artefact; the files, relative to `folder`.

    Args:
        program: The network.
        folder: The artefact.
        quantization: Of the inputs and outputs, for the C header.
    """
    here = Path(__file__).parent
    texts = {name: (here / name).read_text(encoding="utf-8") for name in SOURCES} | {
        "edgec_registers.h": register_header(),
        "edgec_registers.py": register_module(),
        "edgec_network.h": network_header(program, quantization or {}),
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


def network_header(program: Program, quantization: Quantization) -> str:
    """Declares the network; macros name its inputs and outputs."""
    lines = [
        "/* The network, generated. */",
        "#ifndef EDGEC_NETWORK_H",
        "#define EDGEC_NETWORK_H",
        "",
        '#include "edgec_driver.h"',
        "",
        "extern const edgec_network edgec_program;",
        "",
    ]
    for kind, tensors in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        for index, (name, place) in enumerate(tensors.items()):
            lines += _tensor_macros(f"EDGEC_{kind}_{index}", name, place, quantization.get(name))
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
    lines += _tensor_array("inputs", program.inputs.values()) + _tensor_array("outputs", program.outputs.values())
    lines += [
        f"const edgec_network edgec_program = {{{ABI_VERSION}u, 0x{program.config.config_id:08x}u, "
        f"{program.pc_end}u, {len(images)}u,",
        f"    {len(program.inputs)}u, {len(program.outputs)}u, images, inputs, outputs}};",
        "",
    ]
    return "\n".join(lines)


def _tensor_macros(
    prefix: str, name: str, place: TensorDescriptor, quantization: tuple[float, int] | None
) -> list[str]:
    comment = re.sub(r"[^\w .:/\[\]-]", "?", name)  # a tensor's name is the model's and may hold anything
    channels, height, width = place.shape
    lines = [
        f"/* {comment.replace('*/', '?')}: int8 [{channels}][{height}][{width}] */",
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
