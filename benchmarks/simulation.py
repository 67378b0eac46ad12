"""Speed of the C++ simulation: cycles of ResNet-8 inferences per CPU-second, loading included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.artefacts import Workshop, children_cpu
from benchmarks.figures import Figure, at_least
from benchmarks.networks import RESNET8
from compiler import artefact
from sim.driver import Accelerator, infer
from sim.harness import Harness
from sim.program import Program

ROW = "simulation"
_INFERENCES = 20


def figures(workshop: Workshop) -> Iterator[Figure]:
    """One line, at 16x8."""
    what, bar, aim = "cycles per CPU-second of the 16x8 array in Verilator", at_least(300e3), at_least(1e6)
    anchor = "VTA: 228 s per simulated ResNet-18 image"
    compiled = workshop.compile(RESNET8, "--array", "16x8")
    if compiled.failed:
        yield Figure(ROW, what, None, "", bar, aim, anchor, compiled.failed)
        return
    program = Program.load(compiled.folder / artefact.PROGRAM)
    rng = np.random.default_rng(0)
    inputs = {name: rng.integers(-128, 128, place.shape, np.int8) for name, place in program.inputs.items()}
    harness = Harness.from_verilog(compiled.folder / artefact.RTL)
    spent = children_cpu()
    with harness:
        harness.reset()
        accelerator = Accelerator(harness, program.config)
        accelerator.load_program(program)
        for _ in range(_INFERENCES):
            infer(accelerator, program, inputs)
        cycles = harness.cycles
    seconds = children_cpu() - spent
    note = f"{_INFERENCES} inferences of ResNet-8 with their transfers, {cycles:,} cycles, {seconds:.1f} CPU-seconds"
    yield Figure(ROW, what, cycles / seconds, "", bar, aim, anchor, note)
