"""The artefact folder: written beside its place and renamed into it, with a manifest that names every file."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from compiler.images import Fit, ImageOptions, Order

KIND = "edgec-artefact"
SCHEMA = 1
MANIFEST = "manifest.json"

MODEL = "model.onnx"
"""The whole network with Q/DQ pairs."""
PACKED = "model.edgec"
"""The same file, entropy coded."""
FLOAT = "float.onnx"
"""The whole network before quantization, in canonical form; what eval compares with."""
HEAD, TAIL = "head.onnx", "tail.onnx"
"""What the host runs before the first and after the last entry into the accelerator; see host_file."""
SEGMENTS = "segments.json"
"""What host and accelerator do in turn, for who writes a host program."""
RTL = "rtl/accelerator.v"
PROGRAM = "program"
CPU = "cpu"
"""Folder of a CPU target: sources, objects and the library."""
SAMPLES = "samples.npz"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"

COMPRESSED = "compressed"
"""Target of what `edgec compress` wrote: a network without hardware."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class ArtefactError(ValueError):
    """A folder that cannot be written as an artefact, or read as one."""


@dataclass(frozen=True)
class FileEntry:
    """One file of an artefact: its size and sha256 (hexadecimal)."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every sample before it enters the network: x = (sample - mean) * scale.

    Attributes:
        scale: One factor, or one for each channel; empty is 1.
        mean: Likewise; empty is 0.
        images: How images become samples before that.
    """

    scale: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    images: ImageOptions = ImageOptions()


@dataclass(frozen=True)
class Manifest:
    """What an artefact is made of and made by.

    Attributes:
        network: Name of the model.
        target: That it was compiled for.
        edgec: Version that wrote it.
        preprocessing: Applied by simulate and eval as it was in calibration.
        input_ranges: Smallest and largest value of each network input in calibration, after preprocessing.
        options: Of the compile, as text, for the reader.
        tools: Name to version.
        files: Path inside the folder (with `/`) to size and hash; the manifest itself is left out.
    """

    network: str
    target: str
    edgec: str
    preprocessing: Preprocessing = Preprocessing()
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)


def cpu_bundles(folder: Path, count: int) -> list[Path]:
    """The folders of the libraries of so many entries."""
    return [folder / CPU] if count == 1 else [folder / CPU / f"entry{index}" for index in range(count)]


def host_file(turn: int, entries: int) -> str:
    """Name of the model that the host runs when the accelerator has run `turn` times of `entries`."""
    return HEAD if not turn else TAIL if turn == entries else f"middle{turn}.onnx"


def check_destination(destination: Path) -> None:
    """Refuse a destination before any work is done on it.

    Raises:
        ArtefactError: It is a file, a folder with foreign files, or not writable.
    """
    place = destination.resolve()
    if place.exists():
        if not place.is_dir():
            raise _refusal(f"{destination} is a file, not a folder")
        if any(place.iterdir()):
            _check_is_ours(destination)
    ancestor = _nearest_folder(place.parent)
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise _refusal(f"{destination} cannot be written: no permission in {ancestor}")


@contextmanager
def writing(destination: Path) -> Iterator[Path]:
    """A new folder that takes the place of `destination` when the block ends well, and vanishes otherwise.

    Raises:
        ArtefactError: As check_destination, or the disk refuses.
    """
    check_destination(destination)
    place = destination.resolve()
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=_nearest_folder(place.parent)))
    except OSError as error:
        raise _refusal(f"{destination} cannot be written: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        _move_into_place(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with every file that is in `folder`; the finished manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {p.relative_to(folder).as_posix(): _entry(p) for p in paths}
    sealed = Manifest(**{**_shallow(manifest), "files": files})
    document = {"kind": KIND, "schema": SCHEMA, **asdict(sealed)}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sealed


def load(folder: Path) -> Manifest:
    """Read the manifest of an artefact.

    Raises:
        ArtefactError: `folder` is not an artefact, or one of another schema.
    """
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        error = ArtefactError(f"{folder} is not an edgec artefact: it has no {MANIFEST}")
        error.add_note("remedy: name a folder that `edgec compile -o` wrote")
        raise error
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind, schema = document["kind"], document["schema"]
        if kind != KIND:
            raise ArtefactError(f"{path} is not an edgec manifest")
        if schema != SCHEMA:
            raise damaged(f"{path}: schema must be {SCHEMA}, not {schema}")
        return _parse(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise damaged(f"{path} is damaged: {type(error).__name__}: {error}") from error


def altered_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing, or not as compile wrote them."""
    return [
        name
        for name, entry in manifest.files.items()
        if not (folder / name).is_file() or _entry(folder / name) != entry
    ]


def _parse(document: dict[str, object]) -> Manifest:
    ranges = _mapping(document["input_ranges"])
    files = {name: FileEntry(**_mapping(entry)) for name, entry in _mapping(document["files"]).items()}
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtefactError(f"{MANIFEST}: file {name!r} is outside the artefact")
    return Manifest(
        network=str(document["network"]),
        target=str(document["target"]),
        edgec=str(document["edgec"]),
        preprocessing=_preprocessing(_mapping(document["preprocessing"])),
        input_ranges={name: (float(low), float(high)) for name, (low, high) in ranges.items()},
        options=_mapping(document["options"]),
        tools=_mapping(document["tools"]),
        files=files,
    )


def _preprocessing(facts: dict) -> Preprocessing:
    images = {**asdict(ImageOptions()), **_mapping(facts.get("images", {}))}
    return Preprocessing(
        scale=tuple(map(float, facts["scale"])),
        mean=tuple(map(float, facts["mean"])),
        images=ImageOptions(Order(images["order"]), Fit(images["fit"])),
    )


def _mapping(value: object) -> dict:
    if not isinstance(value, dict):
        raise ArtefactError(f"{MANIFEST}: expected an object, not {value!r}")
    return value


def _shallow(manifest: Manifest) -> dict:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


def _check_is_ours(destination: Path) -> None:
    """An artefact may be replaced, but nothing that a person put into it may be lost."""
    try:
        manifest = load(destination)
    except ArtefactError as error:
        raise _refusal(f"{destination} is not empty and not an edgec artefact") from error
    known = {*manifest.files, MANIFEST}
    present = {p.relative_to(destination).as_posix() for p in destination.rglob("*") if not p.is_dir()}
    if foreign := sorted(present - known):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise _refusal(f"{destination} has files that edgec did not write: {', '.join(foreign[:3])}{more}")


def _refusal(message: str) -> ArtefactError:
    error = ArtefactError(message)
    error.add_note("remedy: name another folder with -o, or make room there yourself")
    return error


def damaged(message: str) -> ArtefactError:
    """The error for an artefact that only a new compile can mend."""
    error = ArtefactError(message)
    error.add_note("remedy: compile again with this version of edgec")
    return error


def _nearest_folder(path: Path) -> Path:
    """The closest ancestor that exists; the rest is made when the artefact is complete."""
    while not path.is_dir():
        if path.exists():
            raise _refusal(f"{path} is a file, not a folder")
        path = path.parent
    return path


def _move_into_place(folder: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists() or not any(place.iterdir()):
        os.replace(folder, place)  # one system call: renames over nothing, or over an empty folder
    elif not _exchange(folder, place):
        _swap_by_two_renames(folder, place)


def _exchange(folder: Path, place: Path) -> bool:
    """Swap two folders in one system call (Linux); whether that worked. `folder` then holds the old artefact."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE) == 0


def _swap_by_two_renames(folder: Path, place: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    os.replace(place, old)
    try:
        os.replace(folder, place)
    except OSError:
        os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())
