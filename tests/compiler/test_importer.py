"""The importer on real models, on what exporters write, and on files that are wrong."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compiler.importer import ModelError, import_model, load
from tests.support.onnx_models import Array, assert_same_outputs, model, node, ops, run, save
from tests.support.shared import shared

RNG = np.random.default_rng(7)


def weights(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


# Real models


@pytest.mark.parametrize(
    "file",
    [
        "models/mlperf_tiny_autoencoder_ad.onnx",
        "models/mlperf_tiny_dscnn_kws.onnx",
        "models/mlperf_tiny_mobilenet_vww.onnx",
        "models/mlperf_tiny_resnet8.onnx",
        "models/mlperf_tiny_streaming_wakeword.onnx",
        "zoo/mnist_8.onnx",
        "zoo/go1_policy.onnx",
        "zoo/ultraface_rfb320.onnx",
        "zoo/super_resolution_10.onnx",
        "zoo/dtln_model_1.onnx",
        "zoo/fastestdet.onnx",
    ],
)
def test_import_keeps_outputs_of_real_models(file: str) -> None:
    path = shared(file)
    imported = import_model(path)
    assert_same_outputs(path, imported.model, samples=2, tolerance=1e-5)
    assert_canonical(imported.model)


def assert_canonical(loaded: ir.Model) -> None:
    onnx.checker.check_model(ir.serde.serialize_model(loaded), full_check=True)
    assert loaded.ir_version == 10
    assert dict(loaded.graph.opset_imports)[""] == 21
    names = [n.name for n in loaded.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    for n in loaded.graph:
        assert n.op_type not in ("BatchNormalization", "Identity", "Dropout", "Constant", "Shape", "ReduceMean")
        assert all(o.shape is not None and all(isinstance(d, int) for d in o.shape) for o in n.outputs if o.name)
        if n.op_type == "Gemm":
            assert n.attributes["transB"].as_int() == 1
            assert "alpha" not in n.attributes
        if n.op_type == "Conv":
            assert {"pads", "kernel_shape", "strides", "dilations", "group"} <= set(n.attributes)
            assert "auto_pad" not in n.attributes
        if n.op_type == "Transpose":
            assert all(use.node.op_type != "Transpose" for use in n.outputs[0].uses())


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("models/mlperf_tiny_autoencoder_ad.onnx", ["Gemm", "Relu"] * 9 + ["Gemm"]),
        ("zoo/mnist_8.onnx", ["Conv", "Relu", "MaxPool"] * 2 + ["Reshape", "Gemm"]),
        (
            "models/mlperf_tiny_streaming_wakeword.onnx",
            ["Conv", "Conv", "Relu"] * 4 + ["Reshape", "Gemm", "Softmax"],
        ),
    ],
)
def test_import_gives_this_sequence_of_nodes(file: str, expected: list[str]) -> None:
    assert ops(import_model(shared(file)).model) == expected


def test_channel_shuffles_become_gathers() -> None:
    after = ops(import_model(shared("zoo/fastestdet.onnx")).model)
    assert "Transpose" not in after
    assert "Reshape" not in after
    assert after.count("Gather") == 26


def test_source_states_the_facts_of_the_file(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, ["y"], {"unused": weights(5)}, opset=13)
    path = save(proto, tmp_path)
    source = import_model(path).source
    assert source.inputs == {"x": (1, 3)}
    assert source.outputs == {"y": (1, 3)}
    assert (source.opset, source.ir_version, source.nodes, source.float_bytes) == (13, 8, 1, 20)
    assert source.producer == "test"
    assert source.file_bytes == path.stat().st_size
    assert len(source.sha256) == 64


# What exporters write


def test_initializers_as_inputs_of_ir_3(tmp_path: Path) -> None:
    proto = model(
        [node("Conv", ["x", "w"], ["y"])], {"x": [1, 2, 5, 5], "w": [3, 2, 3, 3]}, ["y"], {"w": weights(3, 2, 3, 3)},
        opset=7, ir_version=3,
    )  # fmt: skip
    imported = import_model(save(proto, tmp_path))
    assert list(imported.source.inputs) == ["x"]
    del proto.graph.input[1]
    proto.ir_version = 4
    assert_same_outputs(proto, imported.model)


def test_opset_7_batchnorm_and_dropout(tmp_path: Path) -> None:
    proto = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], epsilon=1e-3),
            node("Dropout", ["b"], ["d"], ratio=0.5),
            node("Relu", ["d"], ["y"]),
        ],
        {"x": [1, 2, 6, 6]},
        ["y"],
        {"w": weights(3, 2, 3, 3), **statistics(3)},
        opset=7,
    )
    imported = import_model(save(proto, tmp_path))
    assert ops(imported.model) == ["Conv", "Relu"]
    assert_same_outputs(proto, imported.model)


def statistics(channels: int) -> dict[str, Array]:
    return {
        "gamma": weights(channels),
        "beta": weights(channels),
        "mean": weights(channels),
        "var": np.square(weights(channels)) + np.float32(0.1),
    }


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample_becomes_resize(tmp_path: Path, opset: int) -> None:
    if opset == 7:
        nodes = [node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")]
        constants: dict[str, Array] = {}
    else:
        nodes = [node("Upsample", ["x", "s"], ["y"], mode="nearest")]
        constants = {"s": np.asarray([1, 1, 2, 2], np.float32)}
    proto = model(nodes, {"x": [1, 2, 4, 4]}, ["y"], constants, opset=opset)
    imported = import_model(save(proto, tmp_path))
    assert ops(imported.model) == ["Resize"]
    x = weights(1, 2, 4, 4)

    np.testing.assert_array_equal(run(imported.model, {"x": x})["y"], x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_opset_from_7_to_26(tmp_path: Path, opset: int) -> None:
    proto = model(
        [
            node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "v", "g"], ["y"]),
        ],
        {"x": ["batch", 2, 6, 6]},
        ["y"],
        {"w": weights(3, 2, 3, 3), "b": weights(3), "v": weights(27, 4), "g": weights(4)},
        opset=opset,
    )
    imported = import_model(save(proto, tmp_path))
    assert imported.source.opset == opset
    assert ops(imported.model) == ["Conv", "Relu", "MaxPool", "Flatten", "Gemm"]
    assert_same_outputs(proto, imported.model)


def test_swish_of_opset_24(tmp_path: Path) -> None:
    proto = model([node("Swish", ["x"], ["y"], alpha=0.5)], {"x": [1, 7]}, ["y"], opset=24)
    imported = import_model(save(proto, tmp_path))
    assert ops(imported.model) == ["Mul", "Sigmoid", "Mul"]

    x = weights(1, 7)
    np.testing.assert_allclose(run(imported.model, {"x": x})["y"], x / (1 + np.exp(-0.5 * x)), rtol=1e-5)


def test_unnamed_and_equally_named_nodes_get_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["b"], name="n")]
    nodes.append(helper.make_node("Exp", ["b"], ["y"], name="n"))
    proto = model(nodes, {"x": [1, 3]}, ["y"])
    names = [n.name for n in load(save(proto, tmp_path)).graph]
    assert names == ["Relu_0", "n", "n_2"]


def test_batch_symbol_is_1_on_every_axis(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["h"], ["t"], perm=[1, 0, 2]), node("Add", ["x", "t"], ["y"])]
    proto = model(nodes, {"x": ["N", 1, 4], "h": [1, "N", 4]}, ["y"])
    assert import_model(save(proto, tmp_path)).source.inputs == {"x": (1, 1, 4), "h": (1, 1, 4)}


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    proto, data = external_model(tmp_path, "w.bin")
    imported = import_model(save(proto, tmp_path))
    np.testing.assert_array_equal(imported.model.graph.initializers["w"].const_value.numpy(), data)


def external_model(folder: Path, location: str) -> tuple[onnx.ModelProto, Array]:
    data = weights(4, 4)
    (folder / "w.bin").write_bytes(data.tobytes())
    proto = model([node("Gemm", ["x", "w"], ["y"], transB=1)], {"x": [1, 4]}, ["y"], {"w": data})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    return proto, data


def test_functions_of_the_file_are_inlined(tmp_path: Path) -> None:
    body = [node("Mul", ["a", "a"], ["s"]), node("Sigmoid", ["s"], ["r"])]
    function = helper.make_function("own", "Block", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    call = node("Block", ["x"], ["y"])
    call.domain = "own"
    proto = model([call], {"x": [1, 5]}, ["y"], domains={"own": 1})
    proto.functions.append(function)
    imported = import_model(save(proto, tmp_path))
    assert ops(imported.model) == ["Mul", "Sigmoid"]
    assert_same_outputs(proto, imported.model)


# Files that are wrong


def fails(proto: onnx.ModelProto, folder: Path, match: str, remedy: str, **options: object) -> None:
    path = save(proto, folder)
    with pytest.raises(ModelError, match=match) as caught:
        load(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert any(remedy in note for note in caught.value.__notes__), caught.value.__notes__


def relu(shape: list[int | str] | None = None, **options: object) -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], {"x": shape or [1, 3]}, ["y"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        (b"PK\x03\x04 this is a zip file\x00", "not an ONNX"),
        (b"<html>not found</html>", "not an ONNX"),
        (np.random.default_rng(0).bytes(1000), "not an ONNX"),
        (relu().SerializeToString()[:-10], "not an ONNX"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "not an ONNX model"),
    ],
)
def test_not_an_onnx_file(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=match):
        load(path)


def test_truncation_anywhere_is_a_model_error(tmp_path: Path) -> None:
    data = external_free_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            load(path)


def external_free_model() -> onnx.ModelProto:
    return model([node("Gemm", ["x", "w"], ["y"])], {"x": [1, 4]}, ["y"], {"w": weights(4, 4)})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_are_a_model_error_or_a_model(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(small_network().SerializeToString())
    for place, byte in changes:
        data[place % len(data)] = byte
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with contextlib.suppress(ModelError):
        import_model(path)


def small_network() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER"),
        node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        node("Shape", ["n"], ["s"]),
        node("Gather", ["s", "zero"], ["i"]),
        node("Unsqueeze", ["i"], ["u"], axes=[0]),
        node("Concat", ["u", "minus"], ["t"], axis=0),
        node("Pad", ["n"], ["p"], pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Transpose", ["p"], ["h"], perm=[0, 2, 3, 1]),
        node("Reshape", ["h", "t"], ["f"]),
        node("MatMul", ["f", "v"], ["y"]),
    ]
    constants = {"w": weights(2, 2, 3, 3), "v": weights(72, 2), "zero": np.asarray(0), "minus": np.asarray([-1])}
    return model(nodes, {"x": ["N", 2, 4, 4]}, ["y"], {**constants, **statistics(2)}, opset=9, ir_version=6)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="not a file"):
        load(tmp_path)


@pytest.mark.parametrize("opset", [1, 6, 27, 28, 1000])
def test_unsupported_opset(tmp_path: Path, opset: int) -> None:
    fails(relu(opset=opset), tmp_path, f"opset must be 7 to 26, not {opset}", "opset_version=21")


def test_operator_newer_than_opset_21(tmp_path: Path) -> None:
    nodes = [node("RMSNormalization", ["x", "g"], ["y"])]
    proto = model(nodes, {"x": [1, 4]}, ["y"], {"g": weights(4)}, opset=23)
    fails(proto, tmp_path, r"node 'y' \(RMSNormalization\): the operator is newer than opset 21", "opset_version=21")


def test_dynamic_dimension_names_the_option_to_type(tmp_path: Path) -> None:
    fails(
        relu(["N", 3, "height", 5]),
        tmp_path,
        r"input 'x': dimension 2 \(height\) of \[N, 3, height, 5\] is dynamic",
        "--shape x=1,3,5,5",
    )


def test_input_shape_fills_dynamic_dimensions(tmp_path: Path) -> None:
    path = save(relu(["N", 3, "height", 5]), tmp_path)
    assert import_model(path, {"x": (1, 3, 9, 5)}).source.outputs == {"y": (1, 3, 9, 5)}


def test_input_shape_that_does_not_fit(tmp_path: Path) -> None:
    match = r"has shape \[N, 3\], which \[1, 4\] does not fit"
    fails(relu(["N", 3]), tmp_path, match, "fits", input_shapes={"x": (1, 4)})
    fails(relu(), tmp_path, "no input is called 'z'; the inputs are", "--shape", input_shapes={"z": (1, 4)})


def test_unknown_domain_and_operator_are_named_together(tmp_path: Path) -> None:
    nodes = [node("Mystery", ["x"], ["a"]), node("FusedConv", ["a"], ["y"])]
    nodes[1].domain = "com.microsoft"
    proto = model(nodes, {"x": [1, 3]}, ["y"], domains={"com.microsoft": 1})
    match = r"(?s)node 'a' \(Mystery\): no such operator.*node 'y' \(FusedConv\): unknown domain"
    fails(proto, tmp_path, match, "standard")


def test_integer_operator(tmp_path: Path) -> None:
    proto = model([node("QLinearMatMul", ["x"] * 8, ["y"])], {"x": [1, 3]}, ["y"])
    fails(proto, tmp_path, r"node 'y' \(QLinearMatMul\): an integer operator", "QDQ")


def test_subgraph(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Relu", ["x"], ["r"])], "branch", [], [onnx.ValueInfoProto(name="r")])
    proto = model([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], {"x": [1], "c": [1]}, ["y"])
    fails(proto, tmp_path, r"node 'y' \(If\): a subgraph", "control flow")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, word: str) -> None:
    bad = weights(4, 4)
    bad[1, 2] = value
    proto = model([node("Gemm", ["x", "w"], ["y"])], {"x": [1, 4]}, ["y"], {"w": bad})
    fails(proto, tmp_path, f"initializer 'w': 1 of 16 elements are {word}", "training")


@pytest.mark.parametrize("dims", [[1 << 20, 1 << 20], [4, 5], [-1, 4], [1 << 62, 1 << 62]])
def test_dims_that_contradict_the_data(tmp_path: Path, dims: list[int]) -> None:
    proto = external_free_model()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    fails(proto, tmp_path, "initializer 'w': dims", "export")


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", ""])
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    proto, _ = external_model(folder, location)
    (tmp_path / "w.bin").write_bytes(b"\0" * 64)
    fails(proto, folder, "initializer 'w': its external data", "beside the model")


def test_external_data_through_a_symbolic_link(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    proto, _ = external_model(folder, "link.bin")
    (tmp_path / "secret").write_bytes(b"\0" * 64)
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    fails(proto, folder, "lies outside the model's folder", "beside the model")


def test_external_data_missing_or_short(tmp_path: Path) -> None:
    proto, _ = external_model(tmp_path, "absent.bin")
    fails(proto, tmp_path, "its external data file 'absent.bin' is missing", "beside the model")
    proto, _ = external_model(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 10)
    fails(proto, tmp_path, "too short: 10 bytes, not 64", "beside the model")


def test_duplicate_and_dangling_names(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"], "first"), node("Exp", ["x"], ["a"], "second")]
    nodes.append(node("Neg", ["z"], ["y"], "third"))
    match = r"(?s)2 problems.*node 'second' \(Exp\): its output 'a' already exists.*'third' \(Neg\): its input 'z'"
    fails(model(nodes, {"x": [1, 3]}, ["y"]), tmp_path, match, "export")
    proto = external_free_model()
    proto.graph.initializer.append(proto.graph.initializer[0])
    fails(proto, tmp_path, "initializer 'w' is defined 2 times", "export")


def test_shapes_that_contradict(tmp_path: Path) -> None:
    proto = model([node("Gemm", ["x", "w"], ["y"])], {"x": [1, 5]}, ["y"], {"w": weights(4, 4)})
    fails(proto, tmp_path, "its shapes contradict each other", "--shape")


def test_huge_constant_results_are_not_computed(tmp_path: Path) -> None:
    shape = np.asarray([1, 1 << 14, 1 << 14], np.int64)
    nodes = [node("ConstantOfShape", ["s"], ["big"]), node("ReduceMax", ["big"], ["m"], keepdims=0)]
    proto = model([*nodes, node("Add", ["x", "m"], ["y"])], {"x": [1, 3]}, ["y"], {"s": shape})
    reports = import_model(save(proto, tmp_path)).reports
    assert "more than" in reports[0].skipped["big"]


def test_symbols_of_the_file_do_not_reach_numpy_helper(tmp_path: Path) -> None:
    """A tensor may keep its elements in typed fields instead of raw bytes; both are counted."""
    proto = external_free_model()
    array = numpy_helper.to_array(proto.graph.initializer[0])
    typed = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], array.reshape(-1).tolist())
    proto.graph.initializer[0].CopyFrom(typed)
    np.testing.assert_array_equal(load(save(proto, tmp_path)).graph.initializers["w"].const_value.numpy(), array)
    del proto.graph.initializer[0].float_data[0]
    fails(proto, tmp_path, "need 16 entries, the file has 15", "export")
