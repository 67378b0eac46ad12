"""What an error in each output channel of each layer costs the network: the diagonal of its Fisher information.

The cost is the divergence of the network's answers: for a network that ends in Softmax the Kullback-Leibler divergence
KL(p || p') = v^T v / 2 to second order, else the squared error of each output relative to its energy. Gradients run
backwards through the float graph, from random directions whose covariance is that of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes import statistics
from passes.gram import Moments, collect_moments
from passes.layer import Layer, layers
from passes.problem import Importance, problem_of
from passes.statistics import Arrays, Progress

SAMPLES, DRAWS = 64, 4
TEMPERATURE = 2.0
FACTOR_MAX = 30.0
CORRELATED_MAX = 512
"""Output channels of a layer up to which their correlation is taken: it costs their square."""
_STEP = 1e-3

Grad = NDArray[np.float32]
"""Gradients for every draw, float32 [draws, ...shape of the value without its batch axis]."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What errors cost.

    Attributes:
        importance: Of every weighted layer, by node name.
        blocked: Nodes through which no gradient was found: name to reason. Layers before them count on average.
    """

    importance: dict[str, Importance]
    blocked: dict[str, str]


def importance(
    model: ir.Model,
    samples: Arrays,
    *,
    seed: int = 0,
    is_correlated: bool = False,
    progress: Progress | None = None,
) -> Sensitivity:
    """Importance of every output channel of every weighted layer.

    Args:
        model: Canonical float graph, batch 1; intact afterwards.
        samples: Inputs by name, [N, ...]; at most SAMPLES of them are used.
        seed: Of the random directions.
        is_correlated: Whether the correlation between the channels of a layer is wanted, of up to CORRELATED_MAX.
        progress: Told ("sensitivity", done, total).

    Source: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, ICML 2015,
        section 3, with the output factor reduced to its diagonal, or whole.
    """
    some = statistics.spread(samples, SAMPLES)
    known, total = layers(model), statistics.count(some)
    values = [str(v.name) for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None]
    constant = {str(v.name) for v in model.graph.initializers.values()}
    names = list(dict.fromkeys(name for name in values if name and name not in constant))
    energy = _energies(model, some)
    rng = np.random.default_rng(seed)
    sums = {name: np.zeros((2, layer.channels)) for name, layer in known.items()}
    sizes = {name: layer.channels for name, layer in known.items() if is_correlated}
    products = {name: np.zeros((size, size)) for name, size in sizes.items() if size <= CORRELATED_MAX}
    blocked: dict[str, str] = {}
    for index, row in enumerate(statistics.run(model, some, names)):
        backward = _Backward(model, row, rng, energy, blocked)
        for name, grad in backward.layers(known):
            sums[name] += _squares(known[name], grad) / (total * DRAWS)
            if name in products:
                products[name] += _products(known[name], grad)
        if progress:
            progress("sensitivity", index + 1, total)
    found = _filled(sums)
    for name, product in products.items():
        found[name] = replace(found[name], correlation=_correlation(product))
    return Sensitivity(found, blocked)


def calibrated(
    model: ir.Model, samples: Arrays, found: Sensitivity, *, probe: float = 0.005, progress: Progress | None = None
) -> Sensitivity:
    """Importance scaled, layer by layer, so that the cost of a real rounding is what was measured.

    Each layer alone is rounded so coarsely that its cost should be `probe`, and the network's answers are compared.

    Args:
        model: Canonical float graph; intact afterwards.
        samples: Inputs by name, [N, ...]; at most SAMPLES of them are used.
        found: From `importance`.
        probe: Cost to aim at.
        progress: Told ("probe", done, total).
    """
    some = statistics.spread(samples, SAMPLES)
    known = layers(model)
    moments = collect_moments(model, some, known)
    outputs = [str(value.name) for value in model.graph.outputs]
    before = list(statistics.run(model, some, outputs))
    result = dict(found.importance)
    for index, (name, layer) in enumerate(known.items()):
        probed, expected = _probed(model, name, layer, moments[name], found.importance[name], probe)
        if expected > 0:
            after = list(statistics.run(probed, some, outputs))
            factor = min(max(divergence(model, before, after) / expected, 1 / FACTOR_MAX), FACTOR_MAX)
            old = found.importance[name]
            result[name] = replace(old, scattered=old.scattered * factor, shared=old.shared * factor)
        if progress:
            progress("probe", index + 1, len(known))
    return Sensitivity(result, found.blocked)


def _probed(
    model: ir.Model, name: str, layer: Layer, moments: Moments, importance: Importance, cost: float
) -> tuple[ir.Model, float]:
    """The network with the weights of one layer rounded to a grid, the mean kept, and the expected cost."""
    copy = model.clone()
    node = next(node for node in copy.graph if node.name == name)
    weights = edit.constant(node.inputs[1])
    assert weights is not None
    problem = problem_of(layer, weights, moments, importance)
    left = np.diagonal(problem.hessian, axis1=1, axis2=2)[:, None, :] * problem.importance[:, :, None]
    live = problem.weights != 0
    step = math.sqrt(12 * cost / max(int(live.sum()), 1))
    scale = step / np.sqrt(np.maximum(left, 1e-30))
    rounded = np.where(live, np.rint(problem.weights / scale) * scale, 0.0)
    shift = np.einsum("grt,gt->gr", problem.weights - rounded, moments.mean).ravel()
    bias = edit.constant(edit.operand(node, 2))
    graph = edit.graph_of(node)
    stored = np.asarray(layer.stored(rounded), np.float32)
    edit.set_input(node, 1, edit.new_initializer(graph, f"{name}_probe", stored))
    if layer.op != "MatMul":
        moved = (shift + (0.0 if bias is None else bias.ravel())).astype(np.float32)
        edit.set_input(node, 2, edit.new_initializer(graph, f"{name}_probe_bias", moved))
    return copy, problem.loss(rounded)


def divergence(
    model: ir.Model, before: list[dict[str, NDArray[np.float32]]], after: list[dict[str, NDArray[np.float32]]]
) -> float:
    """Mean divergence of the outputs, in the units of `importance`."""
    total = 0.0
    for value in model.graph.outputs:
        name, node = str(value.name), value.producer()
        old = np.stack([row[name] for row in before]).astype(np.float64)
        new = np.stack([row[name] for row in after]).astype(np.float64)
        if node is not None and edit.is_op(node, "Softmax") and _is_last_axis(node, old.ndim - 1):
            safe = np.maximum(old, 1e-12)
            total += float((safe * (np.log(safe) - np.log(np.maximum(new, 1e-12)))).sum() / len(old))
        else:
            total += float(np.square(new - old).sum() / max(float(np.square(old).sum()), 1e-30))
    return max(total, 0.0)


def _filled(sums: dict[str, NDArray[np.float64]]) -> dict[str, Importance]:
    """Layers that no gradient reached count like the average channel."""
    reached = [each for each in sums.values() if each.any()]
    average = np.mean([each.mean(axis=1) for each in reached], axis=0) if reached else np.array([1.0, 0.0])
    full = {name: each if each.any() else np.tile(average[:, None], each.shape[1]) for name, each in sums.items()}
    return {name: Importance(each[0], each[1]) for name, each in full.items()}


def _squares(layer: Layer, grad: Grad) -> NDArray[np.float64]:
    """Scattered and shared squares of the gradient of each output channel, summed over draws, float64 [2, C_out]."""
    by_channel = _by_channel(layer, grad)
    total = by_channel.sum(axis=2, dtype=np.float64)
    squares = np.square(by_channel, dtype=np.float64).sum(axis=2)
    scattered = np.maximum(squares - np.square(total) / by_channel.shape[2], 0.0)
    return np.stack([scattered.sum(axis=0), np.square(total).sum(axis=0)])


def _products(layer: Layer, grad: Grad) -> NDArray[np.float64]:
    """Products of the gradients of two output channels, summed over draws and positions, float64 [C_out, C_out]."""
    by_channel = _by_channel(layer, grad)
    return np.asarray(np.matmul(by_channel, by_channel.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64))


def _correlation(product: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 on the diagonal; 0 beside it where a channel has no gradient."""
    size = np.sqrt(np.diagonal(product))
    scale = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    result = product * scale[:, None] * scale
    np.fill_diagonal(result, 1.0)
    return result


def _by_channel(layer: Layer, grad: Grad) -> Grad:
    """[draws, C_out, positions]."""
    if layer.op == "Conv":
        return grad.reshape(DRAWS, layer.channels, -1)
    return np.moveaxis(grad.reshape(DRAWS, -1, layer.channels), 2, 1)


def _energies(model: ir.Model, samples: Arrays) -> dict[str, float]:
    """Mean squared norm of every output."""
    names = [str(value.name) for value in model.graph.outputs]
    total = dict.fromkeys(names, 0.0)
    for row in statistics.run(model, samples, names):
        for name in names:
            total[name] += float(np.square(row[name], dtype=np.float64).sum())
    return {name: max(value / statistics.count(samples), 1e-30) for name, value in total.items()}


class _Backward:
    """The backward run of one sample."""

    def __init__(
        self,
        model: ir.Model,
        values: Mapping[str, NDArray[np.float32]],
        rng: np.random.Generator,
        energy: Mapping[str, float],
        blocked: dict[str, str],
    ) -> None:
        self._model, self._values, self._blocked = model, values, blocked
        self._grads: dict[ir.Value, Grad] = {}
        for output in model.graph.outputs:
            self._seed(output, rng, energy[str(output.name)])

    def _seed(self, output: ir.Value, rng: np.random.Generator, energy: float) -> None:
        node = output.producer()
        answer = self._values[str(output.name)]
        if node is not None and edit.is_op(node, "Softmax") and _is_last_axis(node, answer.ndim):
            logits = node.inputs[0]
            assert logits is not None
            p = _softened(self._values[str(logits.name)][0].astype(np.float64))
            noise = rng.standard_normal((DRAWS, *p.shape)) * np.sqrt(p)
            direction = noise - p * noise.sum(-1, keepdims=True)
            self._add(logits, (direction / math.sqrt(2)).astype(np.float32))
            return
        shape = (DRAWS, *answer.shape[1:])
        self._add(output, (rng.standard_normal(shape) / math.sqrt(energy)).astype(np.float32))

    def _add(self, value: ir.Value, grad: Grad) -> None:
        self._grads[value] = self._grads[value] + grad if value in self._grads else grad

    def layers(self, known: Mapping[str, Layer]) -> list[tuple[str, Grad]]:
        """Gradient of the output of every layer that one reaches."""
        found = []
        for node in reversed(list(self._model.graph)):
            grads = [self._grads.pop(value, None) for value in node.outputs]
            if all(grad is None for grad in grads):
                continue
            if len(grads) > 1:
                grads = [g if g is not None else self._zeros(v) for g, v in zip(grads, node.outputs, strict=True)]
            name = str(node.name)
            if name in known and grads[0] is not None:
                found.append((name, grads[0]))
            if not self._through(node, [g for g in grads if g is not None], known.get(name)):
                self._blocked.setdefault(name, f"{node.op_type} has no gradient rule")
        return found

    def _zeros(self, value: ir.Value) -> Grad:
        return np.zeros((DRAWS, *self._values[str(value.name)].shape[1:]), np.float32)

    def _through(self, node: ir.Node, grads: list[Grad], layer: Layer | None) -> bool:
        dynamic = [v for v in node.inputs if v is not None and edit.constant(v) is None]
        if not dynamic:
            return True
        if node.op_type == "Softmax":  # only at the end, where the seed has passed it
            return False
        inputs = [self._values[str(v.name)] for v in dynamic]
        if layer is not None and len(dynamic) == 1:
            self._add(dynamic[0], _through_layer(node, layer, grads[0], inputs[0].shape))
        elif node.op_type in _JOINS:
            for value, grad in zip(dynamic, _JOINS[node.op_type](node, grads[0], inputs), strict=True):
                self._add(value, grad)
        elif node.op_type in _LINEAR and len(dynamic) == 1:
            self._add(dynamic[0], _LINEAR[node.op_type](node, grads[0], inputs[0]))
        elif node.op_type in _MOVES and len(dynamic) == 1:
            self._add(dynamic[0], _moved(node, grads, inputs[0]))
        elif len(dynamic) == 1 and inputs[0].shape == self._values[str(node.outputs[0].name)].shape:
            self._add(dynamic[0], grads[0] * _derivative(node, inputs[0])[0])
        else:
            return False
        return True


def _softened(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax at TEMPERATURE: where the network is sure, the curvature at the point itself says nothing of what a
    larger error does."""
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / TEMPERATURE
    return np.asarray(np.exp(scaled) / np.exp(scaled).sum(axis=-1, keepdims=True))


def _is_last_axis(node: ir.Node, rank: int) -> bool:
    return edit.integer(node, "axis", -1) % rank == rank - 1


# Rules


def _through_layer(node: ir.Node, layer: Layer, grad: Grad, shape: tuple[int, ...]) -> Grad:
    """Gradient of the input of a weighted layer."""
    weights = edit.constant(node.inputs[1])
    assert weights is not None
    matrix = layer.matrix(weights).astype(np.float32)
    if layer.op != "Conv":
        return np.asarray(grad @ matrix[0], np.float32)
    draws, rank = len(grad), len(layer.kernel)
    rows = grad.reshape(draws, layer.groups, layer.rows, -1)
    columns = np.matmul(matrix.transpose(0, 2, 1), rows)
    columns = columns.reshape(draws, shape[1], *layer.kernel, *grad.shape[2:])
    pads, sizes = layer.pads, shape[2:]
    full = np.zeros((draws, shape[1], *(s + pads[i] + pads[rank + i] for i, s in enumerate(sizes))), np.float32)
    for offset in np.ndindex(*layer.kernel):
        spans = tuple(
            slice(o * d, o * d + s * (n - 1) + 1, s)
            for o, d, s, n in zip(offset, layer.dilations, layer.strides, grad.shape[2:], strict=True)
        )
        full[(slice(None), slice(None), *spans)] += columns[(slice(None), slice(None), *offset)]
    return full[(slice(None), slice(None), *(slice(pads[i], pads[i] + s) for i, s in enumerate(sizes)))]


def _unbroadcast(grad: Grad, shape: tuple[int, ...]) -> Grad:
    """Sum over what was broadcast; shape has the batch axis of 1 in front."""
    rest = shape[1:] if len(shape) == grad.ndim else shape
    while grad.ndim - 1 > len(rest):
        grad = grad.sum(axis=1)
    axes = tuple(i + 1 for i, size in enumerate(rest) if size == 1 and grad.shape[i + 1] != 1)
    return grad.sum(axis=axes, keepdims=True) if axes else grad


def _add(node: ir.Node, grad: Grad, inputs: list[NDArray[np.float32]]) -> list[Grad]:
    signs = [1.0, -1.0] if node.op_type == "Sub" else [1.0] * len(inputs)
    if len(inputs) == 1:  # the other one is constant
        signs = [-1.0 if node.op_type == "Sub" and edit.constant(node.inputs[0]) is not None else 1.0]
    return [_unbroadcast(np.float32(sign) * grad, x.shape) for sign, x in zip(signs, inputs, strict=True)]


def _mul(node: ir.Node, grad: Grad, inputs: list[NDArray[np.float32]]) -> list[Grad]:
    if len(inputs) == 2:
        return [_unbroadcast(grad * inputs[1], inputs[0].shape), _unbroadcast(grad * inputs[0], inputs[1].shape)]
    other = next(edit.constant(v) for v in node.inputs if edit.constant(v) is not None)
    assert other is not None
    return [_unbroadcast(grad * other.astype(np.float32), inputs[0].shape)]


def _concat(node: ir.Node, grad: Grad, inputs: list[NDArray[np.float32]]) -> list[Grad]:
    axis = edit.integer(node, "axis", 0) % inputs[0].ndim
    sizes = [edit.shape_of(v) or () for v in node.inputs if v is not None]
    cuts = np.cumsum([size[axis] for size in sizes])[:-1]
    parts = np.split(grad, cuts, axis=axis)
    is_dynamic = [edit.constant(v) is None for v in node.inputs if v is not None]
    return [part for part, keep in zip(parts, is_dynamic, strict=True) if keep]


def _reshaped(node: ir.Node, grad: Grad, x: NDArray[np.float32]) -> Grad:
    return grad.reshape(len(grad), *x.shape[1:])


def _relu(node: ir.Node, grad: Grad, x: NDArray[np.float32]) -> Grad:
    return grad * (x > 0)


def _global_average(node: ir.Node, grad: Grad, x: NDArray[np.float32]) -> Grad:
    return np.broadcast_to(grad / np.float32(math.prod(x.shape[2:])), (len(grad), *x.shape[1:]))


def _average_pool(node: ir.Node, grad: Grad, x: NDArray[np.float32]) -> Grad:
    """Spread evenly over each window; windows at the border count like the others."""
    kernel, rank = edit.ints(node, "kernel_shape"), x.ndim - 2
    layer = Layer(
        "Conv",
        (x.shape[1], 1, *kernel),
        x.shape[1],
        edit.ints(node, "strides") or (1,) * rank,
        edit.ints(node, "pads") or (0,) * 2 * rank,
        (1,) * rank,
    )
    weights = np.full(layer.shape, 1 / math.prod(kernel), np.float32)
    value = ir.Value(name="w", const_value=ir.Tensor(weights))
    fake = ir.Node("", "Conv", [None, value])
    return _through_layer(fake, layer, grad, x.shape)


_JOINS: dict[str, Callable[[ir.Node, Grad, list[NDArray[np.float32]]], list[Grad]]] = {
    "Add": _add,
    "Sub": _add,
    "Mul": _mul,
    "Concat": _concat,
}
_LINEAR: dict[str, Callable[[ir.Node, Grad, NDArray[np.float32]], Grad]] = {
    "Reshape": _reshaped,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Identity": _reshaped,
    "Relu": _relu,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average_pool,
}
_MOVES = frozenset({"Transpose", "Slice", "Gather", "Split", "Pad", "Resize", "MaxPool", "GlobalMaxPool"})


def _moved(node: ir.Node, grads: list[Grad], x: NDArray[np.float32]) -> Grad:
    """Back along a node whose every output element is one of its input elements, found by running it on their ranks."""
    order = np.argsort(x.ravel(), kind="stable")
    ranks = np.empty(x.size, np.float32)
    ranks[order] = np.arange(1, x.size + 1, dtype=np.float32)
    outputs = _run_alone(node, ranks.reshape(x.shape))
    result = np.zeros((DRAWS, x.size + 1), np.float32)
    back = np.concatenate([[0], order + 1])
    for output, grad in zip(outputs, grads, strict=False):
        source = back[np.clip(np.rint(output), 0, x.size).astype(np.int64).ravel()]
        for draw in range(DRAWS):
            result[draw] += np.bincount(source, grad[draw].ravel(), x.size + 1).astype(np.float32)
    return result[:, 1:].reshape(DRAWS, *x.shape[1:])


def _derivative(node: ir.Node, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of an elementwise node, by central differences."""
    step = np.float32(_STEP * max(float(np.abs(x).max(initial=0.0)), 1e-6))
    return (_run_alone(node, x + step)[0] - _run_alone(node, x - step)[0]) / (2 * step)


def _run_alone(node: ir.Node, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs of `node` on another input."""
    value = next(v for v in node.inputs if v is not None and edit.constant(v) is None)
    graph = ir.convenience.extract(edit.graph_of(node), [str(value.name)], [v for v in node.outputs if v.name])
    session = statistics.session(ir.Model(graph, ir_version=10))
    return list(session.run(None, {str(value.name): np.ascontiguousarray(x)}))
