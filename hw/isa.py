"""The instruction set: memory words, their fields and their meaning.

The compiler, the host driver, the golden model and the RTL all read these layouts; nothing is copied.

Terms (see AcceleratorConfig): a word is Q channels of one pixel, at one activation memory address. A tensor
in *plane layout* keeps channel c of pixel (y, x) in byte c % Q of word

    base + (c // Q) * plane + y * pitch + x                                            one phase
    base + (c // Q) * plane + phase(y, x) + (y >> py) * pitch + (x >> px)               polyphase

where px, py in {0, 1} say whether columns and rows are split by parity, and phase(y, x) is
(y & py) * phase_y + (x & px) * phase_x. Consumers with stride 2 read polyphase tensors at constant offsets.

One instruction computes a tile: `blocks` blocks of output channels of `groups` groups of P positions:

    for block in range(blocks):
        start, count = BLOCK[block_base + block]
        for group in range(groups):
            acc[P][Q] = 0;  tap = tap_base;  channel = 0
            for i in range(count):                                 # one cycle each
                weights, delta, end_tap = WEIGHT[start + i]
                channel += delta;  k = TAP[tap].channel + channel
                address = in_base + block * block_step + group * P + TAP[tap].offset + (k // Q) * in_plane
                lane l reads word address + l, or pad_value in every byte where its position (y, x) is outside
                    [y_low, y_high) x [x_low, x_high) of the tap
                row r of lane l multiplies byte (r if depthwise else k % Q) by weights[r] and accumulates
                    (or keeps the maximum: `maximum`)
                channel, tap = (0, tap + 1) if end_tap else (channel + 1, tap)
            drain the group

Position n = group * P + l of the iteration space is y = n // pitch, x = n % pitch.

Fully connected (`mode` FULLY_CONNECTED): one group; the byte that lane 0 reads goes to all lanes; start and
count are in weight *words* (start is a multiple of F blocks); lane l < F multiplies it by block l of the word
(delta and end_tap of block 0 count). Lane l, row r is output channel block * F * Q + l * Q + r.
Then positions below are output words: pitch must be at least F.

Drain, for each lane (D lanes per cycle, or one when `single_drain`), or once for the sum of all lanes when `reduce`:

    a = clamp(zero_point + rhe((acc * M + B) / 2**S), low, high)       M, S, B = PARAMETER[parameter_base + block]
                                                                       (fully connected: + block * F + l)
    b = byte r of word operand_base + block * operand_plane + group * P + l
        (operand_broadcast: operand_base + block * operand_plane for every lane)
    ADD:   a = clamp(zero_point_y + rhe(((a - zero_point_a) * multiplier_a + (b - zero_point_b) * multiplier_b)
                                        / 2**shift))
    MUL:   a = clamp(zero_point_y + rhe((a - zero_point_a) * (b - zero_point_b) * multiplier_b / 2**shift))
    PRELU: a = clamp(zero_point_y + rhe(v * (multiplier_a if v >= 0 else b_r) / 2**shift)), v = a - zero_point_a
           b_r = the signed multiplier in SLOPE position of the parameter word that follows
    table: a = TABLE[table_index][a + 128]
    write the Q results as one word, if the position is kept.

Kept positions: x < columns, y < rows, x % drop_x == 0, y % drop_y == 0. With u = x // drop_x, v = y // drop_y:

    out = out_base + block * out_plane + (v & py) * phase_y + (u & px) * phase_x
                   + (v >> py) * out_pitch + (u >> px) * out_step

(px, py are `out_phase_x`, `out_phase_y`.) For `reduce` `groups` is 1, and the one result goes to
out_base + block * out_plane.
Elementwise operations and tables need `single_drain`.
"""

from dataclasses import dataclass
from enum import IntEnum

from hw.config import DATA_BITS, DELTA_BITS, MULTIPLIER_BITS, OFFSET_BITS, SHIFT_BITS, AcceleratorConfig, beats


class Memory(IntEnum):
    """Destinations of the input stream."""

    TENSOR = 0
    WEIGHT = 1
    PARAMETER = 2
    BLOCK = 3
    TAP = 4
    TABLE = 5
    PROGRAM = 6


class Mode(IntEnum):
    """How the array uses a fetched vector."""

    CONV = 0
    DEPTHWISE = 1
    FULLY_CONNECTED = 2


class Elementwise(IntEnum):
    """What happens to a requantized value and its second operand."""

    NONE = 0
    ADD = 1
    MUL = 2
    PRELU = 3


@dataclass(frozen=True)
class Field:
    """A field of a packed word: `width` bits, two's complement if `signed`."""

    name: str
    width: int
    signed: bool = False


@dataclass(frozen=True)
class Layout:
    """Fields packed from bit 0 upwards."""

    fields: tuple[Field, ...]

    @property
    def width(self) -> int:
        return sum(f.width for f in self.fields)

    def offset(self, name: str) -> int:
        """Bit position of a field."""
        position = 0
        for field in self.fields:
            if field.name == name:
                return position
            position += field.width
        raise KeyError(name)

    def pack(self, **values: int) -> int:
        """Pack named values; missing fields are 0.

        Raises:
            ValueError: A value does not fit its field, or there is no such field.
        """
        if unknown := set(values) - {f.name for f in self.fields}:
            raise ValueError(f"no such field: {', '.join(sorted(unknown))}")
        word, position = 0, 0
        for field in self.fields:
            value = int(values.get(field.name, 0))
            low = -(1 << field.width - 1) if field.signed else 0
            high = low + (1 << field.width) - 1
            if not low <= value <= high:
                raise ValueError(f"{field.name} must be in [{low}, {high}], not {value}")
            word |= (value & ((1 << field.width) - 1)) << position
            position += field.width
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """The fields of a packed word."""
        values, position = {}, 0
        for field in self.fields:
            value = (word >> position) & ((1 << field.width) - 1)
            if field.signed and value >> (field.width - 1):
                value -= 1 << field.width
            values[field.name] = value
            position += field.width
        return values


def instruction_layout(config: AcceleratorConfig) -> Layout:
    """One instruction; see the module docstring for the meaning of each field."""
    address, coordinate = config.address_bits, config.coordinate_bits
    blocks = config.address_bits
    return Layout((
        Field("mode", 2),
        Field("maximum", 1),
        Field("reduce", 1),
        Field("elementwise", 2),
        Field("use_table", 1),
        Field("table_index", max(1, (config.table_words - 1).bit_length())),
        Field("single_drain", 1),
        Field("operand_broadcast", 1),
        Field("out_phase_x", 1),
        Field("out_phase_y", 1),
        Field("pad_value", 8, True),
        Field("zero_point", 8, True),
        Field("low", 8, True),
        Field("high", 8, True),
        Field("blocks", blocks),
        Field("groups", address),
        Field("in_base", address),
        Field("in_plane", address),
        Field("block_step", address),
        Field("pitch", coordinate),
        Field("columns", coordinate),
        Field("rows", coordinate),
        Field("drop_x", 4),
        Field("drop_y", 4),
        Field("out_base", address),
        Field("out_plane", address),
        Field("out_pitch", address),
        Field("out_step", 4),
        Field("phase_x", address),
        Field("phase_y", address),
        Field("operand_base", address),
        Field("operand_plane", address),
        Field("block_base", max(1, (config.block_words - 1).bit_length())),
        Field("block_shared", 1),
        Field("parameter_base", max(1, (config.parameter_words - 1).bit_length())),
        Field("parameter_shared", 1),
        Field("tap_base", max(1, (config.tap_words - 1).bit_length())),
        Field("multiplier_a", MULTIPLIER_BITS, True),
        Field("multiplier_b", MULTIPLIER_BITS, True),
        Field("shift", SHIFT_BITS),
        Field("zero_point_a", 8, True),
        Field("zero_point_b", 8, True),
        Field("zero_point_y", 8, True),
        Field("low_y", 8, True),
        Field("high_y", 8, True),
    ))


def tap_layout(config: AcceleratorConfig) -> Layout:
    """One kernel tap of one instruction."""
    coordinate = config.coordinate_bits
    return Layout((
        Field("offset", config.address_bits + 1, True),
        Field("channel", 6),
        Field("x_low", coordinate),
        Field("x_high", coordinate),
        Field("y_low", coordinate),
        Field("y_high", coordinate),
    ))


def block_layout(config: AcceleratorConfig) -> Layout:
    """The weight stream of one block of output channels: first weight block and number of cycles."""
    return Layout((Field("start", config.block_address_bits), Field("count", config.count_bits)))


def weight_block_layout(config: AcceleratorConfig) -> Layout:
    """Q weights of one tap and input channel; `delta` input channels were skipped before it."""
    weights = tuple(Field(f"weight{row}", DATA_BITS, True) for row in range(config.rows))
    return Layout((*weights, Field("delta", DELTA_BITS), Field("end_tap", 1), Field("reserved", 1)))


def channel_layout() -> Layout:
    """Requantization parameters of one output channel; a parameter word holds Q of them, channel 0 lowest."""
    return Layout((
        Field("multiplier", MULTIPLIER_BITS, True), Field("shift", SHIFT_BITS), Field("offset", OFFSET_BITS, True),
    ))


def memory_shape(config: AcceleratorConfig, memory: Memory) -> tuple[int, int]:
    """(words, bits of a word) of a memory as the input stream sees it.

    A word travels as ceil(bits / 32) little-endian 32-bit beats. TABLE words are single table entries (8 bits):
    table t, entry i is word t * 256 + i. PROGRAM words are instructions. TENSOR has no words: its stream is
    the bytes of a map in NCHW order, placed by the tensor descriptor (see registers.py).
    """
    match memory:
        case Memory.WEIGHT:
            return config.weight_words, config.weight_word_bits
        case Memory.PARAMETER:
            return config.parameter_words, channel_layout().width * config.rows
        case Memory.BLOCK:
            return config.block_words, block_layout(config).width
        case Memory.TAP:
            return config.tap_words, tap_layout(config).width
        case Memory.TABLE:
            return config.table_words * 256, DATA_BITS
        case Memory.PROGRAM:
            return config.instructions, instruction_layout(config).width
    raise ValueError("TENSOR is addressed by a descriptor, not by words")


def program_shape(config: AcceleratorConfig) -> tuple[int, int]:
    """(words of 32 bits, words from one instruction to the next) of the program memory.

    Instructions begin at multiples of a power of two, so that an address is a concatenation and not a product.
    """
    stride = 1 << (beats(instruction_layout(config).width) - 1).bit_length()
    return config.instructions * stride, stride
