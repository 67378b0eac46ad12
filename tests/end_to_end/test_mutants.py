"""Twenty mutants of an artefact: `edgec verify` exits 1 for each, and names the layer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.reference import run
from compiler import stored
from hw.isa import Memory, memory_shape
from sim.golden.machine import MachineError, run_program
from sim.program import Program
from tests.support.edgec import ROOT, Ran, edgec
from tests.support.random_networks import random_network

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

# (module of rtl/accelerator.v, text with its constant, the same with another constant)
RTL_MUTANTS = {
    "channel counter": (r"accelerator\.addresses", r"(\[15:0\] \+ )1'h1;", r"\g<1>1'h0;"),
    "row pitch of the lanes": (r"accelerator\.walker", r"(pitch - )1'h1;", r"\g<1>1'h0;"),
    "lane origin": (r"accelerator\.walker", r"(from_origin \? )10'h000", r"\g<1>10'h001"),
    "output column of the writer": (r"accelerator\.drain\.walker", r"( = x \+ )1'h1;", r"\g<1>1'h0;"),
    "start of a lane sum": (r"accelerator\.drain", r"(\? )24'h000000( : reduced0)", r"\g<1>24'h0000ff\g<2>"),
    # Not its rounding: exact ties hardly occur in a network; the proof of hw/rounding.py is what covers them.
    "high part of a product": (
        r"accelerator\.drain\.requantize0_0\.scale",
        r"(acc\[18\] \? .* : )17'h00000;",
        r"\g<1>17'h000ff;",
    ),
}
WEIGHT_MUTANTS, PROGRAM_MUTANTS = 8, 6
ODD_NETWORK = 376
"""Of tests.support.random_networks: maps 15 wide, a residual Add, a table and a global average pool on the way."""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network on an 8x2 array."""
    examples = ROOT / "examples"
    return _compiled(tmp_path_factory, examples / "digits_cnn.onnx", examples / "digits_calib.npz")


@pytest.fixture(scope="module")
def odd_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose maps are no multiple of the lanes: where a lane wraps to the next row matters."""
    network = random_network(ODD_NETWORK)
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.onnx").write_bytes(network.model.SerializeToString())
    np.savez(folder / "odd.npz", x=network.samples)
    return _compiled(tmp_path_factory, folder / "odd.onnx", folder / "odd.npz")


def test_the_artefacts_themselves_pass(artefact: Path, odd_artefact: Path) -> None:
    assert _verify(artefact).code == 0
    assert _verify(odd_artefact).code == 0


@pytest.mark.parametrize("number", range(WEIGHT_MUTANTS))
def test_one_bit_of_the_weight_image(artefact: Path, tmp_path: Path, number: int) -> None:
    _caught(artefact, tmp_path, Memory.WEIGHT, number)


@pytest.mark.parametrize("number", range(PROGRAM_MUTANTS))
def test_one_bit_of_a_program_word(artefact: Path, tmp_path: Path, number: int) -> None:
    _caught(artefact, tmp_path, Memory.PROGRAM, number)


@pytest.mark.parametrize("name", RTL_MUTANTS)
def test_one_constant_of_the_rtl(odd_artefact: Path, tmp_path: Path, name: str) -> None:
    module, text, changed = RTL_MUTANTS[name]
    folder = _copy(odd_artefact, tmp_path)
    rtl = folder / "rtl" / "accelerator.v"
    modules = re.split(r"(?m)^(?=module )", rtl.read_text())
    place = next(i for i, body in enumerate(modules) if re.match(rf"module \\?{module} ?\(", body))
    modules[place], count = re.subn(text, changed, modules[place], count=1)
    assert count == 1, f"{module} has no such constant any more"
    rtl.write_text("".join(modules))
    ran = _verify(folder)
    assert ran.code == 1, ran.stdout + ran.stderr
    named = re.findall(r"layer '([^']+)'", ran.stdout)
    assert set(named) & {layer.name for layer in Program.load(folder / "program").layers}, ran.stdout


def _caught(artefact: Path, tmp_path: Path, memory: Memory, number: int) -> None:
    """The verdict names the layer in which the golden model of the machine goes wrong first."""
    inputs, reference = _sample(artefact)
    program = Program.load(artefact / "program")
    mutant, layer = next(_live_mutants(program, inputs, reference, memory, number))
    folder = _copy(artefact, tmp_path)
    mutant.save(folder / "program")
    ran = _verify(folder)
    assert ran.code == 1, ran.stdout + ran.stderr
    assert f"layer '{layer}'" in ran.stdout, ran.stdout


def _live_mutants(
    program: Program,
    inputs: Mapping[str, NDArray[np.int8]],
    reference: Mapping[str, NDArray[np.int8]],
    memory: Memory,
    seed: int,
) -> Iterator[tuple[Program, str]]:
    """Programs with one flipped bit that changes a tensor, and the first layer that it changes.

    A flipped bit that no arithmetic reads (a lane without a channel, a field that the mode ignores) is no mutant.
    """
    rng = np.random.default_rng([seed, int(memory)])
    for _ in range(200):
        words = list(program.images[memory])
        words[rng.integers(len(words))] ^= 1 << int(rng.integers(memory_shape(program.config, memory)[1]))
        mutant = replace(program, images={**program.images, memory: words})
        try:
            got = run_program(mutant, inputs)
        except (MachineError, IndexError, ValueError):
            continue  # a program that the machine cannot execute at all
        wrong = [layer.name for layer in program.layers if _differs(got[layer.tensor], reference[layer.tensor])]
        if wrong:
            yield mutant, wrong[0]


def _differs(got: NDArray[np.int8], expected: NDArray[np.int8]) -> bool:
    return not np.array_equal(got.ravel(), expected.ravel())


def _sample(artefact: Path) -> tuple[dict[str, NDArray[np.int8]], dict[str, NDArray[np.int8]]]:
    """The first kept calibration sample and what the reference makes of it, without a batch axis."""
    opened = stored.open_artefact(artefact)
    one = {name: values[:1] for name, values in opened.samples().items()}
    tensors = {name: values[0] for name, values in run(opened.lowered.graph, one, keep="all").items()}
    shapes = {name: place.shape for name, place in Program.load(artefact / "program").inputs.items()}
    return {name: tensors[name].reshape(shape) for name, shape in shapes.items()}, tensors


def _compiled(factory: pytest.TempPathFactory, model: Path, calib: Path) -> Path:
    folder = factory.mktemp("mutants") / "artefact"
    ran = edgec("compile", model, "--calib", calib, "--array", "8x2", "--no-verify", "-o", folder)
    assert ran.code == 0, ran.stderr
    return folder


def _copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "mutant"))


def _verify(folder: Path) -> Ran:
    return edgec("verify", folder, "--inputs", "1", "--random", "0")
