"""Random small float ONNX networks of 1 to 8 supported ops, with activations that spread well over int8.

A network is grown op by op. Each op is evaluated on the samples as soon as it is added, and its constants are chosen
from what it really produces, so that no layer is dead or saturated: a test on such a network can fail.
An op whose output spreads badly all the same is taken back and another is drawn.

The structure comes from a `Choices`: `Seeded` for numbered cases, hypothesis through `networks()`. Weights always come
from a seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
SAMPLES = 24
LONGEST_SIDE = 20
MOST_CHANNELS = 12
SATURATED_MOST = 0.25
DISTINCT_LEAST = 16
MOST_REGIONS = 9

T = TypeVar("T")
Attribute: TypeAlias = int | float | str | Sequence[int]
Floats: TypeAlias = NDArray[np.float32]


class Choices(Protocol):
    """Where the structure of a network comes from."""

    def integer(self, low: int, high: int) -> int:
        """One of low to high, both included."""
        ...

    def choose(self, options: Sequence[T]) -> T:
        """One of `options`."""
        ...


class Seeded:
    """Choices of a numbered case."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 0])

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def choose(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


class Drawn:
    """Choices that hypothesis makes, and shrinks."""

    def __init__(self, draw: Callable[..., int]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self._draw(st.integers(low, high)))

    def choose(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the coverage table: an op and what is special about its geometry.

    Attributes:
        op: ONNX op, with its rank or variant.
        stride: As "2x1", or "-".
        pad: "none", "even", "uneven", or "-".
        dilation: As "2x2", or "-".
        group: "1", "grouped", "depthwise", "multiplied" (depthwise with several outputs a channel), or "-".
        size: "odd" if a side of the input map is odd, else "even"; "-" where it does not matter.
    """

    op: str
    stride: str = "-"
    pad: str = "-"
    dilation: str = "-"
    group: str = "-"
    size: str = "-"


@dataclass(frozen=True)
class RandomNetwork:
    """A float network and what it was built on.

    Attributes:
        model: Opset 21, IR 10, batch 1, one input `x`.
        samples: float32 [SAMPLES, ...] on which every layer spreads well; for calibration and for judging.
        cells: What it covers.
    """

    model: onnx.ModelProto
    samples: Floats
    cells: tuple[Cell, ...]

    @property
    def ops(self) -> str:
        """The ops in order, for messages."""
        return " ".join(node.op_type for node in self.model.graph.node)


def random_network(seed: int, *, most_ops: int = 8) -> RandomNetwork:
    """The network of case `seed`. Cases walk through all kinds of op: case n begins with kind n modulo their number."""
    return _build(Seeded(seed), seed, most_ops, first=seed)


@st.composite
def networks(draw: Callable[..., int], most_ops: int = 8) -> RandomNetwork:
    """Hypothesis strategy of networks with 1 to `most_ops` ops."""
    choices = Drawn(draw)
    return _build(choices, choices.integer(0, 2**16), most_ops, first=choices.integer(0, len(_KINDS) - 1))


def coverage_table(cells: Sequence[Cell]) -> str:
    """How often each op met each stride, pad, dilation, group and odd size, as text."""
    lines = [f"{'op':24} {'stride':>7} {'pad':>7} {'dilation':>9} {'group':>11} {'size':>5} {'times':>6}"]
    for cell in sorted(set(cells)):
        row = f"{cell.op:24} {cell.stride:>7} {cell.pad:>7} {cell.dilation:>9} {cell.group:>11} {cell.size:>5}"
        lines.append(f"{row} {cells.count(cell):6}")
    return "\n".join(lines)


def why_badly_spread(values: NDArray[np.int8]) -> str | None:
    """Why int8 `values` of a layer would hide faults, or None.

    Values at either end of the tensor's own range count as saturated.
    """
    ends = np.mean(values == values.min()) + np.mean(values == values.max())
    if ends > SATURATED_MOST:
        return f"{ends:.0%} of its values are saturated"
    if (distinct := len(np.unique(values))) < DISTINCT_LEAST:
        return f"it has {distinct} distinct values"
    return None


def _build(choices: Choices, seed: int, most_ops: int, first: int) -> RandomNetwork:
    count = choices.integer(1, most_ops)
    kinds = list(_KINDS)
    network = _Network(choices, np.random.default_rng([seed, 1]), _first_rank(kinds[first % len(kinds)], choices))
    wanted = [kinds[first % len(kinds)]]
    for _ in range(8 * count):
        if network.op_count >= count:
            break
        network.try_op(wanted.pop() if wanted else choices.choose(kinds))
    if not network.nodes:
        network.try_op("conv" if network.rank > 2 else "gemm", sure=True)
    return network.finish()


def _first_rank(kind: str, choices: Choices) -> int:
    """Rank of the input with its batch axis: maps mostly, sometimes signals, sometimes vectors."""
    if kind in _MAPS_ONLY:
        return 4
    if kind in _SPATIAL:
        return choices.choose((4, 4, 3))
    return choices.choose((4, 4, 4, 3, 2))


@dataclass
class _Network:
    """A network being grown. `value` is the last value, `values` all of them with what they hold on the samples."""

    choices: Choices
    rng: np.random.Generator
    rank: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    values: dict[str, Floats] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    value: str = "x"
    op_count: int = 0

    def __post_init__(self) -> None:
        sides = [self.choices.integer(3, LONGEST_SIDE) for _ in range(self.rank - 2)]
        channels = self.choices.integer(1, MOST_CHANNELS) if sides else self.choices.integer(4, 24)
        scale, offset = self.rng.uniform(0.2, 4.0), self.rng.uniform(-1, 1)
        x = (self.rng.normal(size=(SAMPLES, channels, *sides)) + offset) * scale
        self.values["x"] = x.astype(np.float32)

    def try_op(self, kind: str, *, sure: bool = False) -> None:
        """Add an op of `kind` if it is possible here and spreads well; else leave the network as it was."""
        before = (len(self.nodes), len(self.constants), len(self.cells), self.value, self.op_count, self.rank)
        names = set(self.values)
        possible = _KINDS[kind](self)
        if possible and (sure or all(_spreads(self.values[n]) for n in self.values if n not in names)):
            return
        nodes, constants, cells, self.value, self.op_count, self.rank = before
        del self.nodes[nodes:], self.constants[constants:], self.cells[cells:]
        self.values = {name: held for name, held in self.values.items() if name in names}

    def finish(self) -> RandomNetwork:
        """The network as a checked model; its outputs are the values that nobody reads."""
        read = {name for node in self.nodes for name in node.input}
        outputs = [node.output[0] for node in self.nodes if node.output[0] not in read]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [_value_info("x", self.values["x"])],
            [_value_info(name, self.values[name]) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return RandomNetwork(model, self.values["x"], tuple(self.cells))

    # What the kinds of op are made of.

    @property
    def now(self) -> Floats:
        """What the last value holds, [samples, ...]."""
        return self.values[self.value]

    @property
    def channels(self) -> int:
        return self.now.shape[1]

    @property
    def sides(self) -> tuple[int, ...]:
        return self.now.shape[2:]

    @property
    def size(self) -> str:
        return "odd" if any(side % 2 for side in self.sides) else "even"

    def chance(self, percent: int) -> bool:
        return self.choices.integer(1, 100) > 100 - percent

    def constant(self, values: NDArray[np.generic]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, *shape: int) -> Floats:
        return self.rng.normal(size=shape).astype(np.float32)

    def node(self, op: str, inputs: Sequence[str], attributes: Mapping[str, Attribute] | None = None) -> str:
        """Add a node, evaluate it and make it the last value."""
        name = f"{op.lower()}{len(self.nodes)}"
        made = helper.make_node(op, list(inputs), [f"{name}_out"], name)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self.values[made.output[0]] = _evaluate(made, self.values, self.constants)
        self.nodes.append(made)
        self.value = made.output[0]
        self.rank = self.now.ndim
        return self.value

    def replace(self, name: str, values: NDArray[np.generic]) -> None:
        """Change a constant of the last node, and evaluate that node again."""
        index = next(i for i, constant in enumerate(self.constants) if constant.name == name)
        self.constants[index].CopyFrom(numpy_helper.from_array(values, name))
        self.values[self.value] = _evaluate(self.nodes[-1], self.values, self.constants)

    def add(self, cell: Cell) -> bool:
        self.cells.append(cell)
        self.op_count += 1
        return True


def _spreads(values: Floats) -> bool:
    """Whether `values` on 256 steps between their ends would be well spread."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or high - low < 1e-3 or max(-low, high) > 1e4:
        return False
    low, high = min(low, 0.0), max(high, 0.0)
    steps = np.round((values - low) / (high - low) * 255) - 128
    return why_badly_spread(steps.astype(np.int8)) is None


def _value_info(name: str, values: Floats) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *values.shape[1:]])


def _evaluate(node: onnx.NodeProto, values: dict[str, Floats], constants: Sequence[onnx.TensorProto]) -> Floats:
    """What `node` makes of all the samples at once, by onnxruntime."""
    fed = {name: values[name] for name in node.input if name in values}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(v.shape)) for n, v in fed.items()]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    used = [constant for constant in constants if constant.name in node.input]
    graph = helper.make_graph([node], "one", inputs, [output], used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, fed)[0], dtype=np.float32)


# Kinds of op: each adds nodes and returns True, or returns False where it does not apply.


def _conv(network: _Network) -> bool:
    if network.rank < 3:
        return False
    geometry = _draw_window(network, dilated=True, largest=5)
    if geometry is None:
        return False
    groups, per_channel, group = _draw_groups(network)
    kernel = geometry.kernel
    weights = network.normal(per_channel, network.channels // groups, *kernel)
    _affine_node(network, "Conv", weights, geometry.attributes() | {"group": groups})
    return network.add(geometry.cell(f"Conv{network.rank - 2}d", group, network))


def _draw_groups(network: _Network) -> tuple[int, int, str]:
    """(groups, output channels, name of the case)."""
    channels = network.channels
    kind = network.choices.choose(("1", "1", "1", "depthwise", "depthwise", "multiplied", "grouped"))
    divisors = [n for n in range(2, channels) if channels % n == 0]
    if kind == "depthwise" and channels > 1:
        return channels, channels, kind
    if kind == "multiplied" and 1 < channels <= MOST_CHANNELS // 2:
        return channels, 2 * channels, kind
    if kind == "grouped" and divisors:
        groups = network.choices.choose(divisors)
        return groups, groups * network.choices.integer(1, 3), kind
    return 1, network.choices.integer(1, MOST_CHANNELS), "1"


def _gemm(network: _Network) -> bool:
    if network.rank != 2:
        return False
    weights = network.normal(network.choices.integer(2, 24), network.channels)
    _affine_node(network, "Gemm", weights, {"transB": 1})
    return network.add(Cell("Gemm"))


def _affine_node(network: _Network, op: str, weights: Floats, attributes: dict[str, Attribute]) -> None:
    """A Conv or Gemm scaled to a spread of its own per channel, a bias or none, and an activation or none."""
    source = network.value
    name = network.constant(weights)
    network.node(op, [source, name], attributes)
    spread = network.now.std(axis=_all_but_channels(network.now)) + 1e-6
    wanted = network.rng.uniform(0.4, 1.6, size=len(weights))
    scaled = weights * (wanted / spread).astype(np.float32).reshape(-1, *[1] * (weights.ndim - 1))
    network.replace(name, scaled.astype(np.float32))
    activation = network.choices.choose(("none", "none", "Relu", "Relu", "Clip"))
    if activation == "none" and network.chance(30):
        return
    bias = network.constant(np.zeros(len(weights), np.float32))
    network.nodes[-1].input.append(bias)
    network.replace(bias, _bias(network, activation))
    _activate(network, activation)


def _bias(network: _Network, activation: str) -> Floats:
    """float32 [C]: anything, or what leaves an activation about a tenth of its channel to cut at zero."""
    if activation == "none":
        return network.normal(network.channels)
    cut = np.quantile(network.now, network.rng.uniform(0.02, 0.15), axis=_all_but_channels(network.now))
    return (-cut).astype(np.float32)


def _activate(network: _Network, activation: str) -> None:
    if activation == "Relu":
        network.node("Relu", [network.value])
    if activation == "Clip":
        high = 6.0 if network.chance(30) else float(np.quantile(network.now, 0.95))
        bounds = [network.constant(np.array(bound, np.float32)) for bound in (0.0, max(high, 0.1))]
        network.node("Clip", [network.value, *bounds])


def _all_but_channels(values: Floats) -> tuple[int, ...]:
    return tuple(axis for axis in range(values.ndim) if axis != 1)


@dataclass(frozen=True)
class _Window:
    """Geometry of a sliding window, one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def attributes(self) -> dict[str, Attribute]:
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": (*self.begins, *self.ends),
        }

    def cell(self, op: str, group: str, network: _Network) -> Cell:
        even = "even" if self.begins == self.ends else "uneven"
        pad = even if any((*self.begins, *self.ends)) else "none"
        return Cell(op, _by(self.strides), pad, _by(self.dilations), group, network.size)


def _by(numbers: Sequence[int]) -> str:
    return "x".join(str(number) for number in numbers)


def _draw_window(network: _Network, *, dilated: bool, largest: int) -> _Window | None:
    """A window that fits the map; None if the map is too small for the drawn one."""
    choices, axes = network.choices, range(len(network.sides))
    square = network.chance(60)
    kernel = _per_axis(network, square, lambda: choices.integer(1, largest))
    strides = _per_axis(network, network.chance(70), lambda: choices.choose((1, 1, 1, 2, 2, 3, 4)))
    dilations = _per_axis(network, True, lambda: choices.choose((1, 1, 1, 2, 3)) if dilated else 1)
    reach = [(kernel[i] - 1) * dilations[i] for i in axes]
    style = choices.choose(("none", "same", "same", "any"))
    begins, ends = zip(*(_draw_pads(choices, style, reach[i], kernel[i]) for i in axes), strict=True)
    outs = [(network.sides[i] + begins[i] + ends[i] - reach[i] - 1) // strides[i] + 1 for i in axes]
    if min(outs) < 1:
        return None
    return _Window(kernel, strides, dilations, begins, ends)


def _per_axis(network: _Network, same: bool, draw: Callable[[], int]) -> tuple[int, ...]:
    axes = len(network.sides)
    return (draw(),) * axes if same else tuple(draw() for _ in range(axes))


def _draw_pads(choices: Choices, style: str, reach: int, kernel: int) -> tuple[int, int]:
    """(begin, end), each smaller than the kernel, as pools ask for."""
    most = kernel - 1
    if style == "none":
        return 0, 0
    if style == "same":
        return min(reach // 2, most), min(reach - reach // 2, most)
    return choices.integer(0, most), choices.integer(0, most)


def _max_pool(network: _Network) -> bool:
    return _pool(network, "MaxPool", dilated=True, extra={})


def _average_pool(network: _Network) -> bool:
    return _pool(network, "AveragePool", dilated=False, extra={"count_include_pad": network.choices.integer(0, 1)})


def _pool(network: _Network, op: str, *, dilated: bool, extra: dict[str, Attribute]) -> bool:
    if network.rank < 3 or max(network.sides) < 3:
        return False
    if network.nodes and network.nodes[-1].op_type == "Pad":
        return False  # onnxruntime fuses the two into a pool whose pads it then refuses
    window = _draw_window(network, dilated=dilated, largest=4)
    if window is None:
        return False
    ceil_mode = network.choices.integer(0, 1)
    name = f"{op}{network.rank - 2}d" + ("-ceil" if ceil_mode else "")
    name += "-pads" if extra.get("count_include_pad") else ""
    cell = window.cell(name, "-", network)
    network.node(op, [network.value], window.attributes() | extra | {"ceil_mode": ceil_mode})
    # onnx and onnxruntime disagree on a last window that lies wholly in the padding: no such case.
    if op == "AveragePool" and _region_count(network) > MOST_REGIONS:
        return False
    return _shape_by_onnx(network) == network.now.shape[2:] and network.add(cell)


def _region_count(network: _Network) -> int:
    """In how many rectangles of equal divisor the last node's output falls; more than 9 are not supported."""
    node = network.nodes[-1]
    held = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    begins, ends = np.array(held["pads"]).reshape(2, -1)
    regions = 1
    for axis, side in enumerate(network.values[node.input[0]].shape[2:]):
        starts = np.arange(network.sides[axis]) * held["strides"][axis]
        first, last = begins[axis], begins[axis] + side
        if held["count_include_pad"]:
            first, last = 0, last + ends[axis]
        divisors = np.minimum(starts + held["kernel_shape"][axis], last) - np.maximum(starts, first)
        regions *= 1 + int(np.count_nonzero(np.diff(divisors)))
    return regions


def _shape_by_onnx(network: _Network) -> tuple[int, ...]:
    """Sides of the last node's output as onnx infers them."""
    node = network.nodes[-1]
    inputs = [_value_info(name, network.values[name]) for name in node.input]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in inferred[2:])


def _global_pool(network: _Network) -> bool:
    if network.rank < 3 or network.channels < 2 or (network.op_count and network.chance(60)):
        return False
    cell = Cell("GlobalAveragePool", size=network.size)
    if network.chance(30):
        axes = network.constant(np.arange(2, network.rank, dtype=np.int64))
        network.node("ReduceMean", [network.value, axes], {"keepdims": 1})
        cell = Cell("ReduceMean", size=network.size)
    else:
        network.node("GlobalAveragePool", [network.value])
    return network.add(cell)


def _add(network: _Network) -> bool:
    return _join(network, network.choices.choose(("Add", "Add", "Sub")))


def _mul(network: _Network) -> bool:
    return _join(network, "Mul")


def _join(network: _Network, op: str) -> bool:
    """Two dynamic tensors: a value and an earlier one, or a new branch; or one number per channel for the whole map."""
    first = network.value
    narrow = network.rank > 2 and network.chance(30)
    size = network.size
    same = [name for name, held in network.values.items() if held.shape == network.now.shape and name != first]
    if narrow:
        _gate(network, first)
    elif same and network.chance(60):
        network.value = network.choices.choose(same)
    else:
        _branch(network, first)
    pair = [first, network.value]
    network.node(op, pair if narrow and op == "Sub" else network.choices.choose((pair, pair[::-1])))
    network.add(Cell(f"{op}-broadcast" if narrow else op, size=size))
    _activate(network, network.choices.choose(("none", "none", "Relu")) if op == "Add" else "none")
    return True


def _gate(network: _Network, source: str) -> None:
    """One value per channel of the map: global average, a 1x1 convolution, sometimes a Sigmoid."""
    network.value = source
    network.node("GlobalAveragePool", [source])
    channels = network.channels
    _pointwise(network, channels)
    if network.chance(50):
        network.node("Sigmoid", [network.value])


def _branch(network: _Network, source: str) -> None:
    network.value = source
    _pointwise(network, network.channels)


def _pointwise(network: _Network, channels: int) -> None:
    """A 1x1 convolution or a square Gemm with a bias, as the other side of a join."""
    shape = (channels, network.channels, *[1] * (network.rank - 2))
    weights = network.normal(*shape)
    _affine_node(network, "Gemm" if network.rank == 2 else "Conv", weights, {"transB": 1} if network.rank == 2 else {})


def _concat(network: _Network) -> bool:
    """The map, an earlier map of the same sides or a new branch, and at times a third part."""
    first = network.value
    same = [
        name
        for name, held in network.values.items()
        if held.ndim == network.rank and held.shape[2:] == network.sides and name != first
    ]
    parts = [first]
    if same and network.chance(50):
        parts.append(network.choices.choose(same))
    if len(parts) == 1 or network.chance(30):
        _branch_of(network, first, network.choices.integer(1, MOST_CHANNELS))
        parts.append(network.value)
    if sum(network.values[part].shape[1] for part in parts) > 3 * MOST_CHANNELS:
        return False
    size = network.size
    network.node("Concat", network.choices.choose((parts, parts[::-1])), {"axis": 1})
    return network.add(Cell("Concat", size=size))


def _branch_of(network: _Network, source: str, channels: int) -> None:
    network.value = source
    _pointwise(network, channels)


def _resize(network: _Network) -> bool:
    factors = (network.choices.integer(1, 3), network.choices.integer(1, 3))
    if network.rank != 4 or max(network.sides) * max(factors) > 2 * LONGEST_SIDE:
        return False
    cell = Cell("Resize", stride=_by(factors), size=network.size)
    scales = network.constant(np.array([1, 1, *factors], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    network.node("Resize", [network.value, "", scales], modes)
    return network.add(cell)


def _pad(network: _Network) -> bool:
    if network.rank != 4:
        return False
    begins, ends = [[network.choices.integer(0, 3) for _ in range(2)] for _ in range(2)]
    if not any((*begins, *ends)):
        return False
    even = "even" if begins == ends else "uneven"
    cell = Cell("Pad", pad=even, size=network.size)
    pads = network.constant(np.array([0, 0, *begins, 0, 0, *ends], np.int64))
    inputs = [network.value, pads]
    if network.chance(50):
        inputs.append(network.constant(np.array(network.rng.uniform(-0.5, 0.5), np.float32)))
    network.node("Pad", inputs)
    return network.add(cell)


def _prelu(network: _Network) -> bool:
    if network.rank < 3:
        return False
    slopes = network.rng.uniform(-0.3, 0.9, size=(network.channels, *[1] * (network.rank - 2))).astype(np.float32)
    size = network.size
    network.node("PRelu", [network.value, network.constant(slopes)])
    return network.add(Cell("PRelu", size=size))


def _constant_affine(network: _Network) -> bool:
    """Mul and Add of a constant per channel: importers and passes fold it, or make a depthwise convolution of it."""
    if network.value == "x":
        return False
    shape = (network.channels, *[1] * (network.rank - 2))
    factors = network.rng.uniform(0.4, 1.5, size=shape) * network.rng.choice([-1, 1], size=shape, p=[0.2, 0.8])
    network.node("Mul", [network.value, network.constant(factors.astype(np.float32))])
    network.node("Add", [network.value, network.constant(0.5 * network.normal(*shape))])
    return network.add(Cell("Mul+Add constant", size=network.size))


def _batch_normalization(network: _Network) -> bool:
    if network.rank < 3 or network.value == "x":
        return False
    held, axes = network.now, _all_but_channels(network.now)
    mean, variance = held.mean(axis=axes), held.var(axis=axes) + 1e-3
    gamma, beta = network.rng.uniform(0.5, 1.5, size=network.channels), network.normal(network.channels)
    parameters = [network.constant(values.astype(np.float32)) for values in (gamma, beta, mean, variance)]
    network.node("BatchNormalization", [network.value, *parameters], {"epsilon": 1e-3})
    return network.add(Cell("BatchNormalization", size=network.size))


_UNARY: dict[str, dict[str, Attribute]] = {
    "Sigmoid": {},
    "Tanh": {},
    "HardSwish": {},
    "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.1},
    "Elu": {},
    "Selu": {},
    "Celu": {},
    "Gelu": {},
    "Softplus": {},
    "Softsign": {},
    "Mish": {},
    "Erf": {},
    "Exp": {},
    "Abs": {},
    "Neg": {},
}


def _unary(network: _Network) -> bool:
    op = network.choices.choose(tuple(_UNARY))
    size = network.size
    network.node(op, [network.value], dict(_UNARY[op]))
    return network.add(Cell(op, size=size))


def _relu(network: _Network) -> bool:
    """A Relu or Clip that stands alone: it is taken back where it would cut too much."""
    activation = network.choices.choose(("Relu", "Clip"))
    size = network.size
    _activate(network, activation)
    return network.add(Cell(f"{activation} alone", size=size))


def _gated_unary(network: _Network) -> bool:
    """x * Sigmoid(x), x * HardSigmoid(x) or Gelu written with Erf: one table."""
    kind, source, size = network.choices.choose(("Sigmoid", "HardSigmoid", "Erf")), network.value, network.size
    if kind != "Erf":
        network.node("Mul", [source, network.node(kind, [source])])
        return network.add(Cell(f"x*{kind}(x)", size=size))
    root, one, half = (network.constant(np.array(number, np.float32)) for number in (2**0.5, 1.0, 0.5))
    network.node("Erf", [network.node("Div", [source, root])])
    network.node("Mul", [source, network.node("Add", [network.value, one])])
    network.node("Mul", [network.value, half])
    return network.add(Cell("Gelu by Erf", size=size))


def _flatten(network: _Network) -> bool:
    """Flatten in one of the ways that exporters write it, and a Gemm, which makes sense of the order."""
    if network.rank < 3 or np.prod(network.now.shape[1:]) > 400:
        return False
    size = network.size
    style = network.choices.choose(("Flatten", "Reshape", "Transpose", "Squeeze"))
    if style == "Squeeze" and set(network.sides) == {1}:
        axes = network.constant(np.arange(2, network.rank, dtype=np.int64))
        network.node("Squeeze", [network.value, axes])
    elif style == "Flatten":
        network.node("Flatten", [network.value], {"axis": 1})
    else:
        if style == "Transpose":
            network.node("Transpose", [network.value], {"perm": [0, *range(2, network.rank), 1]})
        network.node("Reshape", [network.value, network.constant(np.array([0, -1], np.int64))])
    return _gemm(network) and network.add(Cell(f"{style} to Gemm", size=size))


_KINDS: dict[str, Callable[[_Network], bool]] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "add": _add,
    "unary": _unary,
    "gemm": _gemm,
    "concat": _concat,
    "global_pool": _global_pool,
    "conv_again": _conv,
    "mul": _mul,
    "resize": _resize,
    "gated_unary": _gated_unary,
    "pad": _pad,
    "flatten": _flatten,
    "prelu": _prelu,
    "relu": _relu,
    "constant_affine": _constant_affine,
    "batch_normalization": _batch_normalization,
    "conv_more": _conv,
    "conv_still_more": _conv,
}
_MAPS_ONLY = {"resize", "pad"}
_SPATIAL = {name for name in _KINDS if "conv" in name or "pool" in name}
_SPATIAL |= {"batch_normalization", "prelu", "flatten"}
