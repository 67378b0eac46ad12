"""The driver's Transport over cocotbext-axi's bus models, for testbenches of the whole accelerator.

The models are independent of this project. The driver is the same synchronous code as everywhere else: a test runs
it with `await bridge(function)(...)`, in a thread, while the simulation goes on.
"""

from cocotb.task import resume
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiStreamBus, AxiStreamSink, AxiStreamSource

from sim.stream import Dut, pauses
from sim.verilator import SimError

REGISTER_BYTES = 4


class AxiTransport:
    """Reaches `accelerator` through AXI4-Lite and AXI4-Stream models; call only from a bridged function.

    Args:
        dut: The accelerator, with a running clock.
        pause_probability: Of each channel pausing in each cycle.
        seed: Of the pauses.
    """

    def __init__(self, dut: Dut, *, pause_probability: float = 0.0, seed: int = 0) -> None:
        self._dut = dut
        self._registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self._source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.clk, dut.rst)
        self._sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.clk, dut.rst)
        if pause_probability:
            self._pause(pause_probability, seed)

    def write_register(self, address: int, value: int) -> None:
        """Write 32 bits at a byte address."""
        resume(self._write)(address, value)

    def read_register(self, address: int) -> int:
        """The 32 bits at a byte address."""
        return resume(self._read)(address)

    def send(self, data: bytes) -> None:
        """Send one frame of whole beats."""
        resume(self._send)(data)

    def receive(self, size: int) -> bytes:
        """Take one frame; it must have `size` bytes."""
        return resume(self._receive)(size)

    def wait_done(self, max_cycles: int) -> None:
        """Wait until irq is high; SimError after `max_cycles`."""
        resume(self._wait_done)(max_cycles)

    def _pause(self, probability: float, seed: int) -> None:
        write, read = self._registers.write_if, self._registers.read_if
        channels = (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel,
                    self._source, self._sink)
        for index, channel in enumerate(channels):
            channel.set_pause_generator(pauses(probability, seed * len(channels) + index))

    async def _write(self, address: int, value: int) -> None:
        response = await self._registers.write(address, (value & 0xFFFFFFFF).to_bytes(REGISTER_BYTES, "little"))
        if int(response.resp):
            raise SimError(f"register write to {address:#04x}: the response is {response.resp!s}")

    async def _read(self, address: int) -> int:
        response = await self._registers.read(address, REGISTER_BYTES)
        if int(response.resp):
            raise SimError(f"register read of {address:#04x}: the response is {response.resp!s}")
        return int.from_bytes(response.data, "little")

    async def _send(self, data: bytes) -> None:
        await self._source.send(data)
        await self._source.wait()

    async def _receive(self, size: int) -> bytes:
        frame = await self._sink.recv(compact=False)
        if len(frame.tdata) != size:
            raise SimError(f"output stream: tlast ended a frame of {len(frame.tdata)} bytes, expected {size}")
        return bytes(frame.tdata)

    async def _wait_done(self, max_cycles: int) -> None:
        for _ in range(max_cycles):
            if int(self._dut.irq.value):
                return
            await RisingEdge(self._dut.clk)
        raise SimError(f"the accelerator was still busy after {max_cycles} cycles")
