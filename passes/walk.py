"""A walk along a network that shows each layer what it reads before it runs: later layers see what a visit changes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes import statistics
from passes.statistics import Arrays, Progress

SPILL = 256 * 2**20
"""Bytes of activations that are held in memory; more goes to a temporary file."""

Visit = Callable[[ir.Node, "Inputs"], None]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one layer reads, sample by sample.

    Attributes:
        values: [N, ...] as kept: float32, or the integers before a DequantizeLinear.
        scale, zero_point: real = scale * (value - zero_point).
    """

    values: NDArray[np.generic]
    scale: np.float32 = np.float32(1)
    zero_point: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Real values of each sample, float32 [1, ...]."""
        for index in range(len(self.values)):
            row = np.asarray(self.values[index])
            if row.dtype == np.float32:
                yield row
            else:
                yield (row.astype(np.float32) - np.float32(self.zero_point)) * self.scale


def walk(
    model: ir.Model, names: Sequence[str], samples: Arrays, visit: Visit, told: tuple[str, Progress | None]
) -> None:
    """Visit the named nodes in topological order, each with its input 0 as the model computes it by then.

    Activations are kept where a named node reads them or several of those are computed from them (as integers where a
    DequantizeLinear stands before it), and forgotten after their last use: every node runs once on every sample.

    Args:
        model: Any model that onnxruntime runs; `visit` may change weights, and nothing else.
        names: Of nodes.
        samples: Inputs by name, [N, ...].
        visit: Called with a node and what it reads.
        told: What to tell the progress, and the progress.
    """
    wanted = set(names)
    nodes = [node for node in model.graph if node.name in wanted]
    stops = {node: _stop(node.inputs[0]) for node in nodes}
    needs = _needs(_with_shared(list(dict.fromkeys(stops.values()))))
    steps = _steps([stops[node] for node in nodes], needs)
    last = {used: at for at, step in enumerate(steps) for value in step for used in (value, *needs[value])}
    for at, node in enumerate(nodes):
        last[stops[node]] = max(last[stops[node]], at)
    known: dict[ir.Value, NDArray[np.generic]] = {}
    what, progress = told
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgec-")))
        for index, node in enumerate(nodes):
            if progress:
                progress(what, index + 1, len(nodes))
            for stop in steps[index]:
                sources = {value: known[value] for value in needs[stop]}
                known[stop] = _computed(model, stop, sources, samples, _Place(folder, known))
            visit(node, _inputs(node, known[stops[node]]))
            for value in [value for value in known if last[value] == index]:
                del known[value]


def _stop(value: ir.Value | None) -> ir.Value:
    """What to keep for `value`: itself, or the integers behind it."""
    assert value is not None
    producer = value.producer()
    if producer is not None and edit.is_op(producer, "DequantizeLinear") and _is_per_tensor(producer):
        integers = producer.inputs[0]
        assert integers is not None
        # onnxruntime hands out no integers of 4 bits.
        is_kept = edit.constant(integers) is None and integers.dtype not in (ir.DataType.INT4, ir.DataType.UINT4)
        return integers if is_kept else value
    return value


def _is_per_tensor(dequantize: ir.Node) -> bool:
    scale = edit.constant(edit.operand(dequantize, 1))
    return scale is not None and scale.size == 1


def _inputs(node: ir.Node, values: NDArray[np.generic]) -> Inputs:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is None or values.dtype == np.float32:
        return Inputs(values)
    scale, zero = edit.constant(edit.operand(producer, 1)), edit.constant(edit.operand(producer, 2))
    assert scale is not None
    return Inputs(values, np.float32(scale.reshape(())), 0 if zero is None else int(zero.reshape(())))


def _needs(stops: list[ir.Value]) -> dict[ir.Value, tuple[ir.Value, ...]]:
    """Which other stops each stop is computed from, directly."""
    kept = set(stops)
    found: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for stop in stops:
        reached: dict[ir.Value, None] = {}
        seen: set[ir.Value] = set()
        stack = [stop]
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in kept and value is not stop:
                reached[value] = None
                continue
            producer = value.producer()
            if producer is not None:
                stack.extend(operand for operand in producer.inputs if operand is not None)
        found[stop] = tuple(reached)
    return found


def _with_shared(stops: list[ir.Value]) -> list[ir.Value]:
    """The stops, and the values from which more than one of them are computed, each in its own way."""
    ends, kept = {stop: index for index, stop in enumerate(stops)}, dict.fromkeys(stops)
    readers: dict[ir.Value, set[ir.Node]] = {}
    towards: dict[ir.Value, set[int]] = {}
    for stop, index in ends.items():
        seen, stack = {stop}, [stop]
        while stack:
            value = stack.pop()
            node = value.producer()
            if node is None or (value is not stop and value in ends):
                continue
            for operand in {each for each in node.inputs if each is not None and each.producer() is not None}:
                readers.setdefault(operand, set()).add(node)
                towards.setdefault(operand, set()).add(index)
                if operand not in seen:
                    seen.add(operand)
                    stack.append(operand)
    for value, users in readers.items():
        if len(users) > 1 and len(towards[value]) > 1:
            kept[_stop(value)] = None
    return list(kept)


def _steps(stops: list[ir.Value], needs: dict[ir.Value, tuple[ir.Value, ...]]) -> list[list[ir.Value]]:
    """What to compute, in this order, before each of `stops` is there."""
    done: set[ir.Value] = set()

    def missing(value: ir.Value) -> Iterator[ir.Value]:
        if value not in done:
            done.add(value)
            for need in needs[value]:
                yield from missing(need)
            yield value

    return [list(missing(stop)) for stop in stops]


@dataclass(frozen=True)
class _Place:
    """Where arrays go: memory while there is room, then files."""

    folder: Path
    known: dict[ir.Value, NDArray[np.generic]]

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[np.generic]:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        held = sum(array.nbytes for array in self.known.values() if not isinstance(array, np.memmap))
        if held + size <= SPILL:
            return np.empty(shape, dtype)
        path = self.folder / f"{abs(hash(name)):x}-{len(list(self.folder.iterdir()))}"
        return np.memmap(path, dtype, "w+", shape=shape)


def _computed(
    model: ir.Model,
    stop: ir.Value,
    sources: dict[ir.Value, NDArray[np.generic]],
    samples: Arrays,
    place: _Place,
) -> NDArray[np.generic]:
    """`stop` for every sample, [N, ...]."""
    total = statistics.count(samples)
    inputs = {str(value.name): value for value in model.graph.inputs}
    if str(stop.name) in inputs:
        rows = samples[str(stop.name)]
        return np.asarray(rows, np.float32)[:, None].reshape(total, 1, *rows.shape[1:])
    feeds = [str(value.name) for value in sources]
    graph = ir.convenience.extract(model.graph, [*feeds, *_reached_inputs(stop, sources)], [stop])
    session = statistics.session(ir.Model(graph, ir_version=model.ir_version))

    def computed(index: int) -> NDArray[np.generic]:
        feed = {name: np.ascontiguousarray(samples[name][index : index + 1]) for name in fed}
        feed |= {str(value.name): np.asarray(array[index]) for value, array in sources.items()}
        return np.asarray(session.run(None, feed)[0])

    fed = _fed(session, samples, feeds)
    result: NDArray[np.generic] | None = None
    for index, row in enumerate(statistics.in_order(computed, total)):
        if result is None:
            result = place.array(str(stop.name), (total, *row.shape), row.dtype)
        result[index] = row
    assert result is not None
    return result


def _fed(session: object, samples: Arrays, sources: list[str]) -> list[str]:
    names = [value.name for value in session.get_inputs()]  # type: ignore[attr-defined]
    return [name for name in names if name in samples and name not in sources]


def _reached_inputs(stop: ir.Value, sources: dict[ir.Value, NDArray[np.generic]]) -> list[str]:
    """Graph inputs that `stop` needs besides `sources`."""
    found, seen, stack = [], set(sources), [stop]
    while stack:
        value = stack.pop()
        if value in seen and value is not stop:
            continue
        seen.add(value)
        if value.is_graph_input():
            found.append(str(value.name))
        producer = value.producer()
        if producer is not None:
            stack.extend(operand for operand in producer.inputs if operand is not None and operand not in seen)
    return found
