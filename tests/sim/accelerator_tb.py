"""cocotb tests of the whole accelerator on cocotbext-axi's buses; test_accelerator.py leaves the case in a folder."""

import os
from pathlib import Path

import cocotb
import numpy as np
from cocotb.task import bridge

from sim.cocotb_axi import AxiTransport
from sim.driver import Accelerator
from sim.program import Program
from sim.stream import start
from sim.verify import Verdict, verify

FOLDER = Path(os.environ["EDGEC_CASE"])


@bridge
def verdict_of(transport: AxiTransport) -> Verdict:
    program = Program.load(FOLDER)
    accelerator = Accelerator(transport, program.config)
    accelerator.load_program(program)
    return verify(accelerator, program, np.load(FOLDER / "tensors.npz"))


async def check(dut, pause_probability: float) -> None:
    await start(dut)
    verdict = await verdict_of(AxiTransport(dut, pause_probability=pause_probability))
    assert verdict.passed, verdict


@cocotb.test()
async def random_network_is_exact(dut) -> None:
    await check(dut, 0)


@cocotb.test()
async def random_network_is_exact_under_pauses(dut) -> None:
    await check(dut, 0.4)
