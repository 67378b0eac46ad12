"""Stored forms stand for the codes that they say."""

from __future__ import annotations

import numpy as np
import pytest

from passes.storage.forms import Codebook, Narrow, Planes, Vector


def _indices(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, shape, dtype=np.uint8)


def test_a_codebook_looks_every_code_up() -> None:
    stored = Codebook(np.array([-5, 0, 9], np.int8), np.array([[[2, 0], [1, 2]]], np.uint8))
    assert stored.codes().tolist() == [[[9, -5], [0, 9]]]
    assert stored.codes().dtype == np.int32


def test_vectors_lie_one_after_the_other_along_the_taps() -> None:
    stored = Vector(np.array([[1, 2], [3, 4]], np.int8), np.array([[[1, 0], [0, 0]]], np.uint8))
    assert stored.codes().tolist() == [[[3, 4, 1, 2], [1, 2, 1, 2]]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_planes_add_and_subtract_the_coefficients_of_their_row(count: int) -> None:
    coefficients = np.array([[[64, 32, 16, 8], [9, -7, 1, 0]]], np.int8)[:, :, :count]
    signs = _indices(1 << count, 1, 2, 11)
    expected = sum(coefficients[:, :, i, None].astype(int) * np.where(signs >> i & 1, 1, -1) for i in range(count))
    assert np.array_equal(Planes(coefficients, signs).codes(), expected)


def test_impossible_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="index 3 of 3 entries"):
        Codebook(np.zeros(3, np.int8), np.array([[[3]]], np.uint8))
    with pytest.raises(ValueError, match="index 2 of 2 entries"):
        Vector(np.zeros((2, 4), np.int8), np.array([[[2]]], np.uint8))
    with pytest.raises(ValueError, match="257 entries"):
        Codebook(np.zeros(257, np.int8), np.array([[[3]]], np.uint8))
    with pytest.raises(ValueError, match="codes from -9 to 0 do not fit 4 bits"):
        Narrow(np.array([[[-9, 0]]], np.int8))
    with pytest.raises(ValueError, match="5 planes"):
        Planes(np.ones((1, 1, 5), np.int8), np.zeros((1, 1, 1), np.uint8))
    with pytest.raises(ValueError, match="sum to more than 127"):
        Planes(np.array([[[100, -28]]], np.int8), np.zeros((1, 1, 1), np.uint8))
