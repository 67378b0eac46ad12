"""cocotb tests of the whole accelerator through its AXI ports; test_host_ports.py leaves the programs in a folder."""

import os
from dataclasses import replace
from pathlib import Path

import cocotb
import numpy as np
from cocotb.task import bridge

from hw import registers
from hw.config import AcceleratorConfig
from hw.registers import Register
from sim import driver
from sim.cocotb_axi import AxiTransport
from sim.driver import Accelerator, infer
from sim.program import Program
from sim.stream import start
from sim.verify import Verdict, verify
from sim.verilator import SimError

FOLDERS = sorted(path for path in Path(os.environ["CASES"]).iterdir() if path.is_dir())


@bridge
def layer_by_layer(transport: AxiTransport, folder: Path) -> Verdict:
    program = Program.load(folder)
    accelerator = Accelerator(transport, program.config)
    accelerator.load_program(program)
    return verify(accelerator, program, np.load(folder / "tensors.npz"))


@bridge
def whole_runs(transport: AxiTransport) -> None:
    """Program after program, each twice, without a reset; outputs and cycles are those expected."""
    for folder in (*FOLDERS, FOLDERS[0]):
        program, tensors = Program.load(folder), np.load(folder / "tensors.npz")
        accelerator = Accelerator(transport, program.config)
        accelerator.load_program(program)
        inputs = {name: tensors[name].reshape(place.shape) for name, place in program.inputs.items()}
        for _ in range(2):
            outputs, cycles = infer(accelerator, program, inputs)
            assert cycles == program.cycles, folder.name
            for name, values in outputs.items():
                assert np.array_equal(values.ravel(), tensors[name].ravel()), f"{folder.name}: {name}"


def refusal(transport: AxiTransport, config: AcceleratorConfig) -> str:
    try:
        Accelerator(transport, config)
    except SimError as error:
        return str(error)
    return ""


@bridge
def identities(transport: AxiTransport) -> None:
    """The registers identify the hardware; a program for another one is refused before anything is loaded."""
    config = Program.load(FOLDERS[0]).config
    assert transport.read_register(Register.ID) == registers.ID_VALUE
    assert transport.read_register(Register.CONFIG_ID) == config.config_id
    assert refusal(transport, config) == ""
    other = replace(config, tap_words=config.tap_words + 1)
    assert refusal(transport, other) == (
        f"CONFIG_ID is {config.config_id:#010x}, the program needs {other.config_id:#010x}"
    )
    version = driver.ABI_VERSION
    driver.ABI_VERSION = version + 1
    try:
        assert refusal(transport, config) == f"ABI_VERSION is {version:#010x}, the program needs {version + 1:#010x}"
    finally:
        driver.ABI_VERSION = version


@cocotb.test()
@cocotb.parametrize(folder=FOLDERS, pause=[0.0, 0.5])
async def every_layer_is_exact(dut, folder: Path, pause: float) -> None:
    await start(dut)
    verdict = await layer_by_layer(AxiTransport(dut, pause_probability=pause, seed=len(folder.name)), folder)
    assert verdict.passed, verdict
    assert verdict.layers >= 4
    assert verdict.instructions >= 4


@cocotb.test()
async def programs_follow_each_other_without_a_reset(dut) -> None:
    await start(dut)
    await whole_runs(AxiTransport(dut, pause_probability=0.2, seed=9))


@cocotb.test()
async def another_configuration_or_abi_is_refused(dut) -> None:
    await start(dut)
    await identities(AxiTransport(dut))
