"""The interpreter against a slow, literal reading of the definitions in `backends.layers`."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends import fixed_point
from backends.layers import (
    Add,
    AveragePool,
    Concat,
    Conv,
    LayerGraph,
    MaxPool,
    Mul,
    Pad,
    PoolRegion,
    PRelu,
    Requantize,
    Resize,
    Table,
    Tensor,
)
from backends.reference import InputError, interpreter, run, run_layer

Map = NDArray[np.int8]


# The literal reading: Python integers, one element at a time.


def rescale(total: int, shift: int, zero_point: int, low: int = -128, high: int = 127) -> int:
    return min(max(zero_point + round(Fraction(total, 1 << shift)), low), high)


def naive_conv(layer: Conv, x: Map) -> Map:
    out = np.zeros((len(x), *layer.output.shape), np.int8)
    per_group = layer.output.shape[0] // layer.groups
    config = layer.requantize
    for n, o, oy, ox in np.ndindex(out.shape):
        acc = 0
        for c, ky, kx in np.ndindex(layer.weights.shape[1:]):
            channel = o // per_group * layer.weights.shape[1] + c
            position = (oy * layer.strides[0] - layer.pads[0] + ky * layer.dilations[0],
                        ox * layer.strides[1] - layer.pads[1] + kx * layer.dilations[1])  # fmt: skip
            acc += int(layer.weights[o, c, ky, kx]) * at(x[n, channel], position, layer.input.zero_point)
        total = acc * int(config.multiplier[o]) + int(config.offset[o])
        out[n, o, oy, ox] = rescale(total, int(config.shift[o]), config.zero_point, config.low, config.high)
    return out


def naive_pool(layer: MaxPool | AveragePool, x: Map) -> Map:
    out = np.zeros((len(x), *layer.output.shape), np.int8)
    dilations = getattr(layer, "dilations", (1, 1))
    outside = -128 if isinstance(layer, MaxPool) else layer.input.zero_point
    for n, c, oy, ox in np.ndindex(out.shape):
        window = [
            at(
                x[n, c],
                (
                    oy * layer.strides[0] - layer.pads[0] + ky * dilations[0],
                    ox * layer.strides[1] - layer.pads[1] + kx * dilations[1],
                ),
                outside,
            )  # fmt: skip
            for ky, kx in np.ndindex(*layer.kernel)
        ]
        if isinstance(layer, MaxPool):
            out[n, c, oy, ox] = max(window)
            continue
        (region,) = [r for r in layer.regions if r.top <= oy < r.bottom and r.left <= ox < r.right]
        total = sum(window) * region.multiplier + region.offset
        out[n, c, oy, ox] = rescale(total, region.shift, layer.output.zero_point, layer.low, layer.high)
    return out


def at(plane: Map, position: tuple[int, int], outside: int) -> int:
    row, column = position
    inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
    return int(plane[row, column]) if inside else outside


# Random layers. Factors are chosen so that outputs spread over the int8 range instead of saturating.

zero_points = st.integers(-128, 127)
sides = st.integers(1, 7)
scales = st.floats(0.1, 3.0)


def random_map(draw: st.DrawFn, shape: tuple[int, ...], count: int = 2) -> Map:
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(-128, 128, (count, *shape), dtype=np.int8)


@st.composite
def geometries(draw: st.DrawFn, *, dilated: bool = True):
    """(input side, kernel, stride, pads, dilation, output side) of one axis; the far pad may exceed the need."""
    size, kernel, stride = draw(sides), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)) if dilated else 1
    extent = (kernel - 1) * dilation + 1
    before = draw(st.integers(0, extent - 1)) if extent > 1 else 0
    after = draw(st.integers(max(0, extent - size - before), max(0, extent - size - before) + extent))
    return size, kernel, stride, (before, after), dilation, (size + before + after - extent) // stride + 1


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Conv, Map]:
    groups = draw(st.integers(1, 3))
    in_per_group, out_per_group = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 2)]))
    (height, kh, sh, ph, dh, oh), (width, kw, sw, pw, dw, ow) = draw(geometries()), draw(geometries())
    x = Tensor("x", (groups * in_per_group, height, width), 1.0, draw(zero_points))
    y = Tensor("y", (groups * out_per_group, oh, ow), 1.0, draw(zero_points))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(-127, 128, (y.shape[0], in_per_group, kh, kw), dtype=np.int8)
    reals = rng.uniform(-1, 1, y.shape[0]) / (30 * np.sqrt(in_per_group * kh * kw))
    bias = rng.integers(-5000, 5000, y.shape[0])
    low = draw(st.sampled_from([-128, -20]))
    constant = fixed_point.Constant(bias, rng.normal(0, 5, y.shape[0]))
    config = fixed_point.requantize(reals, constant, zero_point=y.zero_point, low=low, high=100)
    pads = (ph[0], pw[0], ph[1], pw[1])
    return Conv("conv", x, y, weights, config, (sh, sw), pads, (dh, dw), groups), random_map(draw, x.shape)


@st.composite
def max_pools(draw: st.DrawFn) -> tuple[MaxPool, Map]:
    (height, kh, sh, ph, dh, oh), (width, kw, sw, pw, dw, ow) = draw(geometries()), draw(geometries())
    x, y = Tensor("x", (2, height, width), 1.0, 0), Tensor("y", (2, oh, ow), 1.0, 0)
    return MaxPool("pool", x, y, (kh, kw), (sh, sw), (ph[0], pw[0], ph[1], pw[1]), (dh, dw)), random_map(draw, x.shape)


@st.composite
def average_pools(draw: st.DrawFn) -> tuple[AveragePool, Map]:
    (height, kh, sh, ph, _, oh), (width, kw, sw, pw, _, ow) = (
        draw(geometries(dilated=False)),
        draw(geometries(dilated=False)),
    )
    x = Tensor("x", (2, height, width), 1.0, draw(zero_points))
    y = Tensor("y", (2, oh, ow), 1.0, draw(zero_points))
    split = draw(st.integers(0, oh))
    regions = []
    for top, bottom in ((0, split), (split, oh)):
        multiplier, shift = fixed_point.encode(draw(scales) / (kh * kw))
        regions.append(PoolRegion(top, 0, bottom, ow, multiplier, shift, -kh * kw * x.zero_point * multiplier))
    pads = (ph[0], pw[0], ph[1], pw[1])
    return AveragePool("pool", x, y, (kh, kw), tuple(regions), (sh, sw), pads, -100, 120), random_map(draw, x.shape)


@st.composite
def binaries(draw: st.DrawFn) -> tuple[Add | Mul, Map, Map]:
    shape = (draw(st.integers(1, 3)), draw(sides), draw(sides))
    a, y = Tensor("a", shape, 1.0, draw(zero_points)), Tensor("y", shape, 1.0, draw(zero_points))
    b = Tensor("b", draw(st.sampled_from([shape, (shape[0], 1, 1)])), 1.0, draw(zero_points))
    if draw(st.booleans()):
        multipliers, shift = fixed_point.encode_common((draw(scales), draw(st.sampled_from([-0.7, 0.5, 1.0]))))
        layer: Add | Mul = Add("add", a, b, y, *multipliers, shift, -120, 110)
    else:
        layer = Mul("mul", a, b, y, *fixed_point.encode(draw(scales) / 100), -120, 110)
    return layer, random_map(draw, a.shape), random_map(draw, b.shape)


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_convolution_is_the_definition(case: tuple[Conv, Map]) -> None:
    layer, x = case
    np.testing.assert_array_equal(run_layer(layer, (x,)), naive_conv(layer, x))


@settings(max_examples=60, deadline=None)
@given(max_pools() | average_pools())
def test_pools_are_the_definition(case: tuple[MaxPool | AveragePool, Map]) -> None:
    layer, x = case
    np.testing.assert_array_equal(run_layer(layer, (x,)), naive_pool(layer, x))


@settings(max_examples=60, deadline=None)
@given(binaries())
def test_add_and_mul_are_the_definition(case: tuple[Add | Mul, Map, Map]) -> None:
    layer, a, b = case
    got = run_layer(layer, (a, b))
    b_full = np.broadcast_to(b, a.shape)
    for index in np.ndindex(a.shape):
        va, vb = int(a[index]) - layer.a.zero_point, int(b_full[index]) - layer.b.zero_point
        total = (
            va * vb * layer.multiplier if isinstance(layer, Mul) else va * layer.multiplier_a + vb * layer.multiplier_b
        )
        assert got[index] == rescale(total, layer.shift, layer.output.zero_point, layer.low, layer.high)


@settings(deadline=None)
@given(st.data())
def test_prelu_is_the_definition(data: st.DataObject) -> None:
    shape = (3, data.draw(sides), data.draw(sides))
    x, y = Tensor("x", shape, 1.0, data.draw(zero_points)), Tensor("y", shape, 1.0, data.draw(zero_points))
    (multiplier, *negative), shift = fixed_point.encode_common((data.draw(scales), 0.25, -0.1, 0.0))
    layer = PRelu("prelu", x, y, multiplier, np.array(negative), shift)
    q = random_map(data.draw, shape)
    got = run_layer(layer, (q,))
    for n, c, i, j in np.ndindex(q.shape):
        value = int(q[n, c, i, j]) - x.zero_point
        factor = multiplier if value >= 0 else negative[c]
        assert got[n, c, i, j] == rescale(value * factor, shift, y.zero_point)


@settings(deadline=None)
@given(st.data())
def test_concat_rescales_each_part(data: st.DataObject) -> None:
    height, width = data.draw(sides), data.draw(sides)
    parts = tuple(Tensor(f"p{i}", (i + 1, height, width), 1.0, data.draw(zero_points)) for i in range(2))
    y = Tensor("y", (3, height, width), 1.0, data.draw(zero_points))
    (m0, s0), (m1, s1) = fixed_point.encode(data.draw(scales)), (1, 0)
    layer = Concat("concat", parts, y, (m0, m1), (s0, s1))
    a, b = (random_map(data.draw, part.shape) for part in parts)
    got = run_layer(layer, (a, b))
    expected_a = [rescale((int(q) - parts[0].zero_point) * m0, s0, y.zero_point) for q in a.flat]
    expected_b = [rescale((int(q) - parts[1].zero_point) * m1, s1, y.zero_point) for q in b.flat]
    np.testing.assert_array_equal(got[:, :1].ravel(), expected_a)
    np.testing.assert_array_equal(got[:, 1:].ravel(), expected_b)


def test_concat_of_equal_scales_copies() -> None:
    x, y = Tensor("x", (1, 16, 16), 1.0, 7), Tensor("y", (1, 16, 16), 1.0, 7)
    q = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(run_layer(Concat("c", (x,), y, (1,), (0,)), (q,)), q)


def test_table_looks_up_every_code() -> None:
    x, y = Tensor("x", (1, 16, 16), 1.0, 0), Tensor("y", (1, 16, 16), 1.0, 0)
    content = np.random.default_rng(0).integers(-128, 128, 256, dtype=np.int8)
    q = np.arange(-128, 128, dtype=np.int8).reshape(1, 1, 16, 16)
    assert run_layer(Table("t", x, y, content), (q,)).ravel().tolist() == content.tolist()


@settings(deadline=None)
@given(st.data())
def test_resize_and_pad_move_elements(data: st.DataObject) -> None:
    height, width, fy, fx = (data.draw(st.integers(1, 4)) for _ in range(4))
    top, left, bottom, right = (data.draw(st.integers(0, 3)) for _ in range(4))
    x = Tensor("x", (2, height, width), 1.0, 0)
    q = random_map(data.draw, x.shape)
    grown = run_layer(Resize("r", x, Tensor("y", (2, height * fy, width * fx), 1.0, 0), (fy, fx)), (q,))
    assert all(grown[n, c, i, j] == q[n, c, i // fy, j // fx] for n, c, i, j in np.ndindex(grown.shape))
    framed_shape = (2, height + top + bottom, width + left + right)
    framed = run_layer(Pad("p", x, Tensor("y", framed_shape, 1.0, 0), (top, left, bottom, right), -5), (q,))
    expected = [at(q[n, c], (i - top, j - left), -5) for n, c, i, j in np.ndindex(framed.shape)]
    assert framed.shape[1:] == framed_shape
    assert framed.ravel().tolist() == expected


def test_sums_beyond_float32_are_exact() -> None:
    """4096 products of 127 * 127 pass 2**24; an odd sum there is not a float32."""
    x, y = Tensor("x", (4096, 1, 1), 1.0, 0), Tensor("y", (2, 1, 1), 1.0, 0)
    weights = np.full((2, 4096, 1, 1), 127, np.int8)
    weights[1, 0] = 126
    sums = np.array([4096 * 127 * 127, 4096 * 127 * 127 - 127])
    config = Requantize(np.ones(2, np.int64), np.zeros(2, np.int64), -sums + [3, -4])
    got = run_layer(Conv("fc", x, y, weights, config), (np.full((1, 4096, 1, 1), 127, np.int8),))
    assert got.ravel().tolist() == [3, -4]


def test_extreme_offsets_are_exact() -> None:
    """The float64 requantizer equals the integer definition where the formats end."""
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**23), 2**23, (1, 64, 8, 8))
    multiplier, shift = rng.integers(-(2**16) + 1, 2**16, 64), np.full(64, 40)
    offset = rng.integers(-(2**47), 2**47, 64)
    config = Requantize(multiplier, shift, offset)
    total = acc * multiplier.reshape(1, -1, 1, 1) + offset.reshape(1, -1, 1, 1)
    expected = np.clip(fixed_point.round_half_even_shift(total, 40), -128, 127)
    np.testing.assert_array_equal(interpreter.requantize(acc.astype(np.float64), config), expected)
    assert len(np.unique(expected)) > 32  # not all saturated


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = Tensor("x", (3, 9, 8), 1.0, 5), Tensor("y", (4, 5, 4), 1.0, 0)
    constant = fixed_point.Constant(np.zeros(4, np.int64), np.zeros(4))
    weights = rng.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8)
    layer = Conv("c", x, y, weights, fixed_point.requantize(np.full(4, 0.005), constant), (2, 2), (1, 1, 1, 1))
    q = rng.integers(-128, 128, (5, 3, 9, 8), dtype=np.int8)
    whole = run_layer(layer, (q,))
    monkeypatch.setattr(interpreter, "_BLOCK_ELEMENTS", 1)
    np.testing.assert_array_equal(run_layer(layer, (q,)), whole)


X = Tensor("x", (2, 4, 4), 1.0, 0)
SMALL = LayerGraph(
    "small",
    (X,),
    (Tensor("z", (2, 4, 4), 1.0, 0),),
    (
        Pad("a", X, Tensor("y", (2, 4, 4), 1.0, 0), (0, 0, 0, 0), 0),
        Add("b", Tensor("y", (2, 4, 4), 1.0, 0), X, Tensor("z", (2, 4, 4), 1.0, 0), 1, 1, 1),
    ),
)


def test_run_keeps_what_was_asked_for() -> None:
    q = np.arange(32, dtype=np.int8).reshape(1, 2, 4, 4)
    assert set(run(SMALL, {"x": q})) == {"z"}
    everything = run(SMALL, {"x": q}, keep="all")
    assert set(everything) == {"x", "y", "z"}
    np.testing.assert_array_equal(everything["z"], q)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"w": np.zeros((1, 2, 4, 4), np.int8)}, "unknown inputs"),
        ({"x": np.zeros((1, 2, 4, 5), np.int8)}, r"expected int8 \['N', 2, 4, 4\], got int8 \[1, 2, 4, 5\]"),
        ({"x": np.zeros((1, 2, 4, 4), np.float32)}, "got float32"),
    ],
)
def test_run_refuses_wrong_inputs(inputs: dict[str, Map], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(SMALL, inputs)


@pytest.mark.slow
def test_a_keyword_spotting_batch_takes_seconds() -> None:
    """1,000 samples of the DS-CNN shape: 64 channels, 25x5 maps, four depthwise and pointwise pairs."""
    rng = np.random.default_rng(0)

    def layer(name: str, x: Tensor, weights: Map, pads: tuple[int, int, int, int], groups: int) -> Conv:
        y = Tensor(name, (64, 25, 5), 1.0, 0)
        constant = fixed_point.Constant(np.zeros(64, np.int64), np.zeros(64))
        config = fixed_point.requantize(np.full(64, 0.004), constant)
        strides = (2, 2) if x.name == "x" else (1, 1)
        return Conv(name, x, y, weights, config, strides, pads, groups=groups)

    layers = [
        layer("stem", Tensor("x", (1, 49, 10), 1.0, 0), rng.integers(-99, 99, (64, 1, 10, 4), np.int8), (4, 1, 5, 1), 1)
    ]
    for i in range(4):
        depthwise = rng.integers(-99, 99, (64, 1, 3, 3), np.int8)
        layers.append(layer(f"d{i}", layers[-1].output, depthwise, (1, 1, 1, 1), 64))
        layers.append(
            layer(f"p{i}", layers[-1].output, rng.integers(-99, 99, (64, 64, 1, 1), np.int8), (0, 0, 0, 0), 1)
        )
    graph = LayerGraph("kws", (layers[0].input,), (layers[-1].output,), tuple(layers))
    started = time.process_time()
    run(graph, {"x": rng.integers(-128, 128, (1000, 1, 49, 10), np.int8)})
    assert time.process_time() - started < 20  # of the processor: other tests run beside this one
