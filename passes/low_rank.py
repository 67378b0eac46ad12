"""Splits a Conv, Gemm or MatMul into two or three smaller ones whose product approximates its weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.base import Notes, Rewrite
from passes.graph import (
    Array,
    constant,
    graph_of,
    integer,
    ints,
    is_op,
    make,
    new_initializer,
    operand,
    replace,
    shape_of,
)
from passes.problem import Turned
from passes.recipes.base import Problem
from passes.solvers import low_rank as solvers
from passes.weights import is_canonical_gemm, weights_of

METADATA = "edgec.low_rank"
"""Of every node that this pass made: method, rank and the name of the node that it stands for in part."""
EXACT = 1e-12
"""Share of the weights' energy that float32 noise may be: a rank that misses no more is the layer's own."""
RANKS_MAX, NESTED_MAX = 16, 64
"""Ranks offered for each method: beyond it the grid is coarser. Where one factorisation answers for all, more are."""


class Method(StrEnum):
    """How the weights are factorised; see passes.solvers.low_rank."""

    SVD = "svd"
    SPATIAL = "spatial"
    ACROSS = "across"
    TUCKER = "tucker"
    CP = "cp"


SEPARABLE = (Method.SPATIAL, Method.ACROSS)
"""A column of the kernel, then a row; or a row first."""
DEFAULT = (Method.SVD, *SEPARABLE, Method.TUCKER)
"""CP is left to who asks for it: every rank is an iteration of its own."""


@dataclass(frozen=True)
class Choice:
    """A method and its rank in each group: (inputs, outputs) for Tucker, one number for the others."""

    method: Method
    rank: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.method} {'x'.join(map(str, self.rank))}"


@dataclass(frozen=True)
class Split:
    """What became of one layer.

    Attributes:
        choice: Method and rank.
        nodes: Names, in the order in which they run; the last is the layer's own.
    """

    choice: Choice
    nodes: tuple[str, ...]


def splits(model: ir.Model) -> dict[str, Split]:
    """Every layer of `model` that the pass split, by the name that it had."""
    found: dict[str, Split] = {}
    for node in model.graph:
        if (text := node.metadata_props.get(METADATA)) is not None:
            choice, _, name = text.partition(" of ")
            method, rank = choice.split(" ")
            before = found[name].nodes if name in found else ()
            parsed = Choice(Method(method), tuple(map(int, rank.split("x"))))
            found[name] = Split(parsed, (*before, str(node.name)))
    return found


@dataclass(frozen=True)
class Window:
    """The sizes of a Conv, Gemm or MatMul.

    Attributes:
        groups: Of the Conv; otherwise 1.
        rows: Output channels of a group.
        channels: Input channels of a group.
        kernel: Of the Conv; otherwise ().
        before: Spatial size of the input; () for a Gemm, the axes between the first and the last for a MatMul.
        after: Spatial size of the output.
    """

    groups: int
    rows: int
    channels: int
    kernel: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights, bias aside."""
        return self.groups * self.rows * self.channels * math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiplications of one sample."""
        return self.weights * math.prod(self.after)


@dataclass(frozen=True)
class Option:
    """What a choice costs.

    Attributes:
        choice: Method and rank.
        loss: As Problem.loss; what the factors that the pass computes reach or better.
        weights: Number of weights of all its nodes.
        macs: Multiplications of one sample.
    """

    choice: Choice
    loss: float
    weights: int
    macs: int


def window_of(node: ir.Node) -> Window | str:
    """The sizes of `node`, or why it cannot be split."""
    if not is_op(node, "Conv", "Gemm", "MatMul"):
        return "it is no Conv, Gemm or MatMul"
    if is_op(node, "Gemm") and not is_canonical_gemm(node):
        return "it has transposed or scaled operands"
    weights = weights_of(node)
    if weights is None or weights.dequantize is not None:
        return "its weights are not constant floats"
    if (bias := operand(node, 2)) is not None and constant(bias) is None:
        return "its bias is not constant"
    if is_op(node, "MatMul"):
        return _matmul_window(node, weights.values)
    rows, channels, *kernel = weights.values.shape
    if is_op(node, "Gemm"):
        return Window(1, rows, channels)
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        return "its input and output have no static shape"
    groups = integer(node, "group", 1)
    return Window(groups, rows // groups, channels, tuple(kernel), before[2:], after[2:])


def _matmul_window(node: ir.Node, weights: Array) -> Window | str:
    shape = shape_of(node.outputs[0])
    if weights.ndim != 2:
        return "its weights are not a matrix"
    if shape is None or len(shape) < 2:
        return "its output has no static shape"
    return Window(1, weights.shape[1], weights.shape[0], (), shape[1:-1], shape[1:-1])


def why_not(window: Window, method: Method) -> str | None:
    """Why a layer of these sizes has no such split."""
    positions = math.prod(window.kernel)
    if method in SEPARABLE and (len(window.kernel) != 2 or min(window.kernel) == 1):
        return "its kernel has not two sides to split"
    if method in (Method.TUCKER, Method.CP) and positions == 1:
        return "its kernel has one position: svd is the same and exact"
    if method in (Method.TUCKER, Method.CP) and window.groups > 1:
        return "it has groups"
    return None


def cost(window: Window, choice: Choice) -> tuple[int, int]:
    """Number of weights, and multiplications of one sample, of all nodes of `choice`."""
    parts = [(part.weights, part.macs) for part in _parts(window, choice)]
    return sum(weights for weights, _ in parts), sum(macs for _, macs in parts)


def _parts(window: Window, choice: Choice) -> list[Window]:
    """The sizes of each node."""
    groups, rows, channels = window.groups, window.rows, window.channels
    kernel, before, after = window.kernel, window.before, window.after
    one, first, last = (1,) * len(kernel), choice.rank[0], choice.rank[-1]
    match choice.method:
        case Method.SVD:
            whole = Window(groups, first, channels, kernel, before, after)
            return [whole, Window(groups, rows, first, one, after, after)]
        case Method.SPATIAL:
            middle = (after[0], before[1])
            return [
                Window(groups, first, channels, (kernel[0], 1), before, middle),
                Window(groups, rows, first, (1, kernel[1]), middle, after),
            ]
        case Method.ACROSS:
            middle = (before[0], after[1])
            return [
                Window(groups, first, channels, (1, kernel[1]), before, middle),
                Window(groups, rows, first, (kernel[0], 1), middle, after),
            ]
        case Method.TUCKER:
            core = Window(1, last, first, kernel, before, after)
        case Method.CP:
            core = Window(first, 1, 1, kernel, before, after)
    return [Window(1, first, channels, one, before, before), core, Window(1, rows, last, one, after, after)]


def options(
    problem: Problem, window: Window, methods: Sequence[Method] = DEFAULT, multiple: int = 8
) -> list[Option]:
    """Every rank worth asking for: fewer weights than the layer and not more multiplications.

    Ranks are such that the channels between the nodes are a multiple of `multiple`; where a layer is exactly of lower
    rank, that rank is offered too. SVD, spatial and Tucker cost one factorisation each, CP one for every rank.

    Args:
        problem: Of the layer, for `window`.
        window: Its sizes.
        methods: To consider; those that do not fit are left out.
        multiple: What the target likes.

    Returns:
        By method, then rank; each loss is one that `factors` keeps without polish.
    """
    step = multiple // math.gcd(multiple, window.groups)
    result = []
    for method in methods:
        if why_not(window, method) is None:
            result += _options(problem, window, method, step)
    return result


def _options(problem: Problem, window: Window, method: Method, step: int) -> list[Option]:
    found = []
    for rank, loss in _losses(problem, window, method, step):
        choice = Choice(method, rank)
        weights, macs = cost(window, choice)
        if weights < window.weights and macs <= window.macs:
            found.append(Option(choice, loss, weights, macs))
    return found


def _losses(
    problem: Problem, window: Window, method: Method, step: int
) -> list[tuple[tuple[int, ...], float]]:
    positions = math.prod(window.kernel)
    if method is Method.TUCKER:
        solver = _tucker(problem, 0, window, window.channels)
        inputs = _grid(window.channels, step)
        outputs = _grid(window.rows, step)
        by_inputs = {count: solver.losses(count) for count in inputs}
        return [((q, p), float(by_inputs[q][p])) for q, p in itertools.product(inputs, outputs) if p <= q * positions]
    if method is Method.CP:
        ranks = [rank for rank in _grid(2 * max(window.rows, window.channels), step) if _pays(window, method, rank)]
        return [((rank,), _measured(problem, window, Choice(method, (rank,)))) for rank in ranks]
    most = most_rank(window, method)
    losses = np.zeros(most + 1)
    for group in range(window.groups):
        losses += _nested(problem, group, window, method, most)[: most + 1]
    is_exact = losses <= EXACT * losses[0]
    own = int(is_exact.argmax()) if is_exact.any() else most
    return [((rank,), float(losses[rank])) for rank in sorted({*_grid(most, step, NESTED_MAX), max(own, 1)})]


def _measured(problem: Problem, window: Window, choice: Choice) -> float:
    return problem.loss(product(window, _factors(problem, window, choice)))


def most_rank(window: Window, method: Method) -> int:
    """The largest rank that changes anything."""
    if method in SEPARABLE:
        first, last = window.kernel if method is Method.SPATIAL else window.kernel[::-1]
        return min(window.channels * first, window.rows * last)
    return min(window.rows, window.channels * math.prod(window.kernel))


def _pays(window: Window, method: Method, rank: int) -> bool:
    weights, macs = cost(window, Choice(method, (rank,)))
    return weights < window.weights and macs <= window.macs


def _grid(most: int, step: int, count: int = RANKS_MAX) -> list[int]:
    """Multiples of `step` up to `most`, at most `count` of them."""
    step *= max(1, -(-(most // step) // count))
    return list(range(step, most + 1, step))


def _nested(problem: Problem, group: int, window: Window, method: Method, most: int) -> NDArray[np.float64]:
    if method is Method.SVD:
        return _svd(problem, group, window).losses
    return _spatial(problem, group, window, method, most).losses


def _svd(problem: Problem, group: int, window: Window) -> solvers.Svd:
    return solvers.Svd(problem.weights[group], problem.hessian[group], problem.importance[group], window.kernel)


def _spatial(problem: Problem, group: int, window: Window, method: Method, most: int) -> solvers.Spatial:
    height, width = window.kernel
    parts = problem.weights[group], problem.hessian[group], problem.importance[group]
    return solvers.Spatial(*parts, (height, width), most, is_across=method is Method.ACROSS)


def _tucker(problem: Problem, group: int, window: Window, most: int) -> solvers.Tucker:
    parts = problem.weights[group], problem.hessian[group], problem.importance[group]
    return solvers.Tucker(*parts, window.kernel, most)


def _factors(problem: Problem, window: Window, choice: Choice, sweeps: int = 0) -> list[solvers.Factors]:
    """Those of each group; `sweeps` of polish where the method is not exact by itself."""
    result = []
    for group in range(window.groups):
        parts = problem.weights[group], problem.hessian[group], problem.importance[group]
        match choice.method:
            case Method.SVD:
                found = _svd(problem, group, window).factors(*choice.rank)
            case Method.SPATIAL | Method.ACROSS:
                found = _spatial(problem, group, window, choice.method, *choice.rank).factors(*choice.rank)
            case Method.TUCKER:
                inputs, outputs = choice.rank
                found = _tucker(problem, group, window, inputs).factors(inputs, outputs)
            case Method.CP:
                found = solvers.cp(*parts, window.kernel, *choice.rank)
        if sweeps and choice.method is not Method.SVD:
            found = solvers.polish(found, *parts, sweeps=sweeps)
        result.append(found)
    return result


def factors(problem: Problem, window: Window, choice: Choice, sweeps: int = 2) -> list[solvers.Factors]:
    """The factors of every group, as the pass writes them.

    Args:
        problem: Of the layer.
        window: Its sizes.
        choice: Method and rank.
        sweeps: Of conjugate gradients under the full H, where the method is not optimal by itself.

    Raises:
        ValueError: The rank is not one that the layer has.
    """
    if reason := _rank_problem(window, choice):
        raise ValueError(reason)
    return _factors(problem, window, choice, sweeps)


def _rank_problem(window: Window, choice: Choice) -> str | None:
    if len(choice.rank) != (2 if choice.method is Method.TUCKER else 1) or min(choice.rank) < 1:
        return f"{choice} is no rank of that method"
    if choice.method is Method.TUCKER:
        inputs, outputs = choice.rank
        wide, high = window.channels, min(window.rows, inputs * math.prod(window.kernel))
        return None if inputs <= wide and outputs <= high else f"rank {choice} is above {wide}x{high}"
    if choice.method is Method.CP:
        return None
    most = most_rank(window, choice.method)
    return None if choice.rank[0] <= most else f"rank {choice} is above {most}"


def svd_losses(problem: Problem, window: Window) -> NDArray[np.float64]:
    """Loss of every rank from 0 to the full one by singular values, float64; a layer without groups."""
    return _svd(problem, 0, window).losses


def product(window: Window, found: Sequence[solvers.Factors]) -> NDArray[np.float64]:
    """The weights that the factors of all groups stand for, float64 [groups, rows, taps]."""
    return np.stack([group.product() for group in found])


class LowRank(Rewrite):
    """Split named nodes of a canonical float graph; the last node of each keeps bias and output.

    Args:
        plan: Method and rank by node name.
        problems: Weights and H by node name, rows turned or not; a node without is skipped.
        means: What each tap reads on average, float64 [groups, taps] by node name. Where given, the bias takes up the
            mean of the error: b' = b + (W - W') E[x]. A MatMul has no bias, and leaves it.
        sweeps: As for `factors`.
    """

    name = "low-rank"

    def __init__(
        self,
        plan: Mapping[str, Choice],
        problems: Mapping[str, Problem | Turned],
        means: Mapping[str, NDArray[np.float64]] | None = None,
        sweeps: int = 2,
    ) -> None:
        super().__init__()
        self._plan, self._problems, self._means, self._sweeps = plan, problems, means or {}, sweeps

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        before = after = 0
        for node in list(model.graph):
            if (choice := self._plan.get(str(node.name))) is None:
                continue
            window = window_of(node)
            if isinstance(window, str):
                notes.skip(node, window)
                continue
            if reason := self._why_not(str(node.name), window, choice):
                notes.skip(node, reason)
                continue
            self._split(node, window, choice)
            notes.change(node)
            before, after = before + window.macs, after + cost(window, choice)[1]
        notes.metrics |= {"split_macs_before": float(before), "split_macs_after": float(after)}

    def _why_not(self, name: str, window: Window, choice: Choice) -> str | None:
        if reason := why_not(window, choice.method) or _rank_problem(window, choice):
            return reason
        if (problem := self._problems.get(name)) is None:
            return "nothing is known about its input"
        shape = (window.groups, window.rows, window.channels * math.prod(window.kernel))
        given = _plain(problem).weights.shape
        return None if given == shape else f"its weights are not {list(given)}"

    def _split(self, node: ir.Node, window: Window, choice: Choice) -> None:
        given = self._problems[str(node.name)]
        problem = _plain(given)
        found = factors(problem, window, choice, self._sweeps)
        weights = problem.weights
        if isinstance(given, Turned):
            found = [_turned_back(each, turn) for each, turn in zip(found, given.back, strict=True)]
            weights = np.matmul(given.back, weights)
        old = constant(operand(node, 2))
        bias = None if old is None else old.astype(np.float64).reshape(-1)
        if (mean := self._means.get(str(node.name))) is not None:
            shift = np.einsum("grt,gt->gr", weights - product(window, found), mean).reshape(-1)
            bias = shift if bias is None else bias + shift
        replace(node, *_nodes(node, window, choice, found, bias))


def _plain(problem: Problem | Turned) -> Problem:
    return problem.problem if isinstance(problem, Turned) else problem


def _turned_back(found: solvers.Factors, back: NDArray[np.float64]) -> solvers.Factors:
    """For the rows of the layer: the last factor alone knows of rows."""
    *first, last = found.tensors
    return dataclasses.replace(found, tensors=(*first, np.tensordot(back, last, axes=1)))


def _nodes(
    node: ir.Node,
    window: Window,
    choice: Choice,
    found: Sequence[solvers.Factors],
    bias: NDArray[np.float64] | None,
) -> list[ir.Node]:
    parts = _parts(window, choice)
    suffixes = ("reduce", "expand") if len(parts) == 2 else ("reduce", "core", "expand")
    value, result = node.inputs[0], []
    for index, (part, suffix) in enumerate(zip(parts, suffixes, strict=True)):
        is_last = index == len(parts) - 1  # what computes the old result keeps the old name
        name = str(node.name) if is_last else f"{node.name}_{suffix}"
        array = np.concatenate([group.tensors[index] for group in found])
        array = array.reshape(part.groups * part.rows, part.channels, *part.kernel).astype(np.float32)
        stored = array.T if is_op(node, "MatMul") else array
        inputs: list[ir.Value | None] = [value, new_initializer(graph_of(node), f"{name}_weights", stored)]
        if bias is not None and is_last and not is_op(node, "MatMul"):
            inputs.append(new_initializer(graph_of(node), f"{name}_bias", bias.astype(np.float32)))
        made = _conv(node, part, index, choice, inputs, name) if window.kernel else _product(node, part, inputs, name)
        made.metadata_props.update({**node.metadata_props, METADATA: f"{choice} of {node.name}"})
        result.append(made)
        value = made.outputs[0]
    return result


def _product(node: ir.Node, part: Window, inputs: list[ir.Value | None], name: str) -> ir.Node:
    """A Gemm or MatMul as `node` is."""
    before = shape_of(node.outputs[0])
    shape = None if before is None else (*before[:-1], part.rows)
    return make("Gemm", inputs, name, shape, transB=1) if is_op(node, "Gemm") else make("MatMul", inputs, name, shape)


def _conv(
    node: ir.Node, part: Window, index: int, choice: Choice, inputs: list[ir.Value | None], name: str
) -> ir.Node:
    rank = len(part.kernel)
    pads = ints(node, "pads", (0,) * 2 * rank)
    strides, dilations = (ints(node, key, (1,) * rank) for key in ("strides", "dilations"))
    # Which axes this node walks along in the way of the whole; along the others it looks at one position.
    walks = _walks(choice.method, index, rank)
    batch = shape_of(node.outputs[0])
    return make(
        "Conv",
        inputs,
        name,
        (batch[0] if batch else 1, part.groups * part.rows, *part.after),
        kernel_shape=list(part.kernel),
        strides=[step if walk else 1 for step, walk in zip(strides, walks)],
        dilations=[step if walk else 1 for step, walk in zip(dilations, walks)],
        pads=[pad if walk else 0 for pad, walk in zip(pads, walks * 2)],
        group=part.groups,
    )


def _walks(method: Method, index: int, rank: int) -> tuple[bool, ...]:
    if method in SEPARABLE:
        is_first = index == 0
        return (is_first, not is_first) if method is Method.SPATIAL else (not is_first, is_first)
    return (index == (0 if method is Method.SVD else 1),) * rank
