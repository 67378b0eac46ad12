"""Large arrays survive the lanes, in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from passes.coding.lanes import LaneModel, decode_lanes, encode_lanes, walk_of
from passes.coding.range_coder import CodingError
from passes.coding.symbols import Decoder, Encoder

SHAPES = npst.array_shapes(min_dims=2, max_dims=2, max_side=40)
ARRAYS = st.one_of(
    npst.arrays(np.int32, SHAPES, elements=st.integers(-(1 << 31), (1 << 31) - 1)),
    npst.arrays(np.int32, SHAPES, elements=st.integers(-40, 40)),
    npst.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 1, -16, 65535, -65536])),
)
KERNELS = st.sampled_from([(), (3,), (2, 2), (1, 1)])


@settings(deadline=None)
@given(ARRAYS, KERNELS)
def test_what_was_encoded_is_decoded(values: NDArray[np.int32], kernel: tuple[int, ...]) -> None:
    coded = encode_lanes(values, kernel, LaneModel())
    found, taken = decode_lanes(coded + b"more", *values.shape, kernel, LaneModel())
    assert np.array_equal(found, values)
    assert taken == len(coded)


@pytest.mark.parametrize(
    ("shape", "kernel", "lanes"), [((64, 576), (3, 3), 18), ((2048, 512), (), 512), ((9, 4), (), 1)]
)
def test_lanes_grow_with_the_array(shape: tuple[int, int], kernel: tuple[int, ...], lanes: int) -> None:
    assert walk_of(*shape, kernel).lanes == lanes


@settings(deadline=None)
@given(ARRAYS, KERNELS, st.data())
def test_damage_is_refused_or_gives_other_numbers(
    values: NDArray[np.int32], kernel: tuple[int, ...], draw: st.DataObject
) -> None:
    data = bytearray(encode_lanes(values, kernel, LaneModel()))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    try:
        found, _ = decode_lanes(bytes(data), *values.shape, kernel, LaneModel())
    except CodingError:
        return
    assert found.shape == values.shape


def test_independent_codes_cost_their_entropy() -> None:
    codes = np.clip(np.round(np.random.default_rng(0).standard_normal((256, 2304)) * 2.2), -7, 7).astype(np.int32)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -codes.size * float((share * np.log2(share)).sum()) / 8
    assert len(encode_lanes(codes, (3, 3), LaneModel())) <= 1.01 * entropy + 16


def test_large_and_small_arrays_share_a_stream() -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-3, 4, shape) for shape in ((5, 7), (600, 601), (20, 20), (130, 1000), (3, 3))]
    encoder = Encoder()
    for values in arrays:
        encoder.write(values, model=2)
    coded = encoder.finish()
    decoder = Decoder(coded)
    for values in arrays:
        assert np.array_equal(decoder.read(*values.shape, model=2), values)
    decoder.finish()
    with pytest.raises(CodingError, match="have not the sizes"):
        decoder = Decoder(coded)
        decoder.read(5, 7, 2)
        decoder.read(600, 601, 2)
        decoder.finish()
