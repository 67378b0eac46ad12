"""Positions in a map: of the lanes that read it, and of the results that are written."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.config import AcceleratorConfig


class LaneWalker(wiring.Component):
    """The (x, y) of each of the P lanes, group after group.

    While one group is in use, the positions of the next are walked into a shadow register, D lanes per cycle.

    Timing:
        `restart` begins the walk of a first group, which takes P / D cycles.
        `advance` makes the walked group current in the next cycle and begins the walk of the next one; it may come
        again P / D cycles later. With `advance`, `last` makes the next walk begin at (0, 0) again.

    Members:
        pitch: In(coordinate_bits). Positions in a row; stable while walking.
        restart: In(1). Begin at (0, 0).
        advance: In(1). A new group starts.
        last: In(1). It is the last group of its block.
        x: Out(coordinate_bits).array(P). Column of each lane.
        y: Out(coordinate_bits).array(P). Row of each lane.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__({
            "pitch": In(config.coordinate_bits),
            "restart": In(1),
            "advance": In(1),
            "last": In(1),
            "x": Out(config.coordinate_bits).array(config.pixels),
            "y": Out(config.coordinate_bits).array(config.pixels),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        step = config.drain_lanes
        steps = config.pixels // step
        shadow_x = [Signal(config.coordinate_bits, name=f"shadow_x{lane}") for lane in range(config.pixels)]
        shadow_y = [Signal(config.coordinate_bits, name=f"shadow_y{lane}") for lane in range(config.pixels)]
        position_x, position_y = Signal(config.coordinate_bits), Signal(config.coordinate_bits)
        index = Signal(range(steps + 1), init=steps)

        begins = Signal()
        from_origin = Signal()
        now = Signal(range(steps + 1))
        m.d.comb += [
            begins.eq(self.restart | self.advance),
            from_origin.eq(self.restart | (self.advance & self.last)),
            now.eq(Mux(begins, 0, index)),
        ]
        x, y = Mux(from_origin, 0, position_x), Mux(from_origin, 0, position_y)
        with m.If(now != steps):
            m.d.sync += index.eq(now + 1)
            for lane in range(step):
                column = Signal(config.coordinate_bits, name=f"x{lane}")
                row = Signal(config.coordinate_bits, name=f"y{lane}")
                m.d.comb += [column.eq(x), row.eq(y)]
                with m.Switch(now):
                    for group in range(steps):
                        with m.Case(group):
                            target = group * step + lane
                            m.d.sync += [shadow_x[target].eq(column), shadow_y[target].eq(row)]
                at_end = column == self.pitch - 1
                x, y = Mux(at_end, 0, column + 1), row + at_end
            m.d.sync += [position_x.eq(x), position_y.eq(y)]

        with m.If(self.advance):
            for lane in range(config.pixels):
                m.d.sync += [self.x[lane].eq(shadow_x[lane]), self.y[lane].eq(shadow_y[lane])]
        return m


class WriteWalker(wiring.Component):
    """Where results go: walks the positions of a tile in drain order and says which are kept, and their addresses.

    Timing:
        combinational from the state to `keep` and `address`; the state moves with `count`.

    Members:
        restart: In(1). Take `out_base` and begin at position 0.
        count: In(2). Positions consumed in this cycle: 0, 1 or D.
        end_block: In(1). With `count`: they are the last of their block; the next block begins at position 0.
        keep: Out(D). The position of each consumed lane is stored.
        address: Out(address_bits).array(D). Word address of each.
        The other members are instruction fields, see isa.py; stable while walking.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        address, coordinate = config.address_bits, config.coordinate_bits
        super().__init__({
            "restart": In(1),
            "count": In(2),
            "end_block": In(1),
            "pitch": In(coordinate),
            "columns": In(coordinate),
            "rows": In(coordinate),
            "drop_x": In(4),
            "drop_y": In(4),
            "out_base": In(address),
            "out_plane": In(address),
            "out_pitch": In(address),
            "out_step": In(4),
            "out_phase_x": In(1),
            "out_phase_y": In(1),
            "phase_x": In(address),
            "phase_y": In(address),
            "keep": Out(config.drain_lanes),
            "address": Out(address).array(config.drain_lanes),
        })

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        widths = {
            "x": config.coordinate_bits,
            "y": config.coordinate_bits,
            "skip_x": 4,  # positions since the last kept column
            "skip_y": 4,
            "odd_x": 1,  # parity of the output column, when columns are split
            "odd_y": 1,
            "done": 1,  # below the last row; sticky, so that y may wrap
            "column": config.address_bits,  # offset of the output column
            "row": config.address_bits,  # offset of the output row
        }
        # One signal for each field: as slices of one packed signal they came out wrong in Verilator 5.48.
        state = {name: Signal(width, name=name) for name, width in widths.items()}
        block_base = Signal(config.address_bits)
        current = state
        following = []
        for lane in range(config.drain_lanes):
            m.d.comb += [
                self.keep[lane].eq(
                    (current["x"] < self.columns) & ~current["done"]
                    & (current["skip_x"] == 0) & (current["skip_y"] == 0)
                ),
                self.address[lane].eq(
                    block_base + current["row"] + current["column"]
                    + Mux(current["odd_x"], self.phase_x, 0) + Mux(current["odd_y"], self.phase_y, 0)
                ),
            ]
            step = {name: Signal(width, name=f"{name}_{lane + 1}") for name, width in widths.items()}
            self._step(m, current, step, f"step{lane}")
            following.append(step)
            current = step

        with m.If(self.restart):
            m.d.sync += [*(field.eq(0) for field in state.values()), block_base.eq(self.out_base)]
        with m.Elif(self.count.any() & self.end_block):
            m.d.sync += [*(field.eq(0) for field in state.values()), block_base.eq(block_base + self.out_plane)]
        with m.Elif(self.count.any()):
            for name, field in state.items():
                m.d.sync += field.eq(Mux(self.count == 1, following[0][name], following[-1][name]))
        return m

    def _step(self, m: Module, now: dict[str, Signal], then: dict[str, Signal], name: str) -> None:
        """The state one position later."""
        at_end = Signal(name=f"{name}_at_end")
        column_kept = Signal(name=f"{name}_column")  # the next column starts a new output column
        row_kept = Signal(name=f"{name}_row")
        m.d.comb += [
            at_end.eq(now["x"] == self.pitch - 1),
            column_kept.eq(now["skip_x"] == self.drop_x - 1),
            row_kept.eq(now["skip_y"] == self.drop_y - 1),
            *(then[field].eq(now[field]) for field in then),
        ]
        with m.If(at_end):
            m.d.comb += [
                *(then[field].eq(0) for field in ("x", "skip_x", "odd_x", "column")),
                then["y"].eq(now["y"] + 1),
                then["done"].eq(now["done"] | (now["y"] == self.rows - 1)),
                then["skip_y"].eq(Mux(row_kept, 0, now["skip_y"] + 1)),
            ]
            with m.If(row_kept):
                m.d.comb += then["odd_y"].eq(self.out_phase_y & ~now["odd_y"])
                with m.If(~self.out_phase_y | now["odd_y"]):
                    m.d.comb += then["row"].eq(now["row"] + self.out_pitch)
        with m.Else():
            m.d.comb += [
                then["x"].eq(now["x"] + 1),
                then["skip_x"].eq(Mux(column_kept, 0, now["skip_x"] + 1)),
            ]
            with m.If(column_kept):
                m.d.comb += then["odd_x"].eq(self.out_phase_x & ~now["odd_x"])
                with m.If(~self.out_phase_x | now["odd_x"]):
                    m.d.comb += then["column"].eq(now["column"] + self.out_step)
