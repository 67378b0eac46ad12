"""Random networks with host operators at random places: every cut, in onnxruntime, reference, machine and RTL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.base import Tensors
from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from backends.reference import run
from compiler.equivalence import compare_layers, onnxruntime_points, verification_session
from compiler.host import host_of
from compiler.lowering import Lowered, lower
from compiler.partition import partition
from compiler.stored import sent, serialized
from hw.config import array_config
from sim.driver import Accelerator, enter, infer
from sim.golden.machine import run_program
from sim.harness import Harness
from sim.program import Program
from sim.verify import verify
from tests.support.cases import Case, cut_case

CASES, RTL_CASES, NIGHTLY_CASES = 25, 4, 200
CONFIG = array_config(8, 2)
NIGHTLY = [pytest.param(number, marks=pytest.mark.nightly) for number in range(CASES, NIGHTLY_CASES)]


def program_of(lowered: Lowered) -> Program:
    return build_program([segment.graph for segment in lowered.segments], CONFIG)


@pytest.mark.parametrize("number", [*range(CASES), *NIGHTLY])
def test_onnxruntime_agrees_with_the_integers(number: int) -> None:
    """Each layer fed the same input: one step at most, and in a thousandth of a network's elements (or two) at most."""
    drawn = cut_case(number)
    layers = compare_layers(drawn.quantized, drawn.lowered, drawn.samples)
    assert layers, str(drawn)
    assert max(layer.largest for layer in layers) <= 1, str(drawn)
    share = 0.001 * sum(layer.elements for layer in layers)
    assert sum(layer.differing for layer in layers) <= max(2, share), str(drawn)


@pytest.mark.parametrize("number", [*range(CASES), *NIGHTLY])
def test_the_host_gives_what_onnxruntime_gives(number: int) -> None:
    """Segments answer with onnxruntime's integers, so nothing but the host and the cuts can differ."""
    drawn = cut_case(number)
    lowered, points = drawn.lowered, drawn.lowered.points
    theirs = onnxruntime_points(drawn.quantized, lowered, drawn.samples)
    covered = {name: view for name, (_, view) in points.items() if _covers(view.positions(), theirs[name])}
    whole = {name: view.put(theirs[name]) for name, view in covered.items()}

    def answer(index: int, tensors: Tensors) -> Tensors:
        graph = lowered.segments[index].graph
        return {t.name: whole[t.name] if t.name in whole else run(graph, tensors)[t.name] for t in graph.outputs}

    found = host_of(lowered, drawn.quantized).run(drawn.samples, answer)
    for name, values in sent(lowered, found).items():
        off = np.abs(values.astype(int) - whole[name])
        assert off.max() <= 1, f"{drawn}: {name}"
        assert np.count_nonzero(off) <= 0.001 * off.size + 1, f"{drawn}: {name}"
    session = verification_session(drawn.quantized)
    rows = [session.run(None, {"x": x[None]}) for x in drawn.network.samples]
    for index, (name, values) in enumerate(found.outputs.items()):
        expected = np.concatenate([row[index] for row in rows])
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def _covers(positions: np.ndarray, values: np.ndarray) -> bool:
    """Whether a value holds every element of its map, each once."""
    return values[0].size == positions.size == len(np.unique(positions)) == positions.max() + 1


@pytest.mark.parametrize("number", [*range(CASES), *NIGHTLY])
def test_the_machine_computes_the_integers(number: int) -> None:
    """Every stored tensor of every entry, on the golden model of the machine."""
    drawn = cut_case(number)
    program = program_of(drawn.lowered)
    assert len(program.entries) == len(drawn.lowered.segments) > 1
    assert program.cycles == sum(program.cycles_of(e.pc_start, e.pc_end) or 0 for e in program.entries)
    for name, got in run_program(program, _sample(program, drawn, 0)).items():
        assert np.array_equal(got.reshape(drawn.tensors[name][0].shape), drawn.tensors[name][0]), f"{drawn}: {name}"


@pytest.mark.parametrize("number", range(CASES))
def test_a_stored_network_is_cut_in_the_same_places(number: int) -> None:
    drawn = cut_case(number)
    model = ir.serde.deserialize_model(onnx.ModelProto.FromString(serialized(drawn.quantized)))
    again = lower(model, partition(model))
    assert _cuts(again) == _cuts(drawn.lowered)
    assert [(n.name, n.after, n.side) for n in again.host_nodes] == [
        (n.name, n.after, n.side) for n in drawn.lowered.host_nodes
    ]


def _cuts(lowered: Lowered) -> list[tuple[list[str], ...]]:
    return [
        (
            [cut.value for cut in segment.inputs],
            [layer.name for layer in segment.graph.layers],
            [tensor.name for tensor in segment.graph.outputs],
            [cut.value for cut in segment.outputs],
            [] if segment.host is None else [node.name or "" for node in segment.host.graph],
        )
        for segment in lowered.segments
    ]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness.from_verilog(verilog(CONFIG), x_initial="unique", seed=77) as harness:
        harness.reset()
        yield harness


@pytest.mark.verilator
@pytest.mark.parametrize("number", range(RTL_CASES))
def test_rtl_computes_the_integers(harness: Harness, number: int) -> None:
    """Layer by layer, entry by entry with the host between, and all entries in a row."""
    drawn = cut_case(number)
    program = program_of(drawn.lowered)
    harness.stall(0.3 if number % 2 else 0.0, number)
    accelerator = Accelerator(harness, CONFIG)
    accelerator.load_program(program)
    reference = {name: values[0] for name, values in drawn.tensors.items()}
    verdict = verify(accelerator, program, reference)
    assert verdict.passed, f"{drawn}: {verdict.mismatches} {verdict.cycle_mismatches}"
    outputs, cycles = infer(accelerator, program, _sample(program, drawn, 0))
    assert cycles == program.cycles
    _assert_same(outputs, reference)

    def on_hardware(index: int, tensors: Tensors) -> Tensors:
        entry = program.entries[index]
        got, cycles = enter(accelerator, program, entry, {name: values[0] for name, values in tensors.items()})
        assert cycles == program.cycles_of(entry.pc_start, entry.pc_end)
        return {name: values[None] for name, values in got.items()}

    one = {"x": drawn.network.samples[:1]}
    host = host_of(drawn.lowered, drawn.quantized)
    found, expected = host.run(one, on_hardware), host.reference(one)
    _assert_same(found.tensors, expected.tensors)
    for name, values in expected.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], values)


def _assert_same(found: Tensors, expected: Tensors) -> None:
    for name, values in found.items():
        np.testing.assert_array_equal(values.ravel(), expected[name].ravel(), err_msg=name)


def _sample(program: Program, drawn: Case, index: int) -> Tensors:
    return {name: drawn.tensors[name][index].reshape(place.shape) for name, place in program.inputs.items()}
