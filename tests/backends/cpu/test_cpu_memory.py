"""The static memory plan: buffers that live at the same time never share a byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.cpu.memory import Lifetime, place

LIVES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(1, 500),
        st.integers(0, 9),
        st.integers(0, 4),
    ),
    max_size=12,
)


@given(LIVES, st.sampled_from([1, 4, 16, 64]))
def test_buffers_that_live_together_do_not_overlap(lives: dict[str, Lifetime], align: int) -> None:
    arena = place(lives, align, slack=8)
    for name, life in lives.items():
        assert arena.offsets[name] % align == 0
        assert arena.offsets[name] + life.size + 8 <= arena.size
        for other, rival in lives.items():
            if name < other and life.first <= rival.last and rival.first <= life.last:
                apart = arena.offsets[name] + life.size <= arena.offsets[other]
                assert apart or arena.offsets[other] + rival.size <= arena.offsets[name]


def test_a_chain_of_equal_maps_takes_two_places() -> None:
    lives = {f"t{i}": Lifetime(64, i, i + 1) for i in range(10)}
    assert place(lives, 4, slack=0).size == 128
