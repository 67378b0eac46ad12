"""The C++ harness and the driver against a toy accelerator in Verilog (toy.v)."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hw.config import array_config
from hw.descriptor import TensorDescriptor
from hw.isa import Memory
from sim.driver import Accelerator
from sim.harness import Harness
from sim.verilator import SimError, build_harness

CONFIG = array_config(8, 2)
TOY = Path(__file__).with_name("toy.v")
FAULT, SCRATCH = 0x50, 0x54
DROP_VALID, NEVER_FINISH, EARLY_LAST, FATAL, SLAVE_ERROR, CHANGE_DATA, NEVER_ACCEPT = (1 << i for i in range(7))

pytestmark = pytest.mark.verilator


def toy_verilog() -> str:
    return re.sub(r"CONFIG_ID = 0\b", f"CONFIG_ID = 32'd{CONFIG.config_id}", TOY.read_text())


def descriptor(channels: int, height: int, width: int) -> TensorDescriptor:
    return TensorDescriptor(
        (0, 0, 0, 0), plane=height * width, pitch=width, width=width, height=height, channels=channels
    )


@pytest.fixture
def harness() -> Iterator[Harness]:
    with Harness.from_verilog(toy_verilog()) as harness:
        yield harness


def add(harness: Harness, amount: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, int]:
    """A map, the map with `amount` added by the toy, and the cycles."""
    values = np.random.default_rng(1).integers(-128, 128, shape, dtype=np.int8)
    accelerator = Accelerator(harness, CONFIG)
    accelerator.write_tensor(descriptor(*shape), values)
    cycles = accelerator.run(3, 3 + amount)
    return values, accelerator.read_tensor(descriptor(*shape)), cycles


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (8, 16, 16)])
def test_driver_moves_tensors_under_stalls(harness: Harness, shape: tuple[int, int, int], probability: float) -> None:
    harness.stall(probability, seed=5)
    values, result, cycles = add(harness, 4, shape)
    assert np.array_equal(result, values + np.int8(4))
    assert cycles == 40


def test_stalls_cost_cycles_and_repeat_with_their_seed() -> None:
    def spent(probability: float, seed: int) -> int:
        with Harness.from_verilog(toy_verilog()) as harness:
            harness.stall(probability, seed)
            add(harness, 1, (4, 8, 8))
            return harness.cycles

    free, first, again, other = spent(0, 0), spent(0.5, 1), spent(0.5, 1), spent(0.5, 2)
    assert free < first == again != other


def test_driver_loads_memories(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    accelerator.load({Memory.WEIGHT: [1, 2, 3], Memory.TABLE: [9] * 256, Memory.BLOCK: []})
    assert harness.read_register(0x30) == Memory.TABLE
    assert harness.read_register(0x38) == 256


def test_driver_refuses_another_accelerator(harness: Harness) -> None:
    with pytest.raises(SimError, match=f"CONFIG_ID is {CONFIG.config_id:#010x}, the program needs"):
        Accelerator(harness, array_config(4, 4))


def test_driver_reports_a_protocol_error(harness: Harness) -> None:
    accelerator = Accelerator(harness, CONFIG)
    harness.write_register(FAULT, NEVER_FINISH)
    harness.write_register(0x0C, 1)
    harness.write_register(0x0C, 1)  # a start while busy
    with pytest.raises(SimError, match="writing a tensor: the accelerator reports an error"):
        accelerator.write_tensor(descriptor(1, 1, 4), np.zeros((1, 1, 4), np.int8))
    accelerator.clear_error()
    assert not harness.read_register(0x10) & 1 << 4


def test_driver_refuses_another_shape(harness: Harness) -> None:
    with pytest.raises(ValueError, match=r"values must be int8 \[1, 2, 3\], not int16 \[1, 2, 3\]"):
        Accelerator(harness, CONFIG).write_tensor(descriptor(1, 2, 3), np.zeros((1, 2, 3), np.int16))


def test_wait_ends_after_its_cycles(harness: Harness) -> None:
    harness.write_register(FAULT, NEVER_FINISH)
    before = harness.cycles
    with pytest.raises(SimError, match="still busy after 12345 cycles"):
        Accelerator(harness, CONFIG).run(0, 1, max_cycles=12345)
    assert harness.cycles > before + 12345
    assert harness.read_register(0x10) & 1  # still alive, and busy


def receive(harness: Harness) -> None:
    harness.stall(0.5)
    harness.write_register(0xE8, 16)
    harness.write_register(0xEC, 4)
    harness.write_register(0xF0, 1)
    harness.write_register(0x40, 1)
    harness.receive(64)


def send(harness: Harness) -> None:
    harness.limit(50)
    harness.write_register(0x38, 4)
    harness.write_register(0x3C, 1)
    harness.send(bytes(16))
    harness.sync()


@pytest.mark.parametrize(("fault", "action", "message"), [
    (DROP_VALID, receive, "tvalid fell before the beat was taken"),
    (CHANGE_DATA, receive, "the beat changed before it was taken"),
    (EARLY_LAST, receive, "tlast is 1 at beat 0 of 16"),
    (SLAVE_ERROR, Harness.sync, "bresp is not OKAY"),
    (SLAVE_ERROR, lambda h: h.read_register(0), "is not OKAY"),
    (NEVER_ACCEPT, send, "input stream: beat 0 of 4 not accepted within 50 cycles"),
])  # fmt: skip
def test_broken_bus_rule_is_an_error(
    harness: Harness, fault: int, action: Callable[[Harness], object], message: str
) -> None:
    harness.write_register(FAULT, fault)
    with pytest.raises(SimError, match=message):
        action(harness)
    with pytest.raises(SimError, match=message):
        harness.sync()  # it stays
    harness.reset()
    harness.sync()


def test_receive_without_a_read_times_out(harness: Harness) -> None:
    harness.limit(20)
    with pytest.raises(SimError, match="output stream: beat 0 of 1 not offered within 20 cycles"):
        harness.receive(4)


def test_verilog_fatal_is_an_error_with_its_text(harness: Harness) -> None:
    harness.write_register(FAULT, FATAL)
    with pytest.raises(SimError, match="fault 3"):
        harness.idle(10)
        harness.sync()


def test_killed_simulation_is_an_error(harness: Harness) -> None:
    harness.sync()
    os.kill(harness._process.pid, signal.SIGKILL)
    with pytest.raises(SimError, match="the simulation was killed by signal 9") as caught:
        harness.sync()
    assert "run it again" in caught.value.__notes__[0]


def test_silent_simulation_is_killed() -> None:
    with Harness(build_harness(toy_verilog()), wall_seconds=0.2) as harness:
        harness.idle(1 << 40)
        with pytest.raises(SimError, match="gave no answer for 0.2 s and was killed"):
            harness.sync()


def test_unaligned_data_is_refused(harness: Harness) -> None:
    with pytest.raises(ValueError, match="data must be whole beats of 4 bytes, not 5 bytes"):
        harness.send(bytes(5))
    with pytest.raises(ValueError, match="size must be whole beats of 4 bytes, not 6"):
        harness.receive(6)


def test_unique_initial_values_follow_the_seed() -> None:
    executable = build_harness(toy_verilog(), x_initial="unique")

    def initial(seed: int | None) -> int:
        with Harness(executable, seed=seed) as harness:
            return harness.read_register(SCRATCH)

    assert initial(1) == initial(1)
    assert len({initial(seed) for seed in range(4)}) == 4
    with Harness(executable, seed=3) as harness:  # and the toy does not depend on them
        values, result, _ = add(harness, 2, (3, 3, 3))
        assert np.array_equal(result, values + np.int8(2))


def test_trace_shows_the_run(tmp_path: Path) -> None:
    with Harness.from_verilog(toy_verilog(), trace=True) as harness:
        harness.trace(tmp_path / "run.vcd")
        add(harness, 1, (1, 2, 2))
    text = (tmp_path / "run.vcd").read_text()
    assert "$var" in text
    assert "s_axil_awaddr" in text


def test_trace_needs_its_build(harness: Harness, tmp_path: Path) -> None:
    harness.trace(tmp_path / "run.vcd")
    with pytest.raises(SimError, match="built without trace"):
        harness.sync()
