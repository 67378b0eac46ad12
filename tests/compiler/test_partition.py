"""Where networks are cut, and what is said about nodes that cannot run on the accelerator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from backends.base import UnsupportedOpError
from compiler.importer import import_model
from compiler.partition import Partition, mark, partition, unsupported
from tests.support.qdq import QuantizedGraph
from tests.support.shared import shared


def float_graph(*shape: int) -> QuantizedGraph:
    """A graph without quantization."""
    return QuantizedGraph(*shape, scale=None)


def conv(graph: QuantizedGraph, x: str, channels_in: int, channels_out: int) -> str:
    weights = graph.rng.normal(size=(channels_out, channels_in, 1, 1)).astype(np.float32)
    return graph.node("Conv", x, graph.constant(weights))


def ops(model: ir.Model, names: frozenset[str]) -> list[str]:
    return [node.op_type for node in model.graph if node.name in names]


def host(cut: Partition) -> list[tuple[str, str]]:
    return [(node.op, node.side) for node in cut.host_nodes]


def test_softmax_is_the_hosts_and_an_affine_function_of_the_input_too() -> None:
    graph = float_graph(1, 6)
    scaled = graph.node("Mul", "x", graph.constant(np.linspace(1, 2, 6, dtype=np.float32)))
    weights = graph.constant(np.ones((5, 6), np.float32))
    y = graph.node("Gemm", scaled, weights, transB=1)
    model = graph.model(graph.node("Softmax", graph.node("Relu", y), axis=1))
    cut = partition(model)
    assert ops(model, cut.nodes) == ["Gemm", "Relu"]
    assert host(cut) == [("Mul", "head"), ("Softmax", "tail")]
    assert cut.inputs == (scaled,)
    assert cut.outputs == (model.graph[2].outputs[0].name,)
    assert cut.tail[0].reason == "no accelerator layer executes this operator"


def test_everything_after_an_unsupported_node_of_the_tail_is_the_hosts() -> None:
    graph = float_graph(1, 3, 4, 4)
    y = conv(graph, "x", 3, 5)
    first = graph.node("Relu", y)
    other = graph.node(
        "Relu", graph.node("TopK", graph.node("Flatten", first), graph.constant(np.array([2])), outputs=2)
    )
    cut = partition(graph.model(other))
    assert host(cut) == [("Flatten", "tail"), ("TopK", "tail"), ("Relu", "tail")]
    assert cut.outputs == (first,)


def test_several_values_leave_the_accelerator() -> None:
    graph = float_graph(1, 3, 4, 4)
    trunk = graph.node("Relu", conv(graph, "x", 3, 4))
    heads = [conv(graph, trunk, 4, 2), conv(graph, trunk, 4, 6)]
    results = [graph.node("Softmax", head, axis=1) for head in heads]
    assert partition(graph.model(*results)).outputs == tuple(heads)


def test_unsupported_nodes_in_the_middle_are_all_listed() -> None:
    graph = float_graph(1, 3, 4, 4)
    y = conv(graph, "x", 3, 3)
    for _ in range(2):
        y = conv(graph, graph.node("Softmax", y, axis=1), 3, 3)
    y = graph.node("Relu", graph.node("CumSum", y, graph.constant(np.array(1))))
    with pytest.raises(UnsupportedOpError) as caught:
        partition(graph.model(y), may_cut=False)
    assert [(node.op, node.reason) for node in caught.value.nodes] == [
        ("Softmax", "no accelerator layer executes this operator"),
        ("Softmax", "no accelerator layer executes this operator"),
    ]
    assert caught.value.__notes__[0].startswith("remedy: ")
    assert str(caught.value).splitlines()[0].startswith("node 'softmax1' (Softmax): ")


def test_a_layout_node_is_blamed_for_the_layer_that_cannot_follow_it() -> None:
    graph = float_graph(1, 4, 4, 4)
    mixed = graph.node("Transpose", conv(graph, "x", 4, 4), perm=[0, 2, 1, 3])
    model = graph.model(conv(graph, mixed, 4, 2))
    assert host(partition(model)) == [("Transpose", "middle")]
    with pytest.raises(UnsupportedOpError) as caught:
        partition(model, may_cut=False)
    (node,) = caught.value.nodes
    assert node.op == "Transpose"
    assert node.reason.startswith("it moves elements between channels, but node 'conv")


def test_a_node_in_the_middle_runs_between_two_entries() -> None:
    graph = float_graph(1, 3, 4, 4)
    y = conv(graph, "x", 3, 3)
    for _ in range(2):
        y = conv(graph, graph.node("Softmax", y, axis=1), 3, 3)
    cut = partition(graph.model(graph.node("TopK", y, graph.constant(np.array([2])), outputs=2)))
    assert cut.entries == 3
    assert [(node.op, node.after, node.side) for node in cut.host_nodes] == [
        ("Softmax", 1, "middle"),
        ("Softmax", 2, "middle"),
        ("TopK", 3, "tail"),
    ]


def test_branches_enter_together() -> None:
    """Two branches with a Softmax each, one of them longer: three entries, not one for each Conv."""
    graph = float_graph(1, 4, 4, 4)
    left = conv(graph, graph.node("Softmax", conv(graph, "x", 4, 4), axis=1), 4, 4)
    right = conv(graph, "x", 4, 4)
    for _ in range(2):
        right = conv(graph, graph.node("Softmax", conv(graph, right, 4, 4), axis=1), 4, 4)
    assert partition(graph.model(graph.node("Add", left, right))).entries == 3


def test_a_light_node_between_host_nodes_is_the_hosts() -> None:
    graph = float_graph(1, 4, 4, 4)
    y = graph.node("Softmax", conv(graph, "x", 4, 4), axis=1)
    y = graph.node("Softmax", graph.node("Relu", y), axis=2)
    cut = partition(graph.model(conv(graph, y, 4, 4)))
    assert (host(cut), cut.entries) == ([("Softmax", "middle"), ("Relu", "middle"), ("Softmax", "middle")], 2)


def test_a_light_node_beside_the_layers_is_an_island() -> None:
    graph = float_graph(1, 4, 4, 4)
    alone = graph.node("MaxPool", graph.node("Sigmoid", "x"), kernel_shape=[2, 2])
    cut = partition(graph.model(conv(graph, "x", 4, 4), alone))
    assert {node.reason for node in cut.host_nodes} == {"it hangs together with no layer that has weights"}
    assert host(cut) == [("Sigmoid", "head"), ("MaxPool", "head")]


def test_layout_in_the_middle_is_the_hosts() -> None:
    graph = float_graph(1, 6)
    gemm = graph.node("Gemm", "x", graph.constant(np.ones((6, 6), np.float32)))
    rows = graph.node("Reshape", gemm, graph.constant(np.array([1, 2, 3])))
    back = graph.node("Reshape", graph.node("Softmax", rows, axis=2), graph.constant(np.array([1, 6])))
    cut = partition(graph.model(graph.node("Gemm", back, graph.constant(np.ones((6, 2), np.float32)))))
    assert [(node.op, node.reason) for node in cut.host_nodes] == [
        ("Reshape", "it only rearranges what the host reads"),
        ("Softmax", "no accelerator layer executes this operator"),
        ("Reshape", "it only rearranges what the host makes"),
    ]


def test_a_refused_node_is_the_hosts() -> None:
    graph = float_graph(1, 4, 4, 4)
    first = conv(graph, "x", 4, 4)
    model = graph.model(conv(graph, conv(graph, first, 4, 4), 4, 4))
    name = model.graph[1].name or ""
    cut = partition(model, refused={name: "too large"})
    assert [(node.name, node.side, node.reason) for node in cut.host_nodes] == [(name, "middle", "too large")]
    assert cut.entries == 2


def test_a_refused_node_between_pairs_is_marked() -> None:
    """Its Q/DQ pairs look like those of a layer."""
    graph = QuantizedGraph(1, 4, 5, 5)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(4, 4, 1, 1)))
    y = graph.pair(graph.node("Conv", y, graph.weights(4, 4, 1, 1)))
    model = graph.model(graph.pair(graph.node("Conv", y, graph.weights(4, 4, 1, 1))))
    name = [node.name or "" for node in model.graph if node.op_type == "Conv"][1]
    cut = partition(model, refused={name: "too large"})
    assert partition(model).entries == 1
    mark(model, cut)
    assert [node.metadata_props for node in model.graph if node.name == name] == [{"edgec.host": "too large"}]
    again = partition(model)
    assert (again.nodes, again.entries, again.host_nodes) == (cut.nodes, 2, cut.host_nodes)


def _random_dag(seed: int) -> tuple[ir.Model, list[str]]:
    """A model of Conv, Relu, Softmax and Add in random order, and its free nodes."""
    graph, rng = float_graph(1, 3, 2, 2), np.random.default_rng(seed)
    values = ["x"]
    for _ in range(int(rng.integers(4, 13))):
        x, y = rng.choice(values[-4:], 2)
        match int(rng.integers(4)):
            case 0:
                values.append(conv(graph, x, 3, 3))
            case 1:
                values.append(graph.node("Softmax", x, axis=1))
            case 2:
                values.append(graph.node("Relu", x))
            case 3:
                values.append(graph.node("Add", x, y))
    read = {name for node in graph.nodes for name in node.input}
    model = graph.model(*(value for value in values[1:] if value not in read))
    return model, [node.name or "" for node in model.graph if node.op_type in ("Relu", "Add")]


def _entries(model: ir.Model, accelerated: set[str]) -> int:
    """How often the accelerator runs at least, when these nodes are its own."""
    done: dict[ir.Value, tuple[int, bool]] = {}
    most = 0
    for node in model.graph:
        on = node.name in accelerated
        count = 0
        for runs, was_on in (done[v] for v in node.inputs if v in done):
            count = max(count, runs + (on and not was_on))
        if on and not count:
            count = 1
        done[node.outputs[0]] = count, on
        most = max(most, count)
    return most


@pytest.mark.parametrize("seed", range(150))
def test_no_choice_of_nodes_enters_fewer_times(seed: int) -> None:
    model, free = _random_dag(seed)
    convs = {node.name or "" for node in model.graph if node.op_type == "Conv"}
    if not convs:
        with_light = partition(model) if free else None
        assert with_light is None or with_light.nodes
        return
    cut = partition(model)
    assert convs <= cut.nodes
    assert not {node.name for node in model.graph if node.op_type == "Softmax"} & cut.nodes
    choices = ({name for bit, name in enumerate(free) if mask >> bit & 1} for mask in range(1 << len(free)))
    assert cut.entries == min(_entries(model, convs | chosen) for chosen in choices)
    assert cut.entries == _entries(model, set(cut.nodes))
    assert all(0 <= node.after <= cut.entries for node in cut.host_nodes)


def test_layout_at_either_end_is_the_hosts() -> None:
    graph = float_graph(1, 4, 4, 3)
    first = graph.node("Transpose", "x", perm=[0, 3, 1, 2])
    last = graph.node("Transpose", conv(graph, first, 3, 2), perm=[0, 2, 3, 1])
    assert host(partition(graph.model(last))) == [("Transpose", "head"), ("Transpose", "tail")]


def test_a_channel_shuffle_stays_on_the_accelerator() -> None:
    graph = float_graph(1, 4, 3, 3)
    y = graph.node("Reshape", conv(graph, "x", 4, 4), graph.constant(np.array([1, 2, 2, 3, 3])))
    y = graph.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = graph.node("Reshape", y, graph.constant(np.array([1, 4, 3, 3])))
    assert partition(graph.model(conv(graph, y, 4, 2))).host_nodes == ()


def test_a_network_without_weights_is_accelerated_all_the_same() -> None:
    graph = float_graph(1, 4, 4, 4)
    y = graph.node("MaxPool", graph.node("Sigmoid", "x"), kernel_shape=[2, 2])
    assert len(partition(graph.model(graph.node("Softmax", y, axis=1))).nodes) == 2


def test_nothing_to_accelerate_is_an_error() -> None:
    graph = float_graph(1, 4)
    model = graph.model(graph.node("Softmax", "x", axis=1))
    with pytest.raises(UnsupportedOpError, match=r"'softmax0' \(Softmax\)"):
        partition(model)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "reason"),
    [
        ("Conv", [(2, 3, 1, 1, 1)], {}, "convolution over 3 axes"),
        ("Add", [(1, 3, 4, 1)], {}, "its constant is neither one number nor one number per channel"),
        ("Concat", [(1, 3, 4, 4)], {"axis": 1}, "one of its parts is constant"),
        ("PRelu", [(3, 4, 4)], {}, "its slope is not a constant of one number per channel"),
        ("Div", [], {}, "no layer divides two values"),
        ("Max", [], {}, "it joins two different values"),
        ("Add", [], {}, "shapes [1, 3, 4, 4] and [1, 1, 4, 4]"),
        ("AveragePool", [], {"kernel_shape": [7, 7], "pads": [3, 3, 3, 3]}, "regions of different size"),
        ("MaxPool", [], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, "it has auto_pad"),
        ("ReduceMean", [], {}, "only a mean over all sides"),
        ("Resize", [], {}, "only nearest upsampling by whole factors"),
        ("Pad", [], {"mode": "reflect"}, "only a border of one constant"),
        ("Slice", [], {}, "its starts are computed at run time"),
        ("Gemm", [(4, 3)], {"transB": 1, "alpha": 2.0}, "alpha is 2"),
        ("MatMul", [(4, 4)], {}, "its input has shape [1, 3, 4, 4]"),
        ("LSTM", [], {}, "no accelerator layer executes this operator"),
    ],
)
def test_reasons(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, int | float | str], reason: str) -> None:
    shape = {"Conv": (1, 3, 4, 4, 4), "Gemm": (1, 3), "AveragePool": (1, 3, 9, 9)}.get(op, (1, 3, 4, 4))
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(x)
    inputs = [x, *(_constant(model.graph, np.ones(s, np.float32)) for s in shapes)]
    extra = {"Div": shape, "Max": shape, "Add": (1, 1, 4, 4), "Slice": (1,)}.get(op)
    if extra and not shapes:
        other = ir.Value(name="b", shape=ir.Shape(extra), type=ir.TensorType(ir.DataType.FLOAT))
        model.graph.inputs.append(other)
        inputs.append(other)
    if op == "ReduceMean":
        inputs.append(_constant(model.graph, np.array([1])))
    if op == "Pad":
        inputs.append(_constant(model.graph, np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    node = ir.node(op, inputs, attributes, name="n")
    out = {"Resize": (1, 3, 6, 6), "AveragePool": (1, 3, 9, 9)}.get(op, shape)
    node.outputs[0].name, node.outputs[0].shape = "y", ir.Shape(out)
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    assert reason in unsupported(model)["n"]


def _constant(graph: ir.Graph, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=f"c{len(graph.initializers)}", const_value=ir.Tensor(array), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def test_in_a_quantized_graph_only_what_is_enclosed_is_accelerated() -> None:
    graph = QuantizedGraph(1, 4, 5, 5)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)))
    z = graph.node("Conv", y, graph.weights(2, 3, 1, 1))
    cut = partition(graph.model(z))
    assert len(cut.nodes) == 1
    assert [(n.side, n.reason) for n in cut.host_nodes] == [("tail", "its output is not quantized in this model")]


def test_an_unquantized_node_between_quantized_ones_is_the_hosts() -> None:
    graph = QuantizedGraph(1, 4, 5, 5)
    y = graph.pair(graph.node("Conv", graph.x, graph.weights(3, 4, 1, 1)))
    y = graph.node("Conv", graph.node("Softmax", y, axis=1), graph.weights(2, 3, 1, 1))
    y = graph.pair(graph.node("Conv", graph.pair(y), graph.weights(2, 2, 1, 1)))
    model = graph.model(y)
    assert host(partition(model)) == [("Softmax", "middle"), ("Conv", "middle")]
    with pytest.raises(UnsupportedOpError) as caught:
        partition(model, may_cut=False)
    assert [node.op for node in caught.value.nodes] == ["Softmax", "Conv"]


@pytest.mark.parametrize(
    ("path", "head", "tail", "outputs"),
    [
        ("models/mlperf_tiny_resnet8.onnx", [], ["Softmax"], 1),
        ("models/mlperf_tiny_dscnn_kws.onnx", [], ["Softmax"], 1),
        ("models/mlperf_tiny_mobilenet_vww.onnx", [], ["Softmax"], 1),
        ("models/mlperf_tiny_autoencoder_ad.onnx", [], [], 1),
        ("zoo/mnist_8.onnx", [], [], 1),
        ("zoo/go1_policy.onnx", ["Sub", "Mul"], [], 1),
        ("zoo/super_resolution_10.onnx", [], ["Reshape", "Transpose", "Reshape"], 1),
    ],
)
def test_real_networks(path: str, head: list[str], tail: list[str], outputs: int) -> None:
    cut = partition(import_model(shared(path)).model)
    assert [node.op for node in cut.head] == head
    assert [node.op for node in cut.tail] == tail
    assert len(cut.outputs) == outputs


def test_ultraface_is_cut_at_its_eight_heads() -> None:
    model = import_model(shared("zoo/ultraface_rfb320.onnx")).model
    cut = partition(model)
    assert len(cut.outputs) == 8
    assert ops(model, cut.nodes).count("Conv") == 52
