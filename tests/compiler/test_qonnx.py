"""QONNX quantizers become QuantizeLinear and DequantizeLinear with the same values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from backends import reference
from compiler.importer import ModelError, import_model
from compiler.lowering import lower
from compiler.partition import partition
from compiler.qonnx import BITS_KEY, DOMAINS
from tests.support.binary_network import binary_network
from tests.support.onnx_models import imported, model, node, ops, run, session
from tests.support.shared import shared

Floats = NDArray[np.float32]

RNG = np.random.default_rng(1)


def quant_by_definition(
    x: Floats, scale: Floats, zero: float, bits: int, *, signed: bool, narrow: bool, mode: str
) -> Floats:
    """The definition of Quant in the QONNX documentation, in float32."""
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    if bits == 1 and signed:
        return np.where(x >= 0, scale, -scale).astype(np.float32)
    rounding = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil}[mode]
    codes = rounding(np.clip(x / scale + np.float32(zero), low, high).astype(np.float32))
    return ((codes - np.float32(zero)) * scale).astype(np.float32)


def quant(source: str, result: str, domain: str, **attributes: object) -> onnx.NodeProto:
    new = node("Quant", [source, "scale", "zero", "bits"], [result], **attributes)
    new.domain = domain
    return new


def constants(scale: object, zero: float, bits: float) -> dict[str, Floats]:
    values = {"scale": scale, "zero": zero, "bits": bits}
    return {k: np.asarray(v, np.float32) for k, v in values.items()}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("signed", "narrow"), [(1, 1), (1, 0), (0, 0), (0, 1)])
@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "CEIL"])
def test_activation(domain: str, bits: int, signed: int, narrow: int, mode: str) -> None:
    if bits == 1 and narrow and not signed:
        narrow = 0  # one code would be left
    nodes = [quant("x", "y", domain, signed=signed, narrow=narrow, rounding_mode=mode)]
    proto = model(nodes, {"x": [1, 1200]}, ["y"], constants(0.125, 0, bits), opset=11)
    result = imported(proto).model
    # Multiples of half a step, so that ties and both ends of the range occur.
    x = (np.arange(-600, 600).reshape(1, -1) * 0.0625).astype(np.float32)
    expected = quant_by_definition(
        x, np.float32(0.125), 0, bits, signed=bool(signed), narrow=bool(narrow), mode=mode
    )  # fmt: skip
    np.testing.assert_array_equal(run(result, {"x": x})["y"], expected)
    assert len(np.unique(expected)) == (2 if bits == 1 else 2**bits - narrow)
    assert all(n.metadata_props[BITS_KEY] == str(bits) for n in result.graph if "Linear" in n.op_type)


@pytest.mark.parametrize("zero", [-3.0, 0.0, 5.0])
def test_activation_with_zero_point(zero: float) -> None:
    proto = model(
        [quant("x", "y", DOMAINS[0], signed=1, narrow=0)], {"x": [1, 999]}, ["y"], constants(0.3, zero, 4), opset=13
    )
    x = RNG.normal(scale=2, size=(1, 999)).astype(np.float32)
    expected = quant_by_definition(x, np.float32(0.3), zero, 4, signed=True, narrow=False, mode="ROUND")
    np.testing.assert_array_equal(run(imported(proto).model, {"x": x})["y"], expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("scale", [0.25, np.asarray([0.25, 0.5, 1.0]).reshape(3, 1)])
def test_weights_are_integers(bits: int, scale: object) -> None:
    w = RNG.normal(size=(3, 7)).astype(np.float32)
    nodes = [
        quant("w", "q", DOMAINS[1], signed=1, narrow=1),
        node("Transpose", ["q"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 7]}, ["y"], {"w": w, **constants(scale, 0, bits)}, opset=11)
    result = imported(proto).model
    assert ops(result) == ["DequantizeLinear", "Gemm"]
    codes = result.graph[0].inputs[0]
    assert codes is not None
    assert codes.dtype == ir.DataType.INT8
    expected = quant_by_definition(w, np.asarray(scale, np.float32), 0, bits, signed=True, narrow=True, mode="ROUND")
    np.testing.assert_array_equal(run(result, {"x": np.eye(7, dtype=np.float32)[:1]})["y"], expected.T[:1])
    step = np.broadcast_to(np.asarray(scale, np.float32), (3, 1))
    np.testing.assert_array_equal(codes.const_value.numpy() * step, expected)  # type: ignore[union-attr]


def test_bipolar_weights() -> None:
    w = RNG.normal(size=(3, 7)).astype(np.float32)
    w[0, 0] = 0.0
    bipolar = node("BipolarQuant", ["w", "scale"], ["q"])
    bipolar.domain = DOMAINS[2]
    nodes = [bipolar, node("Gemm", ["x", "q"], ["y"], transB=1)]
    proto = model(nodes, {"x": [1, 7]}, ["y"], {"w": w, "scale": np.asarray(0.5, np.float32)}, opset=11)
    result = imported(proto).model
    codes = result.graph[0].inputs[0].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(codes, np.where(w >= 0, 1, -1))


def test_bipolar_activations_are_the_sign_and_0_is_positive() -> None:
    bipolar = node("BipolarQuant", ["x", "scale"], ["y"])
    bipolar.domain = DOMAINS[0]
    x = np.array([[-3.0, -1e-9, -0.0, 0.0, 1e-9, 2.0, 1e9]], np.float32)
    proto = model([bipolar], {"x": [1, 7]}, ["y"], {"scale": np.asarray(0.25, np.float32)}, opset=11)
    result = imported(proto).model
    np.testing.assert_array_equal(run(result, {"x": x})["y"], np.where(x >= 0, 0.25, -0.25))


def test_a_binary_network_is_lowered_exactly() -> None:
    """Every sign of integers is that of the source's own arithmetic, here in float64."""
    proto, layers = binary_network(seed=3)
    found = imported(proto).model
    lowered = lower(found, partition(found))
    x = np.random.default_rng(5).choice([-1, 1], (8, *lowered.graph.inputs[0].shape)).astype(np.int8)
    outputs = reference.run(lowered.graph, {lowered.graph.inputs[0].name: x})
    wanted = x.astype(np.float64)
    for layer in layers:
        wanted = layer(wanted)
    (got,) = outputs.values()
    assert set(np.unique(got)) == {-1, 1}
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["FLOOR", "CEIL", "ROUND"])
def test_trunc_drops_the_lowest_bits(mode: str) -> None:
    trunc = node("Trunc", ["x", "scale", "zero", "bits", "left"], ["y"], rounding_mode=mode)
    trunc.domain = DOMAINS[0]
    proto = model([trunc], {"x": [1, 1024]}, ["y"], {**constants(0.25, 0, 10), "left": np.asarray(8, np.float32)})
    codes = np.arange(-512, 512, dtype=np.float32).reshape(1, -1)
    rounding = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil}[mode]
    expected = np.clip(rounding(codes / 4), -128, 127) * np.float32(0.25)
    np.testing.assert_array_equal(run(imported(proto).model, {"x": codes * np.float32(0.25)})["y"], expected)


def test_bias_of_many_bits_keeps_its_values() -> None:
    b = RNG.normal(size=5).astype(np.float32)
    nodes = [quant("b", "q", DOMAINS[0], signed=1, narrow=0), node("Gemm", ["x", "w", "q"], ["y"])]
    weights = {"b": b, "w": RNG.normal(size=(3, 5)).astype(np.float32), **constants(2.0**-10, 0, 16)}
    result = imported(model(nodes, {"x": [1, 3]}, ["y"], weights, opset=11)).model
    expected = quant_by_definition(b, np.float32(2.0**-10), 0, 16, signed=True, narrow=False, mode="ROUND")
    np.testing.assert_array_equal(run(result, {"x": np.zeros((1, 3), np.float32)})["y"][0], expected)


@pytest.mark.parametrize(
    ("changes", "attributes", "match"),
    [
        ({"bits": 12.0}, {}, r"node 'y' \(Quant\): 12 bits; must be 1 to 8"),
        ({"bits": 2.5}, {}, "2.5 bits; must be 1 to 8"),
        ({"scale": -1.0}, {}, "its scale is not positive"),
        ({"scale": np.ones((1, 3, 1))}, {}, "its scale is per channel, and activations have one scale"),
        ({"zero": 0.5}, {}, "its zero point 0.5 is not an integer"),
        ({}, {"rounding_mode": "HALF_UP"}, "its rounding mode HALF_UP is not ROUND, FLOOR or CEIL"),
    ],
)
def test_quantizers_without_an_int8_form(changes: dict[str, object], attributes: dict[str, str], match: str) -> None:
    values = {**constants(0.5, 0, 4), **{k: np.asarray(v, np.float32) for k, v in changes.items()}}
    proto = model([quant("x", "y", DOMAINS[0], **attributes)], {"x": [1, 3, 2]}, ["y"], values, opset=11)
    with pytest.raises(ModelError, match=match):
        imported(proto)


def test_scale_that_is_computed() -> None:
    proto = model(
        [node("Exp", ["z"], ["scale"]), quant("x", "y", DOMAINS[0])],
        {"x": [1, 3], "z": [1]},
        ["y"],
        {k: v for k, v in constants(1, 0, 4).items() if k != "scale"},
        opset=11,
    )
    with pytest.raises(ModelError, match=r"node 'y' \(Quant\): its scale is not constant"):
        imported(proto)


def test_tfc_2w2a_scores_as_published() -> None:
    loaded = import_model(shared("zoo/qonnx_tfc_2w2a.onnx")).model
    data = np.load(shared("data/mnist_devtest_5000.npz"))
    images = data["x"].astype(np.float32) / np.float32(255)
    active = session(loaded)
    name = active.get_inputs()[0].name
    guesses = np.asarray([active.run(None, {name: images[i : i + 1]})[0].argmax() for i in range(len(images))])
    assert int((guesses == data["y"]).sum()) == 4815  # 96.30 %


def test_tfc_2w2a_has_integer_weights_everywhere() -> None:
    graph = import_model(shared("zoo/qonnx_tfc_2w2a.onnx")).model.graph
    gemms = [n for n in graph if n.op_type == "Gemm"]
    assert len(gemms) == 4
    for gemm in gemms:
        dequantize = gemm.inputs[1].producer()  # type: ignore[union-attr]
        assert dequantize is not None
        codes = dequantize.inputs[0].const_value.numpy()  # type: ignore[union-attr]
        assert set(np.unique(codes)) == {-1, 0, 1}
        assert [use.node.op_type for use in gemm.outputs[0].uses()] in (["Clip"], ["QuantizeLinear"])
