"""The same input, options and seed give the same bytes, whatever the number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from compiler.one_thread import blas_on_one_thread
from tests.support.canonical import normal
from tests.support.edgec import edgec
from tests.support.onnx_models import model, node, save
from tests.support.shared import shared

FILES = ("model.onnx", "model.edgec")


def compressed(path: Path, samples: Path, folder: Path, *options: str, blas: int, threads: int) -> list[bytes]:
    """The files that `edgec compress` writes in a process of its own."""
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(blas))
    out = folder / f"{blas}-{threads}"
    arguments = ("--calib", samples, "-o", out, "--threads", str(threads), *options)
    ran = edgec("compress", path, *arguments, environment=environment)
    assert ran.code == 0, ran.stderr
    return [(out / name).read_bytes() for name in FILES]


def assert_same_whatever_the_threads(path: Path, samples: Path, folder: Path, *options: str) -> None:
    first = compressed(path, samples, folder, *options, blas=1, threads=1)
    for blas, threads in ((1, 2), (2, 2)):
        again = compressed(path, samples, folder, *options, blas=blas, threads=threads)
        assert again == first, f"{blas} BLAS threads, --threads {threads}"


def small(folder: Path) -> tuple[Path, Path]:
    """A network with a layer whose matrices are large enough to be cut among BLAS threads, and samples."""
    nodes = [
        node("Conv", ["x", "w"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "v"], ["c2"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "u"], ["z"], transB=1),
        node("Softmax", ["z"], ["y"]),
    ]
    weights = {"w": normal(32, 3, 3, 3) / 4, "v": normal(24, 32, 3, 3, seed=1) / 8, "u": normal(5, 24, seed=2)}
    samples = folder / "samples.npz"
    np.savez(samples, x=normal(40, 3, 10, 10, seed=3))
    return save(model(nodes, {"x": [1, 3, 10, 10]}, ["y"], weights), folder), samples


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--weights", "4"), ("--max-drop", "0.05")], ids=" ".join)
def test_a_small_network_has_the_same_bytes(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert_same_whatever_the_threads(*small(tmp_path), tmp_path, *options)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--weights", "4"), ("--max-drop", "0.1")], ids=" ".join)
def test_resnet8_has_the_same_bytes(tmp_path: Path, options: tuple[str, ...]) -> None:
    with np.load(shared("data/cifar10_train_8068.npz")) as data:
        np.savez(tmp_path / "samples.npz", x=data["x"][:48].astype(np.float32))
    path = shared("models/mlperf_tiny_resnet8.onnx")
    assert_same_whatever_the_threads(path, tmp_path / "samples.npz", tmp_path, *options)


def blas_threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


def test_the_blas_is_limited_inside_and_not_after() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with blas_on_one_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_the_limit_holds_on_every_call_of_a_function() -> None:
    @blas_on_one_thread()
    def limited() -> set[int]:
        return blas_threads()

    assert [limited(), limited()] == [{1}, {1}]


def test_products_of_a_limited_blas_have_the_same_bits() -> None:
    """What is guarded against: with two threads the sums of these are cut elsewhere."""
    values = np.random.default_rng(0).normal(size=(576, 64))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"), blas_on_one_thread():
            found.append(np.linalg.cholesky(values @ values.T + 576 * np.eye(576)))
    np.testing.assert_array_equal(found[0], found[1])
