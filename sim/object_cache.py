"""A compiler launcher that keeps the objects of Verilator's own run-time library.

These files do not change from one model to the next and take most of the time of a small build. Used by the
makefiles as `object_cache.py <compiler> <arguments>`; anything else is passed on to the compiler.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(command: list[str]) -> int:
    """Run `command`, or copy the object that it made the last time."""
    source, target = _source(command), _target(command)
    folder = os.environ.get("EDGEC_OBJECT_CACHE")
    if not folder or not source or not target:
        return subprocess.call(command)
    kept = Path(folder) / f"{_key(command, source)}.o"
    if kept.exists():
        shutil.copyfile(kept, target)
        return 0
    if code := subprocess.call(command):
        return code
    _keep(target, kept)
    return 0


def _source(command: list[str]) -> Path | None:
    """The one source file, if it belongs to Verilator's library."""
    sources = [Path(word) for word in command if word.endswith(".cpp")]
    library = len(sources) == 1 and sources[0].parent.name == "include" and sources[0].name.startswith("verilated")
    return sources[0] if library and "-c" in command else None


def _target(command: list[str]) -> Path | None:
    return Path(command[command.index("-o") + 1]) if "-o" in command[:-1] else None


def _key(command: list[str], source: Path) -> str:
    """Compiler, options and sources; the model's own folder has no part in the library."""
    parts = [" ".join(word for word in command if word != "-MMD")]
    compiler = shutil.which(command[0])
    parts.append(str(Path(compiler).stat().st_size) if compiler else "")
    parts += [file.read_text(encoding="utf-8") for file in sorted(source.parent.glob("verilated*"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _keep(made: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(made.read_bytes())
    Path(file.name).rename(kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
