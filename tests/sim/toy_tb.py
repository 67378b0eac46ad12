"""cocotb tests of AxiTransport: the driver over cocotbext-axi on toy.v."""

import os

import cocotb
import numpy as np
from cocotb.task import bridge

from hw.config import array_config
from hw.descriptor import TensorDescriptor
from hw.isa import Memory
from sim.cocotb_axi import AxiTransport
from sim.driver import Accelerator
from sim.stream import start

CONFIG = array_config(8, 2)


@bridge
def add_four(transport: AxiTransport) -> tuple[np.ndarray, np.ndarray, int]:
    accelerator = Accelerator(transport, CONFIG)
    accelerator.load({Memory.BLOCK: [1, 2, 3]})
    values = np.random.default_rng(2).integers(-128, 128, (3, 5, 7), dtype=np.int8)
    descriptor = TensorDescriptor((0, 0, 0, 0), plane=35, pitch=7, width=7, height=5, channels=3)
    accelerator.write_tensor(descriptor, values)
    cycles = accelerator.run(0, 4)
    return values, accelerator.read_tensor(descriptor), cycles


@cocotb.test()
async def driver_moves_a_tensor(dut) -> None:
    await start(dut)
    transport = AxiTransport(dut, pause_probability=float(os.environ["PAUSE"]), seed=3)
    values, result, cycles = await add_four(transport)
    assert np.array_equal(result, values + np.int8(4))
    assert cycles == 40
