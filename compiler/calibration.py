"""Reads sample inputs (.npz, .npy) for a model, checks them, and applies the preprocessing that the user states.

The files are not trusted: nothing is unpickled, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.lib import format as npy
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]

BYTES_MAX = 4 << 30
"""An array that would take more, read and converted to float32, is refused."""
SYNTHETIC_COUNT = 16


class CalibrationError(ValueError):
    """Samples that cannot be read or do not fit the model."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for a model, one row for each sample.

    Attributes:
        arrays: By input name, [N, ...], in the model's dtype, preprocessed, finite.
        labels: int64 [N], or None where the file has none.
        warnings: What the user should know.
    """

    arrays: dict[str, Array]
    labels: NDArray[np.int64] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """N, the number of samples."""
        return len(next(iter(self.arrays.values())))


def read_samples(path: Path, model: ir.Model, *, scale: Sequence[float] = (), mean: Sequence[float] = ()) -> Samples:
    """Read the samples of `path` for the inputs of `model`.

    In a .npz file an input's array has the input's name, or `x` where the model has one input; integer labels are `y`;
    other arrays are ignored. A .npy file holds the one input. A single sample without the batch axis is one row.

    Args:
        path: A .npz or .npy file.
        model: With static input shapes [1, ...].
        scale, mean: x = (sample - mean) * scale, computed in float64: one number, or one for each channel (axis 1);
            empty is 1 and 0. Float inputs alone are preprocessed.

    Raises:
        CalibrationError: Names the file, the array, what was expected, and the remedy.
    """
    inputs = list(model.graph.inputs)
    found = _read_arrays(path, [str(value.name) for value in inputs])
    arrays: dict[str, Array] = {}
    warnings: list[str] = []
    for value in inputs:
        name, array = found[str(value.name)]
        where = f"{path}: array '{name}'"
        rows = _as_rows(array, value, where)
        if _is_float(value) and rows.dtype.kind in "iub" and not (scale or mean):
            warnings.append(
                f"{path.name}: array '{name}' holds integers ({rows.dtype}) but input '{value.name}' is float: they "
                f"are used as they are, {rows.min()} to {rows.max()}; compile's --input-scale and --input-mean "
                "preprocess them"
            )
        arrays[str(value.name)] = _checked(_preprocessed(rows, value, scale, mean, where), where)
    _check_counts(path, {name: len(array) for name, array in arrays.items()})
    labels = _labels(path, found.get("y"), len(next(iter(arrays.values()))), warnings)
    return Samples(arrays, labels, tuple(warnings))


def synthetic_samples(model: ir.Model, seed: int, count: int = SYNTHETIC_COUNT) -> Samples:
    """Standard normal noise for every float input, 0 for others: `count` samples that depend on `seed` alone."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for value in model.graph.inputs:
        shape = (count, *_static_shape(value)[1:])
        dtype = _dtype(value)
        noise = rng.standard_normal(shape, np.float32) if _is_float(value) else np.zeros(shape)
        arrays[str(value.name)] = noise.astype(dtype)
    warning = (
        f"no calibration samples: ranges come from {count} synthetic ones (standard normal noise, seed {seed}), "
        "so accuracy may be poor; give real inputs with --calib"
    )
    return Samples(arrays, None, (warning,))


# Files


def _read_arrays(path: Path, inputs: list[str]) -> dict[str, tuple[str, Array]]:
    """Input name (and "y" for labels) to the name and contents of its array."""
    if not path.is_file():
        raise _error(f"{path}: no such file", "give a .npz or .npy file with sample inputs")
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                file.seek(0)
                return _read_npy(path, file, inputs)
        with zipfile.ZipFile(path) as archive:
            return _read_npz(path, archive, inputs)
    except zipfile.BadZipFile:
        raise _error(f"{path}: neither a .npz nor a .npy file", "write it with numpy.savez(path, x=inputs)") from None
    except (EOFError, OSError, zipfile.LargeZipFile, NotImplementedError) as error:
        raise _error(f"{path}: cannot be read: {error}", "write it again with numpy.savez(path, x=inputs)") from error


def _read_npy(path: Path, file: IO[bytes], inputs: list[str]) -> dict[str, tuple[str, Array]]:
    if len(inputs) != 1:
        raise _error(
            f"{path}: a .npy file holds one array, but the model has {len(inputs)} inputs: {', '.join(inputs)}",
            f"write numpy.savez(path, {', '.join(f'{name}=...' for name in inputs)})",
        )
    return {inputs[0]: (path.name, _read_array(file, f"{path}: array '{path.name}'"))}


def _read_npz(path: Path, archive: zipfile.ZipFile, inputs: list[str]) -> dict[str, tuple[str, Array]]:
    members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    wanted = {name: name if name in members else "x" for name in inputs}
    missing = [name for name, member in wanted.items() if member not in members or (member != name and len(inputs) > 1)]
    if missing:
        has = ", ".join(sorted(members)) or "nothing"
        also = " or 'x'" if len(inputs) == 1 and missing[0] != "x" else ""
        raise _error(
            f"{path}: no array '{missing[0]}'{also} for the model's input; the file has {has}",
            f"write numpy.savez(path, {', '.join(f'{name}=...' for name in inputs)})",
        )
    if "y" in members and "y" not in wanted:
        wanted["y"] = "y"
    found = {}
    for name, member in wanted.items():
        with archive.open(members[member]) as file:
            found[name] = (member, _read_array(file, f"{path}: array '{member}'"))
    return found


def _read_array(file: IO[bytes], where: str) -> Array:
    """One array, its header checked first: size, and no pickled objects."""
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except ValueError as error:
        raise _error(f"{where} has no valid header: {error}", "write the file again with numpy.savez") from error
    if dtype.hasobject:
        raise _error(f"{where} holds Python objects, which are not read", "store numbers: array.astype('float32')")
    if dtype.kind not in "biuf":
        raise _error(f"{where} must hold numbers, not {dtype}", "store plain numbers: array.astype('float32')")
    if any(size < 0 for size in shape):
        raise _error(f"{where} has an impossible shape {shape}", "write the file again with numpy.savez")
    elements = int(np.prod([int(size) for size in shape], dtype=object)) if shape else 1
    if elements * max(dtype.itemsize, 4) > BYTES_MAX:
        raise _error(f"{where} has shape {list(shape)}: more than {BYTES_MAX >> 30} GiB", "give fewer samples")
    data = file.read(elements * dtype.itemsize)
    if len(data) < elements * dtype.itemsize:
        raise _error(f"{where} is truncated: {len(data)} of {elements * dtype.itemsize} bytes", "write the file again")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


# Arrays


def _as_rows(array: Array, value: ir.Value, where: str) -> Array:
    """The array as [N, ...] of the input's shape."""
    shape = _static_shape(value)
    rows = array[None] if len(shape) > 1 and array.shape == shape[1:] else array
    if rows.shape[1:] != shape[1:] or rows.ndim != len(shape):
        expected = ", ".join(["N", *map(str, shape[1:])])
        raise _error(
            f"{where} has shape {list(array.shape)}, but input '{value.name}' needs [{expected}]",
            _shape_remedy(rows.shape, shape),
        )
    if not len(rows):
        raise _error(f"{where} has no samples (shape {list(array.shape)})", "give at least one sample; 100 are good")
    if _is_float(value) or rows.dtype.kind in "iub":
        return rows
    raise _error(
        f"{where} holds {rows.dtype}, but input '{value.name}' is {_dtype(value)}", f"store it as {_dtype(value)}"
    )


def _shape_remedy(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(shape) == 4 and len(wanted) == 4 and (shape[3], shape[1], shape[2]) == wanted[1:]:
        return "the samples are channels-last: x.transpose(0, 3, 1, 2)"
    return "store one row for each sample, in the shape that the network takes"


def _preprocessed(rows: Array, value: ir.Value, scale: Sequence[float], mean: Sequence[float], where: str) -> Array:
    if not _is_float(value) or not (scale or mean):
        return _cast(rows, value)
    factor = _per_channel(scale or (1.0,), rows, "--input-scale", where)
    offset = _per_channel(mean or (0.0,), rows, "--input-mean", where)
    if not factor.all():
        raise _error("--input-scale must not be 0", "x = (sample - mean) * scale: for instance --input-scale 1/255")
    return _cast((rows.astype(np.float64) - offset) * factor, value)


def _cast(rows: Array, value: ir.Value) -> Array:
    """In the input's dtype; what that cannot hold becomes infinite, and is refused afterwards."""
    with np.errstate(over="ignore"):
        return rows.astype(_dtype(value))


def _per_channel(numbers: Sequence[float], rows: Array, option: str, where: str) -> NDArray[np.float64]:
    """The numbers, shaped to broadcast over axis 1."""
    values = np.asarray(numbers, np.float64)
    if not np.isfinite(values).all():
        raise _error(f"{option} must be finite, not {list(numbers)}", "x = (sample - mean) * scale")
    if values.size == 1:
        return values
    channels = rows.shape[1] if rows.ndim > 1 else 1
    if values.size != channels:
        raise _error(
            f"{option} has {values.size} numbers, but {where} has {channels} channels (axis 1)",
            "give one number, or one for each channel",
        )
    return values.reshape(-1, *[1] * (rows.ndim - 2))


def _checked(array: Array, where: str) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise _error(f"{where}: sample {row} has a value that is NaN or infinite", "remove that sample")
    return array


def _check_counts(path: Path, counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise _error(f"{path}: inputs have different numbers of samples: {listed}", "give every input one row a sample")


def _labels(path: Path, found: tuple[str, Array] | None, count: int, warnings: list[str]) -> NDArray[np.int64] | None:
    if found is None:
        return None
    _, labels = found
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        warnings.append(
            f"{path.name}: labels 'y' are ignored: they must be integers [{count}], not {_described(labels)}"
        )
        return None
    if len(labels) != count:
        raise _error(f"{path}: {len(labels)} labels 'y' for {count} samples", "give one label for each sample")
    return labels.astype(np.int64)


def _described(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _static_shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise _error(f"input '{value.name}' has no static shape: {value.shape}", "give --input-shape")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    return value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)


def _is_float(value: ir.Value) -> bool:
    return _dtype(value).kind == "f"


def _error(message: str, remedy: str) -> CalibrationError:
    error = CalibrationError(message)
    error.add_note(f"remedy: {remedy}")
    return error
