"""Linear algebra on one BLAS thread: how a sum is cut among threads changes its last bits, and then a file's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np  # noqa: F401 - its BLAS must be loaded before it can be limited
from threadpoolctl import threadpool_limits


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Limit the BLAS of this process, whatever OMP_NUM_THREADS says; also a decorator.

    Parallel work is by layer instead: two threads of one product of small matrices wait for each other more than they
    help.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
