"""Errors that list everything at once."""

from __future__ import annotations

import pytest

from backends.base import Unsupported, UnsupportedOpError


def test_every_node_is_listed_and_each_remedy_once() -> None:
    nodes = (
        Unsupported("a", "LSTM", "no layer executes it", "cut the network"),
        Unsupported("b", "GRU", "no layer executes it", "cut the network"),
    )
    with pytest.raises(UnsupportedOpError) as caught:
        raise UnsupportedOpError(nodes)
    expected = "node 'a' (LSTM): no layer executes it\nnode 'b' (GRU): no layer executes it"
    assert str(caught.value) == expected
    assert caught.value.__notes__ == ["remedy: cut the network"]
    assert caught.value.nodes == nodes
