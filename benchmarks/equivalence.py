"""The quantized ONNX file in onnxruntime against the reference integers, each layer fed the same input."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.chain import integers
from benchmarks.figures import Figure, at_most
from benchmarks.networks import MLPERF_TINY, Network
from compiler.equivalence import compare_layers

ROW = "equivalence"
_SAMPLES = 20


def figures() -> Iterator[Figure]:
    """Largest difference of a layer in steps, and the share of elements that differ, for the four networks."""
    for network in MLPERF_TINY:
        yield from _network(network)


def _network(network: Network) -> Iterator[Figure]:
    compiled = integers(network)
    samples = {compiled.input: network.judging.read()[:_SAMPLES]}
    layers = compare_layers(compiled.quantized, compiled.lowered, samples)
    worst = max(layers, key=lambda layer: layer.share)
    note = f"{len(layers)} layers, {sum(layer.elements for layer in layers):,} elements; worst layer '{worst.layer}'"
    what = f"{network.title}: quantized ONNX against integers"
    largest = max(layer.largest for layer in layers)
    yield Figure(ROW, f"{what}, largest difference", float(largest), "steps", at_most(1), at_most(0), note=note)
    share = 100 * worst.share
    yield Figure(ROW, f"{what}, differing in the worst layer", share, "%", at_most(0.1), at_most(0), note=note)
