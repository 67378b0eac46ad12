"""The search for fewer multiplications carries out what it plans, and predicts what it measured."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler import structure
from compiler.structure import CHANNELS, LOW_RANK, StructureSearch
from passes import low_rank, sensitivity, statistics
from passes.channel_groups import ChannelGraph
from passes.low_rank import Choice, Method
from tests.support.canonical import canonical, normal
from tests.support.onnx_models import node

SAMPLES = {"x": normal(48, 3, 10, 10, seed=1).cumsum(axis=2).cumsum(axis=3).astype(np.float32) / 8}


def network() -> ir.Model:
    """Two 3x3 layers, a pool and a classifier."""
    nodes = [
        node("Conv", ["x", "wa", "ba"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["ar"]),
        node("Conv", ["ar", "wb", "bb"], ["b"], pads=[1] * 4),
        node("Relu", ["b"], ["br"]),
        node("GlobalAveragePool", ["br"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "wc", "bc"], ["c"], transB=1),
        node("Softmax", ["c"], ["y"], axis=-1),
    ]
    weights = {
        "wa": normal(8, 3, 3, 3, seed=2, scale=0.3),
        "ba": normal(8, seed=3),
        "wb": normal(8, 8, 3, 3, seed=4, scale=0.2),
        "bb": normal(8, seed=5),
        "wc": normal(4, 8, seed=6),
        "bc": normal(4, seed=7),
    }
    return canonical(nodes, {"x": [1, 3, 10, 10]}, ["y"], weights)


def search(*families: str) -> StructureSearch:
    model = network()
    costs = sensitivity.importance(model, SAMPLES, is_correlated=True).importance
    found = StructureSearch(model, SAMPLES, costs, families or structure.NAMES)
    found.prepare()
    return found


def test_a_plan_is_carried_out_as_planned_with_ranks_above_the_channels() -> None:
    """A kernel of 3 x 3 over 8 channels has up to 24 columns and rows."""
    found = search(LOW_RANK)
    planned = {"a": Choice(Method.ACROSS, (6,)), "b": Choice(Method.SPATIAL, (10,))}
    assert planned["b"] in {option.choice for option in found.splits["b"]}
    shaped = found.applied(structure.Structure({}, planned))
    assert {name: each.choice for name, each in low_rank.splits(shaped.model).items()} == planned
    within = found.within(int(0.95 * found.macs))
    assert within.structure.ranks
    assert within.macs == ChannelGraph(within.model).cost({}).macs <= 0.95 * found.macs


def test_a_rank_is_cut_to_what_pruned_channels_leave() -> None:
    model = network()
    nodes = {str(each.name): each for each in model.graph}
    cut = structure._at_most
    assert cut(Choice(Method.SPATIAL, (30,)), nodes["b"]) == Choice(Method.SPATIAL, (24,))
    assert cut(Choice(Method.SPATIAL, (12,)), nodes["b"]) == Choice(Method.SPATIAL, (12,))
    assert cut(Choice(Method.SVD, (12,)), nodes["b"]) == Choice(Method.SVD, (8,))
    assert cut(Choice(Method.TUCKER, (12, 12)), nodes["b"]) == Choice(Method.TUCKER, (8, 8))


@pytest.mark.parametrize("family", [CHANNELS, LOW_RANK])
def test_options_cost_what_one_of_them_was_measured_to_cost(family: str) -> None:
    """Another option of the same layer then comes out within a factor of two."""
    found = search(family)
    outputs = ["y"]
    some = statistics.spread(SAMPLES, structure.PROBED)
    before = list(statistics.run(found.model, some, outputs))
    offered = [o for group in found.groups for o in group] or [
        (name, o) for name, options in found.splits.items() for o in options if o.choice.method in low_rank.SEPARABLE
    ]
    assert offered
    near = []
    for each in offered:
        if isinstance(each, tuple):
            name, option = each
            plan = structure.Structure({}, {name: option.choice}, option.loss)
        else:
            plan = structure.Structure({each.group: each.removed}, {}, each.loss)
        if structure.PROBED_LOSS / 3 < plan.loss < 3 * structure.PROBED_LOSS:
            after = list(statistics.run(found._probed(plan), some, outputs))
            near.append(sensitivity.divergence(found.model, before, after) / plan.loss)
    assert near
    assert 0.5 < float(np.median(near)) < 2


def test_more_loss_buys_more_multiplications_and_none_buys_nothing() -> None:
    found = search()
    nothing, little, much = (found.spending(loss) for loss in (0.0, 0.003, 0.1))
    assert nothing.structure.is_empty
    assert nothing.macs == found.macs
    assert much.macs < little.macs <= found.macs
    assert much.structure.loss <= 0.1
