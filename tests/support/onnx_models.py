"""Builds little ONNX files by hand, as the exporters write them, and runs them in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compiler.importer import Imported, import_model

Array = NDArray[np.generic]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Mapping[str, int] | None = None,
    input_type: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model file; the types of outputs are left to inference."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, input_type, list(s)) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    for value in graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, v) for d, v in (domains or {}).items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="test")


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def session(data: onnx.ModelProto | ir.Model | Path) -> ort.InferenceSession:
    """One thread, the arithmetic of the file and nothing rewritten."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if isinstance(data, ir.Model):
        data = ir.serde.serialize_model(data)
    source = str(data) if isinstance(data, Path) else data.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(data: onnx.ModelProto | ir.Model | Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    active = session(data)
    names = [o.name for o in active.get_outputs()]
    return dict(zip(names, active.run(names, dict(feeds)), strict=True))


def random_feeds(data: onnx.ModelProto | ir.Model | Path, seed: int) -> dict[str, Array]:
    """Normal float32 inputs; open dimensions are 1."""
    rng = np.random.default_rng(seed)
    return {
        i.name: rng.normal(size=[d if isinstance(d, int) else 1 for d in i.shape]).astype(np.float32)
        for i in session(data).get_inputs()
    }


def assert_same_outputs(
    before: onnx.ModelProto | Path, after: ir.Model, *, samples: int = 3, tolerance: float = 1e-5
) -> None:
    """Both compute the same on random inputs, relative to the largest value of each output."""
    for seed in range(samples):
        feeds = random_feeds(before, seed)
        expected, actual = run(before, feeds), run(after, feeds)
        assert list(actual) == list(expected)
        for name, array in expected.items():
            assert actual[name].shape == array.shape
            largest = float(np.abs(array).max())
            np.testing.assert_allclose(actual[name], array, rtol=0, atol=tolerance * largest, err_msg=name)
            assert np.ptp(array.astype(np.float64)) > 0, f"output {name} is constant: this compares nothing"


def ops(loaded: ir.Model) -> list[str]:
    """The operators of a model in order."""
    return [node.op_type for node in loaded.graph]


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attributes: object
) -> onnx.NodeProto:
    """A node, called after its first output unless named."""
    return helper.make_node(op, list(inputs), list(outputs), name=name or outputs[0], **attributes)


def imported(proto: onnx.ModelProto) -> Imported:
    """What the importer makes of `proto`."""
    with tempfile.TemporaryDirectory() as folder:
        return import_model(save(proto, Path(folder)))
