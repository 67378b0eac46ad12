"""The register file (AXI4-Lite, 32 bits, byte addresses) and the host protocol around it.

Protocol:
    1. Read ID, ABI_VERSION and CONFIG_ID and refuse a program made for another accelerator.
    2. For each memory image: write LOAD_MEMORY, LOAD_ADDRESS, LOAD_COUNT (words), then LOAD_START = 1, and send
       LOAD_COUNT * beats(word) beats on the input stream. STATUS.loading falls when the last word is written.
    3. For each network input: write the IN_* tensor descriptor, LOAD_MEMORY = TENSOR, LOAD_START = 1, and send the
       channels * height * width bytes in NCHW order, 4 to a beat, lowest byte first; the last beat may be padded.
    4. Write PC_START, PC_END and CONTROL = 1. The accelerator runs instructions [PC_START, PC_END); STATUS.busy
       falls, STATUS.done rises, and the `irq` output is high until the next start.
    5. For each network output: write the OUT_* descriptor and READ_START = 1; the bytes arrive in NCHW order on the
       output stream, 4 to a beat, `last` with the final beat (padded with zeros). STATUS.reading falls at the end.
    6. CYCLES is the length of the last run; COUNTER_INDEX selects the instruction whose cycles COUNTER_VALUE shows.

Only one of loading, running and reading may be active; starting another meanwhile is ignored and sets
STATUS.error until CONTROL = 2 clears it.

A tensor descriptor walks the NCHW bytes of a map through up to four parity phases of its pixels (2 * (y & py) +
(x & px), see isa.py). Phase i starts at word BASE_i, byte BYTE_i, and moves to the next byte (and, after the
last byte of a word, PLANE words on, byte 0) with each channel. Within a channel, pixel (y, x) is at
(y >> py) * PITCH + (x >> px) words from there.
"""

from enum import IntEnum

ID_VALUE = 0x45444743
"""'EDGC'."""


class Register(IntEnum):
    """Byte addresses. (r) is read-only."""

    ID = 0x00  # (r) ID_VALUE
    ABI_VERSION = 0x04  # (r)
    CONFIG_ID = 0x08  # (r)
    CONTROL = 0x0C  # write 1: start, 2: clear error
    STATUS = 0x10  # (r) see StatusBit
    PC_START = 0x14
    PC_END = 0x18
    CYCLES = 0x1C  # (r)
    COUNTER_INDEX = 0x20
    COUNTER_VALUE = 0x24  # (r)
    LOAD_MEMORY = 0x30
    LOAD_ADDRESS = 0x34
    LOAD_COUNT = 0x38
    LOAD_START = 0x3C
    READ_START = 0x40
    IN_BASE_0 = 0x80  # ... IN_BASE_3 = 0x8C
    IN_BYTE_0 = 0x90  # ... IN_BYTE_3 = 0x9C
    IN_PLANE = 0xA0
    IN_PITCH = 0xA4
    IN_WIDTH = 0xA8
    IN_HEIGHT = 0xAC
    IN_CHANNELS = 0xB0
    IN_PHASES = 0xB4  # bit 0: px, bit 1: py
    OUT_BASE_0 = 0xC0
    OUT_BYTE_0 = 0xD0
    OUT_PLANE = 0xE0
    OUT_PITCH = 0xE4
    OUT_WIDTH = 0xE8
    OUT_HEIGHT = 0xEC
    OUT_CHANNELS = 0xF0
    OUT_PHASES = 0xF4


class StatusBit(IntEnum):
    """Bit positions in STATUS."""

    BUSY = 0
    DONE = 1
    LOADING = 2
    READING = 3
    ERROR = 4


ADDRESS_BITS = 8
"""Of the AXI4-Lite port."""
