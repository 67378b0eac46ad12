"""Samples for a model, from .npz and .npy files and folders of images: checked, preprocessed as the user states.

What does not fit in memory lies on disk, in a file that has no name and ends with the process: arrays are memory maps
then, and everything that takes arrays takes them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler import images, sample_file
from compiler.images import ImageOptions
from compiler.sample_file import LABELS, Array, CalibrationError, Rows, failure

__all__ = [
    "CalibrationError",
    "ImageOptions",
    "Samples",
    "read_calibration",
    "read_labelled",
    "read_samples",
    "synthetic_samples",
]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what, done, total)."""

RESIDENT_BYTES = 256 << 20
"""A larger array lies on disk."""
SYNTHETIC_COUNT = 16
FEW = 8
"""Fewer calibration samples than this are worth a warning."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs for a model, one row for each sample.

    Attributes:
        arrays: By input name, [N, ...], in the model's dtype, preprocessed, finite; memory maps where they are large.
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


@dataclass(frozen=True, eq=False)
class _Source:
    """Where the samples of one input come from, and what happens to them.

    Attributes:
        rows: As they are stored.
        value: The model's input.
        where: Words to name it by.
        channel_axis: To which --input-scale and --input-mean apply.
        is_array: Rather than images.
    """

    rows: Rows
    value: ir.Value
    where: str
    channel_axis: int = 1
    is_array: bool = True


def read_samples(
    path: Path,
    model: ir.Model,
    *,
    scale: Sequence[float] = (),
    mean: Sequence[float] = (),
    image_options: ImageOptions | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Read the samples of `path` for the inputs of `model`.

    In a .npz file an input's array has the input's name, or `x` where the model has one input; integer labels are `y`;
    other arrays are ignored. A .npy file holds the one input. A single sample without the batch axis is one row. A
    folder holds images for the one input, or one sub-folder of them for each class.

    Args:
        path: A .npz or .npy file, or a folder of images.
        model: With static input shapes [1, ...].
        scale, mean: x = (sample - mean) * scale, computed in float64: one number, or one for each channel (axis 1;
            of images the axis that has 1 or 3); empty is 1 and 0. Float inputs alone are preprocessed.
        image_options: How images become samples.
        progress: Told ("read samples", done, total), rows of one input after the other.

    Raises:
        CalibrationError: Names the file, the array, what was expected, and the remedy.
    """
    warnings: list[str] = []
    if path.is_dir():
        sources, labels = _open_images(path, model, image_options or ImageOptions(), warnings)
    else:
        sources, labels = _open_arrays(path, model)
    for source in sources:
        _check_rows(source)
    _check_counts(path, {str(source.value.name): _count(source) for source in sources})
    arrays = {
        str(source.value.name): _read(source, scale, mean, warnings, path.name, progress) for source in sources
    }
    count = len(next(iter(arrays.values())))
    return Samples(arrays, _labels(path, labels, count, warnings), tuple(warnings))


def read_calibration(
    path: Path,
    model: ir.Model,
    *,
    scale: Sequence[float] = (),
    mean: Sequence[float] = (),
    image_options: ImageOptions | None = None,
    progress: Progress | None = None,
) -> Samples:
    """As read_samples, with a warning where ranges that come from these samples cannot be trusted."""
    samples = read_samples(path, model, scale=scale, mean=mean, image_options=image_options, progress=progress)
    warnings = [
        f"{path.name}: every value of input '{name}' is {array.flat[0]:g}: nothing can be learned from such samples"
        for name, array in samples.arrays.items()
        if array.size > 1 and array.min() == array.max()
    ]
    if samples.count < FEW:
        number = "1 calibration sample is" if samples.count == 1 else f"{samples.count} calibration samples are"
        warnings.append(f"{path.name}: {number} few: ranges may be too narrow; 100 are good")
    return replace(samples, warnings=(*samples.warnings, *warnings))


def read_labelled(
    path: Path,
    model: ir.Model,
    *,
    classes: int | None = None,
    scale: Sequence[float] = (),
    mean: Sequence[float] = (),
    image_options: ImageOptions | None = None,
    progress: Progress | None = None,
) -> Samples:
    """As read_samples, for a metric that needs labels: they are there, not negative, and below `classes`.

    Raises:
        CalibrationError: There are none, or they are no class numbers; the message names the file and the remedy.
    """
    samples = read_samples(path, model, scale=scale, mean=mean, image_options=image_options, progress=progress)
    remedy = "write numpy.savez(path, x=inputs, y=class_numbers), or name a labelled file with --eval"
    if path.is_dir():
        remedy = "put the images of each class in a sub-folder of its own, or name labelled samples with --eval"
    if samples.labels is None:
        ignored = [warning for warning in samples.warnings if f"labels '{LABELS}' are ignored" in warning]
        raise failure(ignored[0] if ignored else f"{path}: the samples have no labels '{LABELS}'", remedy)
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0 or (classes is not None and high >= classes):
        wanted = "class numbers from 0" + (f" to {classes - 1}" if classes is not None else "")
        raise failure(f"{path}: labels '{LABELS}' must be {wanted}, not {low if low < 0 else high}", remedy)
    return samples


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


# Where samples come from


def _open_arrays(path: Path, model: ir.Model) -> tuple[list[_Source], Rows | None]:
    inputs = list(model.graph.inputs)
    found = sample_file.open_arrays(path, [str(value.name) for value in inputs])
    sources = [
        _Source(rows, value, f"{path}: array '{rows.name}'")
        for value in inputs
        for rows in [found[str(value.name)]]
    ]
    return sources, found.get(LABELS) if LABELS not in [str(value.name) for value in inputs] else None


def _open_images(
    path: Path, model: ir.Model, options: ImageOptions, warnings: list[str]
) -> tuple[list[_Source], Rows | None]:
    inputs = list(model.graph.inputs)
    names = ", ".join(str(value.name) for value in inputs)
    if len(inputs) != 1:
        raise failure(
            f"{path}: a folder of images feeds one input, but the model has {len(inputs)}: {names}",
            "give a .npz file with an array for each input",
        )
    layout = images.layout_of(_static_shape(inputs[0]), names)
    folder = images.open_folder(path, layout, options)
    if folder.ignored:
        warnings.append(f"{path.name}: {folder.ignored} files are no images ({', '.join(images.SUFFIXES)}): ignored")
    if folder.labels is not None:
        few = [f"{label} '{name}'" for label, name in enumerate(folder.classes)][:10]
        more = f" ... {len(folder.classes)} in all" if len(few) < len(folder.classes) else ""
        warnings.append(f"{path.name}: labels by sub-folder: {', '.join(few)}{more}")
    labels = folder.labels
    source = _Source(folder.rows, inputs[0], str(path), layout.axis, is_array=False)
    return [source], None if labels is None else Rows(LABELS, labels.shape, labels.dtype, lambda: iter([labels]))


# Arrays


def _count(source: _Source) -> int:
    return 1 if _is_one(source) else source.rows.shape[0]


def _is_one(source: _Source) -> bool:
    """Whether the array is one sample without the batch axis."""
    shape = _static_shape(source.value)
    return len(shape) > 1 and source.rows.shape == shape[1:]


def _check_rows(source: _Source) -> None:
    """Whether the array can be read as [N, ...] of the input's shape."""
    shape, found, name = _static_shape(source.value), source.rows.shape, source.value.name
    full = (1, *found) if _is_one(source) else found
    if full[1:] != shape[1:] or len(full) != len(shape):
        expected = ", ".join(["N", *map(str, shape[1:])])
        raise failure(
            f"{source.where} has shape {list(found)}, but input '{name}' needs [{expected}]",
            _shape_remedy(full, shape),
        )
    if not full[0]:
        raise failure(
            f"{source.where} has no samples (shape {list(found)})", "give at least one sample; 100 are good"
        )
    if not _is_float(source.value) and source.rows.dtype.kind not in "iub":
        raise failure(
            f"{source.where} holds {source.rows.dtype}, but input '{name}' is {_dtype(source.value)}",
            f"store it as {_dtype(source.value)}",
        )


def _shape_remedy(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(shape) == 4 and len(wanted) == 4 and (shape[3], shape[1], shape[2]) == wanted[1:]:
        return "the samples are channels-last: x.transpose(0, 3, 1, 2)"
    return "store one row for each sample, in the shape that the network takes"


def _read(
    source: _Source,
    scale: Sequence[float],
    mean: Sequence[float],
    warnings: list[str],
    file_name: str,
    progress: Progress | None,
) -> Array:
    """The samples of one input, preprocessed and finite: in memory, or on disk where they are many."""
    rows, dtype = source.rows, _dtype(source.value)
    shape = (_count(source), *_static_shape(source.value)[1:])
    is_stated = _is_float(source.value) and bool(scale or mean)
    seen: list[tuple[float, float]] = []
    chunks = _prepared(source, _preprocessing(source, scale, mean), seen, progress)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize <= RESIDENT_BYTES:
        array = _in_memory(chunks, shape, dtype)
    elif rows.file is not None and rows.dtype == dtype and not is_stated:
        for _ in chunks:
            pass  # every value is looked at once; none is changed
        array = np.memmap(rows.file[0], dtype, "r", rows.file[1], shape)
    else:
        array = _on_disk(chunks, shape, dtype)
    if _is_float(source.value) and rows.dtype.kind in "iub" and not is_stated:
        low, high = min(low for low, _ in seen), max(high for _, high in seen)
        what = f"array '{rows.name}' holds" if source.is_array else "the images hold"
        warnings.append(
            f"{file_name}: {what} integers ({rows.dtype}) but input '{source.value.name}' is float: they are used as "
            f"they are, {low} to {high}; compile's --input-scale and --input-mean preprocess them"
        )
    return array


def _prepared(
    source: _Source,
    preprocess: Callable[[Array], Array],
    seen: list[tuple[float, float]],
    progress: Progress | None,
) -> Iterator[Array]:
    """The samples in chunks, preprocessed and finite; the range of each chunk as it is stored goes into `seen`."""
    shape, first = _static_shape(source.value)[1:], 0
    for chunk in source.rows.chunks():
        rows = chunk.reshape(-1, *shape)
        seen.append((rows.min().item(), rows.max().item()))
        yield _checked(preprocess(rows), source.where, first)
        first += len(rows)
        if progress:
            progress("read samples", first, _count(source))


def _in_memory(chunks: Iterator[Array], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    array: Array = np.empty(shape, dtype)
    first = 0
    for chunk in chunks:
        array[first : first + len(chunk)] = chunk
        first += len(chunk)
    return array


def _on_disk(chunks: Iterator[Array], shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """A memory map of a file without a name, whose space is free again when nothing maps it."""
    folder = Path(os.environ.get("EDGEC_CACHE") or Path.home() / ".cache" / "edgec").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
            file.flush()
            return np.memmap(file, dtype, "r", 0, shape)
    except OSError as error:
        raise failure(
            f"the samples do not fit on the disk of {folder}: {error.strerror or error}",
            "give fewer samples, or name another folder with EDGEC_CACHE",
        ) from error


def _preprocessing(source: _Source, scale: Sequence[float], mean: Sequence[float]) -> Callable[[Array], Array]:
    """What happens to rows [n, ...]."""
    value = source.value
    if not _is_float(value) or not (scale or mean):
        return lambda rows: _cast(rows, value)
    factor = _per_channel(scale or (1.0,), source, "--input-scale")
    offset = _per_channel(mean or (0.0,), source, "--input-mean")
    if not factor.all():
        raise failure("--input-scale must not be 0", "x = (sample - mean) * scale: for instance --input-scale 1/255")
    return lambda rows: _cast((rows.astype(np.float64) - offset) * factor, value)


def _cast(rows: Array, value: ir.Value) -> Array:
    """In the input's dtype; what that cannot hold becomes infinite, and is refused afterwards."""
    with np.errstate(over="ignore"):
        return rows.astype(_dtype(value))


def _per_channel(numbers: Sequence[float], source: _Source, option: str) -> NDArray[np.float64]:
    """The numbers, shaped to broadcast over the channel axis."""
    values = np.asarray(numbers, np.float64)
    if not np.isfinite(values).all():
        raise failure(f"{option} must be finite, not {list(numbers)}", "x = (sample - mean) * scale")
    if values.size == 1:
        return values
    shape, axis = _static_shape(source.value), source.channel_axis
    channels = shape[axis] if len(shape) > axis else 1
    if values.size != channels:
        raise failure(
            f"{option} has {values.size} numbers, but {source.where} has {channels} channels (axis {axis})",
            "give one number, or one for each channel",
        )
    return values.reshape(-1, *[1] * (len(shape) - axis - 1))


def _checked(array: Array, where: str, first: int) -> Array:
    """The rows, of which the first is sample `first`, unless one is not finite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = first + int(np.argwhere(~np.isfinite(array))[0][0])
        raise failure(f"{where}: sample {row} has a value that is NaN or infinite", "remove that sample")
    return array


def _check_counts(path: Path, counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise failure(
            f"{path}: inputs have different numbers of samples: {listed}", "give every input one row for each sample"
        )


def _labels(path: Path, found: Rows | None, count: int, warnings: list[str]) -> NDArray[np.int64] | None:
    if found is None:
        return None
    if len(found.shape) != 1 or found.dtype.kind not in "iu":
        warnings.append(
            f"{path.name}: labels '{LABELS}' are ignored: they must be integers [{count}], "
            f"not {found.dtype} {list(found.shape)}"
        )
        return None
    if found.shape[0] != count:
        raise failure(
            f"{path}: {found.shape[0]} labels '{LABELS}' for {count} samples", "give one label for each sample"
        )
    return np.concatenate(list(found.chunks())).astype(np.int64)


def _static_shape(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise failure(f"input '{value.name}' has no static shape: {value.shape}", "give --shape")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def _dtype(value: ir.Value) -> np.dtype[np.generic]:
    return value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)


def _is_float(value: ir.Value) -> bool:
    return _dtype(value).kind == "f"
