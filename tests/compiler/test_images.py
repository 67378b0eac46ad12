"""Folders of images as samples: what becomes of the pixels, the labels, and every way in which they can be wrong."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compiler import cli, images
from compiler.calibration import CalibrationError, Samples, read_labelled, read_samples
from compiler.images import Fit, ImageOptions, Layout, Order, decode
from tests.support.canonical import canonical
from tests.support.onnx_models import Array, node

pillow = pytest.importorskip("PIL.Image", reason="decoding needs edgec[images]")


def read(path: Path, *shape: int, **options: object) -> Samples:
    shape = shape or (1, 3, 4, 6)
    model = canonical([node("Relu", ["image"], ["out"])], {"image": list(shape)}, ["out"])
    return read_samples(path, model, **options)  # type: ignore[arg-type]


def pixels(height: int = 4, width: int = 6, seed: int = 0) -> Array:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, array: Array, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(array).save(path, **options)


def remedy(caught: pytest.ExceptionInfo[CalibrationError]) -> str:
    (note,) = caught.value.__notes__
    return note


# Pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "PNG"])
def test_images_of_the_inputs_size_are_taken_as_they_are(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"b.{suffix}", pixels(seed=1))
    save(tmp_path / f"a.{suffix}", pixels(seed=0))
    found = read(tmp_path)
    expected = np.stack([pixels(seed=0), pixels(seed=1)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found.arrays["image"], expected.astype(np.float32))
    assert found.labels is None
    (warning,) = found.warnings
    assert "the images hold integers (uint8)" in warning


def test_channels_last_by_the_inputs_shape(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    found = read(tmp_path, 1, 4, 6, 3, scale=(1, 2, 4), mean=(10, 20, 30)).arrays["image"]
    np.testing.assert_array_equal(found[0], (pixels().astype(np.float32) - [10, 20, 30]) * [1, 2, 4])


def test_scale_and_mean_by_channel(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    found = read(tmp_path, scale=(1 / 255,), mean=(1, 2, 3))
    expected = ((pixels().transpose(2, 0, 1) - np.array([1.0, 2, 3]).reshape(3, 1, 1)) / 255).astype(np.float32)
    np.testing.assert_allclose(found.arrays["image"][0], expected, rtol=1e-6, atol=0)
    assert found.warnings == ()


def test_bgr_is_the_mirror_of_rgb(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    rgb = read(tmp_path).arrays["image"]
    bgr = read(tmp_path, image_options=ImageOptions(order=Order.BGR)).arrays["image"]
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])
    assert not np.array_equal(bgr, rgb)


def test_one_channel_is_grey(tmp_path: Path) -> None:
    grey = np.repeat(pixels()[:, :, :1], 3, axis=2)
    save(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(read(tmp_path, 1, 1, 4, 6).arrays["image"][0, 0], grey[:, :, 0])


def test_crop_takes_the_middle_and_stretch_everything(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 3:9] = 200
    save(tmp_path / "a.png", wide)
    crop = read(tmp_path).arrays["image"]
    stretch = read(tmp_path, image_options=ImageOptions(fit=Fit.STRETCH)).arrays["image"]
    np.testing.assert_array_equal(crop, np.full((1, 3, 4, 6), 200))
    assert stretch.min() < 10
    assert stretch.max() == 200


def test_smaller_images_are_enlarged_until_they_cover_the_input(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((2, 2, 3), 77, np.uint8))
    np.testing.assert_array_equal(read(tmp_path).arrays["image"], np.full((1, 3, 4, 6), 77))


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    turned = np.rot90(pixels(), 1)
    save(tmp_path / "a.png", turned, exif=exif)
    np.testing.assert_array_equal(read(tmp_path).arrays["image"][0], pixels().transpose(2, 0, 1))


def test_jpeg_is_close_to_its_source(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 6).astype(np.uint8)[None, :, None], (4, 6, 3))
    save(tmp_path / "a.jpg", np.ascontiguousarray(smooth), quality=95)
    np.testing.assert_allclose(read(tmp_path).arrays["image"][0], smooth.transpose(2, 0, 1), atol=8)


# Labels


def test_sub_folders_are_classes_in_sorted_order_and_take_turns(tmp_path: Path) -> None:
    for name, count in {"dog": 1, "ant": 3, "cat": 2, ".hidden": 1, "empty": 0}.items():
        (tmp_path / name).mkdir()
        for index in range(count):
            save(tmp_path / name / f"{index}.png", np.full((4, 6, 3), 10 * ord(name[0]) % 251 + index, np.uint8))
    found = read(tmp_path, scale=(1,))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 0]
    first = {0: 10 * ord("a") % 251, 1: 10 * ord("c") % 251, 2: 10 * ord("d") % 251}
    expected = [first[label] + turn for label, turn in zip([0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 1, 2], strict=True)]
    np.testing.assert_array_equal(found.arrays["image"][:, 0, 0, 0], expected)
    (warning,) = found.warnings
    assert "0 'ant', 1 'cat', 2 'dog'" in warning


def test_other_files_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    (tmp_path / "notes.txt").write_text("not an image")
    assert "1 files are no images" in read(tmp_path, scale=(1,)).warnings[0]


def test_unlabelled_images_where_a_metric_needs_labels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    model = canonical([node("Relu", ["image"], ["out"])], {"image": [1, 3, 4, 6]}, ["out"])
    with pytest.raises(CalibrationError, match="the samples have no labels") as e:
        read_labelled(tmp_path, model)
    assert "sub-folder" in remedy(e)


# What is refused


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(CalibrationError, match="a folder without images"):
        read(tmp_path)


def test_images_beside_and_in_sub_folders(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    save(tmp_path / "cat" / "b.png", pixels())
    with pytest.raises(CalibrationError, match="both in the folder and in its sub-folder 'cat'"):
        read(tmp_path)


@pytest.mark.parametrize("shape", [(1, 640), (1, 2, 4, 6), (1, 3, 4)])
def test_a_network_that_takes_no_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save(tmp_path / "a.png", pixels())
    with pytest.raises(CalibrationError, match="input 'image' of shape .* takes no images") as e:
        read(tmp_path, *shape)
    assert ".npz" in remedy(e)


def _png(width: int, height: int) -> bytes:
    """The header of an image and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("size", [(8193, 8192), (10000, 10000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(_png(*size) + bytes(64))
    with pytest.raises(CalibrationError, match=r"bomb\.png: (\d+ x \d+ pixels; at most|cannot be read)"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", _png(4, 6)])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"bad\.png: cannot be read as an image") as e:
        read(tmp_path)
    assert "remedy: " in remedy(e)


def test_every_truncation_of_a_photo_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save(path, pixels(40, 60))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 16, 331):
        path.write_bytes(whole[:length])
        with pytest.raises(CalibrationError, match=r"a\.png"):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "webp", "ppm"])
def test_damaged_images_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6
    save(tmp_path / f"whole.{kind}", pixels(20, 24), **({"exif": exif} if kind in ("png", "jpeg", "webp") else {}))
    whole = np.frombuffer((tmp_path / f"whole.{kind}").read_bytes(), np.uint8)
    rng, refused = np.random.default_rng(0), []
    path, layout = tmp_path / f"bad.{kind}", Layout(4, 6, 3, 1)
    for turn in range(300):
        data = whole.copy()
        places = rng.integers(0, min(len(data), (64, 200, len(data))[turn % 3]), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data[: len(data) if turn % 5 else rng.integers(0, len(data))].tobytes())
        try:
            assert decode(path, layout, ImageOptions()).shape == (3, 4, 6)
        except CalibrationError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(str(path) in message for message in refused)


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    pillow.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match="more than 8 bits a channel"):
        read(tmp_path)


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    save(tmp_path / "a.png", pixels())
    monkeypatch.setattr(images, "import_module", missing)
    with pytest.raises(CalibrationError, match="images need Pillow, which is not installed") as e:
        read(tmp_path)
    assert "pip install 'edgec[images]'" in remedy(e)


# The command line

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(*arguments: str | Path) -> Result:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(cli.cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def test_digits_as_photos_are_as_good_as_digits_as_numbers(tmp_path: Path) -> None:
    for name in ("calib", "test"):
        with np.load(EXAMPLES / f"digits_{name}.npz") as file:
            digits = (16 * file["x"]).astype(np.uint8)
            np.testing.assert_array_equal(digits / np.float32(16), file["x"])
            for index, (digit, label) in enumerate(zip(digits, file["y"], strict=True)):
                save(tmp_path / name / str(label) / f"{index:04}.png", digit[0])
    rows = {}
    for kind, calib, test, scale in (
        ("numbers", EXAMPLES / "digits_calib.npz", EXAMPLES / "digits_test.npz", "1"),
        ("photos", tmp_path / "calib", tmp_path / "test", "1/16"),
    ):
        out = tmp_path / f"out-{kind}"
        options = ("--target", "reference", "--image-fit", "stretch", "--input-scale", scale, "-o", out)
        run("compile", EXAMPLES / "digits_cnn.onnx", "--calib", calib, *options)
        rows[kind] = json.loads(run("eval", out, "--data", test, "--json").stdout)["rows"]
    accuracy = {
        kind: {row["stage"]: row["value"] for row in found if "accuracy" in row["metric"]}
        for kind, found in rows.items()
    }
    assert accuracy["photos"]["float"] == pytest.approx(accuracy["numbers"]["float"])
    assert set(accuracy["photos"]) == {"float", "quantized", "reference"}
    manifest = json.loads((tmp_path / "out-photos" / "manifest.json").read_text())
    assert manifest["preprocessing"]["images"] == {"fit": "stretch", "order": "rgb"}
