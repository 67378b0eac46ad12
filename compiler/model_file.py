"""Reads an ONNX file that is not trusted: every size and path is checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

FILE_BYTES_MAX = (1 << 31) - 1
"""What protobuf can hold."""

_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Where each type keeps its elements when they are not in raw_data, and how many entries an element takes.
_TYPED: dict[int, int] = {TensorProto.COMPLEX64: 2, TensorProto.COMPLEX128: 2}


class ModelError(ValueError):
    """The model file cannot be compiled: wrong format, opset, shape, type, or contents."""


def error(path: Path, problems: Iterable[str], remedy: str | None = None) -> ModelError:
    """One ModelError for all `problems` of the file at `path`."""
    lines = list(problems)
    text = f"{path}: {lines[0]}" if len(lines) == 1 else f"{path}: {len(lines)} problems\n" + "\n".join(
        f"  {line}" for line in lines
    )
    result = ModelError(text)
    if remedy:
        result.add_note(f"remedy: {remedy}")
    return result


def read(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """The model at `path` with all its data in memory, and the file's own bytes.

    Raises:
        ModelError: Missing, too large, not ONNX, truncated, or its tensors lie about their size or place.
    """
    data = _bytes(path)
    model = _parse(path, data)
    problems = list(_tensor_problems(model, path))
    if problems:
        raise error(path, problems, "export the model again; external data must lie beside the model file")
    _check_total(model, path)
    _load_external(model, path)
    return model, data


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise error(path, ["no such file"], "check the path")
    if not path.is_file():
        raise error(path, ["not a file"], "give the path of an .onnx file")
    if path.stat().st_size > FILE_BYTES_MAX:
        raise error(path, [f"{path.stat().st_size} bytes; an ONNX file has at most 2 GiB"], "use external data")
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(path, [f"cannot be read: {cause.strerror}"], "check its permissions") from cause


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    remedy = "export the network to ONNX, for instance with torch.onnx.export or tf2onnx"
    if not data:
        raise error(path, ["the file is empty"], remedy)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as cause:
        raise error(path, ["not an ONNX file, or a truncated one"], remedy) from cause
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        raise error(path, ["not an ONNX model: it has no graph, IR version or opset"], remedy)
    if not _has_valid_text(model):
        raise error(path, ["not an ONNX file, or a damaged one: its names are not UTF-8"], remedy)
    if not model.graph.node:
        raise error(path, ["the graph has no nodes"], remedy)
    return model


def _has_valid_text(model: onnx.ModelProto) -> bool:
    """Protobuf lets damaged strings through; everything after this point may print them."""
    graph = model.graph
    names = [graph.name, *(t.name for t in graph.initializer), *(v.name for v in (*graph.input, *graph.output))]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    try:
        "\0".join(names).encode()
    except (UnicodeError, TypeError):
        return False
    return True


def tensors(model: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor in the file with the words to name it by."""
    for tensor in model.graph.initializer:
        yield f"initializer {tensor.name!r}", tensor
    for sparse in model.graph.sparse_initializer:
        yield f"sparse initializer {sparse.values.name!r}", sparse.values
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield f"node {node.name!r} ({node.op_type}), attribute {attribute.name!r}", attribute.t
            for tensor in attribute.tensors:
                yield f"node {node.name!r} ({node.op_type}), attribute {attribute.name!r}", tensor


def _tensor_problems(model: onnx.ModelProto, path: Path) -> Iterator[str]:
    for where, tensor in tensors(model):
        if problem := _problem(tensor, path):
            yield f"{where}: {problem}"


def _check_total(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what does not fit in one protobuf, as conversion and inference need it, before any of it is read."""
    sizes = {where: byte_count(tensor) for where, tensor in tensors(model) if tensor.data_type != TensorProto.STRING}
    if (total := sum(sizes.values())) > FILE_BYTES_MAX:
        where, most = max(sizes.items(), key=lambda item: item[1])
        raise error(
            path,
            [f"its weights take {total:,} bytes, at most {FILE_BYTES_MAX:,} are read; {where} has {most:,}"],
            "give a part of the network, for instance by onnx.utils.extract_model, or a smaller one",
        )


def byte_count(tensor: TensorProto) -> int:
    """Bytes of the dense tensor."""
    elements = math.prod(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    if bits:
        return -(-elements * bits // 8)
    return elements * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _problem(tensor: TensorProto, path: Path) -> str | None:
    if tensor.HasField("segment"):
        return "it is stored in segments, which no exporter writes"
    if any(d < 0 for d in tensor.dims):
        return f"dims {list(tensor.dims)} are negative"
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"data type {tensor.data_type} does not exist"
    if tensor.data_type == TensorProto.STRING:
        return None if len(tensor.string_data) == math.prod(tensor.dims) else "it has not as many strings as dims say"
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external_problem(tensor, path)
    expected = byte_count(tensor)
    if tensor.HasField("raw_data"):
        actual = len(tensor.raw_data)
        return None if actual == expected else f"dims {list(tensor.dims)} need {expected} bytes, the file has {actual}"
    return _typed_problem(tensor)


def _typed_problem(tensor: TensorProto) -> str | None:
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    entries = len(getattr(tensor, field))
    elements = math.prod(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    expected = -(-elements * bits // 8) if bits else elements * _TYPED.get(tensor.data_type, 1)
    return None if entries == expected else f"dims {list(tensor.dims)} need {expected} entries, the file has {entries}"


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_problem(tensor: TensorProto, path: Path) -> str | None:
    facts = _external(tensor)
    location = facts.get("location", "")
    folder = path.resolve().parent
    if not location or Path(location).is_absolute() or "\\" in location or "\0" in location:
        return f"its external data {location!r} is not a relative path"
    file = folder / location
    if not file.resolve().is_relative_to(folder):
        return f"its external data {location!r} lies outside the model's folder"
    if not file.is_file():
        return f"its external data file {location!r} is missing"
    try:
        offset, length = int(facts.get("offset", "0")), int(facts.get("length", str(byte_count(tensor))))
    except ValueError:
        return "offset and length of its external data must be integers"
    if length != byte_count(tensor):
        return f"dims {list(tensor.dims)} need {byte_count(tensor)} bytes, its external data has {length}"
    if offset < 0 or offset + length > file.stat().st_size:
        return f"its external data file {location!r} is too short: {file.stat().st_size} bytes, not {offset + length}"
    return None


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    for _, tensor in tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        facts = _external(tensor)
        with (path.resolve().parent / facts["location"]).open("rb") as file:
            file.seek(int(facts.get("offset", "0")))
            tensor.raw_data = file.read(byte_count(tensor))
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def not_finite(model: onnx.ModelProto) -> Iterator[str]:
    """Float tensors with NaN or infinite elements."""
    readers = {name: f"; node '{n.name}' ({n.op_type}) reads it" for n in model.graph.node for name in n.input}
    for where, tensor in tensors(model):
        if tensor.data_type not in _FLOATS:
            continue
        array = numpy_helper.to_array(tensor)
        if np.isfinite(array).all():
            continue
        reader = readers.get(tensor.name, "")
        if nans := int(np.isnan(array).sum()):
            yield f"{where}: {nans} of {array.size} elements are NaN{reader}"
        elif array.size > 1:
            # A single infinity is how some exporters write "no bound" of a Clip.
            yield f"{where}: {int(np.isinf(array).sum())} of {array.size} elements are infinite{reader}"
