"""The portable C decoder reads what Python wrote, and nothing beyond what it was given."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from passes.coding.lanes import LaneModel, decode_lanes, encode_lanes
from passes.coding.range_coder import CodingError
from passes.coding.symbols import Decoder, Encoder, decode_bytes, encode_bytes
from tests.passes.coding.test_coding_lanes import ARRAYS as LARGE
from tests.passes.coding.test_coding_lanes import KERNELS as LANE_KERNELS
from tests.passes.coding.test_symbols import ARRAYS

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "compiler" / "container" / "c"
KERNELS = st.sampled_from([(), (3,), (2, 2), (3, 3), (5, 4)])

Written = list[tuple[NDArray[np.int32], int, tuple[int, ...]]]
STREAMS: st.SearchStrategy[Written] = st.lists(st.tuples(ARRAYS, st.integers(0, 3), KERNELS), max_size=4)
EVERY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder and its main, built so that a fault ends it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    out = tmp_path_factory.mktemp("symbols") / "main"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-g"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [SOURCES / "edgec_symbols.c", Path(__file__).with_name("symbols_main.c")]
    subprocess.run([compiler, *flags, *checks, "-I", SOURCES, "-o", out, *sources], check=True)
    return out


def numbers(data: bytes) -> str:
    return " ".join(map(str, [len(data), *data]))


def arrays_request(data: bytes, written: Written) -> str:
    fields = [
        (*values.shape, model, math.prod(kernel), kernel[-1] if kernel else 1) for values, model, kernel in written
    ]
    return f"a {numbers(data)} {len(fields)} " + " ".join(str(number) for field in fields for number in field)


def lanes_request(data: bytes, shape: tuple[int, ...], kernel: tuple[int, ...]) -> str:
    return f"l {numbers(data)} {shape[0]} {shape[1]} {math.prod(kernel)} {kernel[-1] if kernel else 1}"


def answers(program: Path, *requests: str) -> list[list[str]]:
    ran = subprocess.run([program], input="\n".join(requests), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [line.split() for line in ran.stdout.splitlines()]


def stream(written: Written) -> bytes:
    encoder = Encoder()
    for values, model, kernel in written:
        encoder.write(values, model, kernel)
    return encoder.finish()


@EVERY
@given(STREAMS)
def test_c_reads_the_arrays_that_python_wrote(program: Path, written: Written) -> None:
    (answer,) = answers(program, arrays_request(stream(written), written))
    assert answer[-2:] == ["status", "0"]
    assert answer[:-2] == [str(value) for values, _, _ in written for value in values.ravel()]


@EVERY
@given(STREAMS, st.data())
def test_c_and_python_take_the_same_damage_the_same_way(program: Path, written: Written, draw: st.DataObject) -> None:
    data = bytearray(stream(written))
    for _ in range(draw.draw(st.integers(1, 3))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    expected = None
    try:
        decoder = Decoder(bytes(data))
        read = [decoder.read(*values.shape, model, kernel) for values, model, kernel in written]
        decoder.finish()
        expected = [str(value) for values in read for value in values.ravel()]
    except CodingError:
        pass
    (answer,) = answers(program, arrays_request(bytes(data), written))
    assert (answer[-1] == "0") == (expected is not None)
    if expected is not None:
        assert answer[:-2] == expected


@EVERY
@given(LARGE, LANE_KERNELS)
def test_c_reads_the_lanes_that_python_wrote(
    program: Path, values: NDArray[np.int32], kernel: tuple[int, ...]
) -> None:
    coded = encode_lanes(values, kernel, LaneModel())
    (answer,) = answers(program, lanes_request(coded, values.shape, kernel))
    assert answer == [*map(str, values.ravel()), str(len(coded)), "status", "0"]


@EVERY
@given(LARGE, LANE_KERNELS, st.data())
def test_c_and_python_take_damaged_lanes_the_same_way(
    program: Path, values: NDArray[np.int32], kernel: tuple[int, ...], draw: st.DataObject
) -> None:
    data = bytearray(encode_lanes(values, kernel, LaneModel()))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    (answer,) = answers(program, lanes_request(bytes(data), values.shape, kernel))
    try:
        found, taken = decode_lanes(bytes(data), *values.shape, kernel, LaneModel())
        assert answer == [*map(str, found.ravel()), str(taken), "status", "0"]
    except CodingError:
        assert answer[-1] != "0"


def test_c_reads_a_stream_of_large_and_small_arrays(program: Path) -> None:
    rng = np.random.default_rng(1)
    shapes = ((5, 7), (600, 601), (20, 20), (130, 1000), (64, 576), (3, 3))
    written: Written = [(rng.integers(-3, 4, shape).astype(np.int32), 1, (3, 3)) for shape in shapes]
    (answer,) = answers(program, arrays_request(stream(written), written))
    assert answer[:-2] == [str(value) for values, _, _ in written for value in values.ravel()]
    assert answer[-1] == "0"


@EVERY
@given(st.binary(max_size=300) | st.text("ab/_1290", max_size=300).map(str.encode))
def test_c_reads_the_strings_that_python_wrote(program: Path, data: bytes) -> None:
    coded = encode_bytes(data)
    (answer,) = answers(program, f"t {numbers(coded)} 0 {len(data)}")
    assert answer == [*map(str, data), "status", "0"]
    assert decode_bytes(coded, len(data)) == data
