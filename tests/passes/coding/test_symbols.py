"""Arrays of integers survive the context coder, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from passes.coding.range_coder import CodingError
from passes.coding.symbols import Decoder, Encoder, decode, decode_bytes, encode, encode_bytes

ARRAYS = st.one_of(
    npst.arrays(np.int32, npst.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12)),
    npst.arrays(np.int32, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-7, 7)),
)


@settings(deadline=None)
@given(ARRAYS, st.sampled_from([(), (3,), (2, 2)]))
def test_what_was_encoded_is_decoded(values: NDArray[np.int32], kernel: tuple[int, ...]) -> None:
    found = decode(encode(values, kernel), *values.shape, kernel)
    assert found.dtype == np.int32
    assert np.array_equal(found, values)


@settings(deadline=None)
@given(st.lists(st.tuples(ARRAYS, st.integers(0, 3)), max_size=5))
def test_arrays_of_several_models_share_one_stream(arrays: list[tuple[NDArray[np.int32], int]]) -> None:
    encoder = Encoder()
    for values, model in arrays:
        encoder.write(values, model)
    decoder = Decoder(encoder.finish())
    for values, model in arrays:
        assert np.array_equal(decoder.read(*values.shape, model), values)
    decoder.finish()


def test_values_beyond_int32_are_refused() -> None:
    with pytest.raises(CodingError, match="values must be within int32"):
        encode(np.array([[1 << 31]]))


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text("ab/_1290", max_size=200).map(str.encode))
def test_strings_come_back(data: bytes) -> None:
    assert decode_bytes(encode_bytes(data), len(data)) == data
