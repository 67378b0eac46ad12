"""Programs and the tensor descriptors in them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.config import array_config
from hw.descriptor import TensorDescriptor
from hw.isa import Memory
from hw.registers import Register
from hw.timing import program_cycles
from sim.program import Entry, InstructionInfo, LayerInfo, Program, ProgramError, pack_words, unpack_words

CONFIG = array_config(8, 2)
MAP = TensorDescriptor((0, 64, 128, 192), plane=16, pitch=4, width=5, height=3, channels=3, byte=(0, 1, 0, 1), phases=3)
FLAT = TensorDescriptor((300, 0, 0, 0), plane=1, pitch=1, width=1, height=1, channels=7)


def program() -> Program:
    return Program(
        config=CONFIG,
        images={Memory.PROGRAM: [1, 2, 3], Memory.WEIGHT: [5, (1 << 95) + 7], Memory.TABLE: [0, 255]},
        instructions=(InstructionInfo(0, "conv", 10), InstructionInfo(1, "conv", 20), InstructionInfo(2, "fc", 5)),
        layers=(LayerInfo("conv", 0, 2, "map", MAP), LayerInfo("fc", 2, 3, "flat", FLAT)),
        entries=(Entry(0, 3, {"x": MAP}, {"flat": FLAT}),),
    )


def literal_address(d: TensorDescriptor, rows: int, c: int, y: int, x: int) -> tuple[int, int]:
    """The sentence in hw/registers.py, step by step as the hardware walks."""
    px, py = d.phases & 1, d.phases >> 1
    phase = 2 * (y & py) + (x & px)
    word, byte = d.base[phase], d.byte[phase]
    for _ in range(c):
        byte += 1
        if byte == rows:
            word, byte = word + d.plane, 0
    return word + (y >> py) * d.pitch + (x >> px), byte


@pytest.mark.parametrize("phases", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_addresses_are_those_of_the_walk(phases: int, rows: int) -> None:
    byte = tuple(min(b, rows - 1) for b in (0, 1, 0, 3))
    d = replace(MAP, base=(10, 200, 400, 600), plane=37, pitch=6, channels=11, byte=byte, phases=phases)
    word, lane = d.addresses(rows)
    for index in np.ndindex(d.shape):
        assert (word[index], lane[index]) == literal_address(d, rows, *index)


def test_descriptor_fills_the_registers_in_order() -> None:
    registers = MAP.registers(Register.OUT_BASE_0)
    assert registers == {
        0xC0: 0, 0xC4: 64, 0xC8: 128, 0xCC: 192, 0xD0: 0, 0xD4: 1, 0xD8: 0, 0xDC: 1,
        Register.OUT_PLANE: 16, Register.OUT_PITCH: 4, Register.OUT_WIDTH: 5, Register.OUT_HEIGHT: 3,
        Register.OUT_CHANNELS: 3, Register.OUT_PHASES: 3,
    }  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [
    ({"base": (0, 0)}, "base must have 4 entries, not 2"),
    ({"width": 0}, "width must be at least 1, not 0"),
    ({"pitch": -1}, "must not be negative"),
    ({"phases": 4}, r"phases must be in \[0, 3\], not 4"),
])  # fmt: skip
def test_descriptor_refuses(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MAP, **change)


@given(st.integers(1, 700).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_packed_words_are_unpacked(case: tuple[int, list[int]]) -> None:
    bits, words = case
    data = pack_words(words, bits)
    assert len(data) == 4 * -(-bits // 32) * len(words)
    assert unpack_words(data, bits) == words


def test_packed_words_are_little_endian_beats() -> None:
    assert pack_words([0x1_02030405], 33) == bytes.fromhex("0504030201000000")


def test_pack_words_refuses_a_wide_word() -> None:
    with pytest.raises(ValueError, match=r"word 1 must be in \[0, 2\*\*8\), not 0x100"):
        pack_words([0, 256], 8)


def test_program_survives_the_disk(tmp_path: Path) -> None:
    files = program().save(tmp_path)
    assert sorted(f.name for f in files) == ["program.bin", "program.json", "table.bin", "weight.bin"]
    assert Program.load(tmp_path) == program()


def test_program_with_entries_survives_the_disk(tmp_path: Path) -> None:
    entries = (Entry(0, 2, {"x": MAP}, {"map": MAP}), Entry(2, 3, {"map": MAP}, {"flat": FLAT}))
    parts = replace(program(), entries=entries)
    parts.save(tmp_path)
    assert Program.load(tmp_path) == parts
    assert json.loads((tmp_path / "program.json").read_text())["format"] == 2
    assert (list(parts.inputs), list(parts.outputs)) == (["x"], ["map", "flat"])
    assert [layer.name for entry in parts.entries for layer in parts.layers_of(entry)] == ["conv", "fc"]
    assert parts.cycles == program_cycles(CONFIG, [10, 20]) + program_cycles(CONFIG, [5])


def test_entries_that_are_damaged_are_refused(tmp_path: Path) -> None:
    entries = (Entry(0, 2, {"x": MAP}, {"map": MAP}), Entry(2, 3, {"map": MAP}, {"flat": FLAT}))
    replace(program(), entries=entries).save(tmp_path)
    stored = json.loads((tmp_path / "program.json").read_text())["entries"]
    for damaged, message in (
        ([{**stored[0], "pc_end": 1}, {**stored[1], "pc_start": 1}], "pc 1 is in the middle of a layer"),
        (stored[:1], "the entries end at pc 2, the program at 3"),
        ([{**stored[0], "inputs": {"x": {}}}, stored[1]], "a descriptor has"),
        ([{"pc_start": 0}], "not a program"),
        (None, "not a program"),
    ):
        edit(tmp_path, entries=damaged)
        with pytest.raises(ProgramError, match=message):
            Program.load(tmp_path)


def test_program_with_one_entry_is_of_the_first_format(tmp_path: Path) -> None:
    program().save(tmp_path)
    document = json.loads((tmp_path / "program.json").read_text())
    assert document["format"] == 1
    assert "entries" not in document
    assert list(document["inputs"]) == ["x"]


def test_program_adds_up_cycles_only_where_all_are_known() -> None:
    p = program()
    assert p.cycles == program_cycles(CONFIG, [10, 20, 5])
    assert p.cycles_of(1, 2) == program_cycles(CONFIG, [20])
    assert replace(p, instructions=(*p.instructions[:2], InstructionInfo(2, "fc", None))).cycles is None


def damage_image(folder: Path) -> None:
    file = folder / "weight.bin"
    file.write_bytes(file.read_bytes()[:-1])


def edit(folder: Path, **changes: object) -> None:
    file = folder / "program.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("damage", "message"), [
    (damage_image, "weight.bin: has .* bytes instead of"),
    (lambda f: (f / "program.json").write_text("{"), "not a program"),
    (lambda f: (f / "program.json").unlink(), "not a program"),
    (lambda f: edit(f, config_id=1), "config_id does not belong to config"),
    (lambda f: edit(f, abi_version=99), "ABI 99"),
    (lambda f: edit(f, images={"../weight": 1}), "not a program"),
    (lambda f: edit(f, layers=[]), "the layers end at pc 0, the program at 3"),
    (lambda f: edit(f, inputs={"x": {"base": [0, 0, 0, 0]}}), "a descriptor has"),
    (lambda f: edit(f, images={"program": 3, "weight": 10**9}), "bytes instead of"),
])  # fmt: skip
def test_load_refuses_damaged_files(tmp_path: Path, damage: object, message: str) -> None:
    program().save(tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises(ProgramError, match=message):
        Program.load(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"images": {Memory.TENSOR: [0]}}, "TENSOR has no image"),
    ({"images": {Memory.PROGRAM: [1, 2, -3]}}, "PROGRAM: a word is not in"),
    ({"images": {Memory.PROGRAM: [1]}}, "3 instructions are described, the image has 1"),
    ({"layers": (LayerInfo("conv", 1, 3, "map", MAP),)}, r"\[1, 3\) does not follow pc 0"),
    ({"entries": (Entry(0, 3, {}, {"y": replace(FLAT, base=(CONFIG.activation_words - 3, 0, 0, 0))}),)},
     "tensor 'y': ends at word"),
    ({"entries": (Entry(0, 2, {}, {}),)}, "the entries end at pc 2, the program at 3"),
    ({"entries": (Entry(0, 2, {}, {}), Entry(1, 3, {}, {}))}, r"entry 1: \[1, 3\) does not follow pc 2"),
    ({"entries": (Entry(0, 1, {}, {}), Entry(1, 3, {}, {}))}, "entry 0: pc 1 is in the middle of a layer"),
])  # fmt: skip
def test_program_refuses(change: dict, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        replace(program(), **change)
