"""Which strides the FPGA target takes."""

from __future__ import annotations

import pytest

from backends.fpga.backend import FpgaBackend
from backends.layers import MaxPool, Tensor


def _pool(side: int, stride: int) -> MaxPool:
    out = (side - 1) // stride + 1
    tensors = [Tensor(name, (4, n, n), 1.0, 0) for name, n in (("x", side), ("y", out))]
    return MaxPool("pool", *tensors, kernel=(1, 1), strides=(stride, stride))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
def test_small_strides_are_taken(stride: int) -> None:
    assert FpgaBackend().why_not(_pool(20, stride)) is None


def test_a_long_odd_stride_is_refused() -> None:
    assert FpgaBackend().why_not(_pool(60, 25)) == "a stride of 25 drops too many positions"


def test_a_long_stride_is_no_stride_where_one_position_is_left() -> None:
    """Exporters write a global pool as one whose stride is its kernel."""
    assert FpgaBackend().why_not(_pool(25, 25)) is None
