"""The decoder in C gives what the one in Python gives, and nothing that it is fed makes it read or write too far."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto

from compiler.container import ContainerError, file, pack, unpack
from compiler.container.primer import PRIMER
from tests.support.containers import float_file, long_file, mutated_skeletons, quantized_file, sealed, some_containers
from tests.support.containers import tensors as tensors_strategy
from tests.support.onnx_models import node

C = Path("compiler/container/c")
FLAGS = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
LIMIT = 1 << 20


def built(folder: Path, *sources: Path) -> Path:
    """A program with the decoder in it, under the sanitizers."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) is installed")
    program = folder / "program"
    files = [*sources, C / "edgec_decode.c", C / "edgec_symbols.c"]
    command = [compiler, *FLAGS, *SANITIZERS, f"-I{C}", *map(str, files), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("decoder"), C / "edgec_main.c")


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("fuzzer"), Path("tests/compiler/container/fuzz.c"))


def run(decoder: Path, data: bytes, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "c.edgec").write_bytes(data)
    command = [str(decoder), str(folder / "c.edgec"), str(folder / "c.onnx"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def decoded(decoder: Path, data: bytes, folder: Path) -> bytes:
    result = run(decoder, data, folder)
    assert (result.returncode, result.stderr) == (0, "")
    return (folder / "c.onnx").read_bytes()


def codebook_file() -> bytes:
    """Packed 4-bit indices into a codebook, as a layer stores them."""
    rng = np.random.default_rng(5)
    proto = onnx.ModelProto.FromString(quantized_file())
    indices = onnx.helper.make_tensor("i", TensorProto.UINT4, [64, 3, 3, 3], rng.integers(0, 16, 1728).tolist())
    packed = TensorProto(name="i", dims=indices.dims, data_type=TensorProto.UINT4, raw_data=bytes(indices.int32_data))
    book = onnx.numpy_helper.from_array(np.sort(rng.integers(-127, 128, 16)).astype(np.int8), "book")
    proto.graph.initializer.extend([packed, book])
    proto.graph.node.insert(0, node("Cast", ["i"], ["wide"], to=TensorProto.INT32))
    proto.graph.node.insert(1, node("Gather", ["book", "wide"], ["codes"]))
    return proto.SerializeToString()


def fine_file() -> bytes:
    return quantized_file(multipliers=2 * np.random.default_rng(1).integers(2**14, 2**15, 64) + 1)


def odd_file() -> bytes:
    """With a length that is no shortest varint: it is kept whole."""
    body = onnx.GraphProto(name="g").SerializeToString()
    return b"\x08\x0a\x3a" + bytes((len(body) | 0x80, 0)) + body


FILES = [quantized_file, fine_file, float_file, codebook_file, odd_file]


@pytest.mark.parametrize("make", FILES)
def test_a_file_comes_back(decoder: Path, make: object, tmp_path: Path) -> None:
    data = make()  # type: ignore[operator]
    packed = pack(data)
    assert unpack(packed) == data
    assert decoded(decoder, packed, tmp_path) == data


def test_a_long_graph_comes_back(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "TEXT_BYTES_MAX", 1000)
    packed = pack(long_file())
    assert packed[len(file.MAGIC) + 1] == file.LONG
    assert decoded(decoder, packed, tmp_path) == long_file()


def test_a_large_layer_comes_back(decoder: Path, tmp_path: Path) -> None:
    """So many codes are coded in lanes; the float weights beside them are half planes, half raw bytes."""
    rng = np.random.default_rng(9)
    codes = np.rint(rng.normal(0, 3, (400, 900))).astype(np.int8)
    floats = rng.normal(0, 0.1, (40, 9)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (("w", codes), ("f", floats))]
    data = onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(name="g", initializer=tensors)).SerializeToString()
    packed = pack(data)
    assert len(packed) < 0.5 * len(data)
    assert decoded(decoder, packed, tmp_path) == data


@given(tensors_strategy(), tensors_strategy())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tensors_come_back(decoder: Path, tmp_path: Path, one: TensorProto, two: TensorProto) -> None:
    data = onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(name="g", initializer=[one, two])).SerializeToString()
    assert decoded(decoder, pack(data), tmp_path) == data


@pytest.mark.parametrize("exponent", [0, 3, 7, 12])
@pytest.mark.parametrize("seed", range(3))
def test_derived_scales_and_biases_are_the_same_bits(decoder: Path, tmp_path: Path, exponent: int, seed: int) -> None:
    data = quantized_file(exponent=exponent, seed=seed, channels=200)
    assert decoded(decoder, pack(data), tmp_path) == data


def test_the_primers_are_the_same() -> None:
    text = (C / "edgec_primer.h").read_text(encoding="utf-8")
    body = text[text.index("{") + 1 : text.index("}")]
    assert bytes(int(number, 16) for number in body.replace(",", " ").split()) == PRIMER


def test_refusals_have_their_reasons(decoder: Path, tmp_path: Path) -> None:
    packed = pack(quantized_file())
    for data, more, reason in (
        (packed[:-5], (), "not an intact edgec container"),
        (b"", (), "not an intact edgec container"),
        (packed[:4] + b"\x09" + packed[5:], (), "the container is of another version"),
        (packed, ("1000",), "the ONNX file would be larger than the limit"),
    ):
        result = run(decoder, data, tmp_path, *more)
        assert (result.returncode, result.stderr) == (1, f"error: {tmp_path / 'c.edgec'}: {reason}\n")
        assert not (tmp_path / "c.onnx").exists()


def test_wrong_usage_has_its_own_exit_code(decoder: Path, tmp_path: Path) -> None:
    assert subprocess.run([decoder], capture_output=True, check=False).returncode == 2
    command = [decoder, tmp_path / "no.edgec", tmp_path / "c.onnx"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


def test_mutated_skeletons_are_refused_by_both(decoder: Path, tmp_path: Path) -> None:
    """Graphs that are damaged before they are coded: names, sizes and types that contradict the coded part."""
    verdicts = set()
    for data in mutated_skeletons(40):
        try:
            expected: bytes | None = unpack(data, limit=LIMIT)
        except ContainerError:
            expected = None
        result = run(decoder, data, tmp_path, str(LIMIT))
        assert result.returncode == (0 if expected is not None else 1), result.stderr
        assert expected is None or (tmp_path / "c.onnx").read_bytes() == expected
        verdicts.add(expected is None)
    assert verdicts == {True, False}


def fuzz(fuzzer: Path, folder: Path, seed: int, rounds: int) -> None:
    seeds = [*some_containers(), *mutated_skeletons(12)]
    paths = [folder / f"{number}.edgec" for number in range(len(seeds))]
    for path, data in zip(paths, seeds, strict=True):
        path.write_bytes(sealed(data))
    result = subprocess.run([fuzzer, str(seed), str(rounds), str(LIMIT), *paths], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert int(result.stdout.split()[0]) < rounds // 10


def test_500_mutated_containers_do_no_harm(fuzzer: Path, tmp_path: Path) -> None:
    fuzz(fuzzer, tmp_path, 1, 500)


@pytest.mark.nightly
def test_10000_mutated_containers_do_no_harm(fuzzer: Path, tmp_path: Path) -> None:
    fuzz(fuzzer, tmp_path, 2, 10000)
