"""An artefact's accelerator in Verilator: built from the folder's own rtl/ and images, judged by the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.layers import LayerGraph
from backends.reference import interpreter
from compiler import artefact
from compiler.report import VerifyFacts
from hw.timing import program_cycles
from sim import verify as judge
from sim.driver import Accelerator, infer
from sim.harness import Harness
from sim.program import Program
from sim.verilator import MisbehaviourError

Maps = dict[str, NDArray[np.int8]]
"""int8 [N, C, H, W] by tensor name."""
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); total is 0 where it is unknown."""

_SHOWN = 8
_SEED = 2**20 - 3


class CycleError(RuntimeError):
    """The simulated hardware needed another number of cycles than the schedule says."""


@dataclass(frozen=True)
class Simulation:
    """A running accelerator with its program loaded."""

    accelerator: Accelerator
    program: Program

    def infer(self, inputs: Maps, progress: Progress | None = None) -> Maps:
        """Run whole networks, sample after sample; every cycle counter is compared with the schedule.

        Args:
            inputs: int8 [N, C, H, W] by tensor name.

        Returns:
            int8 [N, C, H, W] of each output.

        Raises:
            CycleError: A counter differs from the schedule.
        """
        total = len(next(iter(inputs.values())))
        rows: list[Maps] = []
        for index in range(total):
            outputs, cycles = infer(self.accelerator, self.program, self._sample(inputs, index))
            if late := self.wrong_cycles(cycles):
                raise CycleError("; ".join(late[:_SHOWN]))
            rows.append(outputs)
            if progress:
                progress("simulate", index + 1, total)
        return {name: np.stack([row[name] for row in rows]) for name in self.program.outputs}

    @property
    def cycles(self) -> int:
        """Of one whole run, from start to done, as scheduled."""
        return program_cycles(self.program.config, [info.cycles or 0 for info in self.program.instructions])

    def wrong_cycles(self, cycles: int) -> list[str]:
        """Sentences about the last whole run, which took `cycles`: instructions and total that are not as scheduled."""
        counters = self.accelerator.counters(0, self.program.pc_end)
        wrong = [
            str(judge.CycleMismatch(info.pc, info.layer, info.cycles, got))
            for info, got in zip(self.program.instructions, counters, strict=True)
            if info.cycles is not None and info.cycles != got
        ]
        if cycles != self.cycles:
            wrong.append(f"the whole run took {cycles} cycles, expected {self.cycles}")
        return wrong

    def _sample(self, inputs: Maps, index: int) -> dict[str, NDArray[np.int8]]:
        """One sample, in the shapes that the program stores."""
        return {name: inputs[name][index].reshape(place.shape) for name, place in self.program.inputs.items()}


@contextmanager
def simulate(
    folder: Path, *, wave: Path | None = None, seed: int = _SEED, progress: Progress | None = None
) -> Iterator[Simulation]:
    """Build (or take from the cache) and start the accelerator of an artefact; memories start with random contents.

    Raises:
        ToolNotFound: Verilator, a C++ compiler or make is missing.
        SimError: The build or the simulation failed.
        ProgramError: The images are damaged.
    """
    program = Program.load(folder / artefact.PROGRAM)
    tell = (lambda text: progress(text, 0, 0)) if progress else None
    with Harness.from_verilog(
        folder / artefact.RTL, x_initial="unique", trace=wave is not None, seed=seed, progress=tell
    ) as harness:
        if wave is not None:
            harness.trace(wave)
        harness.reset()
        accelerator = Accelerator(harness, program.config)
        accelerator.load_program(program)
        yield Simulation(accelerator, program)


def verify(
    folder: Path,
    graph: LayerGraph,
    samples: Maps,
    *,
    random: int,
    wave: Path | None = None,
    progress: Progress | None = None,
) -> VerifyFacts:
    """Compare the hardware with the reference: every stored tensor after its layer, then whole runs and their cycles.

    Args:
        folder: An artefact.
        graph: The integers that it stands for.
        samples: int8 [N, C, H, W] of each input; N may be 0.
        random: How many random inputs are added.
    """
    inputs = with_random(graph, samples, random)
    total = len(next(iter(inputs.values())))
    found: list[judge.Verdict] = []
    mismatches: list[judge.Mismatch] = []
    late: list[str] = []
    with simulate(folder, wave=wave, progress=progress) as simulation:
        try:
            for index in range(total):
                one = {name: values[index : index + 1] for name, values in inputs.items()}
                reference = {name: values[0] for name, values in interpreter.run(graph, one, keep="all").items()}
                found.append(judge.verify(simulation.accelerator, simulation.program, reference))
                differences, cycles = _whole_run(simulation, reference)
                mismatches += [*found[-1].mismatches, *differences]
                late += [*map(str, found[-1].cycle_mismatches), *simulation.wrong_cycles(cycles)]
                if progress:
                    progress("verify", index + 1, total)
        except MisbehaviourError as error:  # it is stuck: nothing more can be compared
            late += str(error).splitlines()
        cycles = simulation.cycles
    return _facts(found, mismatches, late, random, cycles)


def _whole_run(simulation: Simulation, reference: Mapping[str, NDArray[np.int8]]) -> tuple[list[judge.Mismatch], int]:
    """All instructions in one go, since nothing may depend on stopping between layers: differences and cycles."""
    program = simulation.program
    inputs = {name: reference[name].reshape(d.shape) for name, d in program.inputs.items()}
    outputs, cycles = infer(simulation.accelerator, program, inputs)
    pairs = ((name, reference[name].reshape(got.shape), got) for name, got in outputs.items())
    differences = (judge.compare(f"output {name}, whole run", expected, got) for name, expected, got in pairs)
    return [difference for difference in differences if difference], cycles


def _facts(
    found: list[judge.Verdict], mismatches: list[judge.Mismatch], late: list[str], random: int, cycles: int
) -> VerifyFacts:
    whole = 2  # each instruction runs once alone and once in the whole run
    return VerifyFacts(
        inputs=len(found),
        random_inputs=random,
        elements=sum(verdict.elements for verdict in found),
        layers=found[0].layers if found else 0,
        mismatches=sum(mismatch.count for mismatch in mismatches),
        instructions=whole * sum(verdict.instructions for verdict in found),
        cycle_mismatches=len(late),
        cycles=cycles,
        differences=tuple([*map(str, mismatches), *late][:_SHOWN]),
    )


def with_random(graph: LayerGraph, samples: Maps, random: int) -> Maps:
    """The samples, then `random` inputs of uniform bytes."""
    generator = np.random.default_rng(_SEED)
    noise = {t.name: generator.integers(-128, 128, (random, *t.shape), np.int8) for t in graph.inputs}
    return {
        name: np.concatenate([samples[name], values]) if name in samples else values for name, values in noise.items()
    }
