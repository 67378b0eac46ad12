"""What the host has to multiply."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.float_macs import float_macs
from tests.support.qdq import Attribute, QuantizedGraph


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "expected"),
    [
        ("Conv", (1, 4, 8, 8), [(6, 2, 3, 3)], {"group": 2}, 6 * 6 * 6 * 2 * 9),
        ("ConvTranspose", (1, 4, 5, 5), [(4, 3, 2, 2)], {"group": 2}, 4 * 25 * 3 * 4),
        ("MatMul", (1, 7, 5), [(5, 3)], {}, 7 * 5 * 3),
        ("Gemm", (1, 5), [(5, 3)], {}, 5 * 3),
        ("Gemm", (5, 2), [(5, 3)], {"transA": 1}, 2 * 5 * 3),
        ("LSTM", (6, 1, 4), [(2, 12, 4), (2, 12, 3)], {"hidden_size": 3, "direction": "bidirectional"}, 6 * 24 * 7),
        ("GRU", (6, 1, 4), [(1, 9, 4), (1, 9, 3)], {"hidden_size": 3}, 6 * 9 * 7),
        ("RNN", (6, 1, 4), [(1, 3, 4), (1, 3, 3)], {"hidden_size": 3}, 6 * 3 * 7),
        ("Einsum", (1, 4, 3), [(4, 5)], {"equation": "abc,bz->azc"}, 4 * 3 * 5),
        ("Einsum", (1, 4, 3), [], {"equation": "abc->acb"}, 0),
        ("Softmax", (1, 4), [], {}, 0),
    ],
)
def test_macs(
    op: str, shape: tuple[int, ...], constants: list[tuple[int, ...]], attributes: dict[str, Attribute], expected: int
) -> None:
    graph = QuantizedGraph(*shape, scale=None)
    y = graph.node(op, "x", *(graph.constant(np.ones(size, np.float32)) for size in constants), **attributes)
    (node,) = graph.model(y).graph
    assert float_macs(node) == expected
