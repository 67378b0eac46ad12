"""CPU rows: speed beside onnxruntime in the same process, sizes without a runtime, equality here and under qemu.

python -m benchmarks.cpu speed ARTEFACT MODEL PEERS THREADS SECONDS     prints median seconds as JSON
python -m benchmarks.cpu binary CPU SECONDS                             the same of a binary convolution
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import version_converter

from backends.cpu import backend
from backends.cpu.machine import Machine
from backends.cpu.plan import make_plan
from backends.fixed_point import Constant, requantize
from backends.layers import Conv, Layer, LayerGraph, Table, Tensor, macs
from benchmarks.artefacts import ROOT, Ran, Workshop, edgec, run
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.networks import KWS, MLPERF_TINY, RESNET8, Network, shared

SPEED, SIZE, TIME, EQUAL, SPARSE = "cpu-speed", "cpu-size", "cpu-compile-time", "cpu-equal", "cpu-sparse"
BINARY = "cpu-binary"
_OPSET = 17
_SECONDS = 4.0
_BATCH_S = 2e-3
_BARS = {"super_resolution_10": (0.7, 1.2)}
_ZOO = {"ultraface_rfb320": "photos_240x320.npz", "super_resolution_10": None, "go1_policy": None, "fastestdet": None}
_SHAPES = {"super_resolution_10": ("--shape", "input=1,1,224,224")}


def speed(workshop: Workshop) -> Iterator[Figure]:
    """How many times faster than the better of onnxruntime fp32 and int8: numpy in, numpy out, batch 1."""
    for threads in (1, 2):
        for key, compiled in _compiled(workshop, "native"):
            yield _speed(workshop, key, compiled, threads, "this CPU")
    for key, compiled in _compiled(workshop, "haswell"):
        yield replace(_speed(workshop, key, compiled, 1, "--mcpu haswell"), bar=None, aim=None)


def sparse(workshop: Workshop) -> Iterator[Figure]:
    """Speed-up of int8 ResNet-8 with three quarters of its blocks 0, over the ratio of its multiplications."""
    what = "ResNet-8, 75 % of the blocks of a processor's size 0: speed-up / ratio of MACs"
    compiled = dict(_compiled(workshop, "native"))[RESNET8.key]
    if compiled.code:
        yield Figure(SPARSE, what, None, "", at_least(0.5), at_least(0.75), note=compiled.complaint)
        return
    ran = run([sys.executable, "-m", "benchmarks.cpu", "sparse", str(workshop.folder / f"cpu-native-{RESNET8.key}")])
    found = json.loads(ran.stdout.splitlines()[-1]) if ran.code == 0 else {}
    value = found["dense_s"] / found["sparse_s"] / found["macs_ratio"] if found else None
    note = ran.complaint
    if found:
        note = f"{found['dense_s'] / found['sparse_s']:.2f} times faster with {found['macs_ratio']:.2f} times fewer"
    yield Figure(SPARSE, what, value, "", at_least(0.5), at_least(0.75), note=note)


def binary(workshop: Workshop) -> Iterator[Figure]:
    """A binary convolution beside onnxruntime's fp32 Conv of the same shape, in turns, one thread in CPU time."""
    for cpu in ("native", "haswell"):
        what = f"binary 3x3, 256 -> 256, 14x14, border of 1: times faster than fp32 Conv of onnxruntime, {cpu}"
        bounds = (at_least(6.0), at_least(12.0)) if cpu == "native" else (None, None)
        seconds = str(_SECONDS / (4 if workshop.quick else 1))
        ran = run([sys.executable, "-m", "benchmarks.cpu", "binary", cpu, seconds])
        found = json.loads(ran.stdout.splitlines()[-1]) if ran.code == 0 else {}
        note = ran.complaint
        if found:
            ours, theirs = (1e6 * found[key] for key in ("binary_s", "fp32_s"))
            note = f"{ours:.0f} us, packing, border and signs included; {theirs:.0f} us"
        yield Figure(BINARY, what, found.get("ratio"), "x", *bounds, note=note)


def compile_time(workshop: Workshop) -> Iterator[Figure]:
    """Wall seconds of `edgec compile --target cpu`, calibration and proof included."""
    for key, compiled in _compiled(workshop, "native"):
        value, note = (None, compiled.complaint) if compiled.code else (compiled.seconds, "")
        note = note or f"{compiled.cpu_seconds:.0f} CPU-seconds"
        yield Figure(TIME, f"{key}: ONNX to a proven library", value, "s", at_most(60), at_most(15), note=note)


def size(workshop: Workshop) -> Iterator[Figure]:
    """Bytes of KWS without a runtime, the C library left out."""
    for target, cpu, bars in (
        ("arm64", "cortex-a72", {"all": (120e3, 70e3)}),
        ("arm64", "cortex-a76", {"all": (120e3, 70e3)}),
        ("cortex-m", "cortex-m4", {"flash": (54e3, 40e3), "arena": (20e3, 16.5e3)}),
    ):
        calib = workshop.samples(KWS.key, KWS.calibration.read())
        out = workshop.folder / f"kws-{cpu}"
        ran = edgec("compile", KWS.path, "--target", target, "--mcpu", cpu, "--calib", calib, "--no-verify", "-o", out)
        bytes_of = json.loads((out / "report.json").read_text())["footprint"] if ran.code == 0 else {}
        for what, (bar, aim) in bars.items():
            value = None
            if bytes_of:
                whole = bytes_of["flash_bytes"] + bytes_of["arena_bytes"]
                value = float(whole if what == "all" else bytes_of[f"{what}_bytes"])
            title = f"KWS {cpu}: {'text + rodata + arena' if what == 'all' else what}"
            note = ran.complaint if ran.code else ""
            yield Figure(SIZE, title, value, "bytes", at_most(bar), at_most(aim), note=note)


def equal(workshop: Workshop) -> Iterator[Figure]:
    """Elements that differ from the reference: devtest sets here, 20 samples under qemu elsewhere."""
    for network in MLPERF_TINY:
        data = workshop.samples(f"{network.key}-judging", network.judging.read())
        yield _verified(workshop, network, "cpu", "native", data)
    for network in (KWS, RESNET8):
        data = workshop.samples(f"{network.key}-judging-20", network.judging.read()[:20])
        for target, cpu in (("arm64", "cortex-a72"), ("arm64", "cortex-a76"), ("armv7", "cortex-a7"),
                            ("cortex-m", "cortex-m4"), ("cortex-m", "cortex-m55")):  # fmt: skip
            yield _verified(workshop, network, target, cpu, data)


def _verified(workshop: Workshop, network: Network, target: str, cpu: str, data: Path) -> Figure:
    calib = workshop.samples(network.key, network.calibration.read())
    out = workshop.folder / f"{network.key}-{target}-{cpu}"
    ran = edgec("compile", network.path, "--target", target, "--mcpu", cpu, "--calib", calib, "--no-verify", "-o", out)
    if ran.code == 0:
        ran = edgec("verify", out, "--input", data, "--random", "2", "--json")
    facts = json.loads(ran.stdout) if ran.code in (0, 1) and ran.stdout else None
    value = None if facts is None else float(facts["mismatches"])
    note = ran.complaint if facts is None else f"{facts['elements']:,} elements of {facts['inputs']} inputs"
    return Figure(EQUAL, f"{network.title} on {cpu}", value, "LSB", at_most(0), at_most(0), note=note)


def _compiled(workshop: Workshop, cpu: str) -> Iterator[tuple[str, Ran]]:
    """(name, the compile) of each network, once in a run."""

    def compiled(key: str, model: Path, *options: str | Path) -> Ran:
        out = workshop.folder / f"cpu-{cpu}-{key}"
        return edgec("compile", model, "--target", "cpu", "--mcpu", cpu, *options, "-o", out)

    for network in MLPERF_TINY:
        calib = workshop.samples(network.key, network.calibration.read())
        made = partial(compiled, network.key, network.path, "--calib", calib)
        yield network.key, workshop.once((SPEED, cpu, network.key), made)
    for key, data in _ZOO.items():
        options = ("--calib", shared() / "data" / data) if data else ()
        more = (*options, *_SHAPES.get(key, ()))
        made = partial(compiled, key, shared() / "zoo" / f"{key}.onnx", *more)
        yield key, workshop.once((SPEED, cpu, key), made)


def _speed(workshop: Workshop, key: str, compiled: Ran, threads: int, where: str) -> Figure:
    bar, aim = _BARS.get(key, (1.0, 2.0))
    what = f"{key}: times faster than the best onnxruntime, {threads} thread{'s' * (threads > 1)}, {where}"
    if compiled.code:
        return Figure(SPEED, what, None, "x", at_least(bar), at_least(aim), note=compiled.complaint)
    network = next((n for n in MLPERF_TINY if n.key == key), None)
    model = network.path if network else shared() / "zoo" / f"{key}.onnx"
    out = workshop.folder / f"cpu-{'native' if where == 'this CPU' else 'haswell'}-{key}"
    peers = workshop.folder / f"peers-{key}"
    command = [sys.executable, "-m", "benchmarks.cpu", "speed", str(out), str(model), str(peers), str(threads)]
    ran = run([*command, str(_SECONDS / (4 if workshop.quick else 1))])
    if ran.code:
        return Figure(SPEED, what, None, "x", at_least(bar), at_least(aim), note=ran.complaint)
    medians = json.loads(ran.stdout.splitlines()[-1])
    ours = medians.pop("edgec")
    best = min(medians, key=lambda name: medians[name])
    note = f"{1e6 * ours:.0f} us; " + ", ".join(f"{name} {1e6 * value:.0f}" for name, value in medians.items())
    note += f"; {_cpu_flags()}" if key == MLPERF_TINY[0].key else ""
    return Figure(SPEED, what, medians[best] / ours, "x", at_least(bar), at_least(aim), f"best: {best}", note)


def _cpu_flags() -> str:
    """What of the processor matters here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    names = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_vbmi", "amx_int8")
    return "CPU has " + " ".join(name for name in names if name in flags)


# The measuring process.


def _peers(model: Path, folder: Path) -> dict[str, Path]:
    """fp32 and int8 files at their best: clean inputs, pre-processed, QDQ with int8 and with uint8 activations."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = {"fp32": "fp32.onnx", "int8 s8s8": "s8.onnx", "int8 u8s8": "u8.onnx"}
    files = {name: folder / file for name, file in names.items()}
    if all(file.is_file() for file in files.values()):
        return files
    folder.mkdir(exist_ok=True)
    loaded = onnx.load(model)
    held = {tensor.name for tensor in loaded.graph.initializer}
    inputs = [value for value in loaded.graph.input if value.name not in held]
    del loaded.graph.input[:]
    loaded.graph.input.extend(inputs)
    for value in inputs:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_value:
                dim.dim_value = 1
    if max(each.version for each in loaded.opset_import if each.domain in ("", "ai.onnx")) < _OPSET:
        loaded = version_converter.convert_version(loaded, _OPSET)
    quant_pre_process(loaded, files["fp32"])
    name, shape = _input(files["fp32"])
    rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    for kind, activation in (("int8 s8s8", QuantType.QInt8), ("int8 u8s8", QuantType.QUInt8)):
        quantize_static(
            files["fp32"], files[kind], _Rows(name, rows), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=activation, weight_type=QuantType.QInt8,
        )  # fmt: skip
    return files


class _Rows:
    """Calibration data of quantize_static; their values do not change its speed."""

    def __init__(self, name: str, rows: NDArray[np.float32]) -> None:
        self._rows = iter([{name: row} for row in rows])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._rows, None)


def _input(path: Path) -> tuple[str, tuple[int, ...]]:
    value = onnx.load(path).graph.input[0]
    return value.name, tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(artefact: Path, model: Path, folder: Path, threads: int, seconds: float) -> dict[str, float]:
    """Median seconds of an inference; all take turns. One thread is CPU time, which a busy machine changes less."""
    from compiler import stored
    from compiler.cpu import Session

    own = Session(stored.open_artefact(artefact), threads=threads)
    files = _peers(model, folder)
    name, shape = _input(files["fp32"])
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    fed = {key: np.ascontiguousarray(x.reshape(own_shape)) for key, own_shape in own.shapes.items()}
    calls: dict[str, Callable[[], object]] = {"edgec": lambda: own.run(fed)}
    for peer, path in files.items():
        calls[peer] = partial(_session(path, threads).run, None, {name: x})
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats = {key: max(1, int(_BATCH_S / max(_timed(call, 3, clock), 1e-6))) for key, call in calls.items()}
    times: dict[str, list[float]] = {key: [] for key in calls}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["edgec"]) < 7:
        for key, call in calls.items():
            call()
            times[key].append(_timed(call, repeats[key], clock))
    own.close()
    return {key: float(np.median(values)) for key, values in times.items()}


def measure_sparse(artefact: Path) -> dict[str, float]:
    """CPU seconds of the integers of a network, dense and with blocks of zeros, both equal to the reference."""
    from compiler import stored

    opened = stored.open_artefact(artefact)
    graph, on = opened.lowered.graph, backend.machine(None)
    rng = np.random.default_rng(0)
    thin = LayerGraph(graph.name, graph.inputs, graph.outputs, tuple(_thinned(x, on, rng) for x in graph.layers))
    samples = {name: values[:2] for name, values in opened.samples().items()}
    seconds, work = [], []
    for each in (graph, thin):
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(each, on)
            backend.write(plan, Path(folder))
            library = backend.load(Path(folder), each)
            assert not backend.compare(library, Path(folder), each, samples).differences
            inputs = [np.ascontiguousarray(samples[t.name][0]) for t in each.inputs]
            outputs = [np.empty(t.shape, np.int8) for t in each.outputs]
            call = partial(library.infer, inputs, outputs)
            seconds.append(float(np.median([_timed(call, 20, time.process_time) for _ in range(50)])))
            library.close()
        convs = [layer for layer in each.layers if isinstance(layer, Conv)]
        work.append(sum(int(np.count_nonzero(x.weights)) * x.output.size // len(x.weights) for x in convs))
    dense = sum(map(macs, graph.layers))
    return {"dense_s": seconds[0], "sparse_s": seconds[1], "macs_ratio": dense / work[1]}


_BINARY_CHANNELS, _BINARY_SIDE, _BINARY_LAYERS = 256, 14, 8


def measure_binary(cpu: str, seconds: float) -> dict[str, float]:
    """Median CPU seconds of one binary convolution and of onnxruntime's, and the median of the ratios of each turn.

    One convolution is an eighth of what eight more of them in a row add to a network that ends in one.
    """
    rng, on = np.random.default_rng(0), backend.machine(cpu)
    shape = (_BINARY_CHANNELS, _BINARY_SIDE, _BINARY_SIDE)
    weights = rng.normal(size=(shape[0], shape[0], 3, 3)).astype(np.float32)
    session = _convolution(weights, shape)
    x = rng.normal(size=(1, *shape)).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {"fp32": lambda: session.run(None, {"x": x})}
    with tempfile.TemporaryDirectory() as folder:
        for name, depth in (("short", 1), ("long", 1 + _BINARY_LAYERS)):
            graph, place = _binary_graph(depth, shape), Path(folder) / name
            place.mkdir()
            backend.write(make_plan(graph, on), place)
            library = backend.load(place, graph)
            codes = rng.integers(-128, 128, (1, *shape)).astype(np.int8)
            assert not backend.compare(library, place, graph, {"x": codes}).differences
            calls[name] = partial(library.infer, [codes[0]], [np.empty(shape, np.int8)])
        times: dict[str, list[float]] = {key: [] for key in calls}
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(times["fp32"]) < 15:
            for key, call in calls.items():
                call()
                times[key].append(_timed(call, 2, time.process_time))
    fp32, short, long = (np.array(times[key]) for key in ("fp32", "short", "long"))
    own = (long - short) / _BINARY_LAYERS
    return {
        "binary_s": float(np.median(own)),
        "fp32_s": float(np.median(fp32)),
        "ratio": float(np.median(fp32 / own)),
    }


def _convolution(weights: NDArray[np.float32], shape: tuple[int, int, int]) -> onnxruntime.InferenceSession:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    values = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, *shape]) for name in "xy")
    graph = onnx.helper.make_graph(
        [node], "convolution", [next(values)], [next(values)], [onnx.numpy_helper.from_array(weights, "w")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "fp32.onnx")
        return _session(Path(folder) / "fp32.onnx", 1)


def _binary_graph(depth: int, shape: tuple[int, int, int]) -> LayerGraph:
    """Signs of the input, then `depth` convolutions of random signs and thresholds."""
    rng, channels = np.random.default_rng(1), shape[0]
    x, value = Tensor("x", shape, 1.0, 0), Tensor("signs", shape, 1.0, 0)
    parts: list[Layer] = [Table("signs", x, value, np.where(np.arange(-128, 128) < 0, -1, 1).astype(np.int8))]
    for index in range(depth):
        weights = rng.choice([-1, 1], (channels, channels, 3, 3)).astype(np.int8)
        thresholds = Constant(np.zeros(channels, np.int64), 1e6 * (rng.integers(-40, 40, channels) + 0.5))
        steps = requantize(1e6 * rng.choice([-1, 1], channels), thresholds, low=-1, high=1)
        result = Tensor(f"conv{index}", shape, 1.0, 0)
        parts.append(Conv(result.name, value, result, weights, steps, pads=(1, 1, 1, 1)))
        value = result
    return LayerGraph("binary", (x,), (value,), tuple(parts))


def _thinned(layer: Layer, on: Machine, rng: np.random.Generator) -> Layer:
    """Three quarters of the blocks (a vector of outputs x a group of inputs) 0; the first layer stays."""
    if not isinstance(layer, Conv) or layer.weights.shape[1] < on.dot.group:
        return layer
    weights = layer.weights.copy()
    outputs, inputs, height, width = weights.shape
    for o in range(0, outputs, on.lanes):
        for c in range(0, inputs, on.dot.group):
            zeros = rng.random((height, width)) < 0.75
            weights[o : o + on.lanes, c : c + on.dot.group, zeros] = 0
    return replace(layer, weights=weights)


def _timed(call: Callable[[], object], count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "sparse":
        print(json.dumps(measure_sparse(Path(sys.argv[2]))))
    elif sys.argv[1] == "binary":
        print(json.dumps(measure_binary(sys.argv[2], float(sys.argv[3]))))
    else:
        artefact_, model_, folder_ = map(Path, sys.argv[2:5])
        print(json.dumps(measure(artefact_, model_, folder_, int(sys.argv[5]), float(sys.argv[6]))))
