"""Host driver of an edgec accelerator for boards that run Python; needs numpy and the artefact's `program` folder.

    accelerator = Accelerator(transport, "artefact/program")
    outputs, cycles = accelerator.infer({"input": values})       # int8 [C, H, W] by tensor name

A network that has layers for the processor in its middle enters the accelerator several times: `accelerator.enter(k,
tensors)` for k = 0, 1, ..., and in between what edgec_inference.py does, which runs the whole network on float samples.

`transport` reaches the ports of the accelerator on your board. It has these methods:

    write_register(address, value)      AXI4-Lite, byte addresses
    read_register(address) -> int
    send(data)                          AXI4-Stream: bytes, a multiple of 4, lowest first in a beat
    receive(size) -> bytes
    wait_done(max_cycles)               wait for the interrupt, or poll STATUS; must give up in the end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from edgec_registers import CONTROL_START, ID_VALUE, MEMORIES, REGISTERS, STATUS  # type: ignore[import-not-found]

POLLS = 1_000_000
MAX_CYCLES = 1 << 32
DESCRIPTOR = ("plane", "pitch", "width", "height", "channels", "phases")


Map = np.ndarray
Place = Mapping[str, Any]
"""A tensor descriptor, as program.json has it."""


class Transport(Protocol):
    """The methods described above."""

    def write_register(self, address: int, value: int) -> None: ...

    def read_register(self, address: int) -> int: ...

    def send(self, data: bytes) -> None: ...

    def receive(self, size: int) -> bytes: ...

    def wait_done(self, max_cycles: int) -> None: ...


class DriverError(RuntimeError):
    """The hardware is not the one of the program, or did not answer as it must."""


class Accelerator:
    """A network on an accelerator; loads it on construction."""

    def __init__(self, transport: Transport, folder: str | Path) -> None:
        self._transport = transport
        self._program = json.loads((Path(folder) / "program.json").read_text(encoding="utf-8"))
        whole = {"pc_start": 0, "pc_end": len(self._program["instructions"])}
        self._entries = self._program.get("entries") or [{**self._program, **whole}]
        self._check_identity()
        for name, words in self._program["images"].items():
            self._load(name, words, (Path(folder) / (name + ".bin")).read_bytes())

    def infer(self, inputs: Mapping[str, Map]) -> tuple[dict[str, Map], int]:
        """Write every input, run, read every output of a network with one entry: ({name: int8 [C, H, W]}, cycles)."""
        if len(self._entries) > 1:
            raise DriverError(f"the network enters the accelerator {len(self._entries)} times: see edgec_inference.py")
        return self.enter(0, inputs)

    def enter(self, index: int, tensors: Mapping[str, Map]) -> tuple[dict[str, Map], int]:
        """Write the inputs of an entry, run it, read its outputs: ({name: int8 [C, H, W]}, cycles).

        The shape of a tensor may be any with the elements of its place in this order; others may be among them.
        """
        entry = self._entries[index]
        for name, place in entry["inputs"].items():
            self.write(place, tensors[name].reshape(_shape(place)))
        cycles = self.run(entry["pc_start"], entry["pc_end"])
        return {name: self.read(place) for name, place in entry["outputs"].items()}, cycles

    def write(self, place: Place, values: Map) -> None:
        """Write an int8 [C, H, W] map where a descriptor of program.json says."""
        if values.shape != _shape(place) or values.dtype != np.int8:
            raise ValueError(f"values must be int8 {_shape(place)}, not {values.dtype} {values.shape}")
        self._describe("IN_BASE_0", place)
        self._put(LOAD_MEMORY=MEMORIES["TENSOR"], LOAD_START=1)
        data = np.ascontiguousarray(values).tobytes()
        self._transport.send(data + bytes(-len(data) % 4))
        self._wait("LOADING")

    def read(self, place: Place) -> Map:
        """Read the int8 [C, H, W] map of a descriptor."""
        shape = _shape(place)
        size = int(np.prod(shape))
        self._describe("OUT_BASE_0", place)
        self._put(READ_START=1)
        data = self._transport.receive(size + -size % 4)
        self._wait("READING")
        return np.frombuffer(data, np.int8, size).reshape(shape).copy()

    def run(self, pc_start: int, pc_end: int) -> int:
        """Run instructions [pc_start, pc_end); their length in cycles."""
        if pc_start == pc_end:
            return 0
        self._put(PC_START=pc_start, PC_END=pc_end, CONTROL=CONTROL_START)
        self._transport.wait_done(MAX_CYCLES)
        self._wait("BUSY")
        return self._get("CYCLES")

    def _check_identity(self) -> None:
        expected = {
            "ID": ID_VALUE,
            "ABI_VERSION": self._program["abi_version"],
            "CONFIG_ID": self._program["config_id"],
        }
        for name, value in expected.items():
            if (found := self._get(name)) != value:
                raise DriverError(f"{name} is {found:#010x}, the program needs {value:#010x}")

    def _load(self, memory: str, words: int, data: bytes) -> None:
        self._put(LOAD_MEMORY=MEMORIES[memory.upper()], LOAD_ADDRESS=0, LOAD_COUNT=words, LOAD_START=1)
        self._transport.send(data)
        self._wait("LOADING")

    def _describe(self, first: str, place: Place) -> None:
        values = [*place["base"], *place["byte"], *(place[name] for name in DESCRIPTOR)]
        for index, value in enumerate(values):
            self._transport.write_register(REGISTERS[first] + 4 * index, value)

    def _put(self, **values: int) -> None:
        for name, value in values.items():
            self._transport.write_register(REGISTERS[name], value)

    def _get(self, name: str) -> int:
        return self._transport.read_register(REGISTERS[name])

    def _wait(self, bit: str) -> None:
        """Wait until a bit of STATUS is 0."""
        for _ in range(POLLS):
            status = self._get("STATUS")
            if status >> STATUS["ERROR"] & 1:
                raise DriverError(f"the accelerator reports a protocol error (STATUS {status:#x})")
            if not status >> STATUS[bit] & 1:
                return
        raise DriverError(f"STATUS.{bit} did not fall")


def _shape(place: Place) -> tuple[int, int, int]:
    return place["channels"], place["height"], place["width"]
