"""Costs before anything is built."""

from __future__ import annotations

from collections import Counter

import pytest
from amaranth.hdl import Fragment

from backends.fpga.estimate import estimate, multipliers, operation_costs
from backends.fpga.program import build_program, make_plan
from hw import multiplier
from hw.accelerator import Accelerator
from hw.config import array_config
from hw.timing import program_cycles
from tests.support.accelerators import SHAPES
from tests.support.random_layers import random_graph


@pytest.mark.parametrize("words", [8192, 1 << 20])  # addresses of more than 18 bits take a second multiplier
@pytest.mark.parametrize("shape", [(4, 2), (8, 4)])
def test_multipliers_are_those_of_the_hardware(
    shape: tuple[int, int], words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()
    elaborate = multiplier.Multiplier.elaborate

    def counting(self: multiplier.Multiplier, platform: object) -> object:
        made["multipliers"] += 1
        return elaborate(self, platform)

    monkeypatch.setattr(multiplier.Multiplier, "elaborate", counting)
    config = array_config(*shape, activation_words=words)
    Fragment.get(Accelerator(config), None).prepare()
    assert made["multipliers"] == multipliers(config)


def test_the_default_array_fits_an_ecp5_85f() -> None:
    assert multipliers(array_config(16, 8)) <= 156


def test_the_estimate_is_the_programs_cycles() -> None:
    config = SHAPES["16x8"]
    graph = random_graph(8, 6)
    plan = make_plan(graph, config)
    program = build_program(graph, config)
    cycles = [info.cycles for info in program.instructions if info.cycles is not None]
    assert estimate([plan], config).cycles == program_cycles(config, cycles)
    assert sum(cost.cycles for cost in operation_costs(plan, config)) == sum(cycles)
    assert sum(cost.instructions for cost in operation_costs(plan, config)) == len(program.instructions)
