"""The whole accelerator in Verilator: random networks, bit for bit and cycle for cycle, on hostile buses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.fpga.emit import verilog
from backends.fpga.program import build_program
from backends.reference.interpreter import run
from hw.config import AcceleratorConfig, array_config
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape
from hw.registers import Register, StatusBit
from sim.driver import Accelerator, infer
from sim.harness import Harness
from sim.program import Program, pack_words
from sim.verify import verify
from sim.verilator import SimError, cocotb_test
from tests.support.random_layers import random_graph, random_inputs

CONFIG = array_config(8, 2)
SMALL = array_config(4, 2, activation_words=4096, weight_words=256, parameter_words=64, block_words=64, tap_words=64)
SMALL_MAP = TensorDescriptor((3, 0, 0, 0), plane=20, pitch=5, width=4, height=3, channels=5)

pytestmark = pytest.mark.verilator


def case(seed: int, config: AcceleratorConfig) -> tuple[Program, dict[str, NDArray[np.int8]]]:
    """A random network and every tensor of it for random inputs."""
    graph = random_graph(seed)
    return build_program(graph, config), run(graph, random_inputs(graph, seed), keep="all")


@pytest.fixture(scope="module")
def shared() -> Iterator[Harness]:
    with Harness.from_verilog(verilog(CONFIG)) as harness:
        yield harness


@pytest.fixture
def harness(shared: Harness) -> Harness:
    shared.stall(0)
    shared.reset()
    return shared


@pytest.mark.parametrize("probability", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_random_network_is_exact(harness: Harness, seed: int, probability: float) -> None:
    harness.stall(probability, seed)
    program, tensors = case(seed, CONFIG)
    accelerator = Accelerator(harness, CONFIG)
    accelerator.load_program(program)
    verdict = verify(accelerator, program, tensors)
    assert (verdict.mismatches, verdict.cycle_mismatches) == ((), ())
    assert verdict.elements > 100
    assert verdict.instructions == program.pc_end


def test_whole_runs_repeat_and_need_no_reset_between_networks(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    for seed in (1, 2, 1):
        program, tensors = case(seed, CONFIG)
        accelerator.load_program(program)
        inputs = {name: tensors[name].reshape(d.shape) for name, d in program.inputs.items()}
        for _ in range(2):
            outputs, cycles = infer(accelerator, program, inputs)
            for name, values in outputs.items():
                assert np.array_equal(values.reshape(-1), tensors[name].reshape(-1))
            assert cycles == program.cycles
            assert accelerator.counters(0, program.pc_end) == [i.cycles for i in program.instructions]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_reset_needs_no_initial_values(seed: int) -> None:
    program, tensors = case(seed, CONFIG)
    with Harness.from_verilog(verilog(CONFIG), x_initial="unique", seed=seed) as harness:
        accelerator = Accelerator(harness, CONFIG)
        accelerator.load_program(program)
        assert verify(accelerator, program, tensors).passed


def test_start_while_active_is_an_error_and_changes_nothing(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    values = np.arange(60, dtype=np.int8).reshape(SMALL_MAP.shape)
    accelerator.write_tensor(SMALL_MAP, values)
    harness.write_register(Register.LOAD_COUNT, 3)
    harness.write_register(Register.LOAD_MEMORY, Memory.BLOCK)
    harness.write_register(Register.LOAD_START, 1)  # and no beats: it stays active
    for register in (Register.CONTROL, Register.LOAD_START, Register.READ_START):
        harness.write_register(register, 1)
        assert harness.read_register(Register.STATUS) == 1 << StatusBit.LOADING | 1 << StatusBit.ERROR
        accelerator.clear_error()
        assert harness.read_register(Register.STATUS) == 1 << StatusBit.LOADING
    harness.send(pack_words([0] * 3, memory_shape(CONFIG, Memory.BLOCK)[1]))
    assert np.array_equal(accelerator.read_tensor(SMALL_MAP), values)


def test_empty_load_and_empty_run_end_at_once(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    harness.write_register(Register.LOAD_COUNT, 0)
    harness.write_register(Register.LOAD_MEMORY, Memory.WEIGHT)
    harness.write_register(Register.LOAD_START, 1)
    assert harness.read_register(Register.STATUS) == 0
    assert accelerator.run(0, 0, max_cycles=100) < 50


def test_all_memory_images_have_room_for_their_last_word(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    accelerator.load({Memory.BLOCK: [0] * CONFIG.block_words})
    with pytest.raises(ValueError, match="BLOCK: the image has .* words, the memory"):
        accelerator.load({Memory.BLOCK: [0] * (CONFIG.block_words + 1)})


def test_irq_stays_low_without_a_start(harness: Harness) -> None:
    with pytest.raises(SimError, match="still busy after 1000 cycles"):
        harness.wait_done(1000)


@pytest.mark.slow
def test_independent_bus_models_see_the_same(tmp_path: Path) -> None:
    program, tensors = case(3, SMALL)
    program.save(tmp_path)
    np.savez(tmp_path / "tensors.npz", **tensors)
    here = Path(__file__).parent
    environment = {"EDGEC_CASE": str(tmp_path)}
    ran = cocotb_test(verilog(SMALL), "accelerator", "accelerator_tb", python_path=[here], environment=environment)
    assert ran == 2
