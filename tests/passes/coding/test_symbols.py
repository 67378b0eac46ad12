"""Arrays of integers survive the context coder, in few bytes."""

from __future__ import annotations

import contextlib
import lzma

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


@settings(deadline=None)
@given(ARRAYS.filter(lambda values: values.size > 0), st.data())
def test_damage_is_refused_or_gives_other_numbers(values: NDArray[np.int32], draw: st.DataObject) -> None:
    data = bytearray(encode(values))
    if data:
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    with contextlib.suppress(CodingError):
        assert decode(bytes(data), *values.shape).shape == values.shape


def test_extremes_and_wide_alphabets_come_back() -> None:
    for values in (
        np.array([[-(1 << 31), (1 << 31) - 1, 0, -1]]),
        np.random.default_rng(0).permutation(1 << 13).reshape(64, 128) * 8 - 32768,
        np.zeros((40, 50), np.int64),
        np.full((9, 1), 300),
    ):
        assert np.array_equal(decode(encode(values), *values.shape), values)
    assert len(encode(np.zeros((40, 50), np.int64))) < 20


def entropy_bytes(values: NDArray[np.integer]) -> float:
    share = np.unique(values, return_counts=True)[1] / values.size
    return -values.size * float((share * np.log2(share)).sum()) / 8


@pytest.mark.parametrize(("spread", "keep"), [(0.6, 1.0), (2.2, 1.0), (2.2, 0.3)])
def test_independent_codes_cost_their_entropy(spread: float, keep: float) -> None:
    rng = np.random.default_rng(0)
    codes = np.round(rng.standard_normal((150, 200)) * spread).astype(int) * (rng.random((150, 200)) < keep)
    assert len(encode(codes)) <= 1.01 * entropy_bytes(codes) + 16


def test_structure_is_found() -> None:
    """Columns of different size, and kernels that are smooth: far below the entropy of single codes."""
    rng = np.random.default_rng(1)
    columns = np.round(rng.standard_normal((120, 90)) * np.exp(rng.standard_normal(90))).astype(int)
    assert len(encode(columns)) < 0.9 * entropy_bytes(columns)
    smooth = np.cumsum(rng.standard_normal((32, 16, 25)), axis=2)
    codes = np.round(smooth).astype(int).reshape(32, 400)
    assert len(encode(codes, (1, 25))) < 0.75 * entropy_bytes(codes)


def test_repetitive_strings_are_far_below_lzma() -> None:
    """Names as exporters make them."""
    names = "".join(f"model/layer_{i}/weights_quantized;model/layer_{i}/weights_scale;" for i in range(200)).encode()
    assert len(encode_bytes(names)) < 0.8 * len(lzma.compress(names, lzma.FORMAT_ALONE))


def test_what_is_left_over_is_refused() -> None:
    encoder = Encoder()
    encoder.write(np.arange(50).reshape(5, 10))
    encoder.write_bytes(b"some text that takes bytes")
    decoder = Decoder(encoder.finish())
    decoder.read(5, 10)
    with pytest.raises(CodingError, match="left over"):
        decoder.finish()


def test_arguments_are_checked() -> None:
    with pytest.raises(CodingError, match="model must be 0 to 7, not 8"):
        Encoder().write(np.zeros((1, 1), int), 8)
    with pytest.raises(CodingError, match=r"values must be integers \[rows, columns\], not float64 \[3\]"):
        Encoder().write(np.zeros(3))  # type: ignore[arg-type]
