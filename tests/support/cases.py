"""Random networks taken through the compiler to integers, and redrawn until every layer can show a fault."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from backends.base import Tensors
from backends.reference import run
from compiler.host import host_of
from compiler.importer import import_model
from compiler.lowering import Lowered, lower
from compiler.partition import mark, partition
from compiler.stored import sent
from passes.quantize import quantize
from tests.support.host_ops import with_host_ops
from tests.support.random_networks import RandomNetwork, random_network, why_badly_spread

_REDRAWN = 1_000_000
_MOST_DRAWS = 50


@dataclass(frozen=True, eq=False)
class Case:
    """A random network and its integers.

    Attributes:
        seed: Of the network that was kept.
        network: The float network.
        model: Its canonical form.
        quantized: With Q/DQ pairs.
        lowered: Integer layers.
        tensors: int8 [N, C, H, W] of every tensor for all the network's samples, by the reference.
    """

    seed: int
    network: RandomNetwork
    model: ir.Model
    quantized: ir.Model
    lowered: Lowered
    tensors: Tensors

    @property
    def samples(self) -> dict[str, NDArray[np.float32]]:
        return {"x": self.network.samples}

    @property
    def why_not(self) -> str | None:
        """Why a fault might hide in this case, or None."""
        for layer in self.lowered.graph.layers:
            if reason := why_badly_spread(self.tensors[layer.output.name]):
                return f"layer '{layer.name}': {reason}"
        return None if self.lowered.graph.layers else "it has no layers"

    def __str__(self) -> str:
        return f"random_network({self.seed}): {self.network.ops}"


@lru_cache(maxsize=4)
def case(number: int) -> Case:
    """Case `number`: of its draws, the first whose layers all spread well."""
    for draw in range(_MOST_DRAWS):
        drawn = _compiled(number + draw * _REDRAWN)
        if drawn.why_not is None:
            return drawn
    raise AssertionError(f"case {number}: {_MOST_DRAWS} draws, and none spreads well; the last: {drawn.why_not}")


@lru_cache(maxsize=4)
def cut_case(number: int) -> Case:
    """Case `number` with operators that only the host has: of its draws, the first that enters more than once."""
    for draw in range(_MOST_DRAWS):
        seed = number + draw * _REDRAWN
        network = random_network(seed)
        drawn = _compiled(seed, replace(network, model=with_host_ops(network.model, seed)))
        if len(drawn.lowered.segments) > 1:
            return drawn
    raise AssertionError(f"case {number}: none of {_MOST_DRAWS} draws is cut")


def _compiled(seed: int, network: RandomNetwork | None = None) -> Case:
    network = network or random_network(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.onnx"
        path.write_bytes(network.model.SerializeToString())
        model = import_model(path).model
    cut = partition(model)
    quantized, _ = quantize(model, cut.nodes, {"x": network.samples})
    mark(quantized, cut)
    lowered = lower(quantized, cut)
    inputs = sent(lowered, host_of(lowered, model).reference({"x": network.samples}))
    return Case(seed, network, model, quantized, lowered, run(lowered.graph, inputs, keep="all"))
