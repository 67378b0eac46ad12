"""ONNX file -> onnx_ir model in canonical form: one opset, static shapes, batch 1, QONNX and QDQ dialects."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx import TensorProto, defs

from compiler import model_file, opsets, qdq, qonnx
from compiler.guess_shape import guess
from compiler.model_file import ModelError, error
from passes.base import PassReport, run
from passes.cleaning.clean import clean
from passes.cleaning.infer_shapes import InferShapes
from passes.graph import shape_of
from passes.move_dequantize import HoistDequantize

__all__ = ["Imported", "ModelError", "Source", "import_model", "load"]

Shape: TypeAlias = tuple[int, ...]

_DEFAULT = ("", "ai.onnx")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SUBGRAPHS = ("If", "Loop", "Scan")
_ELEMENTS_MAX = 1 << 28
"""Of one input: a gigabyte of float32."""
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class Source:
    """Facts about the file as it was given.

    Attributes:
        path: Of the file.
        sha256: Of the file's bytes, external data aside.
        file_bytes: Size of the file.
        producer: Exporter and its version.
        opset: Of the standard operators.
        ir_version: Of the file.
        inputs: Network inputs and their static shapes, after the batch is set to 1.
        outputs: Network outputs and their shapes; -1 where only running tells.
        float_bytes: Bytes of all float initializers.
        nodes: Number of nodes in the file.
    """

    path: Path
    sha256: str
    file_bytes: int
    producer: str
    opset: int
    ir_version: int
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    float_bytes: int
    nodes: int


@dataclass(frozen=True, eq=False)
class Imported:
    """A network in canonical form.

    Attributes:
        model: Canonical ONNX, opset 21, IR 10.
        source: Facts about the file.
        reports: One for each clean-up pass.
    """

    model: ir.Model
    source: Source
    reports: tuple[PassReport, ...]


def import_model(path: Path, input_shapes: Mapping[str, Shape] | None = None) -> Imported:
    """Read `path` and bring it to canonical form.

    Args:
        path: An .onnx file.
        input_shapes: Static shapes of inputs that the file leaves open.

    Raises:
        ModelError: The file is not a model that can be compiled.
    """
    proto, data = model_file.read(path)
    facts = _facts(path, proto, data)
    model = _to_ir(proto, path, input_shapes or {})
    reports = tuple(run(clean(), model))
    inputs = {str(v.name): _static(v) for v in model.graph.inputs}
    outputs = {str(v.name): _static(v) for v in model.graph.outputs}
    return Imported(model, Source(inputs=inputs, outputs=outputs, **facts), reports)  # type: ignore[arg-type]


def load(path: Path, *, input_shapes: Mapping[str, Shape] | None = None) -> ir.Model:
    """Read and check `path`: opset 21, IR 10, static shapes, named nodes, but not cleaned.

    Raises:
        ModelError: With the file, node and remedy; all problems at once where that is possible.
    """
    proto, _ = model_file.read(path)
    return _to_ir(proto, path, input_shapes or {})


def _facts(path: Path, proto: onnx.ModelProto, data: bytes) -> dict[str, object]:
    floats = (t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
    return {
        "path": path,
        "sha256": hashlib.sha256(data).hexdigest(),
        "file_bytes": len(data),
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "opset": opsets.opset_of(proto),
        "ir_version": proto.ir_version,
        "float_bytes": sum(model_file.byte_count(t) for t in floats),
        "nodes": len(proto.graph.node),
    }


def _static(value: ir.Value) -> Shape:
    return tuple(d if isinstance(d, int) else -1 for d in value.shape) if value.shape is not None else ()


def _to_ir(proto: onnx.ModelProto, path: Path, input_shapes: Mapping[str, Shape]) -> ir.Model:
    _initializers_are_no_inputs(proto)
    qonnx.declare_domains(proto)
    proto = _inlined(proto, path)
    _name_nodes(proto)
    qdq.standardize_domains(proto)
    _check(proto, path)
    _freeze_shapes(proto, path, input_shapes)
    proto = opsets.to_canonical_opset(proto, path)
    model = _deserialized(proto, path)
    common.NameFixPass()(model)
    qonnx.to_standard(model, path)
    qdq.to_int8(model, path)
    HoistDequantize()(model)
    _infer(model, path)
    return model


def _deserialized(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError) as cause:
        reason = " ".join(str(cause.__cause__ or cause).split())
        raise error(path, [f"the graph is malformed: {reason}"], "export the model again") from cause


def _inlined(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Without functions of its own: torch and others write whole modules as one."""
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except (RuntimeError, ValueError) as cause:
        reason = " ".join(str(cause).split())
        raise error(path, [f"its functions cannot be inlined: {reason}"], "export without functions") from cause


def _initializers_are_no_inputs(proto: onnx.ModelProto) -> None:
    """IR below 4 lists every initializer as an input with a default; nobody feeds them here."""
    names = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Exporters leave names out or repeat them; messages and reports need one for each node."""
    taken = {n.name for n in proto.graph.node if n.name}
    seen: Counter[str] = Counter()
    for index, node in enumerate(proto.graph.node):
        seen[node.name] += 1
        if node.name and seen[node.name] == 1:
            continue
        name = f"{node.name or node.op_type}_{index}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


def _check(proto: onnx.ModelProto, path: Path) -> None:
    problems = [*_graph_problems(proto), *_operator_problems(proto), *model_file.not_finite(proto)]
    if problems:
        raise error(path, problems, _remedy(problems))


def _remedy(problems: list[str]) -> str:
    text = " ".join(problems)
    if "integer operator" in text:
        return "quantize in QDQ format (quant_format=QuantFormat.QDQ), or give the float model"
    if "subgraph" in text:
        return "export with constant control flow, so that tracing unrolls it"
    if "domain" in text or "operator" in text:
        return "export with standard ONNX operators; do not save the model after onnxruntime's own optimizations"
    if "elements are" in text:
        return "check the training or export that wrote these values"
    return "export the model again"


def _graph_problems(proto: onnx.ModelProto) -> Iterator[str]:
    graph = proto.graph
    if graph.sparse_initializer:
        yield f"{len(graph.sparse_initializer)} sparse initializers; only dense ones are read"
    if not graph.output:
        yield "the graph has no outputs"
    if not graph.input:
        yield "the graph has no inputs: its result is constant"
    for name, count in Counter(t.name for t in graph.initializer).items():
        if count > 1:
            yield f"initializer {name!r} is defined {count} times"
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for node in graph.node:
        where = f"node {node.name!r} ({node.op_type})"
        for name in node.input:
            if name and name not in known:
                yield f"{where}: its input {name!r} is not computed before it"
        for name in node.output:
            if name in known:
                yield f"{where}: its output {name!r} already exists"
            if name:
                known.add(name)
    for value in graph.output:
        if value.name not in known:
            yield f"output {value.name!r} is not computed by any node"


def _operator_problems(proto: onnx.ModelProto) -> Iterator[str]:
    opset = opsets.opset_of(proto)
    for node in proto.graph.node:
        where = f"node {node.name!r} ({node.op_type})"
        if any(a.HasField("g") or a.graphs for a in node.attribute) or node.op_type in _SUBGRAPHS:
            yield f"{where}: a subgraph, which no target runs"
        elif qonnx.is_quantizer(node.domain, node.op_type):
            continue
        elif node.domain not in (*_DEFAULT, "ai.onnx.ml"):
            yield f"{where}: unknown domain {node.domain!r}"
        elif node.op_type in _INTEGER_OPS:
            yield f"{where}: an integer operator; quantized models are read in QDQ form"
        elif node.domain in _DEFAULT and opsets.OPSET_MIN <= opset <= opsets.OPSET_MAX:
            try:
                defs.get_schema(node.op_type, opset, "")
            except defs.SchemaError:
                yield f"{where}: no such operator in opset {opset}"


def _freeze_shapes(proto: onnx.ModelProto, path: Path, given: Mapping[str, Shape]) -> None:
    """Write the static shape of every input, and forget all others: they are inferred again."""
    names = [v.name for v in proto.graph.input]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise error(path, [f"no input is called {unknown[0]!r}; the inputs are {names}"], "correct --shape")
    problems: list[str] = []
    options: list[str] = []
    batch = _batch_names(proto)
    for value in proto.graph.input:
        _freeze(proto, value, given.get(value.name), batch, problems, options)
    if problems:
        raise error(path, problems, " ".join(options))
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")


def _batch_names(proto: onnx.ModelProto) -> set[str]:
    """Names of symbolic dimensions that stand first in some input."""
    shapes = [v.type.tensor_type.shape.dim for v in proto.graph.input]
    return {dims[0].dim_param for dims in shapes if dims and dims[0].dim_param}


def _freeze(
    proto: onnx.ModelProto,
    value: onnx.ValueInfoProto,
    given: Shape | None,
    batch: set[str],
    problems: list[str],
    options: list[str],
) -> None:
    where = f"input {value.name!r}"
    if not value.type.HasField("tensor_type"):
        problems.append(f"{where} is not a tensor")
        return
    tensor = value.type.tensor_type
    if given is not None and tensor.HasField("shape") and not _fits(tensor.shape, given):
        problems.append(f"{where} has shape {_readable(tensor.shape)}, which {list(given)} does not fit")
        options.append("give a shape that fits the file's")
        return
    if given is None and not tensor.HasField("shape"):
        problems.append(f"{where} has no shape")
        options.append(_offer(proto, value.name))
        return
    shape = given if given is not None else _with_batch_1(tensor.shape, batch)
    open_dims = [i for i, d in enumerate(shape) if d <= 0]
    if open_dims:
        name = tensor.shape.dim[open_dims[0]].dim_param or "?"
        problems.append(f"{where}: dimension {open_dims[0]} ({name}) of {_readable(tensor.shape)} is dynamic")
        options.append(_offer(proto, value.name))
        return
    if math.prod(shape) > _ELEMENTS_MAX:
        problems.append(f"{where} of shape {list(shape)} has more than {_ELEMENTS_MAX:,} elements")
        options.append("give a smaller shape")
        return
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for size in shape:
        tensor.shape.dim.add().dim_value = size


def _offer(proto: onnx.ModelProto, name: str) -> str:
    """The option that states a shape, with a guess."""
    return f"--shape {name}={','.join(map(str, guess(proto, name)))}"


def _fits(declared: onnx.TensorShapeProto, given: Shape) -> bool:
    pairs = zip(declared.dim, given, strict=False)
    return len(declared.dim) == len(given) and all(
        g > 0 and (not d.HasField("dim_value") or d.dim_value <= 0 or d.dim_value == g) for d, g in pairs
    )


def _with_batch_1(declared: onnx.TensorShapeProto, batch: set[str]) -> Shape:
    """Static sizes, 1 for the batch, 0 for what is unknown."""
    sizes = []
    for index, dim in enumerate(declared.dim):
        if dim.dim_value > 0:
            sizes.append(dim.dim_value)
        else:
            sizes.append(1 if index == 0 or (dim.dim_param and dim.dim_param in batch) else 0)
    return tuple(sizes)


def _readable(shape: onnx.TensorShapeProto) -> str:
    return "[" + ", ".join(d.dim_param or (str(d.dim_value) if d.dim_value > 0 else "?") for d in shape.dim) + "]"


def _infer(model: ir.Model, path: Path) -> None:
    try:
        InferShapes()(model)
    except Exception as cause:
        # onnx raises InferenceError, RuntimeError or ValueError, wrapped by the pass.
        reason = " ".join(str(cause.__cause__ or cause).split())
        raise error(
            path,
            [f"its shapes contradict each other: {reason}"],
            "give the shape it was exported for with --shape",
        ) from cause
    if problems := [*filter(None, map(_contradiction, model.graph))]:
        raise error(path, problems, "export the model again, or give the shape it was exported for with --shape")


def _contradiction(node: ir.Node) -> str | None:
    """What onnx's inference lets pass: a layer without channels, a Conv whose weights or bias do not fit its input."""
    if node.domain in _DEFAULT and node.op_type in _LAYERS:
        for value in node.inputs[:2]:
            if value is not None and 0 in (shape := shape_of(value) or ()):
                return f"node {node.name!r} ({node.op_type}): {value.name!r} of shape {list(shape)} has no elements"
    if node.op_type != "Conv" or node.domain not in _DEFAULT or len(node.inputs) < 2:
        return None
    x, w, *bias = map(shape_of, node.inputs)
    if x is None or w is None:
        return None
    groups = node.attributes.get_int("group", 1)
    where = f"node {node.name!r} (Conv)"
    if len(x) != len(w) or groups < 1 or x[1] != w[1] * groups or w[0] % groups:
        return f"{where}: its input of shape {list(x)} does not fit its weights {list(w)}, group {groups}"
    if bias and bias[0] not in (None, (w[0],)):
        return f"{where}: its bias must have shape {[w[0]]}, not {list(bias[0])}"
    return None
