"""Stochastic rounding whose random numbers depend on the seed, the tensor's name and the element alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from passes.solvers.hessian import Vector

_WORDS = 4
"""64-bit words of one Philox block."""


def uniforms(seed: int, tensor: str, start: int, stop: int) -> Vector:
    """Random numbers of elements start to stop of a tensor, float64 in [0, 1); the same however they are split.

    Args:
        seed: Any integer.
        tensor: Name of the tensor.
        start, stop: Positions in the tensor's order, 0 <= start <= stop.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011: Philox4x64-10, keyed by the SHA-256 of
        seed and name, counting elements.
    """
    digest = hashlib.sha256(f"{seed}\n{tensor}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    block, skipped = divmod(start, _WORDS)
    generator = np.random.Philox(key=key, counter=[block, 0, 0, 0])
    words = generator.random_raw(stop - start + skipped)[skipped:]
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def rounded(exact: NDArray[np.float64], seed: int, tensor: str, *, start: int = 0) -> NDArray[np.float64]:
    """floor(exact + u): the mean over seeds is `exact`, the variance f * (1 - f) with f its fractional part.

    Args:
        exact: Numbers in units of the step, of any shape.
        seed, tensor: As of `uniforms`.
        start: Position of the first of them in its tensor.

    Source: Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015, section 3.
    """
    return np.asarray(np.floor(exact + uniforms(seed, tensor, start, start + exact.size).reshape(exact.shape)))
