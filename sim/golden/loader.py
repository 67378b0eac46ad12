"""Golden model of Loader: what a memory, or the activation memory, holds after a load."""

from collections.abc import Sequence

from hw.config import AcceleratorConfig, beats
from hw.descriptor import TensorDescriptor
from hw.isa import Memory, memory_shape, program_shape
from sim.golden.tensor_walker import positions

Writes = dict[tuple[int, ...], int]


def word_writes(config: AcceleratorConfig, memory: Memory, address: int, words: Sequence[int]) -> Writes:
    """Address -> contents for words stored from `address` on; the program memory has 32-bit words."""
    if memory != Memory.PROGRAM:
        return {(address + index,): word for index, word in enumerate(words)}
    stride = program_shape(config)[1]
    return {
        ((address + index) * stride + beat,): word >> 32 * beat & 0xFFFFFFFF
        for index, word in enumerate(words)
        for beat in range(beats(memory_shape(config, memory)[1]))
    }


def byte_writes(config: AcceleratorConfig, descriptor: TensorDescriptor, data: bytes) -> Writes:
    """(word, byte) -> contents for a map of which `data` is the NCHW bytes; a later byte covers an earlier one."""
    places = positions(descriptor, config)
    return {(place.address, place.byte): value for place, value in zip(places, data, strict=True)}
