"""Zoo rows: `edgec check` on third-party files of many exporters never ends in a traceback."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.artefacts import edgec
from benchmarks.figures import Figure, at_least
from benchmarks.networks import ZOO, shared

ROW = "zoo"
_EXPECTED = (0, 3, 5)


def figures() -> Iterator[Figure]:
    """1 where the check ends with a verdict, 0 where it ends in a fault of edgec."""
    for name in ZOO:
        ran = edgec("check", shared() / "zoo" / f"{name}.onnx", "--target", "fpga")
        clean = ran.code in _EXPECTED and "Traceback" not in ran.stderr + ran.stdout
        said = (ran.stdout if ran.code == 0 else ran.stderr).strip().splitlines()
        note = f"exit {ran.code}, {ran.seconds:.1f} s: {said[0] if said else ''}"[:120]
        yield Figure(ROW, f"check {name}", float(clean), "", at_least(1), at_least(1), note=note)
