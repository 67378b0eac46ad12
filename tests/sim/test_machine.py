"""The golden machine, instruction by instruction, on values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hw.config import AcceleratorConfig
from hw.descriptor import TensorDescriptor
from hw.isa import (
    Elementwise,
    Memory,
    Mode,
    block_layout,
    channel_layout,
    instruction_layout,
    tap_layout,
    weight_block_layout,
)
from sim.golden.machine import Machine, MachineError, round_half_even

CONFIG = AcceleratorConfig(
    pixels=4, rows=2, block_lanes=2, activation_words=64, weight_words=32, parameter_words=8, block_words=8,
    tap_words=8, table_words=2, instructions=8,
)  # fmt: skip
OUT = 32


def weight_words(*blocks: tuple[int, int, int, int]) -> list[int]:
    """(weight of row 0, of row 1, delta, end_tap) for each block; two blocks in a word."""
    layout = weight_block_layout(CONFIG)
    packed = [layout.pack(weight0=w0, weight1=w1, delta=delta, end_tap=end) for w0, w1, delta, end in blocks]
    packed += [0] * (len(packed) % 2)
    return [low | high << layout.width for low, high in zip(packed[::2], packed[1::2], strict=True)]


def parameter_word(*channels: tuple[int, int, int]) -> int:
    layout = channel_layout()
    return sum(
        layout.pack(multiplier=m, shift=s, offset=b) << (row * layout.width) for row, (m, s, b) in enumerate(channels)
    )


def machine(
    fields: dict[str, int],
    weights: list[int],
    *,
    taps: tuple[dict[str, int], ...] = ({},),
    blocks: tuple[tuple[int, int], ...] = ((0, 1),),
    parameters: tuple[int, ...] = (),
    table: list[int] | None = None,
) -> Machine:
    """A machine with one instruction; taps cover everything unless they say otherwise."""
    whole = {"x_high": 60, "y_high": 60}
    every = {"blocks": 1, "groups": 1, "pitch": 4, "columns": 4, "rows": 1, "drop_x": 1, "drop_y": 1, "out_base": OUT,
             "out_pitch": 4, "out_step": 1, "out_plane": 4, "in_plane": 8, "low": -128, "high": 127}  # fmt: skip
    made = Machine(CONFIG)
    made.load(
        {
            Memory.WEIGHT: weights,
            Memory.PARAMETER: parameters or (parameter_word((1, 0, 0), (1, 0, 0)),),
            Memory.BLOCK: [block_layout(CONFIG).pack(start=start, count=count) for start, count in blocks],
            Memory.TAP: [tap_layout(CONFIG).pack(**(whole | tap)) for tap in taps],
            Memory.TABLE: table or [],
            Memory.PROGRAM: [instruction_layout(CONFIG).pack(**(every | fields))],
        }
    )
    made.memory[:] = 0
    return made


def run(made: Machine) -> NDArray[np.int8]:
    made.run(0, 1)
    return made.memory[OUT : OUT + 4]


def test_convolution_adds_channels_and_taps() -> None:
    weights = weight_words((2, -1, 0, 0), (3, 1, 0, 1), (1, 1, 1, 1))
    made = machine({"mode": Mode.CONV}, weights, taps=({}, {"offset": 1}), blocks=((0, 3),))
    made.memory[:5] = [(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]
    # channel 0 and 1 here, then (one channel skipped) channel 1 of the next position
    expected = [(2 * c0 + 3 * c1 + n1, -c0 + c1 + n1) for c0, c1, n1 in
                [(1, 10, 20), (2, 20, 30), (3, 30, 40), (4, 40, 50)]]  # fmt: skip
    assert run(made).tolist() == np.clip(expected, -128, 127).tolist()


def test_positions_outside_a_taps_bounds_read_the_pad_value() -> None:
    made = machine(
        {"mode": Mode.DEPTHWISE, "pad_value": 7}, weight_words((1, 2, 0, 1)), taps=({"x_low": 1, "x_high": 3},)
    )
    made.memory[:4] = [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert run(made).tolist() == [[7, 14], [2, 4], [3, 6], [7, 14]]


def test_depthwise_blocks_walk_the_input_planes() -> None:
    fields = {"mode": Mode.DEPTHWISE, "blocks": 2, "block_step": 8, "block_shared": 1, "parameter_shared": 1}
    made = machine(fields, weight_words((1, 1, 0, 1)))
    made.memory[:4], made.memory[8:12] = 5, 6
    made.run(0, 1)
    assert made.memory[OUT : OUT + 8, 0].tolist() == [5, 5, 5, 5, 6, 6, 6, 6]


def test_maximum_keeps_the_largest_also_below_zero() -> None:
    made = machine(
        {"mode": Mode.DEPTHWISE, "maximum": 1, "pad_value": -128},
        weight_words((1, 1, 0, 1), (1, 1, 0, 1)),
        taps=({"x_high": 3}, {"offset": 1, "x_high": 3}),
        blocks=((0, 2),),
    )
    made.memory[:4] = [(-9, 1), (-4, 2), (-5, 9), (-128, 3)]
    assert run(made).tolist() == [[-4, 2], [-4, 9], [-5, 9], [-128, -128]]


def test_requantization_rounds_half_to_even_and_clamps() -> None:
    made = machine(
        {"mode": Mode.DEPTHWISE, "zero_point": 10, "low": 9, "high": 12},
        weight_words((1, 1, 0, 1)),
        parameters=(parameter_word((1, 1, 0), (-1, 1, 1)),),
    )
    made.memory[:4] = [(1, 1), (3, 3), (-1, -1), (100, 100)]
    assert run(made).tolist() == [[10, 10], [12, 9], [10, 11], [12, 9]]


def test_fully_connected_gives_each_lane_its_own_outputs() -> None:
    made = machine(
        {"mode": Mode.FULLY_CONNECTED, "columns": 2, "single_drain": 1},
        weight_words((1, 2, 0, 0), (3, 4, 0, 0), (1, 1, 0, 1), (1, -1, 0, 1)),
        blocks=((0, 2),),
        parameters=(parameter_word((1, 0, 0), (1, 0, 1)), parameter_word((1, 0, 2), (1, 0, 3))),
    )
    made.memory[0] = (5, 7)
    assert run(made)[:2].tolist() == [[5 + 7, 10 + 7 + 1], [15 + 7 + 2, 20 - 7 + 3]]


def test_reduce_sums_the_lanes() -> None:
    made = machine({"mode": Mode.DEPTHWISE, "reduce": 1}, weight_words((1, 1, 0, 1)), taps=({"x_high": 3},))
    made.memory[:4] = [(1, 10), (2, 20), (3, 30), (99, 99)]
    assert run(made)[0].tolist() == [6, 60]


def test_add_rescales_both_operands_and_rounds_once() -> None:
    fields = {"mode": Mode.DEPTHWISE, "single_drain": 1, "elementwise": Elementwise.ADD, "operand_base": 16,
              "multiplier_a": 3, "multiplier_b": -1, "shift": 1, "zero_point_a": 1, "zero_point_b": 2,
              "zero_point_y": 4, "low_y": -128, "high_y": 127}  # fmt: skip
    made = machine(fields, weight_words((1, 1, 0, 1)))
    made.memory[:4], made.memory[16:20] = 2, [(2, 4), (3, 5), (4, 6), (5, 7)]
    # (3 * (2 - 1) - (b - 2)) / 2 + 4, ties to even
    assert run(made).tolist() == [[6, 4], [5, 4], [4, 4 - 0], [4, 3]]


def test_mul_takes_one_word_for_all_lanes_when_broadcast() -> None:
    fields = {"mode": Mode.DEPTHWISE, "single_drain": 1, "elementwise": Elementwise.MUL, "operand_base": 16,
              "operand_broadcast": 1, "multiplier_b": 1, "shift": 1, "low_y": -128, "high_y": 127}  # fmt: skip
    made = machine(fields, weight_words((1, 1, 0, 1)))
    made.memory[:4], made.memory[16] = [(1, 1), (2, 2), (3, 3), (4, 4)], (4, -6)
    assert run(made).tolist() == [[2, -3], [4, -6], [6, -9], [8, -12]]


def test_prelu_takes_slopes_from_the_word_that_follows() -> None:
    fields = {"mode": Mode.DEPTHWISE, "single_drain": 1, "elementwise": Elementwise.PRELU, "multiplier_a": 2,
              "low_y": -128, "high_y": 127}  # fmt: skip
    words = (parameter_word((1, 0, 0), (1, 0, 0)), parameter_word((3, 0, 0), (-1, 0, 0)))
    made = machine(fields, weight_words((1, 1, 0, 1)), parameters=words)
    made.memory[:2] = [(5, 5), (-5, -5)]
    assert run(made)[:2].tolist() == [[10, 10], [-15, 5]]


def test_a_table_maps_every_result() -> None:
    table = [(255 - i) for i in range(256)]
    made = machine({"mode": Mode.DEPTHWISE, "single_drain": 1, "use_table": 1}, weight_words((1, 1, 0, 1)), table=table)
    made.memory[:4] = [(-128, 127), (0, 1), (2, 3), (4, 5)]
    expected = np.array([table[v + 128] for v in (-128, 127, 0, 1)], np.uint8).view(np.int8)
    assert run(made).ravel()[:4].tolist() == expected.tolist()


def test_dropped_positions_are_not_written_and_phases_are() -> None:
    fields = {"mode": Mode.DEPTHWISE, "groups": 2, "pitch": 4, "rows": 2, "drop_y": 2, "out_phase_x": 1, "phase_x": 5}
    made = machine(fields, weight_words((1, 1, 0, 1)))
    made.memory[:8] = np.arange(1, 9)[:, None]
    made.run(0, 1)
    assert made.memory[OUT : OUT + 8, 0].tolist() == [1, 3, 0, 0, 0, 2, 4, 0]


def test_two_writes_to_one_bank_in_a_cycle_are_a_fault() -> None:
    made = machine({"mode": Mode.DEPTHWISE, "out_phase_x": 1, "phase_x": 4}, weight_words((1, 1, 0, 1)))
    with pytest.raises(MachineError, match="same bank") as caught:
        made.run(0, 1)
    assert caught.value.__notes__ == ["in instruction 0"]


@pytest.mark.parametrize("fields", [{"use_table": 1}, {"elementwise": Elementwise.ADD}])
def test_long_post_processing_needs_single_drain(fields: dict[str, int]) -> None:
    with pytest.raises(MachineError, match="need single_drain"):
        machine({"mode": Mode.DEPTHWISE, **fields}, weight_words((1, 1, 0, 1)), table=[0] * 256).run(0, 1)


def test_a_stream_that_is_not_loaded_is_a_fault() -> None:
    with pytest.raises(MachineError, match="not loaded"):
        machine({}, weight_words((1, 1, 0, 1)), blocks=((2, 1),)).run(0, 1)


def test_accumulators_wrap_at_their_width() -> None:
    made = machine(
        {"mode": Mode.CONV, "in_plane": 0},
        weight_words(*[(127, 127, 0, 0)] * 40),
        blocks=((0, 40),),
        parameters=(parameter_word((1, 13, 0), (1, 13, 0)),),
    )
    made.memory[:8] = 127
    total = 40 * 127 * 127
    assert run(made)[0, 0] == round(total / 2**13)
    made.config = replace(CONFIG, acc_bits=20)
    assert run(made)[0, 0] == round((total - 2**20) / 2**13)


def test_tensors_go_where_their_descriptor_says() -> None:
    made = Machine(CONFIG, seed=1)
    values = np.arange(27, dtype=np.int8).reshape(3, 3, 3)
    place = TensorDescriptor((0, 8, 16, 24), plane=32, pitch=2, width=3, height=3, channels=3, phases=3)
    made.write_tensor(place, values)
    assert np.array_equal(made.read_tensor(place), values)
    assert made.memory[8 + 2, 1] == values[1, 2, 1] == 16


def test_rounding_agrees_with_numpy() -> None:
    values = np.arange(-4096, 4096)
    for shift in range(6):
        assert np.array_equal(round_half_even(values, np.int64(shift)), np.rint(values / 2**shift).astype(np.int64))
