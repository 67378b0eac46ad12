"""The FPGA target: generates an accelerator and the program that runs a network on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.base import Build, Tensors
from backends.fpga.emit import PROGRAM_FOLDER, RTL_FILE, emit
from backends.fpga.estimate import estimate
from backends.fpga.program import make_plan, place
from backends.fpga.schedule import STEP_LIMIT, Options
from backends.layers import AveragePool, Conv, Layer, LayerGraph, MaxPool, Resize
from hw.config import AcceleratorConfig
from sim.driver import Accelerator, infer
from sim.harness import Harness
from sim.program import Program


@dataclass(frozen=True)
class FpgaBackend:
    """Implements backends.base.Backend.

    Attributes:
        config: The accelerator.
        options: How to schedule.
    """

    config: AcceleratorConfig = AcceleratorConfig()
    options: Options = field(default_factory=Options)
    name: str = "fpga"

    def why_not(self, layer: Layer) -> str | None:
        """Why the accelerator cannot execute the layer, or None."""
        limit = 1 << self.config.coordinate_bits
        for tensor in (*layer.inputs, layer.output):
            if tensor.shape[2] >= limit:
                return f"its map is {tensor.shape[2]} wide, the accelerator counts to {limit - 1}"
        match layer:
            case Conv() | MaxPool() | AveragePool():
                return _why_not_strides(layer)
            case Resize() if max(layer.factors) > STEP_LIMIT:
                return f"a factor of {max(layer.factors)} is more than {STEP_LIMIT}"
        return None

    def program(self, graph: LayerGraph) -> Program:
        """Compile without writing anything.

        Raises:
            DoesNotFitError: The network is too large for the accelerator.
        """
        return place([make_plan(graph, self.config, self.options)], self.config)

    def build(self, graph: LayerGraph, folder: Path) -> Build:
        """Write `rtl/accelerator.v` and `program/`."""
        plan = make_plan(graph, self.config, self.options)
        files = emit(place([plan], self.config), folder)
        return Build(self.name, folder, tuple(folder / file for file in files), estimate([plan], self.config))

    def run(self, build: Build, inputs: Mapping[str, NDArray[np.int8]]) -> Tensors:
        """Simulate the built accelerator in Verilator on int8 [N, C, H, W] inputs."""
        program = Program.load(build.folder / PROGRAM_FOLDER)
        with Harness.from_verilog(build.folder / RTL_FILE) as harness:
            harness.reset()
            accelerator = Accelerator(harness, program.config)
            accelerator.load_program(program)
            rows = [infer(accelerator, program, sample)[0] for sample in _samples(program, inputs)]
        return {name: np.stack([row[name] for row in rows]) for name in program.outputs}


def _samples(program: Program, inputs: Mapping[str, NDArray[np.int8]]) -> list[dict[str, NDArray[np.int8]]]:
    """One mapping for each sample, in the shapes of the program's descriptors."""
    count = len(next(iter(inputs.values())))
    shapes = {name: descriptor.shape for name, descriptor in program.inputs.items()}
    return [{name: inputs[name][i].reshape(shape) for name, shape in shapes.items()} for i in range(count)]


def _why_not_strides(layer: Conv | MaxPool | AveragePool) -> str | None:
    """Even strides are halved by the layout; along a side with one output position there is no stride."""
    strides = [stride for stride, side in zip(layer.strides, layer.output.shape[1:], strict=True) if side > 1]
    largest = max((stride if stride % 2 else stride // 2 for stride in strides), default=1)
    return f"a stride of {max(strides)} drops too many positions" if largest > STEP_LIMIT else None
