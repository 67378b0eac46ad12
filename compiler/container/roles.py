"""What each tensor of a skeleton is for, as its graph tells: that is how it is coded, and which others give it away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

from compiler.container.wire import FLOAT, TYPES, Class, Node, Skeleton, Tensor

STEPS_MAX = 8
"""So many nodes at most lie between a Conv and the QuantizeLinear of its output."""
POINT_BITS = 8
"""Integers of one element and at most so many bits are zero points."""


class Role(Enum):
    """How a tensor is coded."""

    SCALAR = "scalar"
    """One float32: all of them make one array."""
    ZERO_POINT = "zero point"
    """One integer of at most 8 bits: likewise."""
    WEIGHT_SCALE = "weight scale"
    BIAS_SCALE = "bias scale"
    BIAS = "bias"
    INTEGERS = "integers"
    WORDS = "words"


class Bank(IntEnum):
    """Which adaptive states of the coder an array shares."""

    CONV = 0
    DEPTHWISE = 1
    GEMM = 2
    SETTINGS = 3
    SCALE_STEPS = 4
    BIASES = 5
    INDICES = 6
    WORDS = 7


class Part(Enum):
    """What of the file a tensor's bytes are counted as."""

    CODES = "codes"
    CODEBOOKS = "codebooks"
    SCALES = "scales"
    BIASES = "biases"
    GRAPH = "graph"


@dataclass(frozen=True)
class Layer:
    """The tensors of one quantized Conv or Gemm by their numbers, -1 where there is none.

    Attributes:
        source: Scale of its input, one float32.
        target: Scale of its output, one float32.
        weight: Scale of its weights, float32, one or one for each output channel.
    """

    source: int
    target: int
    weight: int


@dataclass(frozen=True)
class Assigned:
    """What was found out about one tensor.

    Attributes:
        layer: Of a weight scale, bias scale or bias; None elsewhere.
    """

    role: Role
    bank: Bank
    part: Part
    layer: Layer | None = None


class _Graph:
    """Names to numbers. The first of a name counts."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.nodes, self.tensors = skeleton.nodes, skeleton.tensors
        self.number: dict[bytes, int] = {}
        self.producer: dict[bytes, int] = {}
        self.reader: dict[bytes, int] = {}
        for number, tensor in enumerate(self.tensors):
            if tensor.name:
                self.number.setdefault(tensor.name, number)
        for number, node in enumerate(self.nodes):
            for name in filter(None, node.outputs):
                self.producer.setdefault(name, number)
            if node.inputs and node.inputs[0]:
                self.reader.setdefault(node.inputs[0], number)

    def tensor(self, node: Node | None, index: int) -> int:
        """The number of the tensor at an input of `node`, or -1."""
        return self.number.get(node.inputs[index], -1) if node is not None and index < len(node.inputs) else -1

    def dequantize(self, node: Node, index: int) -> Node | None:
        """The DequantizeLinear in front of an input of `node`."""
        if index >= len(node.inputs):
            return None
        producer = self.producer.get(node.inputs[index], -1)
        found = self.nodes[producer] if producer >= 0 else None
        return found if found is not None and found.op_type == b"DequantizeLinear" else None

    def target(self, node: Node) -> int:
        """The scale of the QuantizeLinear that the output of `node` reaches, the first reader at every step, or -1."""
        for _ in range(STEPS_MAX):
            reader = self.reader.get(node.outputs[0], -1) if node.outputs else -1
            if reader < 0:
                return -1
            node = self.nodes[reader]
            if node.op_type == b"QuantizeLinear":
                return self.tensor(node, 1)
        return -1


def assign(skeleton: Skeleton) -> list[Assigned]:
    """The role of every tensor of `skeleton`. A decoder in another language must repeat these rules to the letter."""
    graph = _Graph(skeleton)
    parts = _parts(graph)
    claimed: dict[int, tuple[Role, Layer]] = {}
    for node in graph.nodes:
        if node.op_type in (b"Conv", b"Gemm"):
            _claim(graph, node, claimed)
    return [
        _assigned(tensor, parts.get(number, _part(tensor)), claimed.get(number))
        for number, tensor in enumerate(graph.tensors)
    ]


def _claim(graph: _Graph, node: Node, claimed: dict[int, tuple[Role, Layer]]) -> None:
    x, w, b = (graph.dequantize(node, index) for index in range(3))
    layer = Layer(graph.tensor(x, 1), graph.target(node), graph.tensor(w, 1))
    wanted = ((layer.weight, Role.WEIGHT_SCALE), (graph.tensor(b, 1), Role.BIAS_SCALE), (graph.tensor(b, 0), Role.BIAS))
    for number, role in wanted:
        if number >= 0 and number not in claimed and _can_be(graph.tensors[number], role):
            claimed[number] = role, layer


def _can_be(tensor: Tensor, role: Role) -> bool:
    if role is Role.BIAS:
        return tensor.data_type == 6 and tensor.elements > 0
    return tensor.data_type == FLOAT and (tensor.elements > 1 or role is Role.BIAS_SCALE)


def _assigned(tensor: Tensor, part: Part, claim: tuple[Role, Layer] | None) -> Assigned:
    if claim is not None:
        role, layer = claim
        bank = Bank.BIASES if role is Role.BIAS else Bank.SCALE_STEPS
        return Assigned(role, bank, part, layer)
    kind = TYPES[tensor.data_type]
    if tensor.elements == 1 and tensor.data_type == FLOAT:
        return Assigned(Role.SCALAR, Bank.WORDS, part)
    if tensor.elements == 1 and kind.coded is not Class.WORDS and kind.bits <= POINT_BITS:
        return Assigned(Role.ZERO_POINT, Bank.SETTINGS, part)
    if kind.coded is Class.WORDS:
        return Assigned(Role.WORDS, Bank.WORDS, part)
    return Assigned(Role.INTEGERS, _bank(tensor, part), part)


def _bank(tensor: Tensor, part: Part) -> Bank:
    """Of an array of integers: by its type and shape."""
    if part is Part.BIASES:
        return Bank.BIASES
    if part in (Part.SCALES, Part.GRAPH):
        return Bank.SETTINGS
    if part is Part.CODEBOOKS or TYPES[tensor.data_type].coded is Class.UNSIGNED:
        return Bank.INDICES
    if len(tensor.dims) <= 2:
        return Bank.GEMM
    return Bank.DEPTHWISE if tensor.dims[1] == 1 else Bank.CONV


def _part(tensor: Tensor) -> Part:
    """Of a tensor whose reader tells nothing: int64 are shapes and axes, the rest is weights."""
    return Part.GRAPH if tensor.data_type == 7 or not tensor.name else Part.CODES


_READ_AS: Mapping[tuple[bytes, int], Part] = {
    (b"QuantizeLinear", 1): Part.SCALES,
    (b"QuantizeLinear", 2): Part.SCALES,
    (b"DequantizeLinear", 1): Part.SCALES,
    (b"DequantizeLinear", 2): Part.SCALES,
    (b"Conv", 2): Part.BIASES,
    (b"Gemm", 2): Part.BIASES,
    (b"Gather", 0): Part.CODEBOOKS,
    (b"GatherElements", 0): Part.CODEBOOKS,
}


def _parts(graph: _Graph) -> dict[int, Part]:
    """By the first input that reads a tensor, or the Conv or Gemm bias that it becomes."""
    found: dict[int, Part] = {}
    for node in graph.nodes:
        for index in range(len(node.inputs)):
            number, part = graph.tensor(node, index), _READ_AS.get((node.op_type, index))
            if number >= 0 and part is not None:
                found.setdefault(number, part)
        if node.op_type in (b"Conv", b"Gemm"):
            number = graph.tensor(graph.dequantize(node, 2), 0)
            if number >= 0:
                found.setdefault(number, Part.BIASES)
    return found
