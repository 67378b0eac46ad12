"""Fewer multiplications: which channels go and which layers are split, by one dynamic program over both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from passes import budget, low_rank, statistics
from passes import graph as edit
from passes.base import PassReport, run
from passes.budget import Option
from passes.channel_groups import ChannelGraph
from passes.gram import collect_moments
from passes.layer import layers
from passes.low_rank import Choice, LowRank
from passes.problem import Importance, problem_of
from passes.prune_channels import ChannelOption, PruneChannels, counts
from passes.prune_channels import options as channel_options
from passes.refit_layers import RefitLayers
from passes.statistics import Arrays, Progress

CHANNELS, LOW_RANK = "channels", "low-rank"
NAMES = (CHANNELS, LOW_RANK)
REFIT_SAMPLES = 512
_STEPS = 12
"""Numbers of channels that are tried for one group, at most."""
_ROUNDS = 6
"""Plans that are carried out until the multiplications left are as few as asked for."""


@dataclass(frozen=True)
class Structure:
    """What changes.

    Attributes:
        removal: Channels that go, by name of their group.
        ranks: Layers that are split, by node name.
        loss: Predicted.
    """

    removal: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, Choice] = field(default_factory=dict)
    loss: float = 0.0

    @property
    def is_empty(self) -> bool:
        return not self.removal and not self.ranks


@dataclass(frozen=True, eq=False)
class Shaped:
    """A network with a new structure.

    Attributes:
        model: Canonical float graph.
        structure: What was done to it.
        rows: The output channels of the original that a layer keeps, by node name; layers that lost some.
        macs: Multiply-accumulates of one inference.
        reports: Of the passes.
    """

    model: ir.Model
    structure: Structure
    rows: Mapping[str, tuple[int, ...]]
    macs: int
    reports: tuple[PassReport, ...] = ()

    def with_splits(self, model: ir.Model) -> Shaped:
        """Of the same network with some layers as two; `model` says which."""
        ranks = {name: split.choice for name, split in low_rank.splits(model).items()}
        report = PassReport(LOW_RANK, tuple(sorted(set(ranks) - set(self.structure.ranks))))
        structure = replace(self.structure, ranks={**self.structure.ranks, **ranks})
        macs = ChannelGraph(model).cost({}).macs
        return replace(self, model=model, structure=structure, macs=macs, reports=(*self.reports, report))


@dataclass(eq=False)
class StructureSearch:
    """Options of every group of channels and every layer.

    Args:
        model: Canonical float graph; intact afterwards.
        samples: To calibrate on.
        importance: What errors cost, by node name.
        families: Of NAMES.
        multiple: Channels and ranks that the target likes.
        progress: Told (what, done, total).
    """

    model: ir.Model
    samples: Arrays
    importance: Mapping[str, Importance]
    families: Collection[str] = NAMES
    multiple: int = 4
    progress: Progress | None = None
    groups: list[list[ChannelOption]] = field(default_factory=list)
    splits: dict[str, list[low_rank.Option]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Measure every option once, on the original network."""
        known = layers(self.model)
        self.moments = collect_moments(self.model, self.samples, known, progress=self.progress)
        self.nodes = {str(node.name): node for node in self.model.graph}
        self.graph = ChannelGraph(self.model)
        self.macs = self.graph.cost({}).macs
        if CHANNELS in self.families:
            self.groups = [self._channel_options(index) for index in range(len(self.graph.groups))]
        if LOW_RANK in self.families:
            self.splits = {name: self._splits(name) for name in known}

    def whole(self) -> Shaped:
        """The network as it is."""
        return Shaped(self.model, Structure(), {}, ChannelGraph(self.model).cost({}).macs)

    def _channel_options(self, index: int) -> list[ChannelOption]:
        group = self.graph.groups[index]
        if group.reason is not None or any(member.node not in self.moments for member in group.consumers):
            return []
        tried = counts(group.size, self.multiple) or counts(group.size)
        tried = tried[:: max(1, len(tried) // _STEPS)]
        return channel_options(
            self.model, group, self.moments, tried, importance=self.importance, graph=self.graph
        )

    def _splits(self, name: str) -> list[low_rank.Option]:
        window = low_rank.window_of(self.nodes[name])
        if isinstance(window, str):
            return []
        weights = edit.constant(edit.operand(self.nodes[name], 1))
        assert weights is not None
        layer = layers(self.model)[name]
        importance = self.importance.get(name) or Importance.even(layer.channels)
        problem = problem_of(layer, weights, self.moments[name], importance)
        return low_rank.options(problem, window, multiple=self.multiple)

    def within(self, max_macs: int) -> Shaped:
        """The structure of least predicted loss with at most so many multiplications, or as few as there are.

        Savings of neighbours overlap, so what a plan saves together is less than the sum: the aim is lowered until the
        plan, carried out, keeps to the limit.
        """
        aim, structure = max_macs, Structure()
        for _ in range(_ROUNDS):
            structure, is_least = self._plan(aim)
            excess = self._macs_of(structure) - max_macs
            if excess <= 0 or is_least:
                break
            aim -= excess
        return self.applied(structure)

    def _macs_of(self, structure: Structure) -> int:
        """Multiplications of a structure, without fitting anything."""
        model = self.model.clone()
        if structure.removal:
            ChannelGraph(model).remove(structure.removal)
        total = ChannelGraph(model).cost({}).macs
        for node in model.graph:
            choice, window = structure.ranks.get(str(node.name)), low_rank.window_of(node)
            if choice is not None and not isinstance(window, str):
                total += low_rank.cost(window, _at_most(choice, node))[1] - window.macs
        return total

    def _plan(self, max_macs: int) -> tuple[Structure, bool]:
        """One option for every group and layer; and whether fewer multiplications are not to be had."""
        names = [name for name, found in self.splits.items() if found]
        table: list[list[Option]] = []
        for options in self.groups:
            most = max((option.macs_saved for option in options), default=0)
            row = [Option("whole", 0.0, 0, most)]
            row += [Option(str(len(o.kept)), max(o.loss, 0.0), 0, most - o.macs_saved) for o in options]
            table.append(row)
        for name in names:
            window = low_rank.window_of(self.nodes[name])
            assert not isinstance(window, str)
            row = [Option("whole", 0.0, 0, window.macs)]
            row += [Option(str(o.choice), max(o.loss, 0.0), 0, o.macs) for o in self.splits[name]]
            table.append(row)
        whole = sum(row[0].macs for row in table)
        found = budget.choose(table, max_macs=max(whole - (self.macs - max_macs), 0))
        taken = found.plan.indices
        removal = {
            options[index - 1].group: options[index - 1].removed
            for options, index in zip(self.groups, taken[: len(self.groups)], strict=True)
            if index
        }
        ranks = {
            name: self.splits[name][index - 1].choice
            for name, index in zip(names, taken[len(self.groups) :], strict=True)
            if index
        }
        return Structure(removal, ranks, found.plan.loss), not found.is_feasible

    def applied(self, structure: Structure) -> Shaped:
        """Carry a structure out: channels first, then splits on what is left."""
        model, rows, reports = self.model.clone(), {}, []
        if structure.removal:
            rows = ChannelGraph(model).rows(structure.removal)
            reports += run([PruneChannels(structure.removal, self.moments, importance=self.importance)], model)
        if structure.ranks:
            reports += run([self._low_rank(model, structure)], model)
        if not structure.is_empty:
            some = statistics.spread(self.samples, REFIT_SAMPLES)
            reports += run([RefitLayers(self.model, some, rows)], model)
        return Shaped(model, structure, rows, ChannelGraph(model).cost({}).macs, tuple(reports))

    def _low_rank(self, model: ir.Model, structure: Structure) -> LowRank:
        nodes = {str(node.name): node for node in model.graph}
        plan = {name: _at_most(choice, nodes[name]) for name, choice in structure.ranks.items()}
        return _low_rank(model, plan, self.samples, {})


def split_network(
    model: ir.Model, choices: Mapping[str, Choice], samples: Arrays, importance: Mapping[str, Importance]
) -> ir.Model:
    """A copy of `model` with these layers as two or three of lower rank.

    Args:
        model: Canonical float graph.
        choices: By node name.
        samples: To calibrate on.
        importance: What errors in the output channels cost, by node name.
    """
    split = model.clone()
    _low_rank(model, choices, samples, importance)(split)
    return split


def _low_rank(
    model: ir.Model, plan: Mapping[str, Choice], samples: Arrays, importance: Mapping[str, Importance]
) -> LowRank:
    known, nodes = layers(model), {str(node.name): node for node in model.graph}
    moments = collect_moments(model, samples, plan)
    problems, means = {}, {}
    for name in plan:
        weights = edit.constant(edit.operand(nodes[name], 1))
        assert weights is not None
        costs = importance.get(name) or Importance.even(known[name].channels)
        problems[name] = problem_of(known[name], weights, moments[name], costs)
        means[name] = moments[name].mean
    return LowRank(plan, problems, means)


def _at_most(choice: Choice, node: ir.Node) -> Choice:
    """The rank, no larger than what the layer still has after its channels went."""
    window = low_rank.window_of(node)
    if isinstance(window, str) or len(choice.rank) > 1:
        return choice
    return Choice(choice.method, (min(choice.rank[0], window.rows, window.channels),))
