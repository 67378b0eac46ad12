"""The driver and the verdict on an accelerator made of Python, whose instructions do what a test says."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hw.config import ABI_VERSION, array_config
from hw.descriptor import TensorDescriptor
from hw.isa import Memory
from hw.registers import ID_VALUE, Register, StatusBit
from sim.driver import Accelerator, infer
from sim.program import Entry, InstructionInfo, LayerInfo, Program
from sim.verify import CycleMismatch, Mismatch, compare, verify
from sim.verilator import SimError

CONFIG = array_config(8, 2)
X = TensorDescriptor((0, 8, 16, 24), plane=40, pitch=3, width=5, height=4, channels=3, byte=(0, 1, 0, 1), phases=3)
A = TensorDescriptor((200, 0, 0, 0), plane=20, pitch=5, width=5, height=4, channels=3)
Y = TensorDescriptor((300, 0, 0, 0), plane=20, pitch=5, width=5, height=4, channels=3)


class PythonAccelerator:
    """A Transport: registers and an activation memory; `instructions` run on run."""

    def __init__(self, instructions: list[Callable[["PythonAccelerator"], None]]) -> None:
        self.memory = np.zeros((CONFIG.activation_words, CONFIG.rows), np.int8)
        self.images: dict[int, bytes] = {}
        self.registers: dict[int, int] = {
            Register.ID: ID_VALUE, Register.ABI_VERSION: ABI_VERSION, Register.CONFIG_ID: CONFIG.config_id,
            Register.STATUS: 0,
        }  # fmt: skip
        self.instructions = instructions
        self.counters = [0] * len(instructions)
        self.ran: list[int] = []

    def write_register(self, address: int, value: int) -> None:
        self.registers[address] = value
        if address == Register.CONTROL and value == 1:
            for pc in range(self.registers[Register.PC_START], self.registers[Register.PC_END]):
                self.instructions[pc](self)
                self.counters[pc] = 100 + pc
                self.ran.append(pc)
            self.registers[Register.STATUS] = 1 << StatusBit.DONE

    def read_register(self, address: int) -> int:
        if address == Register.COUNTER_VALUE:
            return self.counters[self.registers[Register.COUNTER_INDEX]]
        return self.registers.get(address, 0)

    def send(self, data: bytes) -> None:
        memory = self.registers[Register.LOAD_MEMORY]
        if memory == Memory.TENSOR:
            d = self.descriptor(Register.IN_BASE_0)
            self.set(d, np.frombuffer(data, np.int8, d.size).reshape(d.shape))
        else:
            self.images[memory] = data

    def receive(self, size: int) -> bytes:
        return self.get(self.descriptor(Register.OUT_BASE_0)).tobytes().ljust(size, b"\0")

    def wait_done(self, max_cycles: int) -> None:
        pass

    def descriptor(self, first: Register) -> TensorDescriptor:
        values = [self.registers[first + 4 * i] for i in range(14)]
        base, byte = tuple(values[:4]), tuple(values[4:8])
        return TensorDescriptor(base, *values[8:13], byte=byte, phases=values[13])  # type: ignore[arg-type]

    def get(self, d: TensorDescriptor) -> NDArray[np.int8]:
        return self.memory[d.addresses(CONFIG.rows)]

    def set(self, d: TensorDescriptor, values: NDArray[np.int8]) -> None:
        self.memory[d.addresses(CONFIG.rows)] = values


def add_one(source: TensorDescriptor, target: TensorDescriptor) -> Callable[[PythonAccelerator], None]:
    return lambda machine: machine.set(target, machine.get(source) + np.int8(1))


def corrupt(target: TensorDescriptor, *indices: tuple[int, int, int]) -> Callable[[PythonAccelerator], None]:
    def run(machine: PythonAccelerator) -> None:
        values = machine.get(target)
        for index in indices:
            values[index] ^= 0x40
        machine.set(target, values)

    return run


def program(*cycles: int | None) -> Program:
    """x -> (2 instructions) a -> (1 instruction) y."""
    cycles = cycles or (100, 101, 102)
    layers = ("first", "first", "second")
    return Program(
        config=CONFIG,
        images={Memory.PROGRAM: [7, 8, 9]},
        instructions=tuple(InstructionInfo(pc, layer, n) for pc, (layer, n) in enumerate(zip(layers, cycles))),
        layers=(LayerInfo("first", 0, 2, "a", A), LayerInfo("second", 2, 3, "y", Y)),
        entries=(Entry(0, 3, {"x": X}, {"y": Y}),),
    )


def nothing(machine: PythonAccelerator) -> None:
    pass


def reference() -> dict[str, NDArray[np.int8]]:
    x = np.random.default_rng(0).integers(-100, 100, (1, 3, 4, 5), dtype=np.int8)
    return {"x": x, "a": x + np.int8(1), "y": (x + np.int8(2)).reshape(-1)}


def test_verify_compares_every_tensor_and_counter() -> None:
    machine = PythonAccelerator([nothing, add_one(X, A), add_one(A, Y)])
    verdict = verify(Accelerator(machine, CONFIG), program(), reference())
    assert verdict.passed
    assert (verdict.layers, verdict.elements, verdict.instructions) == (2, 4 * 60, 3)
    assert machine.ran == [0, 1, 2]


def test_verify_names_the_first_difference_of_each_layer() -> None:
    machine = PythonAccelerator([add_one(X, A), corrupt(A, (1, 2, 3), (1, 3, 0), (2, 0, 0)), add_one(A, Y)])
    expected = reference()
    verdict = verify(Accelerator(machine, CONFIG), program(), expected)
    first = int(expected["a"][0, 1, 2, 3])
    assert not verdict.passed
    assert verdict.mismatches[0] == Mismatch("first", (1, 2, 3), first, first ^ 0x40, 3)
    assert [m.layer for m in verdict.mismatches] == ["first", "second", "output y"]
    assert str(verdict.mismatches[0]) == (
        f"layer 'first': element [1, 2, 3] is {first ^ 0x40}, the reference has {first} (3 elements differ)"
    )


def test_verify_finds_an_input_that_did_not_arrive() -> None:
    machine = PythonAccelerator([nothing, add_one(X, A), add_one(A, Y)])
    overlapping = replace(X, byte=(0, 0, 0, 0), base=(0, 0, 16, 24))  # its phases overlap
    broken = replace(program(), entries=(Entry(0, 3, {"x": overlapping}, {"y": Y}),))
    assert verify(Accelerator(machine, CONFIG), broken, reference()).mismatches[0].layer == "input x"


def test_verify_finds_wrong_cycles() -> None:
    machine = PythonAccelerator([nothing, add_one(X, A), add_one(A, Y)])
    verdict = verify(Accelerator(machine, CONFIG), program(100, 7, None), reference())
    assert not verdict.passed
    assert verdict.cycle_mismatches == (CycleMismatch(1, "first", 7, 101),)
    assert str(verdict.cycle_mismatches[0]) == "layer 'first': instruction 1 took 101 cycles, expected 7"
    assert verdict.instructions == 2


def test_verify_needs_every_tensor() -> None:
    tensors = reference()
    del tensors["a"]
    with pytest.raises(ValueError, match="the reference lacks a"):
        verify(Accelerator(PythonAccelerator([nothing] * 3), CONFIG), program(), tensors)


def test_verify_refuses_another_shape_or_type() -> None:
    accelerator = Accelerator(PythonAccelerator([nothing] * 3), CONFIG)
    with pytest.raises(ValueError, match=re.escape("tensor 'x' must be int8 [3, 4, 5], not int8 [7]")):
        verify(accelerator, program(), reference() | {"x": np.zeros(7, np.int8)})
    with pytest.raises(ValueError, match=re.escape("not int16 [1, 3, 4, 5]")):
        verify(accelerator, program(), reference() | {"x": reference()["x"].astype(np.int16)})


def test_compare_equal_and_unequal() -> None:
    a = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    b = a.copy()
    assert compare("l", a, b) is None
    b[1, 2, 3] = -1
    assert compare("l", a, b) == Mismatch("l", (1, 2, 3), 23, -1, 1)
    with pytest.raises(ValueError, match=re.escape("layer 'l': shape is [3, 4], the reference has [2, 3, 4]")):
        compare("l", a, b[0])


def test_infer_runs_the_whole_program() -> None:
    machine = PythonAccelerator([nothing, add_one(X, A), add_one(A, Y)])
    accelerator = Accelerator(machine, CONFIG)
    accelerator.load_program(program())
    x = reference()["x"][0]
    outputs, _ = infer(accelerator, program(), {"x": x})
    assert np.array_equal(outputs["y"], x + np.int8(2))
    assert machine.images[Memory.PROGRAM] == b"".join(
        word.to_bytes(len(machine.images[Memory.PROGRAM]) // 3, "little") for word in (7, 8, 9)
    )
    with pytest.raises(ValueError, match="the inputs are x, not z"):
        infer(accelerator, program(), {"z": x})


def test_program_for_another_configuration_is_refused() -> None:
    accelerator = Accelerator(PythonAccelerator([nothing] * 3), CONFIG)
    with pytest.raises(SimError, match="the program is for CONFIG_ID"):
        accelerator.load_program(replace(program(), config=array_config(8, 4)))


def test_padding_of_a_tensor_must_be_zero() -> None:
    machine = PythonAccelerator([nothing])
    machine.receive = lambda size: b"\1" * size  # type: ignore[method-assign]
    with pytest.raises(SimError, match="the padding after 3 bytes of a tensor is 01"):
        Accelerator(machine, CONFIG).read_tensor(TensorDescriptor((0,) * 4, 1, 1, 1, 1, 3))
