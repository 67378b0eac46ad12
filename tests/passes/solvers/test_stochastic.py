"""Stochastic rounding: its moments, and that only seed, name and element matter."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.solvers.stochastic import rounded, uniforms

WORD = 2**64


def _philox(counter: int, key: list[int]) -> list[int]:
    """Philox4x64-10 as its paper defines it: constants of table 2, ten rounds, keys bumped by the Weyl sequence."""
    x = [counter % WORD, counter // WORD, 0, 0]
    first, second = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [right // WORD ^ x[1] ^ first, right % WORD, left // WORD ^ x[3] ^ second, left % WORD]
        first, second = (first + 0x9E3779B97F4A7C15) % WORD, (second + 0xBB67AE8584CAA73B) % WORD
    return x


def test_the_generator_is_philox_keyed_by_the_digest_of_seed_and_name() -> None:
    digest = hashlib.sha256(b"42\nconv1").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    words = [word for block in range(1, 6) for word in _philox(block, key)]
    assert uniforms(42, "conv1", 0, 20).tolist() == [(word >> 11) * 2.0**-53 for word in words]


@given(st.integers(0, 2**70), st.lists(st.integers(0, 60), max_size=6), st.integers(0, 1000))
def test_the_numbers_are_the_same_however_the_elements_are_split(seed: int, cuts: list[int], start: int) -> None:
    stop = start + 60
    bounds = [start, *sorted(start + cut for cut in cuts), stop]
    parts = [uniforms(seed, "w", a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    assert np.array_equal(np.concatenate(parts), uniforms(seed, "w", start, stop))
    assert np.array_equal(uniforms(seed, "w", 0, stop)[start:], uniforms(seed, "w", start, stop))


def test_seed_and_name_change_the_numbers() -> None:
    first = uniforms(1, "conv1", 0, 1000)
    assert not np.isin(uniforms(2, "conv1", 0, 1000), first).any()
    assert not np.isin(uniforms(1, "conv2", 0, 1000), first).any()


def test_mean_and_variance_are_those_of_the_closed_forms() -> None:
    n = 1 << 20
    for exact in (0.0, 0.1, 0.5, -3.75, 12.9):
        fraction = exact - np.floor(exact)
        found = rounded(np.full(n, exact), 7, "w")
        variance = fraction * (1 - fraction)
        assert set(np.unique(found)) <= {np.floor(exact), np.floor(exact) + 1}
        assert found.mean() == pytest.approx(exact, abs=5 * np.sqrt(variance / n) + 1e-15)
        assert np.square(found - exact).mean() == pytest.approx(variance, abs=2e-3)


def test_over_all_fractions_its_error_is_twice_that_of_the_nearest_integer() -> None:
    exact = np.random.default_rng(0).uniform(-100, 100, 1 << 20)
    assert np.square(rounded(exact, 3, "w") - exact).mean() == pytest.approx(1 / 6, rel=0.01)
    assert np.square(np.rint(exact) - exact).mean() == pytest.approx(1 / 12, rel=0.01)


def test_integers_stay_and_shapes_are_kept() -> None:
    exact = np.arange(-12.0, 12).reshape(2, 3, 4)
    assert np.array_equal(rounded(exact, 0, "w"), exact)
    halves = exact + 0.5
    assert np.array_equal(rounded(halves, 0, "w")[1], rounded(halves[1], 0, "w", start=12))
