"""Random output walks of instructions."""

import random

from hw.config import AcceleratorConfig
from sim.golden.walker import Walk


def random_walk(generator: random.Random, config: AcceleratorConfig, least_pitch: int = 1) -> Walk:
    """Any placement; half of them split columns or rows by parity."""
    largest = (1 << config.coordinate_bits) - 1
    pitch = max(least_pitch, generator.choice((1, 2, 5, generator.randrange(1, largest + 1))))
    words = [generator.randrange(config.activation_words) for _ in range(5)]
    return Walk(
        pitch=pitch,
        columns=generator.randrange(1, pitch + 1),
        rows=generator.choice((1, 3, largest)),
        drop_x=generator.choice((1, 1, 2, 3, 15)),
        drop_y=generator.choice((1, 1, 2, 3, 15)),
        out_base=words[0],
        out_plane=words[1],
        out_pitch=words[2],
        out_step=generator.randrange(16),
        out_phase_x=generator.randrange(2),
        out_phase_y=generator.randrange(2),
        phase_x=words[3],
        phase_y=words[4],
    )
