"""Post-training quantization: a float graph becomes a QDQ graph whose Q/DQ pairs are the machine's integer points.

real = scale * (q - zero_point). Activations: one scale and zero point per tensor, int8 unless the configuration says
otherwise. Weights: symmetric, narrow range, one scale per output channel. Bias: int32 at scale s_x * s_w.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes import graph as edit
from passes import statistics
from passes.base import Notes, PassReport, Rewrite
from passes.cones import Kind, Point, points
from passes.equalize import MARK, Equalize, EqualizeConfig, equalizable
from passes.layer import layers
from passes.problem import Importance
from passes.quantize_weights import quantize_weights
from passes.recipes.base import Recipe
from passes.reconstruct import Aim, Answers, Reconstruct, ReconstructConfig, Responses
from passes.scales import (
    MANTISSA_BITS,
    SHIFT_MAX,
    WEIGHTED,
    ActivationConfig,
    Scale,
    Scales,
    choose_scales,
    on_grid,
)
from passes.statistics import Arrays, Progress

MEMORY = 64 * 2**20
"""Bytes that the wanted responses of one layer may take; larger networks are reconstructed on fewer samples."""
SEEN, WORK = 4, 4 * 10**9
"""Positions for each tap that make a covariance sure, and multiplications that one walk over samples for that takes."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How to quantize.

    Attributes:
        activations: Bits, ranges and form of the activations.
        samples: At most this many calibration samples, evenly spaced, are run.
        acc_bits: Signed accumulator width that every channel's sum provably fits.
        equalize: How far to equalize the channels in front of depthwise Convs; None: not at all.
        reconstruct: Whether to choose weights and biases so that a layer's output errs least, instead of the nearest.
        reconstruction_samples: At most this many samples, evenly spaced, are used for that.
        samples_of_few: So many instead, where layers read few positions of a sample and have many taps, and as far as a
            network is small; 0 for none.
        positions: Of one sample, at most about as many are looked at for that.
        is_coarse: Whether weight scales and biases are put on grids that are cheap to store.
        follow: Whether a layer makes good for what the layers before it changed.
    """

    activations: ActivationConfig = ActivationConfig()
    samples: int = 512
    acc_bits: int = 24
    equalize: EqualizeConfig | None = EqualizeConfig()
    reconstruct: bool = True
    reconstruction_samples: int = 64
    samples_of_few: int = 0
    positions: int = 1024
    is_coarse: bool = False
    follow: bool = True


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized network.

    Attributes:
        model: With Q/DQ pairs.
        report: What was done.
        storages: How the codes of a layer are best stored, by node name, where its recipe says so.
        losses: Of every reconstructed layer, in the units of its importance, by node name.
        fallbacks: Why a layer has 8 bits instead of its recipe, by node name.
    """

    model: ir.Model
    report: PassReport
    storages: Mapping[str, object] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)


def quantize(
    model: ir.Model,
    nodes: frozenset[str],
    samples: Arrays,
    config: QuantizeConfig | None = None,
    progress: Progress | None = None,
) -> tuple[ir.Model, PassReport]:
    """Quantize the accelerated part of a float model, 8 bits to each weight.

    Args:
        model: Canonical float graph (opset 21); intact afterwards.
        nodes: Names of the nodes that run in int8. The others stay float, outside the Q/DQ pairs.
        samples: Calibration inputs by name, float [N, ...].
        config: Defaults are good.
        progress: Told (what, done, total).

    Returns:
        The QDQ model, and what was done. A model that is quantized already comes back as it is, with the reason.
    """
    result = quantize_with(model, nodes, samples, config=config, progress=progress)
    return result.model, result.report


def quantize_with(
    model: ir.Model,
    nodes: frozenset[str],
    samples: Arrays,
    *,
    recipes: Mapping[str, Recipe] | None = None,
    importance: Mapping[str, Importance] | None = None,
    config: QuantizeConfig | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize the accelerated part of a float model, each layer by its recipe.

    Args:
        model, nodes, samples, config, progress: As in `quantize`.
        recipes: By node name; 8 bits for the others.
        importance: What errors in the output channels cost, by node name.
    """
    return Calibrated.of(model, nodes, samples, config, progress).quantized(recipes, importance, progress)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network whose activations are quantized, and all that is needed to choose the integers of its weights.

    Attributes:
        source: The float network, equalized.
        base: With Q/DQ pairs and weights rounded to the nearest 8 bits; never changed.
        aims: What each weighted layer is to answer, by node name.
        wanted: Responses of the original layers over `samples`.
        samples: For the reconstruction.
        config: How to quantize.
        reports: Of the steps so far.
    """

    source: ir.Model
    base: ir.Model
    aims: Mapping[str, Aim]
    wanted: Responses
    samples: Arrays
    config: QuantizeConfig
    reports: tuple[PassReport, ...]

    @staticmethod
    def of(
        model: ir.Model,
        nodes: frozenset[str],
        samples: Arrays,
        config: QuantizeConfig | None = None,
        progress: Progress | None = None,
    ) -> Calibrated:
        """Calibrate the accelerated part of `model`, which stays intact; arguments as in `quantize`.

        A model that is quantized already, or has nothing to quantize, is left as it is.
        """
        config = config or QuantizeConfig()
        base, reason = model.clone(), why_not(model)
        wanted = () if reason else points(model, nodes)
        if not wanted:
            report = PassReport("quantize", skipped=dict.fromkeys(sorted(nodes), reason) if reason else {})
            return Calibrated(model.clone(), base, {}, Responses({}), {}, config, (report,))
        weighted = _weighted(model, wanted) if config.reconstruct else frozenset()
        enough = affordable(model, weighted, config)
        samples = statistics.spread(samples, max(config.samples, min(enough, config.samples_of_few)))
        reports = [PassReport("calibrate", metrics={"calibration_samples": float(statistics.count(samples))})]
        if config.equalize and (convs := equalizable(model, wanted)):
            peaks = statistics.collect(model, samples, peaks=convs, progress=progress).peaks
            reports.append(_applied(Equalize(convs, peaks, config.equalize), base))
        equalized = base.clone()
        names, total = [point.name for point in wanted], statistics.count(samples)
        rows = statistics.spread_rows(total, enough)
        outputs = {str(node.name): str(node.outputs[0].name) for node in equalized.graph if node.name in weighted}
        answers = Answers(equalized, outputs, len(rows), config.positions)
        places = {int(row): place for place, row in enumerate(rows)}

        def show(index: int, row: statistics.Row) -> None:
            if index in places:
                answers.add(places[index], row)

        found = statistics.collect(
            equalized, samples, histograms=names, shown=outputs.values(), show=show, progress=progress
        )
        scales = choose_scales(equalized, wanted, found.histograms, config.activations)
        reports.append(_applied(Quantize(nodes, scales, config), base))
        if not config.reconstruct:
            return Calibrated(equalized, base, {}, Responses({}), {}, config, tuple(reports))
        some = {name: array[rows] for name, array in samples.items()}
        aims = _aims(equalized, wanted, scales)
        return Calibrated(equalized, base, aims, answers.responses, some, config, tuple(reports))

    def quantized(
        self,
        recipes: Mapping[str, Recipe] | None = None,
        importance: Mapping[str, Importance] | None = None,
        progress: Progress | None = None,
    ) -> Quantized:
        """The network with the integers of these recipes; see `quantize_with`."""
        result, config = self.base.clone(), self.config
        if not self.aims:
            return Quantized(result, _joined(list(self.reports)))
        step = Reconstruct(
            self.aims,
            self.wanted,
            self.samples,
            recipes=recipes,
            importance=importance,
            config=ReconstructConfig(config.acc_bits, config.is_coarse, config.follow, config.positions),
            progress=progress,
        )
        report = _joined([*self.reports, _applied(step, result)])
        return Quantized(result, report, step.storages, step.losses, step.fallbacks)


def _weighted(model: ir.Model, wanted: tuple[Point, ...]) -> frozenset[str]:
    """Names of the weighted layers with an integer point of their own."""
    anchors = {point.anchor for point in wanted}
    return frozenset(str(node.name) for node in model.graph if node.name in anchors and node.op_type in WEIGHTED)


def _aims(model: ir.Model, wanted: tuple[Point, ...], scales: Scales) -> dict[str, Aim]:
    """Every weighted layer with an integer point of its own."""
    nodes = {node.name: node for node in model.graph}
    found: dict[str, Aim] = {}
    for point in wanted:
        node = nodes.get(point.anchor)
        if node is None or node.op_type not in WEIGHTED:
            continue
        weights = edit.constant(edit.operand(node, 1))
        assert weights is not None
        bias = _bias_of(node, weights.shape[0])
        source, target = scales[point.sources[0]], scales[point.name]
        found[point.anchor] = Aim(weights.astype(np.float32), bias, source, target)
    return found


def affordable(model: ir.Model, aims: Container[str], config: QuantizeConfig) -> int:
    """As many samples as keep the wanted responses of the largest layer within MEMORY.

    Of a small network they are as many as its covariances need, SEEN positions for each tap.
    """
    shapes = [edit.shape_of(node.outputs[0]) or (1,) for node in model.graph if node.name in aims]
    largest = max((shape[1] * min(math.prod(shape[2:]), config.positions) * 4 for shape in shapes), default=1)
    count = max(config.reconstruction_samples, min(_needed(model, aims, config), config.samples_of_few))
    return max(1, min(count, MEMORY // largest))


def _needed(model: ir.Model, aims: Container[str], config: QuantizeConfig) -> int:
    """Samples with SEEN positions for each tap of every layer, as far as they take no more than WORK."""
    known = layers(model)
    needed, macs = 0, 1
    for node in model.graph:
        layer = known.get(str(node.name))
        if layer is None or node.name not in aims:
            continue
        shape = edit.shape_of(node.outputs[0]) or (layer.channels,)
        macs += layer.macs(shape)
        positions = max(1, min(math.prod(shape) // layer.channels, config.positions))
        needed = max(needed, -(-SEEN * layer.taps // positions))
    return min(needed, WORK // macs)


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


# Graph surgery


@dataclass
class _Scalars:
    """Scale and zero point initializers, one for each distinct value."""

    graph: ir.Graph
    scales: dict[float, ir.Value] = field(default_factory=dict)
    zero_points: dict[tuple[int, ir.DataType], ir.Value] = field(default_factory=dict)
    bounds: dict[float, ir.Value] = field(default_factory=dict)

    def of(self, scale: Scale) -> tuple[ir.Value, ir.Value]:
        if scale.scale not in self.scales:
            name, array = f"scale_{len(self.scales)}", np.array(scale.scale, np.float32)
            self.scales[scale.scale] = edit.new_initializer(self.graph, name, array)
        key = (scale.zero_point, _dtype(scale))
        if key not in self.zero_points:
            codes = np.array(scale.zero_point, _dtype(scale).numpy())
            self.zero_points[key] = edit.new_initializer(self.graph, f"zero_point_{scale.zero_point}", codes)
        return self.scales[scale.scale], self.zero_points[key]

    def ends(self, scale: Scale) -> list[ir.Value]:
        """The smallest and the largest real value."""
        found = []
        for code in (scale.low, scale.high):
            end = float(np.float32(code - scale.zero_point) * np.float32(scale.scale))
            if end not in self.bounds:
                array = np.array(end, np.float32)
                self.bounds[end] = edit.new_initializer(self.graph, f"bound_{len(self.bounds)}", array)
            found.append(self.bounds[end])
        return found


def _dtype(scale: Scale) -> ir.DataType:
    """Of the integers at this scale; those of 4 bits are int8 behind a Clip, for onnxruntime has no int4 kernels."""
    return ir.DataType.INT16 if scale.bits == 16 else ir.DataType.INT8


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
    made, source = [], value
    if scale.bits < 8 and point.kind is not Kind.KEEPER:  # what only moves is inside its range
        clip = edit.make("Clip", [value, *scalars.ends(scale)], f"{point.name}_clip")
        clip.outputs[0].shape, source = value.shape, clip.outputs[0]
        made.append(clip)
    quantize_node = edit.make("QuantizeLinear", [source, *scalars.of(scale)], f"{point.name}_q", dtype=_dtype(scale))
    quantize_node.metadata_props["edgec.point"] = point.name
    quantized = quantize_node.outputs[0]
    quantized.name, quantized.shape = f"{point.name}_quantized", value.shape
    dequantize = edit.make("DequantizeLinear", [quantized, *scalars.of(scale)], f"{point.name}_dq")
    result = dequantize.outputs[0]
    result.name, result.shape = f"{point.name}_dequantized", value.shape
    is_input = point.kind is Kind.INPUT
    made += [quantize_node, dequantize]
    for use in [u for u in value.uses() if u.node not in made]:
        if not is_input or use.node.name in nodes:
            use.node.replace_input_with(use.idx, result)
    graph = scalars.graph
    if producer is None:
        graph.insert_before(graph[0], made)
    else:
        graph.insert_after(producer, made)
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
