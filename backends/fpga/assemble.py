"""Fifth phase: steps and addresses to packed memory words.

Equal streams, parameters, taps and tables are stored once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.base import DoesNotFitError
from backends.fpga.steps import Parameters, Step, Tap
from backends.fpga.streams import Stream
from hw.config import AcceleratorConfig
from hw.isa import Memory, block_layout, channel_layout, instruction_layout, memory_shape, tap_layout

_MODULO_FIELDS = ("in_base", "in_plane", "block_step", "out_base", "out_plane", "out_pitch", "phase_x", "phase_y",
                  "operand_base", "operand_plane")  # fmt: skip
"""Addresses and differences of addresses: modulo the address width, so that negative ones work."""


@dataclass
class _Pool:
    """A memory image that grows; the same run of words is stored once.

    Attributes:
        words: The image.
        starts: First word of each run that is stored.
    """

    words: list[int] = field(default_factory=list)
    starts: dict[Hashable, int] = field(default_factory=dict)

    def place(self, run: Sequence[int]) -> int:
        """Word at which the run begins."""
        key = tuple(run)
        if key not in self.starts:
            self.starts[key] = len(self.words)
            self.words.extend(run)
        return self.starts[key]


@dataclass(frozen=True)
class Section:
    """Steps that share one allocation of the activation memory.

    Attributes:
        steps: In order of execution.
        bases: Base address of each of their tensors.
    """

    steps: tuple[Step, ...]
    bases: Mapping[str, int]


def assemble(sections: Sequence[Section], config: AcceleratorConfig) -> dict[Memory, list[int]]:
    """The memory images.

    Args:
        sections: In order of execution; step i of all of them is instruction i.
        config: The accelerator.

    Raises:
        DoesNotFitError: A memory is too small, or a value too large for its field.
    """
    steps = [step for section in sections for step in section.steps]
    starts, weights = _weights(steps, config)
    pools = {m: _Pool() for m in (Memory.PARAMETER, Memory.BLOCK, Memory.TAP, Memory.TABLE)}
    program = []
    for section in sections:
        for step in section.steps:
            try:
                program.append(_instruction(step, section.bases, starts, pools, config))
            except DoesNotFitError:
                raise
            except ValueError as error:
                raise DoesNotFitError(f"layer '{step.operation}': {error}") from error
    check_capacity(Memory.PROGRAM, len(program), steps[-1].operation if steps else "", config)
    images = {memory: pool.words for memory, pool in pools.items()}
    return {**images, Memory.WEIGHT: weights, Memory.PROGRAM: program}


def check_capacity(memory: Memory, words: int, layer: str, config: AcceleratorConfig) -> None:
    """Refuse an image that is larger than its memory; `layer` is the one that no longer fits."""
    depth, bits = memory_shape(config, memory)
    if words <= depth:
        return
    raise DoesNotFitError(
        f"layer '{layer}': the {memory.name.lower()} memory needs {words} words of {bits} bits up to this layer, "
        f"the accelerator has {depth}"
    )


def _instruction(
    step: Step,
    bases: Mapping[str, int],
    starts: Mapping[bytes, int],
    pools: Mapping[Memory, _Pool],
    config: AcceleratorConfig,
) -> int:
    """Store what the step refers to, and pack the instruction."""
    in_base = bases[step.source]
    blocks = [_block(stream, starts, config) for stream in step.streams]
    parameters = _parameter_words(step.parameters, config)
    fields = dict(step.fields)
    fields |= {
        "in_base": in_base,
        "out_base": bases[step.target[0]] + step.target[1],
        "tap_base": pools[Memory.TAP].place([_tap(tap, bases, in_base, config) for tap in step.taps]),
        "block_base": pools[Memory.BLOCK].place(blocks),
        "parameter_base": pools[Memory.PARAMETER].place(parameters),
        "parameter_shared": int(len(step.parameters.multiplier) == 1),
    }
    if step.operand is not None:
        fields["operand_base"] = bases[step.operand[0]] + step.operand[1]
    if step.table is not None:
        entries = step.table.view(np.uint8).tolist()
        fields["table_index"] = pools[Memory.TABLE].place(entries) // 256
    for memory, pool in pools.items():
        check_capacity(memory, len(pool.words), step.operation, config)
    for name in _MODULO_FIELDS:
        fields[name] = fields.get(name, 0) % (1 << config.address_bits)
    return instruction_layout(config).pack(**fields)


def _tap(tap: Tap, bases: Mapping[str, int], in_base: int, config: AcceleratorConfig) -> int:
    """Offsets are modulo the address width, brought into the range of their field."""
    size = 1 << config.address_bits
    offset = (bases[tap.tensor] + tap.offset - in_base + size) % (2 * size) - size
    (x_low, x_high), (y_low, y_high) = tap.x, tap.y
    return tap_layout(config).pack(
        offset=offset, channel=tap.channel, x_low=x_low, x_high=x_high, y_low=y_low, y_high=y_high
    )


def _block(stream: Stream, starts: Mapping[bytes, int], config: AcceleratorConfig) -> int:
    return block_layout(config).pack(start=starts[_key(stream)], count=stream.count)


def _key(stream: Stream) -> bytes:
    return bytes([stream.weights.shape[1]]) + stream.to_bytes()


def _weights(steps: Sequence[Step], config: AcceleratorConfig) -> tuple[dict[bytes, int], list[int]]:
    """First block of every distinct stream, and the image. Wide streams come first: they fill whole words."""
    lanes, size = config.block_lanes, config.rows + 1
    streams = [(stream, step.operation) for step in steps for stream in step.streams]
    starts: dict[bytes, int] = {}
    image = bytearray()
    for stream, operation in sorted(streams, key=lambda s: s[0].weights.shape[1] == 1):
        key = _key(stream)
        if key not in starts:
            starts[key] = len(image) // size
            image += key[1:]
            check_capacity(Memory.WEIGHT, -(-len(image) // (size * lanes)), operation, config)
    word = size * lanes
    image += bytes(-len(image) % word)
    return starts, [int.from_bytes(image[i : i + word], "little") for i in range(0, len(image), word)]


def _parameter_words(parameters: Parameters, config: AcceleratorConfig) -> list[int]:
    """Words of Q channels; slopes follow the word of their channels."""
    own = _channel_words((parameters.multiplier, parameters.shift, parameters.offset), config)
    if parameters.slope is None:
        return own
    zero = np.zeros_like(parameters.slope)
    slopes = _channel_words((parameters.slope, zero, zero), config)
    return [word for pair in zip(own, slopes, strict=True) for word in pair]


def _channel_words(values: tuple[NDArray[np.int64], ...], config: AcceleratorConfig) -> list[int]:
    layout, rows = channel_layout(), config.rows
    channels = [v.tolist() * rows if len(v) == 1 else v.tolist() for v in values]
    packed = [layout.pack(multiplier=m, shift=s, offset=b) for m, s, b in zip(*channels, strict=True)]
    packed += [0] * (-len(packed) % rows)
    return [
        sum(channel << (row * layout.width) for row, channel in enumerate(packed[i : i + rows]))
        for i in range(0, len(packed), rows)
    ]
