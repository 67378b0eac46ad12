"""A folder of images as samples: decoded, fitted to the network's input, labelled by class sub-folders.

The images are not trusted: few formats are opened, and an image's size is checked before it is decoded.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.sample_file import Rows, failure, rows_at_once

PIXELS_MAX = 1 << 26
"""Of one image before it is fitted: 67 megapixels."""
IMAGES_MAX = 1 << 20
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
_MODES = {1: "L", 3: "RGB"}
_SHALLOW_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


class Image(Protocol):
    """What is used of Pillow's class: the package need not be there, not even for the type checker."""

    width: int
    height: int
    size: tuple[int, int]
    mode: str

    def resize(
        self, size: tuple[int, int], resample: object, box: tuple[float, float, float, float] | None = None
    ) -> Image:
        """Scaled to `size`, the part of it inside `box` alone."""

    def convert(self, mode: str) -> Image:
        """In other colours."""

    def __array__(self) -> NDArray[np.uint8]:
        """The pixels."""


class Order(StrEnum):
    """Of the colour channels of a network with three."""

    RGB = "rgb"
    BGR = "bgr"


class Fit(StrEnum):
    """How an image gets the size of the network's input, always by bilinear interpolation over the source's area.

    CROP: scaled until it covers the input, the middle is taken. STRETCH: each side scaled by itself, nothing is lost.
    """

    CROP = "crop"
    STRETCH = "stretch"


@dataclass(frozen=True)
class ImageOptions:
    """How images become samples, before --input-mean and --input-scale."""

    order: Order = Order.RGB
    fit: Fit = Fit.CROP


@dataclass(frozen=True)
class Layout:
    """Where a network's input [1, ...] has its channels and pixels.

    Attributes:
        height, width: In pixels.
        channels: 1 or 3.
        axis: Of the channels in the input: 1 for NCHW, 3 for NHWC.
    """

    height: int
    width: int
    channels: int
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        pixels = (self.height, self.width)
        return (self.channels, *pixels) if self.axis == 1 else (*pixels, self.channels)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images of a folder.

    Attributes:
        rows: uint8 [N, C, H, W] or [N, H, W, C], as the network has it.
        labels: Number of the class sub-folder of each image, int64 [N]; None where there are no sub-folders.
        classes: Names of the sub-folders; a label is an index into it.
        ignored: How many files are no images by their suffix.
    """

    rows: Rows
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    ignored: int


def layout_of(shape: Sequence[int], name: str) -> Layout:
    """The layout of an image input [1, C, H, W] or [1, H, W, C]: C is 1 or 3; where both fit it is the first.

    Raises:
        CalibrationError: Not the shape of an image.
    """
    if len(shape) == 4 and shape[1] in _MODES:
        return Layout(shape[2], shape[3], shape[1], 1)
    if len(shape) == 4 and shape[3] in _MODES:
        return Layout(shape[1], shape[2], shape[3], 3)
    raise failure(
        f"input '{name}' of shape {list(shape)} takes no images: they need [1, C, H, W] or [1, H, W, C], C 1 or 3",
        "give a .npz file with arrays of the network's own shape",
    )


def open_folder(path: Path, layout: Layout, options: ImageOptions) -> ImageFolder:
    """The images of `path`, in the order of their names; nothing is decoded before the rows are read.

    Images in sub-folders are labelled: the sub-folders in sorted order are classes 0, 1, ... One image of each class
    comes before a second one of any, so that the first samples show every class.

    Raises:
        CalibrationError: No images, images both beside and in sub-folders, or Pillow is missing.
    """
    _pillow(path)
    beside, ignored = _images_in(path)
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    inside = [(folder.name, *_images_in(folder)) for folder in folders]
    inside = [(name, files, others) for name, files, others in inside if files]
    ignored += sum(others for _, _, others in inside)
    if beside and inside:
        raise failure(
            f"{path}: images lie both in the folder and in its sub-folder '{inside[0][0]}'",
            "give one folder of images, or one sub-folder for each class",
        )
    if not beside and not inside:
        raise failure(f"{path}: a folder without images ({', '.join(SUFFIXES)})", "give a folder of images, or a .npz")
    if not inside:
        return ImageFolder(_rows(path, beside, layout, options), None, (), ignored)
    by_class = [[(file, label) for file in files] for label, (_, files, _) in enumerate(inside)]
    mixed = [pair for turn in itertools.zip_longest(*by_class) for pair in turn if pair is not None]
    rows = _rows(path, [file for file, _ in mixed], layout, options)
    labels = np.array([label for _, label in mixed], np.int64)
    return ImageFolder(rows, labels, tuple(name for name, _, _ in inside), ignored)


def _images_in(folder: Path) -> tuple[list[Path], int]:
    """Its images, sorted, and how many other files it has; hidden files do not count."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if len(images) > IMAGES_MAX:
        raise failure(f"{folder}: {len(images)} images; at most {IMAGES_MAX} are read", "give fewer images")
    return images, len(files) - len(images)


def _rows(path: Path, files: list[Path], layout: Layout, options: ImageOptions) -> Rows:
    def chunks() -> Iterator[NDArray[np.generic]]:
        step = rows_at_once(layout.shape)
        for start in range(0, len(files), step):
            yield np.stack([decode(file, layout, options) for file in files[start : start + step]])

    return Rows(path.name, (len(files), *layout.shape), np.dtype(np.uint8), chunks)


def decode(file: Path, layout: Layout, options: ImageOptions) -> NDArray[np.uint8]:
    """One image, uint8 [C, H, W] or [H, W, C]: turned upright as its EXIF data says, transparency dropped.

    Raises:
        CalibrationError: Not an image, damaged, too large, or of more than 8 bits a channel.
    """
    image_module = _pillow(file)
    try:
        # Pillow warns of sizes, which are checked here, and of odd metadata.
        with warnings.catch_warnings(action="ignore"), image_module.open(file, formats=_FORMATS) as image:
            _check(image, file)
            upright = import_module("PIL.ImageOps").exif_transpose(image)
            pixels = np.asarray(_fitted(upright.convert(_MODES[layout.channels]), layout, options.fit), np.uint8)
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        if isinstance(error, ValueError) and getattr(error, "__notes__", None):
            raise
        reason = str(error).replace(str(file), "it").strip() or type(error).__name__
        raise failure(f"{file}: cannot be read as an image: {reason}", "remove it, or save it again as PNG") from error
    pixels = pixels.reshape(layout.height, layout.width, layout.channels)
    if options.order is Order.BGR:
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if layout.axis == 1 else pixels)


def _check(image: Image, file: Path) -> None:
    width, height = image.size
    if width * height > PIXELS_MAX:
        raise failure(
            f"{file}: {width} x {height} pixels; at most {PIXELS_MAX >> 20} Mi are decoded", "save it smaller"
        )
    if image.mode not in _SHALLOW_MODES:
        raise failure(
            f"{file}: pixels of mode {image.mode!r} have more than 8 bits a channel",
            "save it with 8 bits a channel, or give arrays in a .npz file",
        )


def _fitted(image: Image, layout: Layout, fit: Fit) -> Image:
    """The image with the layout's height and width."""
    bilinear = import_module("PIL.Image").Resampling.BILINEAR
    size = (layout.width, layout.height)
    if fit is Fit.STRETCH:
        return image.resize(size, bilinear)
    scale = max(layout.width / image.width, layout.height / image.height)
    width, height = layout.width / scale, layout.height / scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(size, bilinear, box=(left, top, left + width, top + height))


def _pillow(path: Path) -> ModuleType:
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise failure(
            f"{path}: images need Pillow, which is not installed",
            "pip install 'edgec[images]', or give a .npz file with arrays",
        ) from None
