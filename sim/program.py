"""A compiled network for one accelerator: memory images, instructions and where the tensors are.

The FPGA backend makes a Program; the artefact keeps it as `program.json` and one binary image for each memory;
the driver runs it. Nothing here knows how it was compiled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hw.config import ABI_VERSION, AcceleratorConfig, beats
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.timing import program_cycles

PROGRAM_FILE = "program.json"
FORMAT, FORMAT_ENTRIES = 1, 2
"""With one entry, and with several: who knows only the first must not run a part of the network."""
BEAT_BYTES = 4

Json = dict[str, Any]


class ProgramError(ValueError):
    """A program is inconsistent, or its files are damaged."""


@dataclass(frozen=True)
class InstructionInfo:
    """One instruction: `cycles` is the exact length that the compiler expects, None where it makes no claim."""

    pc: int
    layer: str
    cycles: int | None


@dataclass(frozen=True)
class LayerInfo:
    """Instructions [pc_start, pc_end) that compute and store one tensor.

    Attributes:
        name: Of the layer; a layout copy has a name of its own.
        tensor: The LayerGraph tensor that these instructions store; a copy names the copied tensor.
        descriptor: Where the whole tensor is when instruction pc_end - 1 has finished.
    """

    name: str
    pc_start: int
    pc_end: int
    tensor: str
    descriptor: TensorDescriptor


@dataclass(frozen=True)
class Entry:
    """Instructions [pc_start, pc_end) that run in one go. Nothing in the activation memory outlives them.

    Attributes:
        inputs: LayerGraph tensor name -> where the host writes it before the first instruction.
        outputs: LayerGraph tensor name -> where the host reads it after the last instruction.
    """

    pc_start: int
    pc_end: int
    inputs: Mapping[str, TensorDescriptor]
    outputs: Mapping[str, TensorDescriptor]


@dataclass(frozen=True)
class Program:
    """Everything the host needs to run a network on the accelerator.

    Attributes:
        config: The accelerator that it was compiled for.
        images: Words of each memory (packed, see hw.isa.Layout), from word 0 on; not TENSOR.
        instructions: In the order of their pc, 0, 1, 2, ...
        layers: In the order of execution; their pc ranges follow each other without gaps.
        entries: In the order of execution; their pc ranges follow each other without gaps. What an entry needs of an
            earlier one is an output there and an input here: it passes through the host.
    """

    config: AcceleratorConfig
    images: Mapping[Memory, Sequence[int]]
    instructions: tuple[InstructionInfo, ...]
    layers: tuple[LayerInfo, ...]
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        _check_images(self.config, self.images)
        _check_instructions(self)
        _check_layers(self)
        _check_entries(self)
        _check_tensors(self)

    @property
    def inputs(self) -> dict[str, TensorDescriptor]:
        """What the host writes and no earlier entry gave: tensor name -> where in the first entry that takes it."""
        found: dict[str, TensorDescriptor] = {}
        given: set[str] = set()
        for entry in self.entries:
            found = {name: place for name, place in entry.inputs.items() if name not in given} | found
            given |= set(entry.outputs)
        return {name: found[name] for entry in self.entries for name in entry.inputs if name in found}

    @property
    def outputs(self) -> dict[str, TensorDescriptor]:
        """What the host reads: tensor name -> where after its entry."""
        return {name: place for entry in self.entries for name, place in entry.outputs.items()}

    @property
    def pc_end(self) -> int:
        """One past the last instruction."""
        return len(self.instructions)

    @property
    def cycles(self) -> int | None:
        """Expected cycles of all entries, what CYCLES must show; None when an instruction makes no claim."""
        cycles = [self.cycles_of(entry.pc_start, entry.pc_end) for entry in self.entries]
        return None if None in cycles else sum(c for c in cycles if c is not None)

    def layers_of(self, entry: Entry) -> tuple[LayerInfo, ...]:
        """The layers that run in an entry."""
        return tuple(layer for layer in self.layers if entry.pc_start <= layer.pc_start < entry.pc_end)

    def cycles_of(self, pc_start: int, pc_end: int) -> int | None:
        """Expected cycles of a run of [pc_start, pc_end): neighbours overlap, so less than the sum of theirs."""
        if pc_start == pc_end:
            return 0
        cycles = [i.cycles for i in self.instructions[pc_start:pc_end] if i.cycles is not None]
        return program_cycles(self.config, cycles) if len(cycles) == pc_end - pc_start else None

    def save(self, folder: Path) -> list[Path]:
        """Write `program.json` and `<memory>.bin` (little-endian 32-bit beats) for each image; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / PROGRAM_FILE]
        files[0].write_text(json.dumps(_to_json(self), indent=1) + "\n", encoding="utf-8")
        for memory, words in sorted(self.images.items()):
            file = folder / image_file(memory)
            file.write_bytes(pack_words(words, memory_shape(self.config, memory)[1]))
            files.append(file)
        return files

    @classmethod
    def load(cls, folder: Path) -> "Program":
        """Read what `save` wrote.

        Raises:
            ProgramError: A file is missing, damaged, or made for another version.
        """
        try:
            data = json.loads((folder / PROGRAM_FILE).read_text(encoding="utf-8"))
            return _from_json(data, folder)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ProgramError):
                raise
            raise ProgramError(f"{folder / PROGRAM_FILE}: not a program: {error}") from error


def image_file(memory: Memory) -> str:
    """Name of the file that holds the image of `memory`."""
    return f"{memory.name.lower()}.bin"


def pack_words(words: Sequence[int], bits: int) -> bytes:
    """Packed words as the input stream carries them: little-endian, each padded to whole 32-bit beats.

    Raises:
        ValueError: A word is negative or wider than `bits`.
    """
    size = beats(bits) * BEAT_BYTES
    for index, word in enumerate(words):
        if not 0 <= word < 1 << bits:
            raise ValueError(f"word {index} must be in [0, 2**{bits}), not {word:#x}")
    return b"".join(int(word).to_bytes(size, "little") for word in words)


def unpack_words(data: bytes, bits: int) -> list[int]:
    """The inverse of pack_words."""
    size = beats(bits) * BEAT_BYTES
    if len(data) % size:
        raise ValueError(f"{len(data)} bytes are not whole words of {size} bytes")
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def _check_images(config: AcceleratorConfig, images: Mapping[Memory, Sequence[int]]) -> None:
    for memory, words in images.items():
        if memory is Memory.TENSOR:
            raise ProgramError("TENSOR has no image: tensors are written through descriptors")
        depth, bits = memory_shape(config, memory)
        if len(words) > depth:
            raise ProgramError(f"{memory.name}: the image has {len(words)} words, the memory {depth}")
        if words and not 0 <= min(words) <= max(words) < 1 << bits:
            raise ProgramError(f"{memory.name}: a word is not in [0, 2**{bits})")


def _check_instructions(program: Program) -> None:
    if [i.pc for i in program.instructions] != list(range(len(program.instructions))):
        raise ProgramError("instructions must be numbered 0, 1, 2, ...")
    stored = len(program.images.get(Memory.PROGRAM, ()))
    if stored != len(program.instructions):
        raise ProgramError(f"{len(program.instructions)} instructions are described, the image has {stored}")


def _check_layers(program: Program) -> None:
    pc = 0
    for layer in program.layers:
        if layer.pc_start != pc or layer.pc_end <= pc:
            raise ProgramError(f"layer {layer.name!r}: [{layer.pc_start}, {layer.pc_end}) does not follow pc {pc}")
        pc = layer.pc_end
    if pc != program.pc_end:
        raise ProgramError(f"the layers end at pc {pc}, the program at {program.pc_end}")


def _check_entries(program: Program) -> None:
    pc = 0
    for index, entry in enumerate(program.entries):
        if entry.pc_start != pc or entry.pc_end < pc:
            raise ProgramError(f"entry {index}: [{entry.pc_start}, {entry.pc_end}) does not follow pc {pc}")
        if any(layer.pc_start < entry.pc_end < layer.pc_end for layer in program.layers):
            raise ProgramError(f"entry {index}: pc {entry.pc_end} is in the middle of a layer")
        pc = entry.pc_end
    if pc != program.pc_end:
        raise ProgramError(f"the entries end at pc {pc}, the program at {program.pc_end}")


def _check_tensors(program: Program) -> None:
    named = [(layer.tensor, layer.descriptor) for layer in program.layers]
    for entry in program.entries:
        named += [*entry.inputs.items(), *entry.outputs.items()]
    for name, descriptor in named:
        last = max(int(descriptor.addresses(program.config.rows)[0].max()), 0)
        if last >= program.config.activation_words:
            raise ProgramError(
                f"tensor {name!r}: ends at word {last}, the memory has {program.config.activation_words} words"
            )


def _to_json(program: Program) -> dict[str, object]:
    entries = [_entry_to_json(entry) for entry in program.entries]
    is_one = len(entries) == 1
    return {
        "format": FORMAT if is_one else FORMAT_ENTRIES,
        "abi_version": ABI_VERSION,
        "config_id": program.config.config_id,
        "config": asdict(program.config),
        "images": {m.name.lower(): len(words) for m, words in sorted(program.images.items())},
        "instructions": [asdict(i) for i in program.instructions],
        "layers": [asdict(layer) for layer in program.layers],
        **(entries[0] if is_one else {"entries": [{**_range(e), **j} for e, j in zip(program.entries, entries)]}),
    }


def _entry_to_json(entry: Entry) -> Json:
    return {
        "inputs": {name: asdict(d) for name, d in entry.inputs.items()},
        "outputs": {name: asdict(d) for name, d in entry.outputs.items()},
    }


def _range(entry: Entry) -> Json:
    return {"pc_start": entry.pc_start, "pc_end": entry.pc_end}


def _from_json(data: Json, folder: Path) -> Program:
    if data["format"] not in (FORMAT, FORMAT_ENTRIES) or data["abi_version"] != ABI_VERSION:
        raise ProgramError(
            f"format {data['format']}, ABI {data['abi_version']}: this edgec reads formats {FORMAT} and "
            f"{FORMAT_ENTRIES}, ABI {ABI_VERSION}"
        )
    config = AcceleratorConfig(**data["config"])
    if config.config_id != data["config_id"]:
        raise ProgramError("config_id does not belong to config: the file was changed")
    instructions = tuple(InstructionInfo(**i) for i in data["instructions"])
    whole = {**data, "pc_start": 0, "pc_end": len(instructions)}
    return Program(
        config=config,
        images={Memory[name.upper()]: _read_image(config, Memory[name.upper()], count, folder)
                for name, count in data["images"].items()},
        instructions=instructions,
        layers=tuple(
            LayerInfo(**{**layer, "descriptor": _descriptor(layer["descriptor"])}) for layer in data["layers"]
        ),
        entries=tuple(_entry(entry) for entry in (data["entries"] if data["format"] == FORMAT_ENTRIES else [whole])),
    )


def _entry(data: Json) -> Entry:
    return Entry(
        pc_start=data["pc_start"],
        pc_end=data["pc_end"],
        inputs={name: _descriptor(d) for name, d in data["inputs"].items()},
        outputs={name: _descriptor(d) for name, d in data["outputs"].items()},
    )


def _descriptor(data: Json) -> TensorDescriptor:
    names = {f.name for f in fields(TensorDescriptor)}
    if set(data) != names:
        raise ProgramError(f"a descriptor has {', '.join(sorted(names))}, not {', '.join(sorted(data))}")
    return TensorDescriptor(**{**data, "base": tuple(data["base"]), "byte": tuple(data["byte"])})


def _read_image(config: AcceleratorConfig, memory: Memory, count: int, folder: Path) -> list[int]:
    file = folder / image_file(memory)
    bits = memory_shape(config, memory)[1]
    expected = count * beats(bits) * BEAT_BYTES
    if (size := file.stat().st_size) != expected:
        raise ProgramError(f"{file}: has {size} bytes instead of {expected}")
    return unpack_words(file.read_bytes(), bits)
