"""The host protocol of hw/registers.py over any transport: a simulation, a testbench, or a board."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hw.config import ABI_VERSION, AcceleratorConfig
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.registers import ID_VALUE, Register, StatusBit
from sim.program import BEAT_BYTES, Entry, Program, pack_words
from sim.verilator import MisbehaviourError, SimError

START, CLEAR_ERROR = 1, 2
POLLS = 10_000
RUN_CYCLES = 100_000_000
"""Longest run of instructions whose length the compiler does not claim."""

SLACK_CYCLES = 10_000


class Transport(Protocol):
    """How the host reaches the accelerator's ports."""

    def write_register(self, address: int, value: int) -> None:
        """Write 32 bits at a byte address."""

    def read_register(self, address: int) -> int:
        """The 32 bits at a byte address."""

    def send(self, data: bytes) -> None:
        """Send whole 32-bit beats on the input stream."""

    def receive(self, size: int) -> bytes:
        """Take `size` bytes, whole beats, from the output stream."""

    def wait_done(self, max_cycles: int) -> None:
        """Wait until irq is high; SimError after `max_cycles`."""


class Accelerator:
    """The accelerator as the host sees it.

    Args:
        transport: Reaches the ports.
        config: The configuration that programs are compiled for; the hardware must have the same CONFIG_ID.

    Raises:
        SimError: Another accelerator, or none, answers.
    """

    def __init__(self, transport: Transport, config: AcceleratorConfig) -> None:
        self._transport = transport
        self._config = config
        self.check_identity()

    def check_identity(self) -> None:
        """Refuse hardware that programs for this configuration do not fit.

        Raises:
            SimError: ID, ABI_VERSION or CONFIG_ID differ.
        """
        expected = {Register.ID: ID_VALUE, Register.ABI_VERSION: ABI_VERSION,
                    Register.CONFIG_ID: self._config.config_id}
        for register, value in expected.items():
            if (found := self._transport.read_register(register)) != value:
                error = SimError(f"{register.name} is {found:#010x}, the program needs {value:#010x}")
                error.add_note("remedy: compile for this accelerator, or build the accelerator of this program")
                raise error

    def load(self, images: Mapping[Memory, Sequence[int]]) -> None:
        """Fill memories from word 0 on with packed words (see hw.isa.memory_shape)."""
        for memory, words in images.items():
            if words:
                self._load_memory(memory, words)

    def load_program(self, program: Program) -> None:
        """Load every image of `program`.

        Raises:
            SimError: The program is for another configuration.
        """
        if program.config.config_id != self._config.config_id:
            raise SimError(f"the program is for CONFIG_ID {program.config.config_id:#010x}, "
                           f"the accelerator has {self._config.config_id:#010x}")
        self.load(program.images)

    def write_tensor(self, descriptor: TensorDescriptor, values: NDArray[np.int8]) -> None:
        """Write an int8 [channels, height, width] map where `descriptor` says."""
        self._require_shape(descriptor, values)
        self._write(descriptor.registers(Register.IN_BASE_0))
        self._write({Register.LOAD_MEMORY: Memory.TENSOR, Register.LOAD_START: 1})
        self._transport.send(_whole_beats(np.ascontiguousarray(values).tobytes()))
        self._wait_status(StatusBit.LOADING, "writing a tensor")

    def read_tensor(self, descriptor: TensorDescriptor) -> NDArray[np.int8]:
        """Read the int8 [channels, height, width] map that `descriptor` describes."""
        self._write(descriptor.registers(Register.OUT_BASE_0))
        self._write({Register.READ_START: 1})
        data = self._transport.receive(len(_whole_beats(bytes(descriptor.size))))
        self._wait_status(StatusBit.READING, "reading a tensor")
        if any(data[descriptor.size :]):
            padding = data[descriptor.size :].hex()
            raise MisbehaviourError(f"the padding after {descriptor.size} bytes of a tensor is {padding}")
        return np.frombuffer(data, np.int8, descriptor.size).reshape(descriptor.shape).copy()

    def run(self, pc_start: int, pc_end: int, *, max_cycles: int = RUN_CYCLES) -> int:
        """Run instructions [pc_start, pc_end).

        Returns:
            The length of the run in cycles, as the accelerator counted it.

        Raises:
            SimError: It did not finish, or reports an error.
        """
        self._write({Register.PC_START: pc_start, Register.PC_END: pc_end, Register.CONTROL: START})
        self._transport.wait_done(max_cycles)
        status = self._status(f"running instructions [{pc_start}, {pc_end})")
        if status & 1 << StatusBit.BUSY or not status & 1 << StatusBit.DONE:
            where = f"after running instructions [{pc_start}, {pc_end})"
            raise MisbehaviourError(f"irq is high but STATUS is {status:#x} {where}")
        return self._transport.read_register(Register.CYCLES)

    def run_program(self, program: Program, pc_start: int, pc_end: int) -> int:
        """Run instructions [pc_start, pc_end) of the loaded `program`; an error after twice the expected cycles."""
        expected = program.cycles_of(pc_start, pc_end)
        return self.run(pc_start, pc_end, max_cycles=RUN_CYCLES if expected is None else 2 * expected + SLACK_CYCLES)

    def counters(self, pc_start: int, pc_end: int) -> list[int]:
        """Cycles of each of the instructions [pc_start, pc_end) when it ran last."""
        return list(self._counters(pc_start, pc_end))

    def clear_error(self) -> None:
        """Reset STATUS.error."""
        self._write({Register.CONTROL: CLEAR_ERROR})

    def _counters(self, pc_start: int, pc_end: int) -> Iterator[int]:
        for pc in range(pc_start, pc_end):
            self._write({Register.COUNTER_INDEX: pc})
            yield self._transport.read_register(Register.COUNTER_VALUE)

    def _load_memory(self, memory: Memory, words: Sequence[int]) -> None:
        depth, bits = memory_shape(self._config, memory)
        if len(words) > depth:
            raise ValueError(f"{memory.name}: the image has {len(words)} words, the memory {depth}")
        self._write({Register.LOAD_MEMORY: memory, Register.LOAD_ADDRESS: 0, Register.LOAD_COUNT: len(words),
                     Register.LOAD_START: 1})
        self._transport.send(pack_words(words, bits))
        self._wait_status(StatusBit.LOADING, f"loading {memory.name}")

    def _write(self, registers: Mapping[int, int]) -> None:
        for address, value in registers.items():
            self._transport.write_register(int(address), int(value))

    def _wait_status(self, bit: StatusBit, what: str) -> None:
        for _ in range(POLLS):
            if not self._status(what) & 1 << bit:
                return
        raise MisbehaviourError(f"{what}: STATUS.{bit.name.lower()} did not fall")

    def _status(self, what: str) -> int:
        status = self._transport.read_register(Register.STATUS)
        if status & 1 << StatusBit.ERROR:
            raise MisbehaviourError(f"{what}: the accelerator reports an error (STATUS {status:#x})")
        return status

    @staticmethod
    def _require_shape(descriptor: TensorDescriptor, values: NDArray[np.int8]) -> None:
        if values.shape != descriptor.shape or values.dtype != np.int8:
            raise ValueError(f"values must be int8 {list(descriptor.shape)}, not {values.dtype} {list(values.shape)}")


def infer(
    accelerator: Accelerator, program: Program, inputs: Mapping[str, NDArray[np.int8]]
) -> tuple[dict[str, NDArray[np.int8]], int]:
    """Run the whole (loaded) program, entry by entry, where everything that the host sends is known beforehand.

    Args:
        inputs: LayerGraph tensor name -> int8 [channels, height, width].

    Returns:
        Outputs of all entries by name, and the cycles of all runs.
    """
    if set(inputs) != set(program.inputs):
        raise ValueError(f"the inputs are {', '.join(sorted(program.inputs))}, not {', '.join(sorted(inputs))}")
    known, total = dict(inputs), 0
    outputs: dict[str, NDArray[np.int8]] = {}
    for entry in program.entries:
        got, cycles = enter(accelerator, program, entry, known)
        known, outputs, total = known | got, outputs | got, total + cycles
    return outputs, total


def enter(
    accelerator: Accelerator, program: Program, entry: Entry, tensors: Mapping[str, NDArray[np.int8]]
) -> tuple[dict[str, NDArray[np.int8]], int]:
    """Write the inputs of one entry of the (loaded) program, run its instructions, read its outputs.

    Args:
        tensors: LayerGraph tensor name -> int8 of the size of the entry's inputs; others may be among them.

    Returns:
        The entry's outputs by name, and the cycles of the run; 0 for an entry without instructions.
    """
    for name, descriptor in entry.inputs.items():
        accelerator.write_tensor(descriptor, tensors[name].reshape(descriptor.shape))
    start, end = entry.pc_start, entry.pc_end
    cycles = accelerator.run_program(program, start, end) if start < end else 0
    return {name: accelerator.read_tensor(d) for name, d in entry.outputs.items()}, cycles


def _whole_beats(data: bytes) -> bytes:
    return data + bytes(-len(data) % BEAT_BYTES)
