"""Verdicts: the accelerator against reference tensors, layer by layer, and against the expected cycles."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.descriptor import TensorDescriptor
from sim.driver import Accelerator
from sim.program import LayerInfo, Program
from sim.verilator import MisbehaviourError

Tensors = Mapping[str, NDArray[np.int8]]


@dataclass(frozen=True)
class Mismatch:
    """The first element that differs; `index` is its (channel, y, x)."""

    layer: str
    index: tuple[int, int, int]
    expected: int
    got: int
    count: int

    def __str__(self) -> str:
        return (f"layer {self.layer!r}: element {list(self.index)} is {self.got}, the reference has {self.expected} "
                f"({self.count} elements differ)")


@dataclass(frozen=True)
class CycleMismatch:
    """An instruction that took another time than the compiler expects."""

    instruction: int
    layer: str
    expected: int
    got: int

    def __str__(self) -> str:
        return f"layer {self.layer!r}: instruction {self.instruction} took {self.got} cycles, expected {self.expected}"


@dataclass(frozen=True)
class Verdict:
    """What was compared and what differed.

    Attributes:
        mismatches: First difference of each layer (or input, or output) that differs, in the order of execution.
        cycle_mismatches: Instructions whose cycles differ.
        layers: Layers compared.
        elements: Elements compared.
        instructions: Instructions whose cycles were compared.
    """

    mismatches: tuple[Mismatch, ...]
    cycle_mismatches: tuple[CycleMismatch, ...]
    layers: int
    elements: int
    instructions: int

    @property
    def passed(self) -> bool:
        """Everything equal, and something was compared."""
        return not self.mismatches and not self.cycle_mismatches and self.elements > 0


def compare(layer: str, expected: NDArray[np.int8], got: NDArray[np.int8]) -> Mismatch | None:
    """The first difference in NCHW order, or None.

    Args:
        layer: Name for the message.
        expected, got: int8 [channels, height, width].

    Raises:
        ValueError: The shapes differ.
    """
    if expected.shape != got.shape:
        raise ValueError(f"layer {layer!r}: shape is {list(got.shape)}, the reference has {list(expected.shape)}")
    different = np.argwhere(expected != got)
    if not len(different):
        return None
    c, y, x = (int(i) for i in different[0])
    return Mismatch(layer, (c, y, x), int(expected[c, y, x]), int(got[c, y, x]), len(different))


def verify(accelerator: Accelerator, program: Program, reference: Tensors) -> Verdict:
    """Run the (loaded) program layer by layer and compare every tensor that it stores.

    After the instructions of a layer its tensor is read back through its descriptor. The inputs of an entry are read
    back before, its outputs after its last layer: nothing may overwrite them in between. Every entry gets the
    reference's inputs, so its layers are judged whatever the entries before it gave. Instructions of different layers
    do not overlap here as they do in a whole run; `infer` shows that.

    Args:
        accelerator: With the program loaded.
        program: What to run.
        reference: int8 of each input, stored and output tensor by LayerGraph name; the shape may be any with the
            same number of elements in NCHW order.

    Raises:
        ValueError: The reference lacks a tensor.
        MisbehaviourError: The accelerator did not finish; one line for each difference before, then the layer.
    """
    _require_tensors(program, reference)
    mismatches: list[Mismatch | None] = []
    cycle_mismatches: list[CycleMismatch] = []
    for entry in program.entries:
        for name, descriptor in entry.inputs.items():
            accelerator.write_tensor(descriptor, _shaped(reference, name, descriptor))
            mismatches.append(_check(accelerator, f"input {name}", name, descriptor, reference))
        for layer in program.layers_of(entry):
            try:
                accelerator.run_program(program, layer.pc_start, layer.pc_end)
                mismatches.append(_check(accelerator, layer.name, layer.tensor, layer.descriptor, reference))
                cycle_mismatches += _check_cycles(accelerator, program, layer)
            except MisbehaviourError as error:
                before = [str(mismatch) for mismatch in mismatches if mismatch]
                raise MisbehaviourError("\n".join([*before, f"layer {layer.name!r}: {error}"])) from error
        for name, descriptor in entry.outputs.items():
            mismatches.append(_check(accelerator, f"output {name}", name, descriptor, reference))
    return Verdict(
        mismatches=tuple(m for m in mismatches if m),
        cycle_mismatches=tuple(cycle_mismatches),
        layers=len(program.layers),
        elements=sum(d.size for d in _compared(program)),
        instructions=sum(i.cycles is not None for i in program.instructions),
    )


def _compared(program: Program) -> list[TensorDescriptor]:
    ends = [place for entry in program.entries for place in (*entry.inputs.values(), *entry.outputs.values())]
    return [*(layer.descriptor for layer in program.layers), *ends]


def _require_tensors(program: Program, reference: Tensors) -> None:
    needed = {*program.inputs, *program.outputs, *(layer.tensor for layer in program.layers)}
    if missing := sorted(needed - set(reference)):
        raise ValueError(f"the reference lacks {', '.join(missing)}")


def _shaped(reference: Tensors, name: str, descriptor: TensorDescriptor) -> NDArray[np.int8]:
    values = np.asarray(reference[name])
    if values.dtype != np.int8 or values.size != descriptor.size:
        raise ValueError(
            f"tensor {name!r} must be int8 {list(descriptor.shape)}, not {values.dtype} {list(values.shape)}"
        )
    return values.reshape(descriptor.shape)


def _check(
    accelerator: Accelerator, label: str, name: str, descriptor: TensorDescriptor, reference: Tensors
) -> Mismatch | None:
    return compare(label, _shaped(reference, name, descriptor), accelerator.read_tensor(descriptor))


def _check_cycles(accelerator: Accelerator, program: Program, layer: LayerInfo) -> list[CycleMismatch]:
    counted = accelerator.counters(layer.pc_start, layer.pc_end)
    instructions = program.instructions[layer.pc_start : layer.pc_end]
    return [CycleMismatch(i.pc, layer.name, i.cycles, got)
            for i, got in zip(instructions, counted, strict=True) if i.cycles is not None and i.cycles != got]
