"""int8 post-training quantization: a float graph becomes a QDQ graph whose Q/DQ pairs are the machine's int8 points.

real = scale * (q - zero_point). Activations: int8, one scale and zero point per tensor. Weights: int8, symmetric,
narrow range (-127 to 127), one scale per output channel. Bias: int32 at scale s_x * s_w.

The integer machine rescales an accumulator by multiplier / 2**shift with 16 significant bits. Scales are chosen so that
every such factor (s_x * s_w / s_y for a Conv, s_a / s_y for an Add) is exactly an odd 16-bit integer over a power of
two: then onnxruntime on this file and the integers agree, and ties, which they could break differently, all but vanish.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from passes import graph as edit
from passes import statistics
from passes.base import Notes, PassReport, Rewrite
from passes.cones import Kind, Point, points
from passes.correct_bias import CorrectBias, affordable, correctable
from passes.equalize import MARK, Equalize, EqualizeConfig, equalizable
from passes.round_weights import RoundWeights
from passes.statistics import Arrays, Histogram, Progress

Q_MIN, Q_MAX = -128, 127
WEIGHT_MAX = 127
MANTISSA_BITS = 16
SHIFT_MAX = 47
BIAS_MAX = 2**30  # leaves room for the zero-point term and bias correction in a 48-bit offset, and in int32
WEIGHTED = frozenset({"Conv", "Gemm"})
LARGEST_MOVE = 2.0**-5
"""The grid of a factor that is small beside its layer's largest is coarse: a scale is not moved further than this."""
DEAD_STEPS = 2.0**-8
"""A channel whose weights together cannot move its output by this many quantization steps has weight code 0."""


class Ranges(StrEnum):
    """How a tensor's range is chosen from its histogram."""

    MSE = "mse"
    MINMAX = "minmax"
    PERCENTILE = "percentile"


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        ranges: Of activations. The network's inputs always take their smallest and largest value.
        percentile: Percent of the values kept inside by Ranges.PERCENTILE.
        samples: At most this many calibration samples, evenly spaced, are run.
        acc_bits: Signed accumulator width that every channel's sum provably fits.
        equalize: How far to equalize the channels in front of depthwise Convs; None: not at all.
        round_weights: Whether to round weights so that a layer's output errs least, instead of to the nearest.
        correct_bias: Whether to remove each channel's mean error through its bias.
        correction_samples: At most this many samples, evenly spaced, are used for these two.
    """

    ranges: Ranges = Ranges.MSE
    percentile: float = 99.99
    samples: int = 512
    acc_bits: int = 24
    equalize: EqualizeConfig | None = EqualizeConfig()
    round_weights: bool = True
    correct_bias: bool = True
    correction_samples: int = 64


@dataclass(frozen=True)
class Scale:
    """real = scale * (q - zero_point), scale a float32 value."""

    scale: float
    zero_point: int


Scales: TypeAlias = dict[str, Scale]


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """One layer's integers.

    Attributes:
        weights: int8 [C_out, ...].
        scale: float32 [C_out].
        bias: int32 [C_out], at scale s_x * scale.
        is_dead: bool [C_out]; its weights are all 0.
        is_raised: bool [C_out]; the scale is above max|w| / 127 by more than the grid needs, so that bias,
            accumulator or multiplier fit.
    """

    weights: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    is_dead: NDArray[np.bool_]
    is_raised: NDArray[np.bool_]


def quantize(
    model: ir.Model,
    nodes: frozenset[str],
    samples: Arrays,
    config: QuantizeConfig | None = None,
    progress: Progress | None = None,
) -> tuple[ir.Model, PassReport]:
    """Quantize the accelerated part of a float model.

    Args:
        model: Canonical float graph (opset 21); intact afterwards.
        nodes: Names of the nodes that run in int8. The others stay float, outside the Q/DQ pairs.
        samples: Calibration inputs by name, float [N, ...].
        config: Defaults are good.
        progress: Told (what, done, total).

    Returns:
        The QDQ model, and what was done. A model that is quantized already comes back as it is, with the reason.
    """
    config = config or QuantizeConfig()
    result = model.clone()
    if reason := why_not(model):
        return result, PassReport("quantize", skipped=dict.fromkeys(sorted(nodes), reason))
    wanted = points(model, nodes)
    if not wanted:
        return result, PassReport("quantize")
    samples = statistics.spread(samples, config.samples)
    reports = [PassReport("calibrate", metrics={"calibration_samples": float(statistics.count(samples))})]
    if config.equalize and (convs := equalizable(model, wanted)):
        peaks = statistics.collect(model, samples, peaks=convs, progress=progress).peaks
        reports.append(_applied(Equalize(convs, peaks, config.equalize), result))
    equalized = result.clone()
    found = statistics.collect(equalized, samples, histograms=[point.name for point in wanted], progress=progress)
    scales = choose_scales(equalized, wanted, found.histograms, config)
    reports.append(_applied(Quantize(nodes, scales, config), result))
    some = statistics.spread(samples, affordable(equalized, wanted, config.correction_samples))
    if config.round_weights:
        floats = {str(node.name): array for node in equalized.graph if (array := _float_weights(node)) is not None}
        rounding = RoundWeights(
            floats, wanted, some, fits=partial(accumulator_fits, acc_bits=config.acc_bits), progress=progress
        )
        reports.append(_applied(rounding, result))
    if config.correct_bias:
        outputs = correctable(equalized, wanted)
        means = statistics.collect(equalized, some, means=outputs.values()).means
        by_node = {node: means[value] for node, value in outputs.items()}
        reports.append(_applied(CorrectBias(by_node, wanted, some, progress=progress), result))
    return result, _joined(reports)


def _float_weights(node: ir.Node) -> NDArray[np.float32] | None:
    weights = edit.constant(edit.operand(node, 1)) if node.op_type in WEIGHTED else None
    return None if weights is None else weights.astype(np.float32)


def _applied(step: Rewrite, model: ir.Model) -> PassReport:
    step(model)
    return step.report


def _joined(reports: list[PassReport]) -> PassReport:
    """One report of several steps: nodes in the order of their first change."""
    changed = dict.fromkeys(name for report in reports for name in report.changed)
    skipped = {name: reason for report in reports for name, reason in report.skipped.items() if name not in changed}
    metrics = {name: value for report in reports for name, value in report.metrics.items()}
    return PassReport("quantize", tuple(changed), skipped, metrics)


def why_not(model: ir.Model) -> str | None:
    """Why `model` is not to be quantized, or None."""
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        return "the model is quantized already (it has QuantizeLinear or DequantizeLinear nodes)"
    return None


class Quantize(Rewrite):
    """Insert Q/DQ pairs at the int8 points and quantize weights and biases.

    Args:
        nodes: Names of the nodes that run in int8.
        scales: Of every int8 point.
        config: How.
    """

    name = "quantize"

    def __init__(self, nodes: frozenset[str], scales: Scales, config: QuantizeConfig | None = None) -> None:
        super().__init__()
        self._nodes, self._scales, self._config = nodes, scales, config or QuantizeConfig()

    def requires(self, model: ir.Model) -> None:
        if (opset := model.graph.opset_imports.get("", 0)) != 21:
            raise ir.passes.PreconditionError(f"needs opset 21, the model has {opset}")

    def rewrite(self, model: ir.Model, notes: Notes) -> None:
        if reason := why_not(model):
            notes.skipped.update(dict.fromkeys(sorted(self._nodes), reason))
            return
        wanted = points(model, self._nodes)
        by_name = {node.name: node for node in model.graph}
        for point in wanted:
            node = by_name.get(point.anchor)
            if node is not None and node.op_type in WEIGHTED:
                _quantize_layer(node, self._scales[point.sources[0]], self._scales[point.name], self._config, notes)
            if node is not None and point.kind is Kind.ANCHOR and len(point.sources) == 1:
                _snap_constant(node, self._scales[point.sources[0]].scale / self._scales[point.name].scale)
        values = {value.name: value for value in [*model.graph.inputs, *_outputs(model)]}
        scalars = _Scalars(model.graph)
        for point in wanted:
            pair = _insert_pair(values[point.name], point, self._scales[point.name], scalars, self._nodes)
            if point.anchor and by_name[point.anchor].metadata_props.pop(MARK, ""):
                pair.metadata_props[MARK] = "1"
            notes.changed.extend(point.nodes)
        _drop_unused(model.graph)
        _drop_dilations(model.graph)


# Activations


def choose_scales(
    model: ir.Model, wanted: tuple[Point, ...], histograms: dict[str, Histogram], config: QuantizeConfig
) -> Scales:
    """Scale and zero point of every int8 point: from its range, shared where values only move, then put on the grid."""
    by_name = {node.name: node for node in model.graph}
    leader = _shared_scales(model, wanted)
    groups: dict[str, list[Point]] = {}
    for point in wanted:
        groups.setdefault(leader[point.name], []).append(point)
    shared = {
        name: scale_of_range(*_group_range(members, histograms, by_name, config)) for name, members in groups.items()
    }
    _snap_factors(wanted, by_name, leader, shared)
    return {point.name: shared[leader[point.name]] for point in wanted}


def scale_of_range(low: float, high: float) -> Scale:
    """The asymmetric int8 scale whose range covers [low, high] with 0 exactly at the zero point.

    Args:
        low, high: low <= 0 <= high.
    """
    step = float(np.float32((high - low) / (Q_MAX - Q_MIN)))
    if not step > np.finfo(np.float32).tiny:
        return Scale(1.0, 0)  # the tensor is 0 throughout
    zero_point = int(np.clip(np.rint(Q_MIN - low / step), Q_MIN, Q_MAX))
    return Scale(step, zero_point)


def to_int8(values: ArrayLike, scale: Scale) -> NDArray[np.int8]:
    """QuantizeLinear: clip(round half to even(values / scale) + zero_point), division in float32."""
    steps = np.asarray(values, np.float32) / np.float32(scale.scale)
    return np.clip(np.rint(steps) + scale.zero_point, Q_MIN, Q_MAX).astype(np.int8)


def to_real(codes: NDArray[np.int8], scale: Scale) -> NDArray[np.float32]:
    """DequantizeLinear: scale * (codes - zero_point) in float32."""
    return (codes.astype(np.int32) - scale.zero_point).astype(np.float32) * np.float32(scale.scale)


def _shared_scales(model: ir.Model, wanted: tuple[Point, ...]) -> dict[str, str]:
    """Point name to the name that stands for all points of the same scale and zero point."""
    leader = {point.name: point.name for point in wanted}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    readers = _reader_counts(model, leader)
    by_name = {node.name: node for node in model.graph}
    for point in wanted:
        is_concat = point.anchor in by_name and by_name[point.anchor].op_type == "Concat"
        for source in point.sources:
            if point.kind is Kind.KEEPER or (is_concat and readers[source] == 1):
                leader[find(source)] = find(point.name)
    return {name: find(name) for name in leader}


def _reader_counts(model: ir.Model, names: dict[str, str]) -> dict[str, int]:
    values = {value.name: value for value in [*model.graph.inputs, *_outputs(model)]}
    return {name: len(values[name].uses()) + int(values[name].is_graph_output()) for name in names}


def _group_range(
    members: list[Point], histograms: dict[str, Histogram], by_name: dict[str | None, ir.Node], config: QuantizeConfig
) -> tuple[float, float]:
    """The range of points that share a scale, from the values that are computed and not those that are moved."""
    merged = Histogram()
    computed = [point for point in members if point.kind is not Kind.KEEPER]
    for point in computed or members:
        merged.merge(histograms[point.name])
    is_input = any(point.kind is Kind.INPUT for point in computed)
    low, high = _range(merged, Ranges.MINMAX if is_input else config.ranges, config)
    for point in members:
        pad = _pad_value(by_name[point.anchor]) if point.kind is Kind.KEEPER else 0.0
        low, high = min(low, pad), max(high, pad)
    return low, high


def _range(histogram: Histogram, ranges: Ranges, config: QuantizeConfig) -> tuple[float, float]:
    match ranges:
        case Ranges.MSE:
            return statistics.mse_range(histogram)
        case Ranges.PERCENTILE:
            return statistics.percentile_range(histogram, config.percentile)
        case Ranges.MINMAX:
            return statistics.minmax_range(histogram)


def _pad_value(node: ir.Node) -> float:
    """The constant that a Pad writes, which its scale must be able to hold; 0 for other nodes."""
    if node.op_type != "Pad":
        return 0.0
    value = edit.constant(edit.operand(node, 2))
    return 0.0 if value is None or not value.size else float(value.ravel()[0])


# Factors on the machine's grid


def on_grid(factor: float) -> float:
    """The next odd 16-bit integer over a power of two (shift at most 47) that is not below `factor`.

    An odd multiplier meets a tie (a remainder of exactly half) only when the accumulator is a multiple of
    2**(shift - 1): practically never.
    """
    _, exponent = math.frexp(factor)
    shift = min(MANTISSA_BITS - exponent, SHIFT_MAX)
    multiplier = math.ceil(math.ldexp(factor, shift)) | 1
    return math.ldexp(multiplier, -shift) if multiplier < 2**MANTISSA_BITS else on_grid(math.ldexp(1.0, exponent))


def _snap_factors(
    wanted: tuple[Point, ...], by_name: dict[str | None, ir.Node], leader: dict[str, str], shared: Scales
) -> None:
    """Move the scales around layers without weights so that their factors are on the grid.

    From the outputs towards the inputs: what a layer reads is put on the grid of its output. Where another reader has
    settled the input already, the output is put on the grid of the input, if nothing has settled that.
    """
    settled: set[str] = set()
    for point in reversed(wanted):
        node = by_name.get(point.anchor)
        if point.kind is not Kind.ANCHOR or node is None or node.op_type in WEIGHTED:
            continue
        out, sources = leader[point.name], [leader[source] for source in point.sources]
        windows = _windows(node)
        factors = [_Factor(out, (source,), math.lcm(*windows), min(windows)) for source in sources]
        if node.op_type in ("Mul", "Div") and len(sources) == 1:
            continue  # its constant is put on the grid instead
        if node.op_type == "Mul" and len(sources) == 2:
            factors = [_Factor(out, (sources[0], sources[1]))]
        _snap_layer(factors, shared, settled)


@dataclass(frozen=True)
class _Factor:
    """A factor of one layer: the product of its sources' scales over the output's scale and over each window's size.

    Attributes:
        out: Whose scale divides.
        sources: Whose scales are multiplied.
        divisor: A common multiple of the window sizes of an average pool: factor = whole number * divisor / 2**shift.
        smallest: Of the window sizes.
    """

    out: str
    sources: tuple[str, ...]
    divisor: int = 1
    smallest: int = 1

    def value(self, shared: Scales) -> float:
        """Without the window."""
        return math.prod(shared[source].scale for source in self.sources) / shared[self.out].scale


def _snap_layer(factors: list[_Factor], shared: Scales, settled: set[str]) -> None:
    """Put the factors of one layer on their common grid."""
    for factor in sorted(factors, key=lambda factor: not settled.issuperset(factor.sources)):
        top = max(each.value(shared) for each in factors)
        if not 0 < top < 2**MANTISSA_BITS:
            return
        free = next((name for name in factor.sources if name not in settled and name != factor.out), None)
        if free is None and factor.out in settled:
            continue
        ratio = _on_common_grid(factor, factor.value(shared), top) / factor.value(shared)
        moved, change = (free, ratio) if free is not None else (factor.out, 1 / ratio)
        if abs(ratio - 1) < LARGEST_MOVE:
            shared[moved] = Scale(float(np.float32(shared[moved].scale * change)), shared[moved].zero_point)
        settled.update((*factor.sources, factor.out))
    settled.update(factor.out for factor in factors)


def _on_common_grid(factor: _Factor, value: float, top: float) -> float:
    """The nearest value on the grid whose shift the layer's largest factor decides.

    value / window = multiplier / 2**shift must be exact for every window size, so value = odd * divisor / 2**shift with
    as many bits as the smallest window leaves.
    """
    _, exponent = math.frexp(top / factor.divisor)
    spare = (factor.divisor // factor.smallest - 1).bit_length() if factor.divisor > 1 else 0
    shift = min(MANTISSA_BITS - spare - exponent, SHIFT_MAX)
    multiplier = min(math.floor(math.ldexp(value / factor.divisor, shift)) | 1, 2**MANTISSA_BITS - 1)
    return math.ldexp(multiplier * factor.divisor, -shift)


def _windows(node: ir.Node) -> tuple[int, ...]:
    """The different numbers of values that an average pool divides by; 1 for other nodes."""
    shape = edit.shape_of(node.inputs[0]) or ()
    if node.op_type == "GlobalAveragePool":
        return (math.prod(shape[2:]),)
    if node.op_type != "AveragePool":
        return (1,)
    kernel, result = edit.ints(node, "kernel_shape"), edit.shape_of(node.outputs[0]) or ()
    axes = len(kernel)
    strides = edit.ints(node, "strides") or (1,) * axes
    pads = edit.ints(node, "pads") or (0,) * 2 * axes
    border = pads if edit.integer(node, "count_include_pad", 0) else (0,) * 2 * axes
    lengths = [
        {
            min(start + kernel[axis], shape[2 + axis] + border[axes + axis]) - max(start, -border[axis])
            for start in range(-pads[axis], -pads[axis] + strides[axis] * result[2 + axis], strides[axis])
        }
        for axis in range(axes)
    ]
    return tuple(sorted({math.prod(sizes) for sizes in itertools.product(*lengths)}))


# Weights


def quantize_weights(
    weights: NDArray[np.float32], bias: NDArray[np.float32], source: Scale, target: Scale, *, acc_bits: int = 24
) -> QuantizedWeights:
    """Quantize the weights and bias of a Conv or Gemm, one scale for each output channel.

    w_q = clip(round half to even(w / s_w), -127, 127);  b_q = round half to even(b / (s_x * s_w))

    s_w is max|w| / 127, raised as far as needed so that |b_q| <= 2**30, the accumulator of every input in -128..127
    fits `acc_bits`, and the shift is at most 47; then raised to the grid, so that s_x * s_w / s_y = M / 2**S, M odd.
    A channel whose weights cannot move the output by 1/256 of a step gets code 0: its scale follows from the bias.

    Args:
        weights: float32 [C_out, ...].
        bias: float32 [C_out].
        source: Of the layer's input (s_x).
        target: Of the layer's output (s_y).
        samples: At most this many calibration samples, evenly spaced, are run.
        acc_bits: Signed accumulator width.

    Raises:
        ValueError: s_x * s_w / s_y would be 2**16 or more.

    Source: Jacob et al., CVPR 2018, section 3.
    """
    rows = weights.reshape(weights.shape[0], -1).astype(np.float64)
    reach = np.abs(rows).sum(axis=1) * source.scale * (Q_MAX - Q_MIN)
    is_dead = reach < DEAD_STEPS * target.scale
    rows = np.where(is_dead[:, None], 0.0, rows)
    natural = np.abs(rows).max(axis=1, initial=0.0) / WEIGHT_MAX
    bias_needs = np.abs(bias.astype(np.float64)) / source.scale / BIAS_MAX
    smallest = math.ldexp(1.0, MANTISSA_BITS - 1 - SHIFT_MAX) * target.scale / source.scale
    needed = np.maximum(np.maximum(natural, bias_needs), smallest)
    scale = np.array([_weight_scale(s, source, target) for s in needed], np.float32)
    codes = _weight_codes(rows, scale)
    while (overflow := ~accumulator_fits(codes, acc_bits)).any():
        pairs = zip(scale[overflow], codes[overflow], strict=True)
        scale[overflow] = [_weight_scale(float(s) * _excess(c, acc_bits), source, target) for s, c in pairs]
        codes = _weight_codes(rows, scale)
    step = source.scale * scale.astype(np.float64)
    return QuantizedWeights(
        codes.reshape(weights.shape),
        scale,
        np.rint(bias / step).astype(np.int32),
        is_dead,
        (scale > natural * 1.001) & ~is_dead,
    )


def accumulator_range(codes: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Smallest and largest sum of every channel over all int8 inputs, int64 [C_out] each."""
    rows = codes.reshape(codes.shape[0], -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    return positive * Q_MIN + negative * Q_MAX, positive * Q_MAX + negative * Q_MIN


def accumulator_fits(codes: NDArray[np.int8], acc_bits: int) -> NDArray[np.bool_]:
    """Whether each channel's sum fits a signed accumulator of `acc_bits`, bool [C_out]."""
    low, high = accumulator_range(codes)
    return (low >= -(2 ** (acc_bits - 1))) & (high < 2 ** (acc_bits - 1))


def _excess(codes: NDArray[np.int8], acc_bits: int) -> float:
    """By how much one channel's scale must grow for its sum to fit; a little more than 1 at least."""
    low, high = accumulator_range(codes[None])
    return max(float(max(-low[0], high[0])) / 2 ** (acc_bits - 1), 1.0) * 1.0005


def _weight_scale(needed: float, source: Scale, target: Scale) -> float:
    """The smallest scale on the grid that is at least `needed`."""
    unit = source.scale / target.scale
    if needed * unit >= 2**MANTISSA_BITS - 1:
        raise ValueError(
            f"the output's step {target.scale:g} is too fine for weights of step {needed:g} and inputs of step "
            f"{source.scale:g}: their ratio must be below 2**{MANTISSA_BITS}"
        )
    return float(np.float32(on_grid(needed * unit) / unit))


def _weight_codes(rows: NDArray[np.float64], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    codes = np.rint(rows / scale.astype(np.float64)[:, None])
    return np.clip(codes, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


# Graph surgery


@dataclass
class _Scalars:
    """Scale and zero point initializers, one for each distinct value."""

    graph: ir.Graph
    scales: dict[float, ir.Value] = field(default_factory=dict)
    zero_points: dict[int, ir.Value] = field(default_factory=dict)

    def of(self, scale: Scale) -> tuple[ir.Value, ir.Value]:
        if scale.scale not in self.scales:
            name, array = f"scale_{len(self.scales)}", np.array(scale.scale, np.float32)
            self.scales[scale.scale] = edit.new_initializer(self.graph, name, array)
        if scale.zero_point not in self.zero_points:
            name, codes = f"zero_point_{scale.zero_point}", np.array(scale.zero_point, np.int8)
            self.zero_points[scale.zero_point] = edit.new_initializer(self.graph, name, codes)
        return self.scales[scale.scale], self.zero_points[scale.zero_point]


def _quantize_layer(node: ir.Node, source: Scale, target: Scale, config: QuantizeConfig, notes: Notes) -> None:
    """Replace the weights and bias of a Conv or Gemm by integers and their DequantizeLinear."""
    weights = edit.constant(node.inputs[1])
    assert weights is not None
    bias = _bias_of(node, weights.shape[0])
    try:
        made = quantize_weights(weights.astype(np.float32), bias, source, target, acc_bits=config.acc_bits)
    except ValueError as error:
        raise ir.passes.PassError(f"node '{node.name}' ({node.op_type}): {error}") from error
    step = made.scale * np.float32(source.scale)
    edit.set_input(node, 1, _dequantized_constant(node, "weight", made.weights, made.scale))
    edit.set_input(node, 2, _dequantized_constant(node, "bias", made.bias, step))
    for metric, channels in (("dead_channels", made.is_dead), ("raised_channels", made.is_raised)):
        notes.metrics[metric] = notes.metrics.get(metric, 0.0) + float(channels.sum())


def _snap_constant(node: ir.Node, factor: float) -> None:
    """Put the constant that a PRelu, Mul or Div of one point multiplies by on the grid; the factor is s_x / s_y."""
    if node.op_type == "PRelu":
        _snap_slopes(node, factor)
    elif node.op_type in ("Mul", "Div"):
        _snap_multipliers(node, factor)


def _snap_multipliers(node: ir.Node, factor: float) -> None:
    """Move the constants of a Mul or Div so that each one's factor is an odd 16-bit integer over a power of two."""
    index = next((i for i, value in enumerate(node.inputs) if edit.constant(value) is not None), None)
    array = None if index is None else edit.constant(node.inputs[index])
    if index is None or array is None or (node.op_type == "Div" and index == 0):
        return
    real = array.astype(np.float64)
    power = -1.0 if node.op_type == "Div" else 1.0
    safe = np.where(real == 0, 1.0, np.abs(real)) ** power * factor
    on = np.vectorize(on_grid, otypes=[np.float64])(safe)
    snapped = np.where(real == 0, 0.0, np.sign(real) * (on / factor) ** power)
    value = edit.new_initializer(edit.graph_of(node), f"{node.name}_factor", snapped.astype(array.dtype))
    edit.set_input(node, index, value)


def _snap_slopes(node: ir.Node, factor: float) -> None:
    """Put the slopes of a PRelu on the grid of its factor s_x / s_y: each moves by at most 2**-15 of the largest."""
    slopes = edit.constant(edit.operand(node, 1))
    if slopes is None:
        return
    top = factor * max(1.0, float(np.abs(slopes).max(initial=0.0)))
    shift = min(MANTISSA_BITS - math.frexp(top)[1], SHIFT_MAX)
    multipliers = np.rint(np.ldexp(slopes.astype(np.float64) * factor, shift))
    snapped = (np.ldexp(multipliers, -shift) / factor).astype(slopes.dtype)
    edit.set_input(node, 1, edit.new_initializer(edit.graph_of(node), f"{node.name}_slope", snapped))


def _bias_of(node: ir.Node, channels: int) -> NDArray[np.float32]:
    bias = edit.constant(edit.operand(node, 2))
    flat = np.zeros(1, np.float32) if bias is None else bias.astype(np.float32).ravel()
    return np.broadcast_to(flat, (channels,))


def _dequantized_constant(
    node: ir.Node, role: str, codes: NDArray[np.int8] | NDArray[np.int32], scale: NDArray[np.float32]
) -> ir.Value:
    """DequantizeLinear (axis 0, zero point 0) of an integer initializer."""
    graph = edit.graph_of(node)
    stored = edit.new_initializer(graph, f"{node.name}_{role}", codes)
    scales = edit.new_initializer(graph, f"{node.name}_{role}_scale", scale)
    dequantize = edit.make("DequantizeLinear", [stored, scales], f"{node.name}_{role}_dq", codes.shape, axis=0)
    graph.insert_before(node, dequantize)
    return dequantize.outputs[0]


def _insert_pair(value: ir.Value, point: Point, scale: Scale, scalars: _Scalars, nodes: frozenset[str]) -> ir.Node:
    """Put QuantizeLinear and DequantizeLinear behind `value`; its readers take the dequantized value.

    Readers of an accelerator input on the host keep the float value. A graph output keeps its name, on the
    dequantized value. The QuantizeLinear's metadata "edgec.point" is the point's name in the float graph.

    Returns:
        The QuantizeLinear.
    """
    producer = value.producer()
    quantize_node = edit.make("QuantizeLinear", [value, *scalars.of(scale)], f"{point.name}_q", dtype=ir.DataType.INT8)
    quantize_node.metadata_props["edgec.point"] = point.name
    quantized = quantize_node.outputs[0]
    quantized.name, quantized.shape = f"{point.name}_quantized", value.shape
    dequantize = edit.make("DequantizeLinear", [quantized, *scalars.of(scale)], f"{point.name}_dq")
    result = dequantize.outputs[0]
    result.name, result.shape = f"{point.name}_dequantized", value.shape
    is_input = point.kind is Kind.INPUT
    for use in [u for u in value.uses() if u.node is not quantize_node]:
        if not is_input or use.node.name in nodes:
            use.node.replace_input_with(use.idx, result)
    graph = scalars.graph
    if producer is None:
        graph.insert_before(graph[0], [quantize_node, dequantize])
    else:
        graph.insert_after(producer, [quantize_node, dequantize])
    if not is_input and value.is_graph_output():
        _move_output(graph, value, result)
    return quantize_node


def _move_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    name = old.name
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    old.name, new.name = f"{name}_float", name


def _drop_unused(graph: ir.Graph) -> None:
    """Forget float weights that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _drop_dilations(graph: ir.Graph) -> None:
    """Leave out the AveragePool dilations that say nothing: onnxruntime's QLinearAveragePool refuses the attribute."""
    for node in graph:
        if edit.is_op(node, "AveragePool") and set(edit.ints(node, "dilations")) == {1}:
            del node.attributes["dilations"]


def _outputs(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]
