"""onnxruntime on the quantized file against the integer layers: real networks, other quantizers, and planted faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from backends.layers import Conv
from compiler.equivalence import LayerDifference, compare_layers
from compiler.host import host_of
from compiler.importer import import_model
from compiler.lowering import lower
from compiler.partition import partition
from passes.quantize import quantize
from tests.support.qdq import QuantizedGraph
from tests.support.shared import shared

NETWORKS = [
    ("models/mlperf_tiny_resnet8.onnx", "data/cifar10_train_8068.npz", 1.0),
    ("models/mlperf_tiny_dscnn_kws.onnx", "data/kws_calib_200.npz", 1.0),
    ("models/mlperf_tiny_mobilenet_vww.onnx", "data/photos_calib_96.npz", 1 / 255),
    ("models/mlperf_tiny_autoencoder_ad.onnx", "data/ad_calib_aug_1000.npz", 1.0),
    ("models/mlperf_tiny_streaming_wakeword.onnx", "data/sww_calib_45.npz", 1.0),
    ("zoo/mnist_8.onnx", "data/mnist_train_10000.npz", 1.0),
]


def samples(data: str, scale: float, count: int = 40) -> NDArray[np.float32]:
    with np.load(shared(data)) as file:
        return file["x"][:count].astype(np.float32) * np.float32(scale)


def assert_equivalent(layers: Sequence[LayerDifference]) -> None:
    """One step at most, in a thousandth of the elements at most."""
    off = [layer for layer in layers if layer.differing]
    assert max(layer.largest for layer in layers) <= 1, off
    assert sum(layer.differing for layer in layers) <= 0.001 * sum(layer.elements for layer in layers), off


@pytest.mark.slow
@pytest.mark.parametrize(("path", "data", "scale"), NETWORKS)
def test_real_networks(path: str, data: str, scale: float) -> None:
    model, x = import_model(shared(path)).model, samples(data, scale)
    name, cut = model.graph.inputs[0].name, partition(model)
    quantized, _ = quantize(model, cut.nodes, {name: x})
    layers = compare_layers(quantized, lower(quantized, cut), {name: x[:8]})
    assert_equivalent(layers)


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, x: NDArray[np.float32]) -> None:
        self._rows = iter([{name: row[None]} for row in x])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._rows, None)


@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("path", "data", "scale"), NETWORKS[:2])
@pytest.mark.filterwarnings("ignore")
def test_models_quantized_by_onnxruntime(
    path: str, data: str, scale: float, per_channel: bool, activations: QuantType, tmp_path: Path
) -> None:
    source, x = import_model(shared(path)).model, samples(data, scale, 16)
    ir.save(source, tmp_path / "float.onnx")
    name = source.graph.inputs[0].name or ""
    quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "quantized.onnx",
        _Reader(name, x),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )
    model = import_model(tmp_path / "quantized.onnx").model
    lowered = lower(model, partition(model))
    assert len(lowered.graph.layers) >= 11
    assert_equivalent(compare_layers(model, lowered, {name: x[:4]}))


def test_a_qonnx_network_keeps_its_published_accuracy() -> None:
    """2-bit weights and activations; 96.30 % on this half of the MNIST test set."""
    model = import_model(shared("zoo/qonnx_tfc_2w2a.onnx")).model
    lowered = lower(model, partition(model))
    with np.load(shared("data/mnist_devtest_5000.npz")) as file:
        x, labels = {model.graph.inputs[0].name or "": file["x"].astype(np.float32) / 255}, file["y"]
    host = host_of(lowered, model)
    (scores,) = host.reference(x).outputs.values()
    assert np.count_nonzero(scores.argmax(axis=-1) == labels) == 4815
    assert all(layer.differing == 0 for layer in compare_layers(model, lowered, {n: v[:50] for n, v in x.items()}))


def test_a_planted_fault_is_found_in_its_layer_alone() -> None:
    graph = QuantizedGraph(1, 4, 5, 5)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)))
    z = graph.pair(graph.node("Conv", y, graph.weights(2, 3, 3, 3)), 4.0)
    model, x = graph.model(z), graph.samples()
    lowered = lower(model, partition(model))
    first, second = lowered.graph.layers
    assert isinstance(first, Conv)
    offset = first.requantize.offset.copy()
    offset[1] += 1 << int(first.requantize.shift[1])
    wrong = replace(first, requantize=replace(first.requantize, offset=offset))
    found = compare_layers(model, replace(lowered, graph=replace(lowered.graph, layers=(wrong, second))), x)
    assert [layer.largest for layer in found] == [1, 0]
    assert found[0].index is not None
    assert found[0].index[1] == 1
    assert found[0].expected is not None
    assert found[0].got == found[0].expected + 1
    assert 0 < found[0].share < 0.5
