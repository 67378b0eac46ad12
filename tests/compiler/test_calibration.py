"""Sample files: what is read, and every way in which they can be wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from compiler import calibration, sample_file
from compiler.calibration import CalibrationError, Samples, read_labelled, read_samples, synthetic_samples
from passes import statistics
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import Array, node


def network(*shape: int) -> ir.Model:
    return canonical([node("Relu", ["image"], ["out"])], {"image": list(shape or (1, 3, 4, 5))}, ["out"])


def two_inputs() -> ir.Model:
    return canonical([node("Add", ["a", "b"], ["out"])], {"a": [1, 4], "b": [1, 4]}, ["out"])


def saved(folder: Path, **arrays: Array) -> Path:
    path = folder / "samples.npz"
    np.savez(path, **arrays)
    return path


def remedy(caught: pytest.ExceptionInfo[CalibrationError]) -> str:
    (note,) = caught.value.__notes__
    assert note.startswith("remedy: ")
    return note


def read(path: Path, **options: object) -> Samples:
    return read_samples(path, network(), **options)  # type: ignore[arg-type]


X = normal(6, 3, 4, 5)


# What is read


@pytest.mark.parametrize("name", ["x", "image"])
def test_the_array_is_found_by_name_or_x_and_others_are_ignored(tmp_path: Path, name: str) -> None:
    others = {"noise": np.zeros(3), "meta": np.array("text")}
    found = read(saved(tmp_path, **{name: X}, y=np.arange(6), **others))
    np.testing.assert_array_equal(found.arrays["image"], X)
    assert found.labels is not None
    assert found.labels.tolist() == list(range(6))
    assert (found.count, found.warnings) == (6, ())


def test_the_input_name_wins_over_x(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(saved(tmp_path, x=X * 2, image=X)).arrays["image"], X)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "x.npy", np.asarray(X, order=order))  # type: ignore[call-overload]
    np.testing.assert_array_equal(read(tmp_path / "x.npy").arrays["image"], X)


def test_compressed_float64_and_big_endian(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "s.npz", x=X.astype(">f8"))
    found = read(tmp_path / "s.npz").arrays["image"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


def test_one_sample_without_the_batch_axis(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(saved(tmp_path, x=X[0])).arrays["image"], X[:1])


def test_several_inputs_by_name(tmp_path: Path) -> None:
    a, b = normal(5, 4), normal(5, 4, seed=1)
    found = read_samples(saved(tmp_path, b=b, a=a), two_inputs())
    np.testing.assert_array_equal(found.arrays["a"], a)
    np.testing.assert_array_equal(found.arrays["b"], b)


def test_integers_into_a_float_input_are_warned_of(tmp_path: Path) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5)
    found = read(saved(tmp_path, x=pixels))
    np.testing.assert_array_equal(found.arrays["image"], pixels.astype(np.float32))
    (warning,) = found.warnings
    assert "array 'x' holds integers (uint8) but input 'image' is float" in warning
    assert "0 to 119" in warning


def test_preprocessing_subtracts_the_mean_first(tmp_path: Path) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5)
    found = read(saved(tmp_path, x=pixels), scale=(1 / 128,), mean=(127.0,))
    np.testing.assert_array_equal(found.arrays["image"], ((pixels.astype(float) - 127) / 128).astype(np.float32))
    assert found.warnings == ()


def test_preprocessing_by_channel(tmp_path: Path) -> None:
    found = read(saved(tmp_path, x=X), scale=(1, 2, 4), mean=(0.5, 0.25, 0)).arrays["image"]
    np.testing.assert_allclose(found[:, 1], (X[:, 1] - 0.25) * 2, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[:, 2], X[:, 2] * 4)


def test_scaling_pixels_is_dividing_them(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 256)
    found = read_samples(saved(tmp_path, x=pixels), network(1, 256), scale=(1 / 255,)).arrays["image"]
    np.testing.assert_array_equal(found, pixels.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("labels", [np.zeros(6), np.zeros((6, 2), int)])
def test_labels_that_are_no_class_numbers_are_ignored_with_a_warning(tmp_path: Path, labels: Array) -> None:
    found = read(saved(tmp_path, x=X, y=labels))
    assert found.labels is None
    assert "labels 'y' are ignored" in found.warnings[0]


# What is refused


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nothing\.npz: no such file"):
        read(tmp_path / "nothing.npz")


def test_a_folder_that_cannot_be_images(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="a folder of images feeds one input, but the model has 2: a, b"):
        read_samples(tmp_path, two_inputs())


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive"])
def test_a_file_that_is_neither(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="neither a .npz nor a .npy file"):
        read(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, x=X[:1]).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CalibrationError, match=r"cut\.npz"):
            read(path)


def test_a_truncated_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    path = tmp_path / "x.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CalibrationError, match="is truncated: 1435 of 1440 bytes"):
        read(path)


def test_a_damaged_member(tmp_path: Path) -> None:
    path = saved(tmp_path, x=X)
    data = bytearray(path.read_bytes())
    data[400] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CalibrationError, match=r"samples\.npz"):
        read(path)


def test_no_array_for_the_input(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no array 'image' or 'x' .*; the file has photos") as e:
        read(saved(tmp_path, photos=X))
    assert "numpy.savez(path, image=...)" in remedy(e)


def test_x_does_not_stand_for_one_of_several_inputs(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no array 'a' for the model's input"):
        read_samples(saved(tmp_path, x=normal(5, 4), b=normal(5, 4)), two_inputs())


def test_npy_for_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(CalibrationError, match="holds one array, but the model has 2 inputs: a, b"):
        read_samples(tmp_path / "x.npy", two_inputs())


def test_unequal_numbers_of_samples(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="different numbers of samples: 'a' 5, 'b' 4"):
        read_samples(saved(tmp_path, a=normal(5, 4), b=normal(4, 4)), two_inputs())


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="array 'x' has no samples"):
        read(saved(tmp_path, x=X[:0]))


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 60), (60,), (), (6, 3, 4, 5, 1)])
def test_a_wrong_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"array 'x' has shape .* but input 'image' needs \[N, 3, 4, 5\]"):
        read(saved(tmp_path, x=np.zeros(shape, np.float32)))


def test_channels_last_has_its_own_remedy(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="needs") as e:
        read(saved(tmp_path, x=X.transpose(0, 2, 3, 1)))
    assert "x.transpose(0, 3, 1, 2)" in remedy(e)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    x = X.copy()
    x[4, 1, 0, 0] = bad
    with pytest.raises(CalibrationError, match="array 'x': sample 4 has a value that is NaN or infinite"):
        read(saved(tmp_path, x=x))


def test_a_value_that_float32_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        read(saved(tmp_path, x=np.full((1, 3, 4, 5), 1e300)))


class Bomb:
    """Unpickling it is a fault that the test sees."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return pytest.fail, ("the file was unpickled",)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match="array 'x' holds Python objects, which are not read"):
        read(tmp_path / "s.npz")


@pytest.mark.parametrize("x", [np.zeros((1, 3, 4, 5), complex), np.full((1, 3, 4, 5), "a")])
def test_a_type_that_is_no_number(tmp_path: Path, x: Array) -> None:
    with pytest.raises(CalibrationError, match="array 'x' must hold numbers"):
        read(saved(tmp_path, x=x))


def _npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(1000000000000, 3, 4, 5)", "more than 64 GiB"),
        ("(-1, 3, 4, 5)", "has an impossible shape"),
        ("(10000, 3, 4, 5)", "is truncated: 0 of 2400000 bytes"),
        ("'x'", "has no valid header"),
    ],
)
def test_a_header_that_lies_allocates_nothing(tmp_path: Path, shape: str, message: str) -> None:
    path = tmp_path / "lie.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _npy_header(shape))
    with pytest.raises(CalibrationError, match=message):
        read(path)


def test_a_wrong_number_of_labels(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="4 labels 'y' for 6 samples"):
        read(saved(tmp_path, x=X, y=np.zeros(4, int)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (1, 2)}, r"--input-scale has 2 numbers, but .* has 3 channels"),
        ({"mean": (1, 2, 3, 4)}, r"--input-mean has 4 numbers, but .* has 3 channels"),
        ({"scale": (0.0,)}, "--input-scale must not be 0"),
        ({"mean": (np.nan,)}, "--input-mean must be finite"),
    ],
)
def test_wrong_preprocessing(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read(saved(tmp_path, x=X), **options)


def test_float_samples_for_an_integer_input(tmp_path: Path) -> None:
    loaded = network()
    loaded.graph.inputs[0].type = ir.TensorType(ir.DataType.INT64)
    with pytest.raises(CalibrationError, match="array 'x' holds float32, but input 'image' is int64"):
        read_samples(saved(tmp_path, x=X), loaded)


def test_a_model_with_an_open_dimension(tmp_path: Path) -> None:
    loaded = canonical([node("Relu", ["image"], ["out"])], {"image": [1, "size"]}, ["out"])
    with pytest.raises(CalibrationError, match="input 'image' has no static shape"):
        read_samples(saved(tmp_path, x=X), loaded)


# Samples that do not fit in memory


def _resident(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing fits in memory, chunks have two rows; the folder where large samples lie."""
    monkeypatch.setattr(calibration, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(sample_file, "CHUNK_BYTES", 2 * 60 * 8)
    cache = tmp_path / "cache"
    monkeypatch.setenv("EDGEC_CACHE", str(cache))
    return cache


def test_large_samples_lie_on_disk_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, x=X, y=np.arange(6))
    expected = read(path, scale=(1, 2, 4), mean=(0.5,))
    cache = _resident(monkeypatch, tmp_path)
    found = read(path, scale=(1, 2, 4), mean=(0.5,))
    assert isinstance(found.arrays["image"], np.memmap)
    assert list(cache.iterdir()) == []
    np.testing.assert_array_equal(found.arrays["image"], expected.arrays["image"])
    assert found.labels is not None
    assert expected.labels is not None
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_progress_is_told_by_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_file, "CHUNK_BYTES", 4 * 60 * 8)
    told: list[tuple[str, int, int]] = []
    read(saved(tmp_path, x=X), progress=lambda *step: told.append(step))
    assert told == [("read samples", 4, 6), ("read samples", 6, 6)]


def test_a_large_npy_is_mapped_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X)
    cache = _resident(monkeypatch, tmp_path)
    found = read(path).arrays["image"]
    assert isinstance(found, np.memmap)
    assert Path(str(found.filename)) == path
    assert not cache.exists()
    np.testing.assert_array_equal(found, X)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


@pytest.mark.parametrize("stored", [X.astype(np.float64), X.astype(">f4"), np.asfortranarray(X)])
def test_a_large_npy_of_another_form_is_converted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Array
) -> None:
    np.save(tmp_path / "x.npy", stored)
    _resident(monkeypatch, tmp_path)
    found = read(tmp_path / "x.npy").arrays["image"]
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(found, X)


def test_integers_are_told_with_their_range_over_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _resident(monkeypatch, tmp_path)
    pixels = np.roll(np.arange(240, dtype=np.uint8), 7).reshape(4, 3, 4, 5)
    (warning,) = read(saved(tmp_path, x=pixels)).warnings
    assert "0 to 239" in warning


def test_a_value_that_is_not_finite_is_named_by_its_sample_in_a_later_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _resident(monkeypatch, tmp_path)
    x = X.copy()
    x[5, 2, 3, 4] = np.inf
    with pytest.raises(CalibrationError, match="array 'x': sample 5 has a value"):
        read(saved(tmp_path, x=x))
    assert list(cache.iterdir()) == []


def test_a_disk_that_refuses_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _resident(monkeypatch, tmp_path)
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(CalibrationError, match="do not fit on the disk") as e:
        read(saved(tmp_path, x=X))
    assert "EDGEC_CACHE" in remedy(e)


def test_mapped_samples_run_as_arrays_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = saved(tmp_path, x=X), network()
    few = statistics.spread(read(path).arrays, 3)
    expected = [row["out"] for row in statistics.run(model, few, ["out"])]
    _resident(monkeypatch, tmp_path)
    mapped = statistics.spread(read(path).arrays, 3)
    np.testing.assert_array_equal([row["out"] for row in statistics.run(model, mapped, ["out"])], expected)


# Labels that a metric needs


def test_labelled_samples(tmp_path: Path) -> None:
    found = read_labelled(saved(tmp_path, x=X, y=np.arange(6, dtype=np.uint8)), network(), classes=6)
    assert found.labels is not None
    assert found.labels.tolist() == list(range(6))


@pytest.mark.parametrize("arrays", [{}, {"y": np.zeros(6)}])
def test_samples_without_usable_labels_are_refused_where_a_metric_needs_them(
    tmp_path: Path, arrays: dict[str, Array]
) -> None:
    with pytest.raises(CalibrationError, match=r"samples\.npz: .*labels 'y'") as e:
        read_labelled(saved(tmp_path, x=X, **arrays), network())
    assert "y=class_numbers" in remedy(e)
    assert "--eval" in remedy(e)


@pytest.mark.parametrize(("labels", "wrong"), [([0, 1, 2, 3, 4, -1], "-1"), ([0, 1, 2, 3, 9, 5], "9")])
def test_labels_must_be_classes_of_the_network(tmp_path: Path, labels: list[int], wrong: str) -> None:
    with pytest.raises(CalibrationError, match=f"labels 'y' must be class numbers from 0 to 5, not {wrong}"):
        read_labelled(saved(tmp_path, x=X, y=np.array(labels)), network(), classes=6)


# Synthetic samples


def test_synthetic_samples_are_stated_and_repeatable() -> None:
    first, second = synthetic_samples(network(), 3), synthetic_samples(network(), 3)
    np.testing.assert_array_equal(first.arrays["image"], second.arrays["image"])
    assert first.arrays["image"].shape == (16, 3, 4, 5)
    assert abs(float(first.arrays["image"].std()) - 1) < 0.1
    assert "synthetic" in first.warnings[0]
    assert "--calib" in first.warnings[0]
    assert not np.array_equal(first.arrays["image"], synthetic_samples(network(), 4).arrays["image"])
