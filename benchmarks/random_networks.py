"""Random small networks: RTL against reference on 8x2, and quantized ONNX against the reference."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, at_least, at_most
from compiler.equivalence import compare_layers
from hw.config import array_config
from sim.driver import Accelerator
from sim.harness import Harness
from sim.verify import verify
from tests.support.cases import Case, case
from tests.support.random_networks import Cell, coverage_table

ROW = "random"
_CASES, _QUICK_CASES = 200, 25
_CONFIG = array_config(8, 2)


def figures(workshop: Workshop) -> Iterator[Figure]:
    """Cases that are equal, the worst case's share of elements that differ from onnxruntime, and the coverage table."""
    count = _QUICK_CASES if workshop.quick else _CASES
    equal, worst, largest, cells = 0, 0.0, 0, list[Cell]()
    with Harness.from_verilog(verilog(_CONFIG), x_initial="unique", seed=1) as harness:
        harness.reset()
        accelerator = Accelerator(harness, _CONFIG)
        for number in range(count):
            drawn = case(number)
            cells += drawn.network.cells
            equal += _is_equal(accelerator, drawn)
            layers = compare_layers(drawn.quantized, drawn.lowered, drawn.samples)
            largest = max(largest, *(layer.largest for layer in layers))
            share = sum(layer.differing for layer in layers) / sum(layer.elements for layer in layers)
            worst = max(worst, share)
    Console(stderr=True).print(coverage_table(cells), highlight=False)
    note = f"{len(set(cells))} different cells of op x stride x pad x dilation x group x odd size"
    all_of_them = at_least(count)
    yield Figure(
        ROW, f"random networks of {count} whose RTL equals the reference", float(equal), "", all_of_them, note=note
    )
    what = "random networks, quantized ONNX against integers"
    yield Figure(ROW, f"{what}, largest difference", float(largest), "steps", at_most(1), at_most(0))
    yield Figure(ROW, f"{what}, differing in the worst network", 100 * worst, "%", at_most(0.1), at_most(0))


def _is_equal(accelerator: Accelerator, drawn: Case) -> bool:
    program = build_program(drawn.lowered.graph, _CONFIG)
    accelerator.load_program(program)
    return verify(accelerator, program, {name: values[0] for name, values in drawn.tensors.items()}).passed
