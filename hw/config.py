"""The shape of an accelerator: array, memories, widths. Every address field derives from here."""

import zlib
from dataclasses import asdict, dataclass
from math import ceil

from amaranth.utils import ceil_log2

ABI_VERSION = 1
DATA_BITS = 8
MULTIPLIER_BITS = 17
SHIFT_BITS = 6
OFFSET_BITS = 48
DELTA_BITS = 6
TECHNOLOGIES = ("generic", "verilog", "ecp5")
"""generic: plain Amaranth. verilog: the same with memories as instances of a Verilog module (see hw.memory), which
converts in seconds and has no initial contents. ecp5: Lattice cells."""


class ConfigError(ValueError):
    """A parameter of the accelerator is out of range, or two do not fit together."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class AcceleratorConfig:
    """Parameters of the generator.

    A *word* is `rows` channels (bytes) of one pixel. A *weight block* is `rows` weights, one for each
    output channel of a block, for one tap and input channel.

    Attributes:
        pixels: P, pixel lanes of the array; a power of two, 2 to 64.
        rows: Q, output channels computed side by side; a power of two, 1 to 16.
        drain_lanes: D, lanes requantized per cycle and row; 1 or 2, at most `pixels`.
        block_lanes: F, weight blocks in one weight memory word; a fully connected layer uses F * Q
            weights per cycle. A power of two, at most `pixels`.
        acc_bits: Width of an accumulator, 20 to 32.
        activation_words: Activation memory in words of Q bytes; a multiple of P.
        weight_words: Weight memory in words of F blocks.
        parameter_words: Requantization parameters, one word for each block of Q output channels.
        block_words: Weight streams (start, count), one for each block of output channels.
        tap_words: Kernel taps of all instructions.
        table_words: 256-entry tables of unary functions.
        instructions: Capacity of the program memory and of the cycle counters.
        coordinate_bits: Of an x or y position in a map; maps are smaller than 2**coordinate_bits.
        technology: Cells that multipliers and memories become; does not change behaviour.
    """

    pixels: int = 16
    rows: int = 8
    drain_lanes: int = 2
    block_lanes: int = 8
    acc_bits: int = 24
    activation_words: int = 8192
    weight_words: int = 4608
    parameter_words: int = 512
    block_words: int = 512
    tap_words: int = 512
    table_words: int = 8
    instructions: int = 128
    coordinate_bits: int = 10
    technology: str = "generic"

    def __post_init__(self) -> None:
        for name, low, high in (("pixels", 2, 64), ("rows", 1, 16), ("drain_lanes", 1, 2), ("block_lanes", 1, 64)):
            value = getattr(self, name)
            if not _is_power_of_two(value) or not low <= value <= high:
                raise ConfigError(f"{name} must be a power of two in [{low}, {high}], not {value}")
        if self.block_lanes > self.pixels or self.drain_lanes > self.pixels:
            raise ConfigError("block_lanes and drain_lanes must not exceed pixels")
        if not 20 <= self.acc_bits <= 32:
            raise ConfigError(f"acc_bits must be in [20, 32], not {self.acc_bits}")
        if self.activation_words % self.pixels or self.activation_words < 2 * self.pixels:
            raise ConfigError(
                f"activation_words must be a multiple of {self.pixels}, and at least {2 * self.pixels}, "
                f"not {self.activation_words}"
            )
        for name in ("weight_words", "parameter_words", "block_words", "tap_words", "table_words", "instructions"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} must be at least 2, not {getattr(self, name)}")
        if not 4 <= self.coordinate_bits <= 14:
            raise ConfigError(f"coordinate_bits must be in [4, 14], not {self.coordinate_bits}")
        if self.technology not in TECHNOLOGIES:
            raise ConfigError(f"technology must be one of {', '.join(TECHNOLOGIES)}, not {self.technology!r}")

    # Widths of address fields.

    @property
    def pixel_bits(self) -> int:
        return ceil_log2(self.pixels)

    @property
    def row_bits(self) -> int:
        """Bits that select one channel (byte) of a word; 0 when a word is one byte."""
        return ceil_log2(self.rows)

    @property
    def address_bits(self) -> int:
        """Of a word in the activation memory."""
        return ceil_log2(self.activation_words)

    @property
    def block_address_bits(self) -> int:
        """Of a weight block: word address and block within the word."""
        return ceil_log2(self.weight_words) + ceil_log2(self.block_lanes)

    @property
    def count_bits(self) -> int:
        """Of the number of weight blocks in a stream."""
        return self.block_address_bits

    @property
    def channel_bits(self) -> int:
        """Of an input channel counted from a tap's start."""
        return min(self.address_bits + self.row_bits, 16)

    # Words of the memories, in bits.

    @property
    def word_bits(self) -> int:
        """One word of the activation memory."""
        return DATA_BITS * self.rows

    @property
    def weight_block_bits(self) -> int:
        """Q weights, the channel delta and the end_tap flag."""
        return DATA_BITS * self.rows + DELTA_BITS + 2

    @property
    def weight_word_bits(self) -> int:
        return self.weight_block_bits * self.block_lanes

    @property
    def bank_depth(self) -> int:
        """Words in each of the P activation banks."""
        return self.activation_words // self.pixels

    @property
    def macs_per_cycle(self) -> int:
        return self.pixels * self.rows

    @property
    def config_id(self) -> int:
        """32-bit fingerprint that program and hardware must share; technology is left out."""
        fields = {k: v for k, v in asdict(self).items() if k != "technology"}
        text = ",".join(f"{name}={value}" for name, value in sorted(fields.items()))
        return zlib.crc32(text.encode())


def beats(bits: int) -> int:
    """32-bit stream beats that carry one memory word of `bits`."""
    return ceil(bits / 32)


def array_config(pixels: int, rows: int, **fields: int | str) -> AcceleratorConfig:
    """The default configuration of a P x Q array.

    Weights per cycle of a fully connected layer are half of the array (F = P / 2), which at 16x8 makes the
    weight memory 576 bits wide; memories keep their capacity in bytes whatever the array.
    """
    default = AcceleratorConfig()
    block_lanes = max(1, pixels // 2)
    defaults: dict[str, int | str] = {
        "drain_lanes": min(2, pixels),
        "block_lanes": block_lanes,
        "activation_words": default.activation_words * default.rows // rows,
        "weight_words": default.weight_words * default.rows * default.block_lanes // (rows * block_lanes),
        "parameter_words": default.parameter_words * default.rows // rows,
        "block_words": default.block_words * default.rows // rows,
    }
    return AcceleratorConfig(pixels=pixels, rows=rows, **(defaults | fields))  # type: ignore[arg-type]
