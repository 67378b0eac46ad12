"""The estimate of the coder's bits is close to what it spends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from passes.coding.estimate import code_bits
from passes.coding.symbols import encode


def matrix(rows: int, columns: int, spread: float, seed: int) -> NDArray[np.int64]:
    """Codes whose rows and columns differ in size, as a layer's do."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.standard_normal((rows, 1)) * 0.3 + rng.standard_normal(columns) * spread)
    return np.round(rng.standard_normal((rows, columns)) * sizes * 2).astype(np.int64)


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("keep", [0.2, 1.0])
@pytest.mark.parametrize("factor", [1, 2, 12])
def test_estimate_is_within_three_percent_or_five_of_sparse_arrays(spread: float, keep: float, factor: int) -> None:
    codes = matrix(48, 63, spread, 5) * factor // 2  # 12: multiples of 6, as of a codebook
    codes *= np.random.default_rng(6).random(codes.shape) < keep
    assert code_bits(codes, (3, 3)) == pytest.approx(8 * len(encode(codes, (3, 3))), rel=0.03 if keep == 1 else 0.05)


@settings(deadline=None)
@given(
    npst.arrays(
        np.int32,
        npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12),
        elements=st.integers(-(1 << 31), (1 << 31) - 1),
    ),
    st.sampled_from([(), (3,), (2, 2)]),
)
def test_any_array_has_an_estimate(values: NDArray[np.int32], kernel: tuple[int, ...]) -> None:
    bits = code_bits(values, kernel)
    assert np.isfinite(bits)
    assert (bits > 0) == (values.size > 0)
