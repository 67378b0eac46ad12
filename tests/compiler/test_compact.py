"""A compact file is the same network: to onnxruntime at every level, and to the compiler down to the last integer."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from backends.layers import LayerGraph, Tensor
from compiler.container import pack, sizes
from compiler.importer import import_model
from compiler.lowering import lower
from compiler.partition import partition
from compiler.pipeline import CompileOptions, Network, prepare
from compiler.stored import serialized
from passes.storage.compact import compact
from tests.support.onnx_models import assert_same_outputs, imported, model, node, random_feeds, save
from tests.support.shared import shared


@functools.cache
def digits() -> Network:
    options = CompileOptions(calibration=Path("examples/digits_calib.npz"))
    return prepare(Path("examples/digits_cnn.onnx"), options, lambda *progress: None)


@functools.cache
def keywords() -> Network:
    options = CompileOptions(calibration=shared("data", "kws_calib_200.npz"))
    return prepare(shared("models", "mlperf_tiny_dscnn_kws.onnx"), options, lambda *progress: None)


def compacted(quantized: ir.Model) -> ir.Model:
    result = quantized.clone()
    compact(result)
    return result


def lowered_file(data: ir.Model, folder: Path) -> LayerGraph:
    found = import_model(save(onnx.ModelProto.FromString(serialized(data)), folder)).model
    return lower(found, partition(found)).graph


def nameless(graph: LayerGraph) -> object:
    """Everything in a layer graph but names: a tensor is the number of its first appearance."""
    numbers: dict[str, int] = {}

    def plain(item: object) -> object:
        if isinstance(item, Tensor):
            number = numbers.setdefault(item.name, len(numbers))
            return number, item.shape, item.scale, item.zero_point
        if dataclasses.is_dataclass(item):
            return type(item).__name__, *(
                plain(getattr(item, f.name)) for f in dataclasses.fields(item) if f.name != "name"
            )
        if isinstance(item, np.ndarray):
            return item.shape, item.dtype.str, item.tobytes()
        return tuple(map(plain, item)) if isinstance(item, tuple | list) else item

    return plain(graph)


@pytest.mark.parametrize("network", [digits, keywords])
def test_the_compiler_makes_the_same_integers_of_it(network: object, tmp_path: Path) -> None:
    quantized = network().quantized  # type: ignore[operator]
    expected, found = (nameless(lowered_file(m, tmp_path)) for m in (quantized, compacted(quantized)))
    assert found == expected
    assert expected == nameless(network().lowered.graph)  # type: ignore[operator]


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_onnxruntime_computes_the_same(level: str) -> None:
    results = []
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    for each in (digits().quantized, compacted(digits().quantized)):
        session = onnxruntime.InferenceSession(serialized(each), options, providers=["CPUExecutionProvider"])
        results.append([session.run(None, random_feeds(digits().quantized, seed)) for seed in range(3)])
    np.testing.assert_array_equal(results[0], results[1])
    assert np.ptp(results[0]) > 0


def test_nothing_that_can_go_is_left() -> None:
    proto = onnx.ModelProto.FromString(serialized(compacted(digits().quantized)))
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.graph.value_info
    assert not proto.producer_name
    assert not any(n.name or n.doc_string or n.metadata_props for n in proto.graph.node)
    assert max(len(t.name) for t in proto.graph.initializer) == 2
    values = [numpy_helper.to_array(t) for t in proto.graph.initializer if not t.dims]
    assert len({(v.dtype.str, v.tobytes()) for v in values}) == len(values)


def test_inputs_and_outputs_keep_their_names_types_and_shapes() -> None:
    before = onnx.ModelProto.FromString(serialized(digits().quantized)).graph
    after = onnx.ModelProto.FromString(serialized(compacted(digits().quantized))).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_the_same_model_gives_the_same_bytes_and_twice_changes_nothing() -> None:
    once = compacted(digits().quantized)
    assert serialized(once) == serialized(compacted(digits().quantized))
    assert serialized(compacted(once)) == serialized(once)


def test_names_of_inputs_are_not_given_away() -> None:
    """The network's input is called as the first inner value would be."""
    nodes = [node("Relu", ["aa"], ["x"]), node("Add", ["x", "c"], ["ab"])]
    proto = model(nodes, {"aa": [1, 4]}, ["ab"], {"c": np.ones(4, np.float32)})
    found = imported(proto).model
    compact(found)
    assert_same_outputs(proto, found)


def test_a_large_graph_gets_longer_names() -> None:
    count = 60 * 52
    nodes = [node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(count)]
    found = ir.serde.deserialize_model(model(nodes, {"v0": [1]}, [f"v{count}"]))
    compact(found)
    names = [n.outputs[0].name for n in found.graph]
    assert len(set(names)) == count
    assert {len(name or "") for name in names[:-1]} == {2, 3}


def test_attributes_that_say_something_stay() -> None:
    weights = {"w": np.ones((2, 1, 3, 3), np.float32)}
    attributes = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 2}
    proto = model([node("Conv", ["x", "w"], ["y"], **attributes)], {"x": [1, 2, 8, 8]}, ["y"], weights)
    found = ir.serde.deserialize_model(proto)
    compact(found)
    assert set(found.graph[0].attributes) == {"kernel_shape", "strides", "group"}
    assert helper.get_node_attr_value(onnx.ModelProto.FromString(serialized(found)).graph.node[0], "strides") == [2, 1]


def test_the_graph_of_the_keyword_network_takes_less_than_700_bytes() -> None:
    assert sizes(pack(serialized(compacted(keywords().quantized)))).graph < 700
