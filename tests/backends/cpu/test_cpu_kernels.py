"""Generated kernels against the reference: every layer kind, every kind of processor, no difference anywhere."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.cpu import backend, codegen, emulation, machine, packing, shared, static
from backends.cpu.machine import Machine
from backends.cpu.plan import make_plan
from backends.fixed_point import Constant, requantize
from backends.layers import AveragePool, Conv, LayerGraph, PoolRegion, Tensor
from backends.reference import interpreter
from tests.support.bundles import differences
from tests.support.random_layers import KINDS, random_graph, random_inputs

pytestmark = [pytest.mark.tvm, pytest.mark.slow]

GRAPHS, LAYERS = 14, 6


def test_the_pinned_pair_of_tvm_packages_can_save_json() -> None:
    """Another tvm_ffi crashes here; see pyproject.toml."""
    import tvm

    assert tvm.ir.save_json(tvm.tirx.IntImm("int32", 7))


def test_random_graphs_meet_every_kind_of_layer() -> None:
    met = {type(layer).__name__ for seed in range(GRAPHS) for layer in random_graph(seed, LAYERS).layers}
    assert met == {"Conv", "MaxPool", "AveragePool", "Table", "Add", "Mul", "PRelu", "Concat", "Resize", "Pad"}
    assert len(KINDS) == 14


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_this_processor_computes_the_reference(seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed, LAYERS)
    assert differences(graph, random_inputs(graph, seed, 2), backend.machine(None), tmp_path) == []


@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
@pytest.mark.parametrize("seed", [100, 101])
def test_older_processors_compute_the_reference(cpu: str, seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed, LAYERS)
    assert differences(graph, random_inputs(graph, seed, 2), backend.machine(cpu), tmp_path) == []


@pytest.mark.skipif("avx512_vnni" not in Path("/proc/cpuinfo").read_text(), reason="the processor has no VNNI")
def test_vnni_of_half_the_width_computes_the_reference(tmp_path: Path) -> None:
    """The kernels of processors with AVX-VNNI alone, run by their AVX512 encoding."""
    graph = random_graph(102, LAYERS)
    half = replace(backend.machine("znver4"), lanes=8, registers=16)
    assert differences(graph, random_inputs(graph, 102, 2), half, tmp_path) == []


@pytest.mark.parametrize("cpu", [None, "haswell"])
def test_sums_of_extremes_do_not_saturate(cpu: str | None, tmp_path: Path) -> None:
    """Where instructions that saturate in pairs would be wrong: all operands at the ends of their range."""
    x, y = Tensor("x", (64, 3, 3), 1.0, 0), Tensor("y", (32, 3, 3), 1.0, 0)
    weights = np.where(np.arange(32)[:, None, None, None] % 2, 127, -127) * np.ones((32, 64, 3, 3), np.int64)
    scale = requantize(np.full(32, 100 / (127 * 128 * 576)), Constant(np.zeros(32, np.int64), np.zeros(32)))
    graph = LayerGraph(
        "extremes", (x,), (y,), (Conv("y", x, y, weights.astype(np.int8), scale, pads=(1, 1, 1, 1)),)
    )
    inputs = {"x": np.stack([np.full(x.shape, value, np.int8) for value in (-128, 127)])}
    assert differences(graph, inputs, backend.machine(cpu), tmp_path) == []


def block_sparse(on: Machine) -> LayerGraph:
    """A convolution of 20 channels with three quarters of its blocks 0, and a whole vector of channels, too."""
    x, y = Tensor("x", (24, 7, 9), 1.0, 5), Tensor("y", (20, 7, 9), 1.0, -3)
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (20, 24, 3, 3)).astype(np.int8)
    for o in range(0, 20, on.lanes):
        for c, ky, kx in np.ndindex(24 // on.dot.group, 3, 3):
            if rng.random() < 0.75 or o >= 16:
                weights[o : o + on.lanes, c * on.dot.group : (c + 1) * on.dot.group, ky, kx] = 0
    constant = Constant(-5 * weights.astype(np.int64).sum(axis=(1, 2, 3)), np.full(20, 0.25))
    scale = requantize(np.full(20, 2e-4), constant)
    return LayerGraph("sparse", (x,), (y,), (Conv("y", x, y, weights, scale, pads=(1, 1, 1, 1)),))


@pytest.mark.parametrize("cpu", [None, "haswell", "x86-64"])
def test_blocks_of_zeros_are_neither_stored_nor_executed(cpu: str | None, tmp_path: Path) -> None:
    on = backend.machine(cpu)
    graph = block_sparse(on)
    plan = make_plan(graph, on)
    dense = packing.dense(on, graph.layers[0].weights.transpose(0, 2, 3, 1).reshape(20, 3, -1))  # type: ignore[union-attr]
    assert plan.weight_bytes < 0.4 * dense.nbytes
    assert differences(graph, random_inputs(graph, 0, 3), on, tmp_path) == []


@pytest.mark.parametrize("cpu", [None, "haswell"])
def test_ties_are_rounded_to_even(cpu: str | None, tmp_path: Path) -> None:
    x, y = Tensor("x", (5, 8, 8), 1.0, 0), Tensor("y", (5, 4, 4), 1.0, 0)
    pool = AveragePool("y", x, y, (2, 2), (PoolRegion(0, 0, 4, 4, 1, 2, 0),), strides=(2, 2))
    graph = LayerGraph("ties", (x,), (y,), (pool,))
    inputs = random_inputs(graph, 0, 8)
    exact = inputs["x"].reshape(8, 5, 4, 2, 4, 2).sum(axis=(3, 5)) / 4
    assert np.mean(np.abs(exact % 1 - 0.5) < 1e-9) > 0.2
    assert np.array_equal(interpreter.run(graph, inputs)["y"], np.rint(exact).astype(np.int8))
    assert differences(graph, inputs, backend.machine(cpu), tmp_path) == []


def test_any_number_of_threads_gives_the_same_and_so_does_any_order(tmp_path: Path) -> None:
    x, y = Tensor("x", (32, 40, 40), 1.0, 3), Tensor("y", (48, 40, 40), 1.0, 0)
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (48, 32, 3, 3)).astype(np.int8)
    scale = requantize(np.full(48, 1e-4), Constant(np.zeros(48, np.int64), np.zeros(48)))
    graph = LayerGraph("threads", (x,), (y,), (Conv("y", x, y, weights, scale, pads=(1, 1, 1, 1)),))
    plan = make_plan(graph, backend.machine(None))
    assert plan.steps[0].chunks > 2
    backend.write(plan, tmp_path)
    inputs = random_inputs(graph, 0, 5)
    expected = interpreter.run(graph, inputs)["y"]
    for threads in (1, 2, 5):
        library = backend.load(tmp_path, graph, threads=threads)
        for _ in range(20):
            assert np.array_equal(library.run(inputs)["y"], expected)
        library.close()


def test_the_same_network_and_processor_give_the_same_bytes(tmp_path: Path) -> None:
    graph = random_graph(3, 3)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        backend.write(make_plan(graph, backend.machine("haswell")), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_processor_that_lacks_something_is_told_when_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(machine.CHECKED, "nonesuch", (7, 0, "a", 31))
    graph = random_graph(3, 2)
    wrong = replace(backend.machine("x86-64"), requires=("nonesuch",))
    backend.write(make_plan(graph, wrong), tmp_path)
    with pytest.raises(shared.WrongProcessorError, match="needs a processor with nonesuch, which this one has not"):
        backend.load(tmp_path, graph)


def test_a_missing_package_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(codegen, "import_module", refuse)
    with pytest.raises(codegen.MissingExtraError, match="which is not installed") as caught:
        backend.machine(None)
    assert caught.value.__notes__ == ["remedy: pip install 'edgec[cpu]'"]


@pytest.mark.parametrize(
    ("target", "cpu"),
    [("arm64", "cortex-a72"), ("arm64", "cortex-a76"), ("armv7", None), ("cortex-m", "cortex-m4"),
     ("cortex-m", "cortex-m55")],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 2])
def test_arm_computes_the_reference_under_qemu(target: str, cpu: str | None, seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed, LAYERS)
    plan = make_plan(graph, backend.machine(cpu, target))
    bytes_of = backend.write(plan, tmp_path)
    assert bytes_of["flash_bytes"] == bytes_of["text_bytes"] + bytes_of["rodata_bytes"]
    verdict = backend.compare_emulated(tmp_path, graph, random_inputs(graph, seed, 2))
    assert verdict.elements > 0
    assert [str(difference) for difference in verdict.differences] == []


def test_an_arm_processor_that_lacks_something_is_told_at_start(tmp_path: Path) -> None:
    graph = random_graph(0, 3)
    plan = make_plan(graph, backend.machine("cortex-a76", "arm64"))
    backend.write(plan, tmp_path)
    line = ["qemu-aarch64", "-cpu", "cortex-a72", str(tmp_path / "example")]
    ran = subprocess.run(line, input=b"", capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, b"this network needs a processor with dotprod\n")


def test_runtime_free_header_states_the_arena(tmp_path: Path) -> None:
    graph = random_graph(0, 3)
    plan = make_plan(graph, backend.machine(None, "cortex-m"))
    assert f"_ARENA_BYTES {plan.arena.size}\n" in static.header(plan, "edgec_x")


def test_a_missing_qemu_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(emulation.EmulatorMissingError, match="qemu-system-arm is not installed") as caught:
        emulation.check_installed(backend.machine(None, "cortex-m"))
    assert "apt-get install qemu-system-arm" in caught.value.__notes__[0]


def test_unknown_processors_are_refused_with_those_that_are_known() -> None:
    for target, name in (("cpu", "z80"), ("arm64", "z80"), ("cortex-m", "cortex-m9")):
        with pytest.raises(ValueError, match="--mcpu: ") as caught:
            backend.machine(name, target)
        assert "choose one of" in caught.value.__notes__[0]
