"""Block RAM with one write port and one read port."""

from amaranth import ClockSignal, Instance, Module, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw import ecp5_memory
from hw.config import TECHNOLOGIES, ConfigError
from hw.pipeline import delay

RAM_MODULE = "edgec_ram"
_GRANULE = "[lane*GRANULARITY +: GRANULARITY]"
RAM_VERILOG = f"""
module {RAM_MODULE} #(
  parameter WIDTH = 8, parameter DEPTH = 2, parameter ADDRESS_BITS = 1, parameter GRANULARITY = 8,
  parameter OUTPUT_REGISTER = 0
) (
  input clk,
  input [ADDRESS_BITS-1:0] write_address, input [WIDTH-1:0] write_data, input [WIDTH/GRANULARITY-1:0] write_enable,
  input [ADDRESS_BITS-1:0] read_address, output [WIDTH-1:0] read_data
);
  reg [WIDTH-1:0] words [0:DEPTH-1];
  reg [WIDTH-1:0] fetched, registered;
  integer lane;
  always @(posedge clk) begin
    for (lane = 0; lane < WIDTH/GRANULARITY; lane = lane + 1)
      if (write_enable[lane]) words[write_address]{_GRANULE} <= write_data{_GRANULE};
    fetched <= words[read_address];
    registered <= fetched;
  end
  assign read_data = OUTPUT_REGISTER ? registered : fetched;
endmodule
"""
"""What technology "verilog" instantiates; contents are undefined until they are written."""


class Memory(wiring.Component):
    """Synchronous memory; what a read of an address returns in the cycle that writes it is undefined.

    With technology "verilog" it is an instance of RAM_MODULE, whose text is RAM_VERILOG.
    With technology "ecp5" it is made of PDPW16KD and DP16KD cells with their own output registers: yosys infers
    neither the register nor, without a collision bypass of about 30 LUT a block, the memory. A granule of at most
    9 bits takes a 9-bit lane of a block.

    Timing:
        latency: `memory.latency` cycles from `read_address` to `read_data`: 1, or 2 with `output_register`. There is
        no read enable: data follows the address of every cycle.
        A word written in one cycle is read from the next on.

    Members:
        write_address: In(ceil_log2(depth)). Word to write.
        write_data: In(width). Its new contents.
        write_enable: In(1, or one bit for each `granularity` bits). What to write.
        read_address: In(ceil_log2(depth)). Word to read.
        read_data: Out(width). Its contents, `latency` cycles later.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        technology: str = "generic",
        *,
        granularity: int | None = None,
        output_register: bool = False,
    ) -> None:
        if width < 1 or depth < 2:
            raise ConfigError(f"a memory must have at least 1 bit and 2 words, not {width} bits and {depth} words")
        if granularity is not None and (granularity < 1 or width % granularity):
            raise ConfigError(f"granularity must divide the width {width}, not {granularity}")
        if technology not in TECHNOLOGIES:
            raise ConfigError(f"technology must be one of {', '.join(TECHNOLOGIES)}, not {technology!r}")
        if technology == "ecp5" and granularity is not None and granularity > ecp5_memory.LANE_BITS:
            raise ConfigError(f"granularity must be at most {ecp5_memory.LANE_BITS} on ecp5, not {granularity}")
        self._width, self._depth, self._technology = width, depth, technology
        self._granularity, self._output_register = granularity, output_register
        super().__init__({
            "write_address": In(ceil_log2(depth)),
            "write_data": In(width),
            "write_enable": In(width // granularity if granularity else 1),
            "read_address": In(ceil_log2(depth)),
            "read_data": Out(width),
        })

    @property
    def latency(self) -> int:
        """Cycles from `read_address` to `read_data`."""
        return 2 if self._output_register else 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self._technology == "ecp5":
            ecp5_memory.connect(
                m, self.write_address, self.write_data, self.write_enable, self.read_address, self.read_data,
                self._depth, self._output_register,
            )
        elif self._technology == "verilog":
            self._verilog(m)
        else:
            self._generic(m)
        return m

    def _verilog(self, m: Module) -> None:
        m.submodules.array = Instance(
            RAM_MODULE,
            p_WIDTH=self._width,
            p_DEPTH=self._depth,
            p_ADDRESS_BITS=len(self.read_address),
            p_GRANULARITY=self._granularity or self._width,
            p_OUTPUT_REGISTER=int(self._output_register),
            i_clk=ClockSignal(),
            i_write_address=self.write_address,
            i_write_data=self.write_data,
            i_write_enable=self.write_enable,
            i_read_address=self.read_address,
            o_read_data=self.read_data,
        )

    def _generic(self, m: Module) -> None:
        m.submodules.array = array = memory.Memory(shape=unsigned(self._width), depth=self._depth, init=[])
        write = array.write_port(granularity=self._granularity)
        read = array.read_port(transparent_for=())
        m.d.comb += [
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            write.en.eq(self.write_enable),
            read.addr.eq(self.read_address),
            self.read_data.eq(delay(m, read.data, self.latency - 1, name="output")),
        ]
