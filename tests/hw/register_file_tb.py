"""cocotb tests of RegisterFile, through cocotbext-axi's AXI4-Lite manager."""

import os
import random

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from hw.config import ABI_VERSION, array_config
from hw.register_file import load_count_bits
from hw.registers import ID_VALUE, Register, StatusBit
from hw.tensor_walker import descriptor_layout
from sim.stream import pauses, start

CONFIG = array_config(int(os.environ["PIXELS"]), int(os.environ["ROWS"]))
PULSES = {"start": Register.CONTROL, "load_start": Register.LOAD_START, "read_start": Register.READ_START}


def widths() -> dict[int, int]:
    """Byte address -> bits of every register that reads back what was written."""
    instruction_bits, count_bits = (CONFIG.instructions - 1).bit_length(), load_count_bits(CONFIG)
    bits = {
        Register.PC_START: instruction_bits, Register.PC_END: CONFIG.instructions.bit_length(),
        Register.COUNTER_INDEX: instruction_bits, Register.LOAD_MEMORY: 3,
        Register.LOAD_ADDRESS: count_bits, Register.LOAD_COUNT: count_bits,
    }
    members = descriptor_layout(CONFIG).members
    for base in (Register.IN_BASE_0, Register.OUT_BASE_0):
        for phase in range(4):
            bits[base + 4 * phase] = CONFIG.address_bits
            bits[base + 0x10 + 4 * phase] = max(1, CONFIG.row_bits)
        for index, name in enumerate(("plane", "pitch", "width", "height", "channels", "phases")):
            bits[base + 0x20 + 4 * index] = members[name]
    return bits


class Host:
    """The manager, with pauses on all five channels, and a count of the start pulses."""

    def __init__(self, dut, pause: float) -> None:
        self._dut = dut
        self._manager = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "axil"), dut.clk, dut.rst)
        write, read = self._manager.write_if, self._manager.read_if
        channels = (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
        for seed, channel in enumerate(channels):
            channel.set_pause_generator(pauses(pause, seed))
        self.pulses = dict.fromkeys(PULSES, 0)
        cocotb.start_soon(self._count())

    async def write(self, address: int, data: bytes) -> None:
        """Bytes from any address on; cocotbext-axi makes the strobes."""
        response = await self._manager.write(address, data)
        assert int(response.resp) == 0

    async def read(self, address: int) -> int:
        response = await self._manager.read(address, 4)
        assert int(response.resp) == 0
        return int.from_bytes(response.data, "little")

    async def read_block(self, addresses: range) -> dict[int, int]:
        """Many registers in one access."""
        response = await self._manager.read(addresses.start, 4 * len(addresses))
        data = response.data
        return {a: int.from_bytes(data[4 * i : 4 * i + 4], "little") for i, a in enumerate(addresses)}

    async def command(self, register: int, value: int) -> None:
        await self.write(register, value.to_bytes(4, "little"))

    async def _count(self) -> None:
        while True:
            await RisingEdge(self._dut.clk)
            for name in self.pulses:
                self.pulses[name] += int(getattr(self._dut, name).value)


async def begin(dut, pause: float) -> Host:
    for name in ("busy", "loading", "reading", "done", "cycles", "counter_value"):
        getattr(dut, name).value = 0
    host = Host(dut, pause)
    await start(dut)
    return host


@cocotb.test()
@cocotb.parametrize(pause=[0.0, 0.6])
async def registers_keep_the_bytes_that_were_written(dut, pause: float) -> None:
    host = await begin(dut, pause)
    generator, bits = random.Random(0), widths()
    contents = dict.fromkeys(bits, 0)
    for _ in range(250):
        address = generator.choice(list(bits))
        first, size = generator.choice(((0, 4), (0, 1), (1, 1), (2, 2), (0, 2), (3, 1)))
        data = generator.randbytes(size)
        await host.write(address + first, data)
        mask = ((1 << 8 * size) - 1) << 8 * first
        new = contents[address] & ~mask | int.from_bytes(data, "little") << 8 * first
        contents[address] = new & ((1 << bits[address]) - 1)
        other = generator.choice(list(bits))
        assert await host.read(other) == contents[other], hex(other)
    assert {address: await host.read(address) for address in bits} == contents
    assert int(dut.pc_end.value) == contents[Register.PC_END]
    fields = descriptor_layout(CONFIG).from_bits(int(dut.read_tensor.value))
    assert fields.base[2] == contents[Register.OUT_BASE_0 + 8]
    assert fields.channels == contents[Register.OUT_CHANNELS]
    assert host.pulses == dict.fromkeys(PULSES, 0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(pause=[0.0, 0.6])
async def accesses_in_flight_stay_in_order(dut, pause: float) -> None:
    """A long access is many words, which the manager sends without waiting for responses."""
    host, generator, bits = await begin(dut, pause), random.Random(1), widths()
    block = range(Register.IN_BASE_0, Register.IN_PHASES + 4, 4)
    for _ in range(10):
        words = {address: generator.getrandbits(32) for address in block}
        await host.write(block.start, b"".join(word.to_bytes(4, "little") for word in words.values()))
        expected = {address: word & ((1 << bits[address]) - 1) for address, word in words.items()}
        assert await host.read_block(block) == expected


@cocotb.test()
async def write_without_its_first_byte_starts_nothing(dut) -> None:
    """By hand: the manager clears the data of bytes that it does not enable."""
    for name in ("axil_awvalid", "axil_wvalid", "axil_arvalid", "busy", "loading", "reading"):
        getattr(dut, name).value = 0
    dut.axil_bready.value = 1
    await start(dut)
    for register in PULSES.values():
        for strobes in (0b1110, 0b0000, 0b1111):
            dut.axil_awaddr.value, dut.axil_wdata.value, dut.axil_wstrb.value = register, 1, strobes
            dut.axil_awvalid.value = dut.axil_wvalid.value = 1
            await RisingEdge(dut.clk)
            dut.axil_awvalid.value = dut.axil_wvalid.value = 0
            pulses = 0
            for _ in range(6):
                await RisingEdge(dut.clk)
                pulses += sum(int(getattr(dut, name).value) for name in PULSES)
            assert pulses == (strobes & 1), (register, strobes)


@cocotb.test()
async def identity_and_inputs_can_be_read(dut) -> None:
    host = await begin(dut, 0.3)
    assert await host.read(Register.ID) == ID_VALUE
    assert await host.read(Register.ABI_VERSION) == ABI_VERSION
    assert await host.read(Register.CONFIG_ID) == CONFIG.config_id
    dut.cycles.value, dut.counter_value.value = 0x89ABCDEF, 0x12345678
    assert await host.read(Register.CYCLES) == 0x89ABCDEF
    assert await host.read(Register.COUNTER_VALUE) == 0x12345678
    pins = (("busy", StatusBit.BUSY), ("done", StatusBit.DONE), ("loading", StatusBit.LOADING),
            ("reading", StatusBit.READING))
    for pin, bit in pins:
        getattr(dut, pin).value = 1
        assert await host.read(Register.STATUS) == 1 << bit
        getattr(dut, pin).value = 0


@cocotb.test()
async def unknown_addresses_read_zero_and_change_nothing(dut) -> None:
    host, bits = await begin(dut, 0.2), widths()
    known = {*bits, *Register}
    for address in range(0, 256, 4):
        if address not in known or address in (Register.ID, Register.CYCLES):
            await host.write(address, b"\xff\xff\xff\xff")
    for address in range(0, 256, 4):
        if address not in known or address in bits:
            assert await host.read(address) == 0, hex(address)
    assert await host.read(Register.ID) == ID_VALUE
    assert host.pulses == dict.fromkeys(PULSES, 0)


@cocotb.test()
@cocotb.parametrize(pulse=list(PULSES))
async def start_makes_one_pulse_unless_something_is_active(dut, pulse: str) -> None:
    host = await begin(dut, 0.3)
    none = dict.fromkeys(PULSES, 0)
    await host.command(PULSES[pulse], 0)
    await host.write(PULSES[pulse] + 1, b"\x01")  # byte 0 is not enabled
    assert host.pulses == none
    await host.command(PULSES[pulse], 1)
    assert host.pulses == none | {pulse: 1}
    assert await host.read(Register.STATUS) == 0
    for pin, bit in (("busy", StatusBit.BUSY), ("loading", StatusBit.LOADING), ("reading", StatusBit.READING)):
        getattr(dut, pin).value = 1
        await host.command(PULSES[pulse], 1)
        assert await host.read(Register.STATUS) == 1 << bit | 1 << StatusBit.ERROR
        await host.command(Register.CONTROL, 2)
        assert await host.read(Register.STATUS) == 1 << bit
        getattr(dut, pin).value = 0
    assert host.pulses == none | {pulse: 1}
