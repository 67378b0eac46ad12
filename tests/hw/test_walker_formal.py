"""Proofs of the walkers: any fields, any pace, against the closed formulas of hw.isa."""

from pathlib import Path

import pytest
from amaranth import Module, Mux, ResetSignal, Signal
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.config import AcceleratorConfig
from hw.walker import LaneWalker, WriteWalker
from tests.support.hardware import prove

pytestmark = pytest.mark.formal

LANE_DEPTH = {(2, 2): 9, (4, 2): 11, (4, 1): 14}
"""Cycles for each (P, D); longer proofs take minutes."""

WRITE_DEPTH = {1: 7, 2: 5}
"""Cycles for each D."""

FIELDS = {
    "columns": 4, "rows": 4, "out_base": 3, "out_plane": 3, "out_pitch": 3,
    "out_step": 4, "out_phase_x": 1, "out_phase_y": 1, "phase_x": 3, "phase_y": 3,
}  # fmt: skip


def config(pixels: int, drain_lanes: int, coordinate_bits: int) -> AcceleratorConfig:
    return AcceleratorConfig(
        pixels, 2, drain_lanes=drain_lanes, block_lanes=1, activation_words=8, coordinate_bits=coordinate_bits
    )


class LaneWalkerSpec(wiring.Component):
    """Restarts and advances as soon as is allowed or later; lane l of group g is at n = g * P + l = y * pitch + x."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({"pitch": In(config.coordinate_bits), "restart": In(1), "advance": In(1), "last": In(1)})

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        m.submodules.dut = dut = LaneWalker(config)
        walk = config.pixels // config.drain_lanes
        age = Signal(range(walk + 1))  # cycles since the last walk began; 0 before the first restart
        pitch, stable = Signal.like(self.pitch), Signal()
        group, following, shown = Signal(6), Signal(6), Signal()
        begins = self.restart | self.advance
        m.d.comb += [
            *(getattr(dut, name).eq(getattr(self, name)) for name in ("pitch", "restart", "advance", "last")),
            Assume(~ResetSignal()),
            Assume(self.pitch != 0),
            Assume(~(self.restart & self.advance)),
            Assume(~self.advance | (age == walk)),
            Assume(~self.restart | (age == 0) | (age == walk)),
        ]
        older = Mux((age == 0) | (age == walk), age, age + 1)
        m.d.sync += [pitch.eq(self.pitch), stable.eq(1), age.eq(Mux(begins, 1, older))]
        with m.If(stable):
            m.d.comb += Assume(self.pitch == pitch)
        with m.If(self.restart):
            m.d.sync += following.eq(0)
        with m.If(self.advance):
            m.d.sync += [shown.eq(1), group.eq(following), following.eq(Mux(self.last, 0, following + 1))]
        groups = LANE_DEPTH[config.pixels, config.drain_lanes] // walk
        expected = positions(m, self.pitch, groups * config.pixels, "expected")
        with m.If(shown):
            for lane in range(config.pixels):
                with m.Switch(group):
                    for index in range(groups):
                        x, y = expected[index * config.pixels + lane]
                        with m.Case(index):
                            m.d.comb += Assert((dut.x[lane] == x) & (dut.y[lane] == y))
        return m


def positions(m: Module, pitch: Signal, count: int, name: str) -> list[tuple[Signal, Signal]]:
    """(n % pitch, n // pitch) for n = 0, 1, ..., counted: z3 finds that easier than a division."""
    counted = [(Signal.like(pitch, name=f"{name}_x0"), Signal.like(pitch, name=f"{name}_y0"))]
    for n in range(1, count):
        before_x, before_y = counted[-1]
        x, y = Signal.like(pitch, name=f"{name}_x{n}"), Signal.like(pitch, name=f"{name}_y{n}")
        ends = before_x == pitch - 1
        m.d.comb += [x.eq(Mux(ends, 0, before_x + 1)), y.eq(before_y + ends)]
        counted.append((x, y))
    return counted


class WriteWalkerSpec(wiring.Component):
    """Pitch and drops are constants, all else is anything; `n` counts the positions of the block.

    With constants every position has constant coordinates, by division; a symbolic pitch takes z3 hours. Idle cycles
    are left to the testbench: the state stays.
    """

    def __init__(self, config: AcceleratorConfig, pitch: int, drop_x: int, drop_y: int) -> None:
        self._config, self._constants = config, {"pitch": pitch, "drop_x": drop_x, "drop_y": drop_y}
        fields = {name: In(width) for name, width in FIELDS.items()}
        super().__init__({"restart": In(1), "count": In(2), "end_block": In(1), **fields})

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        m.submodules.dut = dut = WriteWalker(config)
        started, n, plane = Signal(), Signal(6), Signal(config.address_bits)
        m.d.comb += [
            *(getattr(dut, name).eq(getattr(self, name)) for name in self.signature.members),
            *(getattr(dut, name).eq(value) for name, value in self._constants.items()),
            Assume(~ResetSignal()),
            Assume((self.count == 0) | (self.count == 1) | (self.count == config.drain_lanes)),
            Assume(self.rows != 0),
            Assume(started != self.restart),
            Assume(self.restart | self.count.any()),
        ]
        for name in FIELDS:
            before = Signal.like(getattr(self, name), name=f"{name}_before")
            m.d.sync += before.eq(getattr(self, name))
            with m.If(started):
                m.d.comb += Assume(before == getattr(self, name))
        m.d.sync += started.eq(1)
        with m.If(self.restart):
            m.d.sync += [n.eq(0), plane.eq(0)]
        with m.Elif(self.count.any()):
            m.d.sync += n.eq(Mux(self.end_block, 0, n + self.count))
            with m.If(self.end_block):
                m.d.sync += plane.eq(plane + self.out_plane)
        with m.If(started):
            for lane in range(config.drain_lanes):
                with m.Switch(n + lane):
                    for position in range(WRITE_DEPTH[config.drain_lanes] * config.drain_lanes):
                        with m.Case(position):
                            self._check(m, dut, lane, position, plane)
        return m

    def _check(self, m: Module, dut: WriteWalker, lane: int, position: int, plane: Signal) -> None:
        y, x = divmod(position, self._constants["pitch"])
        (v, below), (u, beside) = divmod(y, self._constants["drop_y"]), divmod(x, self._constants["drop_x"])
        if below or beside:
            m.d.comb += Assert(~dut.keep[lane])
            return
        keep = (x < self.columns) & (y < self.rows)
        row = Mux(self.out_phase_y, (v >> 1) * self.out_pitch + (v & 1) * self.phase_y, v * self.out_pitch)
        column = Mux(self.out_phase_x, (u >> 1) * self.out_step + (u & 1) * self.phase_x, u * self.out_step)
        address = (self.out_base + plane + row + column)[: self._config.address_bits]
        m.d.comb += [Assert(dut.keep[lane] == keep), Assert(~keep | (dut.address[lane] == address))]


@pytest.mark.parametrize(("pixels", "drain_lanes"), list(LANE_DEPTH))
def test_lane_walker_contract(tmp_path: Path, pixels: int, drain_lanes: int) -> None:
    prove(LaneWalkerSpec(config(pixels, drain_lanes, 5)), tmp_path, mode="bmc", depth=LANE_DEPTH[pixels, drain_lanes])


@pytest.mark.parametrize("drain_lanes", [1, 2])
@pytest.mark.parametrize(("pitch", "drop_x", "drop_y"), [(1, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_write_walker_contract(tmp_path: Path, drain_lanes: int, pitch: int, drop_x: int, drop_y: int) -> None:
    spec = WriteWalkerSpec(config(4, drain_lanes, 4), pitch, drop_x, drop_y)
    prove(spec, tmp_path, mode="bmc", depth=WRITE_DEPTH[drain_lanes])
