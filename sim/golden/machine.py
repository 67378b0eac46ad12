"""Golden model of the whole accelerator: executes programs instruction by instruction, exactly as hw.isa says.

It knows nothing of pipelines or cycles, only of what each instruction leaves in the activation memory. Faults that the
RTL would turn into wrong data (two writes to one bank in a cycle, an address outside the memory) raise MachineError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
)
from sim.program import Program

Words = NDArray[np.int8]
Fields = dict[str, int]


class MachineError(RuntimeError):
    """An instruction does what the hardware cannot do."""


@dataclass(frozen=True)
class Stream:
    """A decoded weight stream: int8 [count, F, Q] (F is 1 outside FULLY_CONNECTED), channel and tap of each cycle."""

    weights: NDArray[np.int8]
    channel: NDArray[np.int64]
    tap: NDArray[np.int64]


class Machine:
    """An accelerator as its programmer sees it.

    Attributes:
        config: Its shape.
        memory: Activation memory, int8 [activation_words, Q]; starts with random contents.
    """

    def __init__(self, config: AcceleratorConfig, seed: int = 0) -> None:
        self.config = config
        random = np.random.default_rng(seed)
        self.memory: Words = random.integers(-128, 128, (config.activation_words, config.rows), np.int8)
        self._weights: Words = np.zeros((0, config.rows + 1), np.int8)
        self._parameters: list[list[Fields]] = []
        self._blocks: list[Fields] = []
        self._taps: list[Fields] = []
        self._tables: NDArray[np.int8] = np.zeros(0, np.int8)
        self._program: list[Fields] = []

    def load(self, images: Mapping[Memory, Sequence[int]]) -> None:
        """Replace the contents of the memories that have an image."""
        config = self.config
        for memory, words in images.items():
            match memory:
                case Memory.WEIGHT:
                    self._weights = _weight_blocks(config, words)
                case Memory.PARAMETER:
                    self._parameters = [_parameter_word(config, word) for word in words]
                case Memory.BLOCK:
                    self._blocks = [block_layout(config).unpack(word) for word in words]
                case Memory.TAP:
                    self._taps = [tap_layout(config).unpack(word) for word in words]
                case Memory.TABLE:
                    self._tables = np.array(words, np.uint8).view(np.int8)
                case Memory.PROGRAM:
                    self._program = [instruction_layout(config).unpack(word) for word in words]

    def write_tensor(self, descriptor: TensorDescriptor, values: NDArray[np.int8]) -> None:
        """Place an int8 map of the descriptor's size."""
        word, byte = descriptor.addresses(self.config.rows)
        self.memory[word, byte] = values.reshape(descriptor.shape)

    def read_tensor(self, descriptor: TensorDescriptor) -> NDArray[np.int8]:
        """The int8 [channels, height, width] map at the descriptor."""
        word, byte = descriptor.addresses(self.config.rows)
        return self.memory[word, byte]

    def run(self, pc_start: int, pc_end: int) -> None:
        """Execute instructions [pc_start, pc_end)."""
        for pc in range(pc_start, pc_end):
            try:
                self._execute(self._program[pc])
            except MachineError as error:
                error.add_note(f"in instruction {pc}")
                raise

    def _execute(self, fields: Fields) -> None:
        """One instruction; see the loop in hw.isa."""
        lanes = _Lanes(self.config, fields)
        for block in range(fields["blocks"]):
            stream = self._stream(fields, block)
            acc = self._accumulate(fields, lanes, stream, block)
            self._drain(fields, lanes, acc, block)

    def _stream(self, fields: Fields, block: int) -> Stream:
        """Decode the weight stream of a block of output channels."""
        entry = self._blocks[fields["block_base"] + (0 if fields["block_shared"] else block)]
        wide = self.config.block_lanes if fields["mode"] == Mode.FULLY_CONNECTED else 1
        start, count = entry["start"], entry["count"]
        if start % wide or start + count * wide > len(self._weights) or count == 0:
            raise MachineError(f"the weight stream [{start}, +{count * wide}) is empty, unaligned or not loaded")
        raw = self._weights[start : start + count * wide].reshape(count, wide, -1)
        flags = raw[:, 0, -1].view(np.uint8).astype(np.int64)
        return Stream(raw[:, :, :-1], *_channels(flags & 63, flags >> 6 & 1))

    def _accumulate(self, fields: Fields, lanes: "_Lanes", stream: Stream, block: int) -> NDArray[np.int64]:
        """Accumulators of all groups: int64 [positions, Q], or [F, Q] when fully connected."""
        config, mode = self.config, fields["mode"]
        taps = [self._taps[fields["tap_base"] + int(tap)] for tap in range(int(stream.tap.max()) + 1)]
        cycles = []
        for tap, channel in zip(stream.tap, stream.channel, strict=True):
            k = taps[tap]["channel"] + int(channel)
            base = fields["in_base"] + block * fields["block_step"] + taps[tap]["offset"]
            vector = lanes.fetch(self.memory, base + k // config.rows * fields["in_plane"], taps[tap])
            cycles.append(vector if mode == Mode.DEPTHWISE else vector[:, k % config.rows])
        inputs = np.array(cycles, np.int64)
        match mode:
            case Mode.DEPTHWISE:
                products = inputs * stream.weights[:, 0, None, :]
                acc = products.max(axis=0) if fields["maximum"] else products.sum(axis=0)
            case Mode.CONV if fields["maximum"]:
                acc = (inputs[:, :, None] * stream.weights).max(axis=0)
            case Mode.CONV:
                acc = _matmul(inputs.T, stream.weights[:, 0])
            case _:
                acc = _matmul(inputs[:, :1].T, stream.weights.reshape(len(inputs), -1)).reshape(-1, config.rows)
        if fields["reduce"]:
            acc = acc.sum(axis=0, keepdims=True)
        return _wrap(acc, config.acc_bits)

    def _drain(self, fields: Fields, lanes: "_Lanes", acc: NDArray[np.int64], block: int) -> None:
        """Requantize, post-process and store the results of one block."""
        keep, address = lanes.outputs(block, len(acc))
        parameters = self._parameter_words(fields, block, len(acc))
        value = requantize(acc, parameters, fields)
        if fields["elementwise"]:
            value = elementwise(value, self._operand(fields, lanes, block, len(acc)), parameters, fields)
        if fields["use_table"]:
            table = self._tables[fields["table_index"] * 256 : fields["table_index"] * 256 + 256]
            value = table[value + 128].astype(np.int64)
        used = address[keep]
        if len(used) and not 0 <= used.min() <= used.max() < self.config.activation_words:
            raise MachineError(f"writes words {used.min()} to {used.max()} of {self.config.activation_words}")
        self.memory[used] = value[keep]

    def _operand(self, fields: Fields, lanes: "_Lanes", block: int, count: int) -> NDArray[np.int64]:
        """The second operand of every lane: int64 [count, Q]."""
        base = fields["operand_base"] + block * fields["operand_plane"]
        steps = np.zeros(count, np.int64) if fields["operand_broadcast"] else np.arange(count)
        return lanes.words(self.memory, base + steps).astype(np.int64)

    def _parameter_words(self, fields: Fields, block: int, count: int) -> "Parameters":
        """Requantization parameters, broadcast over lanes; fully connected lanes have one word each."""
        wide = count if fields["mode"] == Mode.FULLY_CONNECTED else 1
        size = 2 if fields["elementwise"] == Elementwise.PRELU else 1
        words = []
        for lane in range(wide):
            index = 0 if fields["parameter_shared"] else (block * wide + lane) * size
            words.append(fields["parameter_base"] + index)
        own = [self._parameter(i) for i in words]
        slope = [self._parameter(i + 1) for i in words] if size == 2 else own
        column = lambda rows, name: np.array([[row[name] for row in word] for word in rows], np.int64)  # noqa: E731
        return Parameters(
            column(own, "multiplier"), column(own, "shift"), column(own, "offset"), column(slope, "multiplier")
        )

    def _parameter(self, index: int) -> list[Fields]:
        """A parameter word. Lanes of a fully connected layer past its last output channel may read past the end."""
        return self._parameters[index % len(self._parameters)]


@dataclass(frozen=True)
class Parameters:
    """int64 [lanes or 1, Q] each."""

    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    offset: NDArray[np.int64]
    slope: NDArray[np.int64]


class _Lanes:
    """Positions of all lanes of all groups of an instruction, and the addresses that follow from them."""

    def __init__(self, config: AcceleratorConfig, fields: Fields) -> None:
        self.config, self.fields = config, fields
        self.n = np.arange(fields["groups"] * config.pixels)
        self.y, self.x = np.divmod(self.n, max(fields["pitch"], 1))

    def fetch(self, memory: Words, base: int, tap: Fields) -> Words:
        """Words that the lanes read for one weight block: int8 [positions, Q]."""
        inside = (tap["y_low"] <= self.y) & (self.y < tap["y_high"])
        inside &= (tap["x_low"] <= self.x) & (self.x < tap["x_high"])
        return np.where(inside[:, None], self.words(memory, base + self.n), np.int8(self.fields["pad_value"]))

    def words(self, memory: Words, address: NDArray[np.int64]) -> Words:
        """Words at addresses modulo the address width; past the end of the memory anything may be read."""
        wrapped = address % (1 << self.config.address_bits)
        return memory[np.where(wrapped < len(memory), wrapped, len(memory) - 1)]

    def outputs(self, block: int, count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which positions are kept, and the word address of each."""
        f = self.fields
        if f["reduce"]:
            return np.ones(1, bool), np.array([f["out_base"] + block * f["out_plane"]])
        y, x = self.y[:count], self.x[:count]
        drop_y, drop_x = max(f["drop_y"], 1), max(f["drop_x"], 1)
        keep = (x < f["columns"]) & (y < f["rows"]) & (x % drop_x == 0) & (y % drop_y == 0)
        u, v, px, py = x // drop_x, y // drop_y, f["out_phase_x"], f["out_phase_y"]
        address = f["out_base"] + block * f["out_plane"] + (v & py) * f["phase_y"] + (u & px) * f["phase_x"]
        address += (v >> py) * f["out_pitch"] + (u >> px) * f["out_step"]
        address %= 1 << self.config.address_bits
        self._check_banks(keep, address)
        return keep, address

    def _check_banks(self, keep: NDArray[np.bool_], address: NDArray[np.int64]) -> None:
        """Lanes 2t and 2t + 1 are written in one cycle when two lanes are drained."""
        if self.fields["single_drain"]:
            return
        if self.fields["elementwise"] or self.fields["use_table"] or self.fields["mode"] == Mode.FULLY_CONNECTED:
            raise MachineError("elementwise operations, tables and fully connected layers need single_drain")
        if self.config.drain_lanes == 1:
            return
        banks = address.reshape(-1, 2) % self.config.pixels
        if np.any(keep.reshape(-1, 2).all(axis=1) & (banks[:, 0] == banks[:, 1])):
            raise MachineError("two lanes drained in one cycle write to the same bank")


def requantize(acc: NDArray[np.int64], parameters: Parameters, fields: Fields) -> NDArray[np.int64]:
    """clamp(zero_point + rhe((acc * M + B) / 2**S), low, high)."""
    scaled = round_half_even(acc * parameters.multiplier + parameters.offset, parameters.shift)
    return np.clip(scaled + fields["zero_point"], fields["low"], fields["high"])


def elementwise(
    a: NDArray[np.int64], b: NDArray[np.int64], parameters: Parameters, fields: Fields
) -> NDArray[np.int64]:
    """ADD, MUL or PRELU of requantized values int64 [lanes, Q] and their second operand."""
    a, b = a - fields["zero_point_a"], b - fields["zero_point_b"]
    match fields["elementwise"]:
        case Elementwise.ADD:
            total = a * fields["multiplier_a"] + b * fields["multiplier_b"]
        case Elementwise.MUL:
            total = a * b * fields["multiplier_b"]
        case _:
            total = a * np.where(a >= 0, fields["multiplier_a"], parameters.slope)
    scaled = round_half_even(total, np.int64(fields["shift"]))
    return np.clip(scaled + fields["zero_point_y"], fields["low_y"], fields["high_y"])


def round_half_even(value: NDArray[np.int64], shift: NDArray[np.int64] | np.int64) -> NDArray[np.int64]:
    """value / 2**shift, ties to even, without leaving the integers."""
    floor = value >> shift
    rest, half = value - (floor << shift), (np.int64(1) << shift) >> 1
    return floor + ((rest > half) | ((rest == half) & (floor & 1 == 1) & (shift > 0)))


def run_program(
    program: Program, inputs: Mapping[str, NDArray[np.int8]], *, seed: int = 0
) -> dict[str, NDArray[np.int8]]:
    """Run a whole program layer by layer.

    Args:
        program: With its images.
        inputs: int8 [C, H, W] of all that the host sends, by tensor name.
        seed: Of the initial contents of the activation memory.

    Returns:
        int8 [C, H, W] of every stored tensor, read when its layer has finished, and of the outputs after their entry.
    """
    machine = Machine(program.config, seed)
    machine.load(program.images)
    values: dict[str, NDArray[np.int8]] = {}
    outputs: dict[str, NDArray[np.int8]] = {}
    for entry in program.entries:
        for name, descriptor in entry.inputs.items():
            machine.write_tensor(descriptor, outputs[name] if name in outputs else inputs[name])
        for layer in program.layers_of(entry):
            machine.run(layer.pc_start, layer.pc_end)
            values[layer.tensor] = machine.read_tensor(layer.descriptor)
        outputs |= {name: machine.read_tensor(descriptor) for name, descriptor in entry.outputs.items()}
    return values | outputs


def _channels(delta: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input channel and tap of every cycle of a stream."""
    channel, tap = np.zeros_like(delta), np.zeros_like(delta)
    next_channel, next_tap = 0, 0
    for i, (skipped, last) in enumerate(zip(delta.tolist(), end.tolist(), strict=True)):
        channel[i], tap[i] = next_channel + skipped, next_tap
        next_channel, next_tap = (0, next_tap + 1) if last else (next_channel + skipped + 1, next_tap)
    return channel, tap


def _matmul(a: NDArray[np.int64], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """Exact: every partial sum is far below 2**53."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def _wrap(acc: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Two's complement of `bits` bits."""
    half = 1 << (bits - 1)
    return (acc + half) % (2 * half) - half


def _weight_blocks(config: AcceleratorConfig, words: Sequence[int]) -> Words:
    """Weight memory as int8 [blocks, Q + 1]: the weights, then delta and end_tap in one byte."""
    size = config.weight_word_bits // 8
    data = b"".join(int(word).to_bytes(size, "little") for word in words)
    return np.frombuffer(data, np.int8).reshape(-1, config.rows + 1)


def _parameter_word(config: AcceleratorConfig, word: int) -> list[Fields]:
    layout = channel_layout()
    mask = (1 << layout.width) - 1
    return [layout.unpack(word >> (row * layout.width) & mask) for row in range(config.rows)]
