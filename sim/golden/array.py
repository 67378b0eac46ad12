"""Golden model of Array."""

import numpy as np
from numpy.typing import NDArray

from hw.config import AcceleratorConfig


class Accumulators:
    """`sums`: int64 [P, Q], None until the first product."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._bits = config.acc_bits
        self.sums: NDArray[np.int64] | None = None

    def step(self, operands: NDArray[np.int8], weights: NDArray[np.int8], *, first: bool, maximum: bool) -> None:
        """Take one product of each lane and row: int8 [P, Q] each."""
        products = operands.astype(np.int64) * weights
        if first or self.sums is None:
            self.sums = products
        elif maximum:
            self.sums = np.maximum(self.sums, products)
        else:
            half = 1 << (self._bits - 1)
            self.sums = (self.sums + products + half) % (2 * half) - half
