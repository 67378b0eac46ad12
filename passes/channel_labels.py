"""Which elements of the tensors of a network belong to the same channel: labels that every operator passes on.

Each element of each value carries a label, the class of elements that can leave the network together or not at all.
Labels are arrays of the rank of their value, with length 1 along the axes where they are all alike, so that a map of
C channels needs C of them. Operators that move elements move labels; those that combine elements unite them; a layer
with weights makes new ones. What is not understood freezes the labels that it touches, with a reason.

Source: the grouping of dependent parameters in Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023,
    section 3; here over elements instead of layers, so that blocks, offsets and permutations need no cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.constant_channels import ELEMENTWISE, POOLS, RESHAPES
from passes.graph import constant, integer, ints, is_op, number, operand, shape_of, text

Labels: TypeAlias = NDArray[np.int64]

ELEMENTS_MAX = 1 << 24
"""Of a tensor whose labels are written out to follow them through a Reshape."""
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
_JOINS = (*ELEMENTWISE, "Where")


@dataclass(eq=False)
class Classes:
    """Labels, which of them are the same, and which of these are frozen, and why."""

    _parents: list[int] = field(default_factory=list)
    _reasons: dict[int, str] = field(default_factory=dict)

    def fresh(self, *shape: int) -> Labels:
        """New labels, all different."""
        first = len(self._parents)
        self._parents.extend(range(first, first + math.prod(shape)))
        return np.arange(first, len(self._parents), dtype=np.int64).reshape(shape)

    def unite(self, one: Labels, other: Labels) -> None:
        """Make the labels of both, which broadcast to each other, the same."""
        pairs = np.stack([side.ravel() for side in np.broadcast_arrays(one, other)])
        for a, b in np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T.tolist():
            first, second = sorted((self._root(a), self._root(b)))
            if first == second:
                continue
            self._parents[second] = first
            if (reason := self._reasons.pop(second, None)) is not None:
                self._reasons.setdefault(first, reason)

    def freeze(self, labels: Labels, reason: str) -> None:
        """Nothing of `labels` may go."""
        for label in np.unique(labels).tolist():
            self._reasons.setdefault(self._root(label), reason)

    def why_frozen(self, label: int) -> str | None:
        return self._reasons.get(self._root(label))

    def settled(self, labels: Labels) -> Labels:
        """The smallest label of each one's class, with length 1 along the axes where they are all alike."""
        known, inverse = np.unique(labels, return_inverse=True)
        roots = np.asarray([self._root(label) for label in known.tolist()], np.int64)
        return squashed(roots[inverse].reshape(labels.shape))

    def _root(self, label: int) -> int:
        root = label
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[label] != root:
            self._parents[label], label = root, self._parents[label]
        return root


def squashed(labels: Labels) -> Labels:
    """With length 1 along every axis where they are all alike."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if labels.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, labels.shape), labels):
            labels = first
    return labels


def varying(labels: Labels) -> tuple[int, ...]:
    """The axes along which squashed labels differ."""
    return tuple(axis for axis, length in enumerate(labels.shape) if length > 1)


def united_along(labels: Labels, axes: Iterable[int], classes: Classes) -> Labels:
    """The labels after those that differ along `axes` have been made the same."""
    for axis in axes:
        if labels.shape[axis] > 1:
            first = labels.take([0], axis)
            classes.unite(labels, first)
            labels = first
    return labels


def label(graph: ir.Graph) -> tuple[Classes, dict[ir.Value, Labels]]:
    """Labels of every value of static shape of a canonical float graph, squashed; the others have none."""
    walk = _Walk(Classes(), {})
    for value in graph.inputs:
        walk.new(value, "it is an input of the network")
    for node in graph:
        walk.visit(node, graph)
    for value in graph.outputs:
        walk.freeze([value], "it is an output of the network")
    _make_rectangular(walk)
    return walk.classes, walk.labels


def is_layer(node: ir.Node) -> bool:
    """Whether `node` has float weights that channels can be taken out of."""
    return is_op(node, "Conv", "Gemm") and _why_not_layer(node) is None


def is_grouped(node: ir.Node) -> bool:
    """Whether the output channels of `node` read different input channels."""
    return is_op(node, "Conv") and integer(node, "group", 1) > 1


def axes_of(node: ir.Node) -> tuple[int, ...]:
    """The axes that a reduction, Pad or Slice names, as they are counted from the front; all where it names none."""
    rank = len(shape_of(node.inputs[0]) or ())
    index = 3 if is_op(node, "Pad", "Slice") else 1
    named = constant(operand(node, index))
    chosen = ints(node, "axes", tuple(range(rank))) if named is None else tuple(int(a) for a in named.ravel())
    return tuple(axis % rank for axis in chosen)


def pad_amounts(node: ir.Node) -> tuple[tuple[int, int], ...] | None:
    """How much a Pad adds before and behind each axis; None where it is not constant."""
    rank, amounts = len(shape_of(node.inputs[0]) or ()), constant(operand(node, 1))
    if amounts is None or (operand(node, 3) is not None and constant(operand(node, 3)) is None):
        return None
    before, behind = amounts.reshape(2, -1).tolist()
    by_axis = dict(zip(axes_of(node), zip(before, behind, strict=True), strict=True))
    return tuple(by_axis.get(axis, (0, 0)) for axis in range(rank))


def slice_of(node: ir.Node) -> tuple[slice, ...] | None:
    """What a Slice takes of each axis, in canonical form; None where it is not constant."""
    shape = shape_of(node.inputs[0]) or ()
    given = [constant(operand(node, index)) for index in (1, 2, 4)]
    if any(operand(node, i) is not None and constant(operand(node, i)) is None for i in (1, 2, 3, 4)):
        return None
    if given[0] is None or given[1] is None:
        return None
    steps = [1] * given[0].size if given[2] is None else given[2].tolist()
    result = [slice(0, length, 1) for length in shape]
    # Without axes the first ones are meant.
    axes = axes_of(node)[: given[0].size]
    for axis, first, last, step in zip(axes, given[0].tolist(), given[1].tolist(), steps, strict=True):
        # ONNX counts from the back and clamps as Python does.
        result[axis] = slice(*slice(first, last, step).indices(shape[axis]))
    return tuple(result)


@dataclass(eq=False)
class _Walk:
    """The labels so far. Methods named after what they do to the operands and results of one node."""

    classes: Classes
    labels: dict[ir.Value, Labels]

    def visit(self, node: ir.Node, graph: ir.Graph) -> None:
        """Label the results of `node`."""
        outside = any(use.node.graph is not graph for value in node.outputs for use in value.uses())
        reason = self._why_unknown(node) or _pass_on(node, self)
        if reason is not None:
            reason = f"node {node.name!r}: {reason}"
            self.freeze(dynamic(node), reason)
            for value in node.outputs:
                self.new(value, reason)
        elif outside:
            self.freeze(node.outputs, f"node {node.name!r} is read by a subgraph")

    def _why_unknown(self, node: ir.Node) -> str | None:
        if not dynamic(node):
            return f"{node.op_type} has no inputs that are computed"
        unknown = [v.name for v in (*dynamic(node), *node.outputs) if (shape_of(v) is None or 0 in (shape_of(v) or ()))]
        return f"the shape of {unknown[0]!r} is unknown or empty" if unknown else None

    def new(self, value: ir.Value, reason: str) -> None:
        """Give `value` frozen labels of its own; one serves for all of it."""
        if (shape := shape_of(value)) is not None and value not in self.labels:
            self.labels[value] = self.classes.fresh(*(1 for _ in shape))
        self.freeze([value], reason)

    def freeze(self, values: Sequence[ir.Value], reason: str) -> None:
        for value in values:
            if value in self.labels:
                self.classes.freeze(self.labels[value], reason)

    def full(self, value: ir.Value, axes: Iterable[int] | None = None) -> Labels:
        """The labels of `value`, written out along `axes`, by default all."""
        labels, shape = self.labels[value], shape_of(value) or ()
        wanted = list(labels.shape)
        for axis in range(len(shape)) if axes is None else axes:
            wanted[axis] = shape[axis]
        return np.broadcast_to(labels, wanted)

    def united(self, value: ir.Value, but: int) -> Labels:
        """The labels of `value` after all that differ along other axes than `but` have been made the same."""
        labels = self.labels[value]
        return united_along(labels, [axis for axis in range(labels.ndim) if axis != but], self.classes)

    def set(self, value: ir.Value, labels: Labels) -> None:
        self.labels[value] = squashed(labels)


def dynamic(node: ir.Node) -> list[ir.Value]:
    """The operands of `node` that are computed or fed, in order."""
    return [value for value in node.inputs if value is not None and constant(value) is None]


# What operators do to labels: each returns why it is not known, or None.


def _pass_on(node: ir.Node, walk: _Walk) -> str | None:
    for op_types, rule in _RULES.items():
        if is_op(node, *op_types):
            if rule not in (_layer, _elementwise, _concat) and dynamic(node) != [node.inputs[0]]:
                return "what it does depends on a tensor that is computed"
            return rule(node, walk)
    return f"{node.op_type} may mix channels"


def _why_not_layer(node: ir.Node) -> str | None:
    weights, bias = constant(operand(node, 1)), operand(node, 2)
    if weights is None or weights.dtype != np.float32 or dynamic(node) != [node.inputs[0]]:
        return "its weights are quantized or not constant"
    if bias is not None and ((array := constant(bias)) is None or array.size != weights.shape[0]):
        return "its bias is not one constant for each channel"
    if is_op(node, "Conv"):
        return None
    plain = number(node, "alpha", 1.0) == 1.0 == number(node, "beta", 1.0)
    is_canonical = plain and integer(node, "transA", 0) == 0 and integer(node, "transB", 0) == 1
    return None if is_canonical and len(shape_of(node.inputs[0]) or ()) == 2 else "its operands are transposed"


def _layer(node: ir.Node, walk: _Walk) -> str | None:
    if reason := _why_not_layer(node):
        return reason
    source, result = dynamic(node)[0], node.outputs[0]
    shape = shape_of(result) or ()
    labels = walk.classes.fresh(1, shape[1], *[1] * (len(shape) - 2))
    read = walk.united(source, but=1)
    if is_grouped(node):
        # A group goes whole: what it reads, what it computes.
        groups = integer(node, "group", 1)
        read = np.broadcast_to(read, (1, (shape_of(source) or ())[1], *read.shape[2:])).reshape(groups, -1)
        first = labels.reshape(groups, -1)[:, :1]
        walk.classes.unite(labels.reshape(groups, -1), first)
        walk.classes.unite(read, first)
    walk.set(result, labels)
    return None


def _elementwise(node: ir.Node, walk: _Walk) -> str | None:
    if len(node.outputs) != 1:
        return "it has several outputs"
    shape = shape_of(node.outputs[0]) or ()
    operands = [(value, _raised(walk.labels[value], len(shape))) for value in dynamic(node)]
    joined: list[Labels] = []
    for value, labels in operands:
        lengths = (1,) * (len(shape) - len(shape_of(value) or ())) + (shape_of(value) or ())
        others = [other for _, other in operands if other is not labels]
        spread = [axis for axis, length in enumerate(lengths) if length == 1 < shape[axis]]
        if any(other.shape[axis] > 1 for other in others for axis in spread):
            walk.freeze([value], f"node {node.name!r} reads it for every channel of another tensor")
        else:
            joined.append(labels)
    if not joined:
        return "each of its operands is repeated along an axis of another"
    for labels in joined[1:]:
        walk.classes.unite(joined[0], labels)
    walk.set(node.outputs[0], np.broadcast_arrays(*joined)[0])
    return None


def _raised(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _pool(node: ir.Node, walk: _Walk) -> str | None:
    if len(node.outputs) != 1:
        return "it has several outputs"
    walk.set(node.outputs[0], walk.united(dynamic(node)[0], but=1))
    return None


def _resize(node: ir.Node, walk: _Walk) -> str | None:
    before, after = (shape_of(value) or () for value in (node.inputs[0], node.outputs[0]))
    if "axes" in node.attributes or before[:2] != after[:2]:
        return "it resizes in a way that is not looked into"
    if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it crops"
    return _pool(node, walk)


def _reshape(node: ir.Node, walk: _Walk) -> str | None:
    source, shape = dynamic(node)[0], shape_of(node.outputs[0]) or ()
    if math.prod(shape) > ELEMENTS_MAX:
        return f"it has more than {ELEMENTS_MAX} elements"
    walk.set(node.outputs[0], walk.full(source).reshape(shape))
    return None


def _transpose(node: ir.Node, walk: _Walk) -> str | None:
    labels = walk.labels[dynamic(node)[0]]
    walk.set(node.outputs[0], labels.transpose(ints(node, "perm", tuple(reversed(range(labels.ndim))))))
    return None


def _concat(node: ir.Node, walk: _Walk) -> str | None:
    shape = shape_of(node.outputs[0]) or ()
    axis = integer(node, "axis", 0) % len(shape)
    parts: list[Labels] = []
    for value in node.inputs:
        if value is None or constant(value) is None:
            parts.append(walk.full(value, [axis]))  # type: ignore[arg-type]
        else:
            rest = tuple(1 for _ in shape)
            parts.append(np.broadcast_to(walk.classes.fresh(*rest), _with(rest, axis, (shape_of(value) or ())[axis])))
            walk.classes.freeze(parts[-1], f"node {node.name!r} joins constants")
    common = [max(part.shape[i] for part in parts) for i in range(len(shape))]
    spread = [np.broadcast_to(part, _with(tuple(common), axis, part.shape[axis])) for part in parts]
    walk.set(node.outputs[0], np.concatenate(spread, axis))
    return None


def _with(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _split(node: ir.Node, walk: _Walk) -> str | None:
    source = dynamic(node)[0]
    axis = integer(node, "axis", 0) % len(shape_of(source) or ())
    labels, start = walk.full(source, [axis]), 0
    for value in node.outputs:
        length = (shape_of(value) or ())[axis]
        walk.set(value, labels.take(range(start, start + length), axis))
        start += length
    return None


def _slice(node: ir.Node, walk: _Walk) -> str | None:
    taken, source = slice_of(node), dynamic(node)[0]
    if taken is None:
        return "its bounds are computed"
    if any(taken[axis].step != 1 for axis in varying(walk.labels[source])):
        return "it takes every second channel or so"
    labels = walk.full(source, varying(walk.labels[source]))
    shortened = tuple(part if labels.shape[axis] > 1 else slice(None) for axis, part in enumerate(taken))
    walk.set(node.outputs[0], labels[shortened])
    return None


def _gather(node: ir.Node, walk: _Walk) -> str | None:
    chosen, source = constant(operand(node, 1)), operand(node, 0)
    if chosen is None or source is None:
        return "what it reads is computed"
    axis = integer(node, "axis", 0) % len(shape_of(source) or ())
    if chosen.ndim != 1:
        return "it does not read a list of channels"
    walk.set(node.outputs[0], walk.full(source, [axis]).take(chosen.astype(np.int64), axis))
    return None


def _pad(node: ir.Node, walk: _Walk) -> str | None:
    amounts = pad_amounts(node)
    if amounts is None:
        return "what it pads is computed"
    if min(min(pair) for pair in amounts) < 0:
        return "it crops"
    labels = walk.labels[dynamic(node)[0]]
    for axis in varying(labels):
        if not any(amounts[axis]):
            continue
        if text(node, "mode", "constant") != "constant":
            return "it pads channels with other channels"
        ends = [walk.classes.fresh(*_with(tuple(1 for _ in amounts), axis, n)) for n in amounts[axis]]
        parts = [ends[0], labels, ends[1]]
        spread = [np.broadcast_to(p, _with(labels.shape, axis, p.shape[axis])) for p in parts]
        labels = np.concatenate(spread, axis)
    walk.set(node.outputs[0], labels)
    return None


def _along_axis(node: ir.Node, walk: _Walk) -> str | None:
    labels = walk.labels[dynamic(node)[0]]
    if labels.shape[integer(node, "axis", -1)] > 1:
        return f"{node.op_type} over channels"
    walk.set(node.outputs[0], labels)
    return None


def _reduce(node: ir.Node, walk: _Walk) -> str | None:
    named = constant(operand(node, 1))
    if (named is None or not named.size) and integer(node, "noop_with_empty_axes", 0):
        return "it reduces nothing"
    labels = walk.labels[dynamic(node)[0]]
    if any(labels.shape[axis] > 1 for axis in axes_of(node)):
        return f"{node.op_type} over channels"
    kept = labels.reshape([n for axis, n in enumerate(labels.shape) if axis not in axes_of(node)])
    walk.set(node.outputs[0], labels if integer(node, "keepdims", 1) else kept)
    return None


def _depth_to_space(node: ir.Node, walk: _Walk) -> str | None:
    block, source = integer(node, "blocksize", 1) ** 2, dynamic(node)[0]
    labels = np.broadcast_to(walk.united(source, but=1), (1, (shape_of(source) or ())[1], 1, 1))
    by_block = labels.reshape(-1, block) if text(node, "mode", "DCR") == "CRD" else labels.reshape(block, -1).T
    walk.classes.unite(by_block, by_block[:, :1])
    walk.set(node.outputs[0], by_block[:, :1].reshape(1, -1, 1, 1))
    return None


def _space_to_depth(node: ir.Node, walk: _Walk) -> str | None:
    block, source = integer(node, "blocksize", 1) ** 2, dynamic(node)[0]
    labels = np.broadcast_to(walk.united(source, but=1), (1, (shape_of(source) or ())[1], 1, 1))
    walk.set(node.outputs[0], np.tile(labels, (1, block, 1, 1)))
    return None


_RULES: Mapping[tuple[str, ...], Callable[[ir.Node, _Walk], str | None]] = {
    ("Conv", "Gemm"): _layer,
    _JOINS: _elementwise,
    POOLS: _pool,
    ("Resize",): _resize,
    RESHAPES: _reshape,
    ("Transpose",): _transpose,
    ("Concat",): _concat,
    ("Split",): _split,
    ("Slice",): _slice,
    ("Gather",): _gather,
    ("Pad",): _pad,
    ("Softmax", "LogSoftmax", "Hardmax"): _along_axis,
    REDUCTIONS: _reduce,
    ("DepthToSpace",): _depth_to_space,
    ("SpaceToDepth",): _space_to_depth,
}


# A tensor without some of its elements must still be a tensor


def _make_rectangular(walk: _Walk) -> None:
    """Unite labels until those of every value differ along one axis at most: what goes are whole slices."""
    while True:
        for value in walk.labels:
            walk.labels[value] = walk.classes.settled(walk.labels[value])
        ragged = [labels for labels in walk.labels.values() if len(varying(labels)) > 1]
        if not ragged:
            return
        for labels in ragged:
            best = max(varying(labels), key=lambda axis: (_count_along(labels, axis), -axis))
            united_along(labels, [axis for axis in range(labels.ndim) if axis != best], walk.classes)


def _count_along(labels: Labels, axis: int) -> int:
    """How many classes would be left if all labels of one slice across `axis` were the same."""
    known, numbered = np.unique(labels, return_inverse=True)
    trial = Classes()
    own = trial.fresh(known.size)[numbered.reshape(labels.shape)]
    for other in range(labels.ndim):
        if other != axis:
            trial.unite(own, own.take([0], other))
    return int(np.unique(trial.settled(own)).size)
