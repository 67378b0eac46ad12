"""The order of an inference for those who read it: rows of the report, a file for host programs, sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir

from backends.layers import Tensor
from compiler import artefact
from compiler.costs import Step
from compiler.float_macs import float_macs
from compiler.lowering import Lowered
from compiler.operators import QUANTIZERS, dynamic_inputs
from compiler.report import ACCELERATOR, HOST, CutRow, LayerRow, SegmentRow
from compiler.segments import Cut, Segment
from passes.graph import shape_of
from sim.program import Program

KIND, SCHEMA = "edgec-segments", 1


def segment_rows(
    lowered: Lowered, steps: Sequence[Sequence[Step]], layers: Sequence[LayerRow], program: Program | None
) -> tuple[SegmentRow, ...]:
    """What runs where, in order.

    Args:
        lowered: The network.
        steps: Of each segment.
        layers: Of all steps.
        program: With addresses; None where there is none.
    """
    rows: list[SegmentRow] = []
    first = 0
    for index, (segment, own) in enumerate(zip(lowered.segments, steps, strict=True)):
        rows += _host_row(segment.host, index, len(steps))
        entry = None if program is None else program.entries[index]
        rows.append(
            SegmentRow(
                on=ACCELERATOR,
                model=None,
                steps=tuple(step.name for step in own),
                macs=sum(row.macs for row in layers[first : first + len(own)]),
                cycles=None if program is None or entry is None else program.cycles_of(entry.pc_start, entry.pc_end),
                instructions=None if entry is None else (entry.pc_start, entry.pc_end),
                inputs=_cut_rows(segment.graph.inputs, segment.inputs),
                outputs=_cut_rows(segment.graph.outputs, segment.outputs),
            )
        )
        first += len(own)
    return (*rows, *_host_row(lowered.tail, len(steps), len(steps)))


def host_macs(model: ir.Model, lowered: Lowered) -> dict[str, int]:
    """Multiply-accumulates of each node on the host.

    Args:
        model: The quantized model.
        lowered: The same network.
    """
    nodes = {node.name or node.op_type: node for node in model.graph}
    return {node.name: float_macs(nodes[node.name]) for node in lowered.host_nodes if node.name in nodes}


def order(lowered: Lowered) -> tuple[str, ...]:
    """A sentence for each thing to do in one inference; empty where there is but one entry."""
    count = len(lowered.segments)
    if count == 1:
        return ()
    told: list[str] = []
    for index, segment in enumerate(lowered.segments):
        told += _host_sentences(segment.host, index, count)
        if segment.inputs:
            told.append(f"Quantize {_listed(segment.inputs)}.")
        told.append(f"edgec_enter(..., {index}, ...).{_kept(segment)}")
        if segment.outputs:
            told.append(f"Dequantize {_listed(segment.outputs)}.")
    return (*told, *_host_sentences(lowered.tail, count, count))


def to_json(lowered: Lowered, model: ir.Model) -> str:
    """The text of segments.json: all that a host program needs to know besides the files that it names.

    Args:
        lowered: The network.
        model: The quantized model.
    """
    count = len(lowered.segments)
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "inputs": {value.name: list(shape_of(value) or ()) for value in model.graph.inputs},
        "outputs": [value.name for value in model.graph.outputs],
        "segments": [
            {
                "model": artefact.host_file(index, count) if segment.host is not None else None,
                "quantize": [_cut_facts(cut) for cut in segment.inputs],
                "dequantize": [_cut_facts(cut) for cut in segment.outputs],
            }
            for index, segment in enumerate(lowered.segments)
        ],
        "tail": artefact.TAIL if lowered.tail is not None else None,
    }
    return json.dumps(document, indent=1) + "\n"


def _host_row(model: ir.Model | None, turn: int, count: int) -> list[SegmentRow]:
    if model is None:
        return []
    nodes = [node for node in model.graph if dynamic_inputs(node) and node.op_type not in QUANTIZERS]
    names = tuple(node.name or node.op_type for node in nodes)
    return [SegmentRow(HOST, artefact.host_file(turn, count), names, sum(map(float_macs, nodes)))]


def _cut_rows(tensors: Sequence[Tensor], cuts: Sequence[Cut]) -> tuple[CutRow, ...]:
    """A row for each cut, and for each tensor that passes without one."""
    there = {cut.tensor.name for cut in cuts}
    pairs = [*((cut.tensor, cut.value) for cut in cuts), *((t, None) for t in tensors if t.name not in there)]
    return tuple(CutRow(t.name, value, t.shape, t.scale, t.zero_point) for t, value in pairs)


def _cut_facts(cut: Cut) -> dict[str, object]:
    """`order` says for each element of the value where it is in the map; null for the map's own order."""
    return {
        "tensor": cut.tensor.name,
        "map": list(cut.tensor.shape),
        "scale": cut.tensor.scale,
        "zero_point": cut.tensor.zero_point,
        "value": cut.value,
        "shape": list(cut.view.shape),
        "order": None if cut.view.order is None else cut.view.order.ravel().tolist(),
    }


def _host_sentences(model: ir.Model | None, turn: int, count: int) -> list[str]:
    return [] if model is None else [f"Run {artefact.host_file(turn, count)}."]


def _listed(cuts: Sequence[Cut]) -> str:
    return ", ".join(cut.value if cut.value == cut.tensor.name else f"{cut.value} ({cut.tensor.name})" for cut in cuts)


def _kept(segment: Segment) -> str:
    """What an entry reads of earlier ones."""
    sent = {cut.tensor.name for cut in segment.inputs}
    names = [tensor.name for tensor in segment.graph.inputs if tensor.name not in sent]
    return f" {', '.join(names)} as before." if names else ""
