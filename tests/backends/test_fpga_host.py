"""The host drivers of an artefact run real networks on the simulated accelerator."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.fpga.emit import verilog
from backends.fpga.host.emit import emit_host, network_header, register_header
from backends.fpga.program import build_program
from backends.reference.interpreter import run
from hw.config import array_config
from hw.registers import Register
from sim.harness import Harness
from sim.program import Program
from sim.verilator import build_harness
from tests.support.random_layers import halves, random_graph, random_inputs

CONFIG = array_config(8, 2)
MAIN = Path(__file__).with_name("host_main.c")
OTHER_HARDWARE = 1

Tensors = dict[str, NDArray[np.int8]]


def case(seed: int) -> tuple[Program, Tensors]:
    graph = random_graph(seed)
    return build_program(graph, CONFIG), run(graph, random_inputs(graph, seed), keep="all")


def cut_case(seed: int) -> tuple[Program, Tensors]:
    """The same in two entries; a tensor passes from one to the other."""
    graph = random_graph(seed)
    program = build_program(halves(graph, len(graph.layers) // 2), CONFIG)
    assert set(program.entries[0].outputs) & set(program.entries[1].inputs)
    return program, run(graph, random_inputs(graph, seed), keep="all")


def compile_c(folder: Path) -> Path:
    """The host folder and host_main.c as one program, without a warning."""
    sources = [folder / "host" / "edgec_driver.c", folder / "host" / "edgec_network.c", MAIN]
    flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
    subprocess.run(["gcc", *flags, "-I", folder / "host", "-o", folder / "main", *sources], check=True)
    return folder / "main"


def run_c(executable: Path, harness: Path, inputs: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the C program with its descriptors 3 and 4 on the pipes of a simulation."""
    with subprocess.Popen([harness], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as simulation:
        assert simulation.stdin
        assert simulation.stdout
        pipes = f"{simulation.stdout.fileno()} {simulation.stdin.fileno()}".split()
        shell = f'exec "$0" "$@" 3<&{pipes[0]} 4>&{pipes[1]}'
        done = subprocess.run(
            ["bash", "-c", shell, str(executable), *arguments], input=inputs, capture_output=True, timeout=120,
            pass_fds=[int(pipe) for pipe in pipes], check=False,
        )  # fmt: skip
        simulation.stdin.close()
    return done


def padded(values: NDArray[np.int8]) -> bytes:
    data = values.tobytes()
    return data + bytes(-len(data) % 4)


@pytest.mark.verilator
@pytest.mark.parametrize("arguments", [(), ("poll",)])
@pytest.mark.parametrize("seed", [1, 4])
def test_c_driver_runs_a_network(tmp_path: Path, seed: int, arguments: tuple[str, ...]) -> None:
    program, tensors = case(seed)
    emit_host(program, tmp_path)
    inputs = b"".join(padded(tensors[name]) for name in program.inputs)
    done = run_c(compile_c(tmp_path), build_harness(verilog(CONFIG)), inputs, *arguments)
    assert done.returncode == 0, done.stderr
    assert int.from_bytes(done.stdout[:4], "little") == program.cycles
    assert done.stdout[4:] == b"".join(padded(tensors[name]) for name in program.outputs)


@pytest.mark.verilator
def test_c_driver_enters_several_times(tmp_path: Path) -> None:
    program, tensors = cut_case(4)
    emit_host(program, tmp_path, steps=["Run middle1.onnx */."])
    inputs = b"".join(padded(tensors[name]) for entry in program.entries for name in entry.inputs)
    done = run_c(compile_c(tmp_path), build_harness(verilog(CONFIG)), inputs)
    assert done.returncode == 0, done.stderr
    expected = b""
    for entry in program.entries:
        expected += (program.cycles_of(entry.pc_start, entry.pc_end) or 0).to_bytes(4, "little")
        expected += b"".join(padded(tensors[name]) for name in entry.outputs)
    assert done.stdout == expected


@pytest.mark.verilator
def test_c_driver_refuses_other_hardware(tmp_path: Path) -> None:
    program, tensors = case(1)
    emit_host(replace(program, config=replace(CONFIG, acc_bits=25)), tmp_path)
    inputs = b"".join(padded(tensors[name]) for name in program.inputs)
    assert run_c(compile_c(tmp_path), build_harness(verilog(CONFIG)), inputs).returncode == OTHER_HARDWARE


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """host/edgec_driver.py as a board imports it; the program of seed 1 is in tmp_path."""
    program, _ = case(1)
    program.save(tmp_path / "program")
    emit_host(program, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "host"))
    yield importlib.import_module("edgec_driver")
    for name in ("edgec_driver", "edgec_registers"):
        sys.modules.pop(name)


@pytest.mark.verilator
def test_python_driver_runs_a_network(driver: ModuleType, tmp_path: Path) -> None:
    program, tensors = case(1)
    with Harness.from_verilog(verilog(CONFIG)) as harness:
        accelerator = driver.Accelerator(harness, tmp_path / "program")
        inputs = {name: tensors[name].reshape(d.shape) for name, d in program.inputs.items()}
        outputs, cycles = accelerator.infer(inputs)
        assert cycles == program.cycles
        for name, d in program.outputs.items():
            assert np.array_equal(outputs[name], tensors[name].reshape(d.shape))
        with pytest.raises(ValueError, match="values must be int8"):
            accelerator.infer({name: values.astype(np.int16) for name, values in inputs.items()})


@pytest.mark.verilator
def test_python_driver_enters_several_times(driver: ModuleType, tmp_path: Path) -> None:
    program, tensors = cut_case(4)
    program.save(tmp_path / "program")
    with Harness.from_verilog(verilog(CONFIG)) as harness:
        accelerator = driver.Accelerator(harness, tmp_path / "program")
        with pytest.raises(driver.DriverError, match="the network enters the accelerator 2 times"):
            accelerator.infer({})
        for index, entry in enumerate(program.entries):
            outputs, cycles = accelerator.enter(index, {name: values[0] for name, values in tensors.items()})
            assert cycles == program.cycles_of(entry.pc_start, entry.pc_end)
            for name, d in entry.outputs.items():
                assert np.array_equal(outputs[name], tensors[name].reshape(d.shape))


@pytest.mark.verilator
def test_python_driver_refuses_other_hardware(driver: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "program" / "program.json"
    file.write_text(re.sub(r'"config_id": \d+', '"config_id": 17', file.read_text()))
    with (
        Harness.from_verilog(verilog(CONFIG)) as harness,
        pytest.raises(driver.DriverError, match=f"CONFIG_ID is {CONFIG.config_id:#010x}, the program needs 0x00000011"),
    ):
        driver.Accelerator(harness, tmp_path / "program")


def test_register_header_names_every_register() -> None:
    header = register_header()
    found = {name: int(value, 16) for name, value in re.findall(r"#define EDGEC_REG_(\w+) (0x\w+)u", header)}
    assert found == {register.name: register.value for register in Register}


def test_network_header_survives_hostile_tensor_names() -> None:
    program, _ = case(1)
    place = next(iter(program.inputs.values()))
    entry = replace(program.entries[0], inputs={"x*/\n#error\\": place})
    hostile = replace(program, entries=(entry,))
    header = network_header(hostile, {"x*/\n#error\\": (0.5, -3)})
    assert "#error" not in header
    assert "#define EDGEC_INPUT_0_SCALE 0.5\n#define EDGEC_INPUT_0_ZERO_POINT (-3)\n" in header
    assert f"#define EDGEC_INPUT_0_SIZE {place.size}u" in header


def test_emit_lists_its_files(tmp_path: Path) -> None:
    files = emit_host(case(1)[0], tmp_path)
    assert sorted(str(f) for f in files) == sorted(f"host/{f}" for f in os.listdir(tmp_path / "host"))
