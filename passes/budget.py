"""Chooses one option for each layer under budgets: an exact dynamic program, pruned by Lagrangian bounds.

min sum_l v_l(c_l) subject to sum_l a_il(c_l) <= B_i is the multiple-choice knapsack problem. Two steps solve it:

1. A sweep over the multipliers m_i >= 0. Each m gives the plan that minimises v + m a layer by layer: a lower bound of
   the optimum, and a candidate. The best multipliers say how good a beginning of a plan can still become.
2. A dynamic program over the layers. Its states are the totals of the beginnings that are dominated by no other, fit
   the budgets, and can still become as good as the best candidate. Totals are exact, so no budget is exceeded, not by
   one byte. Where more remain than `STATES` allows, one of each bucket of totals is kept: the result is then at least
   as good as the optimum of budgets that are smaller by one bucket for each layer.

Source: Kellerer, Pferschy and Pisinger, Knapsack Problems, Springer 2004, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Figure = Literal["loss", "bytes", "macs"]
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

STATES = ((1,), (256, 4096), (128, 1024, 4096))
"""Beginnings of plans that are kept after each layer, by the number of budgets: few at first, whose result then rules
out most of the others."""
POINTS = 256
"""Of a Pareto front."""
_FIGURES: tuple[Figure, ...] = ("loss", "bytes", "macs")
_FRONT_STATES = 1 << 11
_BISECTIONS = 50
_GRID = np.geomspace(1e-4, 1e4, 25)
_ROUNDING = 1e-9
_BLOCK = 256
_EXACT = 1 << 53  # below it float64 holds every integer


@dataclass(frozen=True)
class Option:
    """One way of representing a layer or a group of layers.

    Attributes:
        name: Of the recipe.
        loss: What it costs the network; additive over layers.
        bytes: As stored.
        macs: Multiply-accumulates of one inference.
    """

    name: str
    loss: float
    bytes: int
    macs: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.loss):
            raise ValueError(f"option '{self.name}': the loss must be finite, not {self.loss}")
        for what, count in (("bytes", self.bytes), ("macs", self.macs)):
            if not 0 <= count < _EXACT:
                raise ValueError(f"option '{self.name}': {what} must be in [0, 2**53), not {count}")


@dataclass(frozen=True)
class Plan:
    """One option for each layer, and what they come to.

    Attributes:
        indices: Of the option of each layer.
        loss, bytes, macs: Sums over the layers.
    """

    indices: tuple[int, ...]
    loss: float
    bytes: int
    macs: int


@dataclass(frozen=True)
class Choice:
    """What the search found.

    Attributes:
        plan: The best one within the budgets; where none is, the nearest: it keeps to the loss if any plan does, and
            then exceeds bytes and MACs by the smallest share.
        missed: One sentence for each budget that the plan exceeds.
        is_exact: Proven optimal; else states had to be dropped.
        bound: No plan within the budgets has a smaller objective; None where the plan is no optimum but the nearest.
    """

    plan: Plan
    missed: tuple[str, ...] = ()
    is_exact: bool = True
    bound: float | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether the plan keeps to every budget."""
        return not self.missed


def plan_of(options: Sequence[Sequence[Option]], indices: Iterable[int]) -> Plan:
    """The plan that takes option `indices[l]` of layer l."""
    chosen = tuple(int(index) for index in indices)
    picked = [layer[index] for layer, index in zip(options, chosen, strict=True)]
    loss = sum((option.loss for option in picked), 0.0)
    return Plan(chosen, loss, sum(option.bytes for option in picked), sum(option.macs for option in picked))


def choose(
    options: Sequence[Sequence[Option]],
    *,
    max_loss: float | None = None,
    max_bytes: int | None = None,
    max_macs: int | None = None,
    smallest: Literal["bytes", "macs"] = "bytes",
) -> Choice:
    """The best plan within the budgets: of least loss, or with `max_loss` of fewest bytes (or MACs).

    Args:
        options: Of each layer.
        max_loss, max_bytes, max_macs: Budgets of the sums; None is no limit.
        smallest: What to minimise under `max_loss`.

    Returns:
        The optimum, or the nearest plan where no plan keeps to every budget.

    Raises:
        ValueError: A layer without options, or a budget that is not a number.
    """
    limits: dict[Figure, float] = {
        name: float(limit)
        for name, limit in zip(_FIGURES, (max_loss, max_bytes, max_macs))
        if limit is not None and limit != math.inf
    }
    for name, limit in limits.items():
        if not math.isfinite(limit):
            raise ValueError(f"the budget of {name} must be a number, not {limit}")
    _check(options)
    objective: Figure = smallest if "loss" in limits else "loss"
    # A budget of the objective itself needs no search: the optimum keeps to it or nothing does.
    found = _minimise(options, objective, {name: limit for name, limit in limits.items() if name != objective})
    if found is None:
        return _judged(_nearest(options, objective, limits), limits)
    return _judged(found, limits)


def pareto(
    options: Sequence[Sequence[Option]], *, smallest: Literal["bytes", "macs"] = "bytes", points: int = POINTS
) -> tuple[Plan, ...]:
    """Plans of which none is better in both loss and bytes (or MACs), from the smallest to the best.

    Every corner of the front's convex hull is among them, by the multipliers; what lies between, by the dynamic
    program. Of more than `points`, those at even steps of the size are kept.
    """
    _check(options)
    if points < 2:
        raise ValueError(f"a front needs at least 2 points, not {points}")
    problem = _Problem.of(options, "loss", (smallest,))
    states = _search(problem, _Bounds.none(problem), _FRONT_STATES)
    plans = [problem.indices(plan) for plan in (*_supported(problem), *states.plans)]
    unique = sorted({plan_of(options, plan) for plan in plans}, key=lambda plan: (_size(plan, smallest), plan.loss))
    front: list[Plan] = []
    for plan in unique:
        if not front or plan.loss < front[-1].loss:
            front.append(plan)
    return _thinned_front(front, smallest, points)


def _check(options: Sequence[Sequence[Option]]) -> None:
    for layer, some in enumerate(options):
        if not some:
            raise ValueError(f"layer {layer} has no options")


def _size(plan: Plan, figure: Figure) -> float:
    return float(getattr(plan, figure))


def _judged(found: Choice, limits: dict[Figure, float]) -> Choice:
    """With a sentence for each budget that is exceeded."""
    missed = tuple(
        f"{name} {_size(found.plan, name):,.6g} instead of at most {limit:,.6g}"
        if name == "loss"
        else f"{int(_size(found.plan, name)):,} {name} instead of at most {math.floor(limit):,}"
        for name, limit in limits.items()
        if _size(found.plan, name) > limit
    )
    return replace(found, missed=missed)


def _nearest(options: Sequence[Sequence[Option]], objective: Figure, limits: dict[Figure, float]) -> Choice:
    """The plan that keeps to the loss if any does, and exceeds the other budgets by the smallest share."""
    costs = [name for name in limits if name != objective]
    if "loss" in limits:
        least = _minimise(options, "loss", {})
        assert least is not None
        if least.plan.loss > limits["loss"] or len(costs) == 1:
            return Choice(least.plan)
        found = _minimise(options, costs[1], {"loss": limits["loss"]})
        assert found is not None
        return Choice(found.plan, is_exact=found.is_exact)
    if len(costs) == 1:
        found = _minimise(options, costs[0], {})
        assert found is not None
        return Choice(found.plan)
    return _least_excess(options, limits)


def _least_excess(options: Sequence[Sequence[Option]], limits: dict[Figure, float]) -> Choice:
    """Of all trade-offs between bytes and MACs the one that exceeds its budgets least; then of least loss."""
    problem = _Problem.of(options, "macs", ("bytes",))
    states = _search(problem, _Bounds.none(problem), _FRONT_STATES)
    plans = [plan_of(options, problem.indices(plan)) for plan in (*_supported(problem), *states.plans)]

    def excess(plan: Plan) -> tuple[float, float, tuple[int, ...]]:
        shares = (max(0.0, _size(plan, name) - limit) / max(limit, 1.0) for name, limit in limits.items())
        return sum(shares), plan.loss, plan.indices

    return Choice(min(plans, key=excess), is_exact=states.is_exact)


def _minimise(
    options: Sequence[Sequence[Option]], objective: Figure, limits: dict[Figure, float]
) -> Choice | None:
    """The plan with the smallest objective within the limits of other figures, or None."""
    problem = _Problem.of(options, objective, tuple(limits))
    budgets = np.array(list(limits.values()), np.float64)
    sweep = _Sweep(problem, budgets)
    sweep.run()
    if sweep.is_hopeless:
        return None
    best, is_exact = sweep.best, False
    for limit in STATES[len(limits)]:
        if is_exact := best is not None and problem.value(best) <= sweep.bound + _ROUNDING * abs(sweep.bound):
            break
        value = math.inf if best is None else problem.value(best)
        found = _search(problem, _Bounds(budgets, sweep.multipliers, value), limit)
        plans = [*found.plans, *([] if best is None else [best])]
        if plans:
            best = min(plans, key=lambda plan: (problem.value(plan), *problem.cost(plan), *plan.tolist()))
        if is_exact := found.is_exact:
            break
    if best is None:
        return None
    return Choice(plan_of(options, problem.indices(best)), (), is_exact, min(sweep.bound, problem.value(best)))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Options that are dominated by none of their layer, as arrays; missing ones are infinite.

    Attributes:
        values: float64 [layers, options].
        costs: float64 [budgets, layers, options].
        origin: Index of each option among those given, int64 [layers, options]; -1 where missing.
    """

    values: Matrix
    costs: NDArray[np.float64]
    origin: Indices

    @classmethod
    def of(cls, options: Sequence[Sequence[Option]], objective: Figure, limited: Sequence[Figure]) -> _Problem:
        others = [name for name in _FIGURES if name != objective and name not in limited]
        kept = [_undominated(layer, (*limited, objective), others) for layer in options]
        width = max(map(len, kept), default=1)
        values = np.full((len(kept), width), math.inf)
        costs = np.full((len(limited), len(kept), width), math.inf)
        origin = np.full((len(kept), width), -1, np.int64)
        for layer, some in enumerate(kept):
            origin[layer, : len(some)] = some
            for place, index in enumerate(some):
                values[layer, place] = getattr(options[layer][index], objective)
                costs[:, layer, place] = [getattr(options[layer][index], name) for name in limited]
        return cls(values, costs, origin)

    def value(self, plan: Indices) -> float:
        """Summed from the first layer to the last, as in plan_of and in the dynamic program."""
        return sum(self.values[range(len(plan)), plan].tolist(), 0.0)

    def cost(self, plan: Indices) -> list[float]:
        return [sum(cost[range(len(plan)), plan].tolist(), 0.0) for cost in self.costs]

    def indices(self, plan: Indices) -> list[int]:
        """As the options were given."""
        return [int(index) for index in self.origin[range(len(plan)), plan]]


def _undominated(layer: Sequence[Option], figures: Sequence[Figure], others: Sequence[Figure]) -> list[int]:
    """Indices of the options of which no other is as good in all `figures`; of equals the best in `others`."""

    def figures_of(index: int) -> tuple[float, ...]:
        return tuple(getattr(layer[index], name) for name in figures)

    order = sorted(
        range(len(layer)), key=lambda i: (*figures_of(i), *(getattr(layer[i], name) for name in others), i)
    )
    kept: list[int] = []
    for index in order:
        mine = figures_of(index)
        if not any(all(a <= b for a, b in zip(figures_of(other), mine)) for other in kept):
            kept.append(index)
    return kept


# Multipliers


class _Sweep:
    """Tries multipliers; keeps the largest lower bound and the best plan within the budgets that it meets.

    Attributes:
        multipliers: Of the largest bound, float64 [budgets].
        bound: No plan within the budgets has a smaller value.
        best: Option of each layer, int64 [layers], or None where no plan within the budgets was met.
    """

    def __init__(self, problem: _Problem, budgets: Vector) -> None:
        self.problem, self.budgets = problem, budgets
        self.multipliers, self.bound = np.zeros(len(budgets)), -math.inf
        self.best: Indices | None = None
        self._best_value = math.inf
        exists = problem.origin >= 0
        self._costs = np.where(exists, problem.costs, 0.0)
        ranges = [_range(costs, exists) for costs in problem.costs]
        worst = np.where(exists, problem.values, -math.inf).max(1)
        self._worst = float(worst.sum()) + _ROUNDING * float(np.abs(worst).sum())
        self._unit = np.array([(_range(problem.values, exists) or 1.0) / (cost or 1.0) for cost in ranges])

    def run(self) -> None:
        """Find multipliers of a nearly largest bound, then improve the best plan met."""
        if len(self.budgets) == 1:
            self._line(np.zeros(1))
        elif len(self.budgets) == 2:
            self._plane()
        else:
            self._try(np.zeros(len(self.budgets)))
        if self.best is not None:
            self.best = self._improved(self.best)

    @property
    def is_hopeless(self) -> bool:
        """No plan is within the budgets: the bound is above the value of any."""
        return self.bound > self._worst

    def _try(self, multipliers: Vector) -> tuple[float, Vector]:
        """The lower bound, and how far its plan is beyond the budgets, float64 [budgets]."""
        problem = self.problem
        weighted = problem.values + np.einsum("b,blo->lo", multipliers, self._costs)
        plan = weighted.argmin(1)
        bound = float(weighted.min(1).sum() - multipliers @ self.budgets)
        if bound > self.bound:
            self.bound, self.multipliers = bound, multipliers.copy()
        beyond = np.array(problem.cost(plan)) - self.budgets
        if (beyond <= 0).all() and (value := problem.value(plan)) < self._best_value:
            self.best, self._best_value = plan, value
        return bound, beyond

    def _line(self, start: Vector) -> float:
        """Bisect the first multiplier, the others as in `start`; the largest bound met."""
        at, low, high = start.copy(), 0.0, float(self._unit[0])
        at[0] = low
        largest, beyond = self._try(at)
        if beyond[0] <= 0:
            return largest
        for _ in range(_BISECTIONS):
            at[0] = high
            bound, beyond = self._try(at)
            largest = max(largest, bound)
            if beyond[0] <= 0:
                break
            if self.is_hopeless:
                return largest
            low, high = high, 4 * high
        for _ in range(_BISECTIONS):
            at[0] = (low + high) / 2
            bound, beyond = self._try(at)
            largest = max(largest, bound)
            low, high = (at[0], high) if beyond[0] > 0 else (low, at[0])
        return largest

    def _plane(self) -> None:
        """The bound is concave: the best line on a grid, then ternary search between its neighbours."""
        grid = [0.0, *(self._unit[1] * _GRID).tolist()]
        bounds = [self._line(np.array([0.0, second])) for second in grid]
        if self.is_hopeless:
            return
        best = int(np.argmax(bounds))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        for _ in range(_BISECTIONS // 2):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            if self._line(np.array([0.0, left])) < self._line(np.array([0.0, right])):
                low = left
            else:
                high = right

    def _improved(self, plan: Indices) -> Indices:
        """Exchange single options for better ones while the budgets allow it, the largest gain first."""
        problem, plan, rows = self.problem, plan.copy(), np.arange(len(plan))
        while True:
            gain = problem.values[rows, plan][:, None] - problem.values
            spent = self._costs[:, rows, plan]
            room = self.budgets - np.array(problem.cost(plan))
            fits = (self._costs - spent[:, :, None] <= room[:, None, None]).all(0)
            gain = np.where(fits, gain, -math.inf)
            if not gain.size or gain.max() <= 0:
                return plan
            layer, option = np.unravel_index(int(gain.argmax()), gain.shape)
            changed = plan.copy()
            changed[layer] = option
            if (np.array(problem.cost(changed)) > self.budgets).any() or problem.value(changed) >= problem.value(plan):
                return plan
            plan = changed


def _range(figures: Matrix, exists: NDArray[np.bool_]) -> float:
    """Sum over the layers of largest minus smallest."""
    largest = np.where(exists, figures, -math.inf).max(1)
    return float((largest - np.where(exists, figures, math.inf).min(1)).sum())


def _supported(problem: _Problem) -> list[Indices]:
    """All corners of the convex hull of (cost, value), for one cost: split each edge until nothing is below it."""
    values, costs = problem.values, np.where(problem.origin >= 0, problem.costs[0], 0.0)
    best, cheapest = (
        np.lexsort((second, first), axis=1)[:, 0]
        for first, second in ((values, costs), (np.where(problem.origin >= 0, costs, math.inf), values))
    )
    corners, edges = [cheapest, best], [(cheapest, best)]
    while edges:
        left, right = edges.pop()
        rise = problem.value(left) - problem.value(right)
        run = problem.cost(right)[0] - problem.cost(left)[0]
        if rise <= 0 or run <= 0:
            continue
        middle = (values * run + costs * rise).argmin(1)
        height = problem.value(middle) * run + problem.cost(middle)[0] * rise
        edge = problem.value(left) * run + problem.cost(left)[0] * rise
        if height < edge - _ROUNDING * abs(edge):
            corners.append(middle)
            edges += [(left, middle), (middle, right)]
    return corners


# The dynamic program


@dataclass(frozen=True, eq=False)
class _Bounds:
    """What the dynamic program may leave out.

    Attributes:
        budgets, multipliers: float64 [budgets].
        value: Of a plan that is known.
    """

    budgets: Vector
    multipliers: Vector
    value: float

    @classmethod
    def none(cls, problem: _Problem) -> _Bounds:
        return cls(np.full(len(problem.costs), math.inf), np.zeros(len(problem.costs)), math.inf)

    @property
    def paid(self) -> float:
        """What the multipliers give for the budgets."""
        return float(sum(m * budget for m, budget in zip(self.multipliers, self.budgets) if m))


@dataclass(frozen=True, eq=False)
class _Found:
    """Undominated plans, int64 [layers] each, and whether no state was dropped on the way."""

    plans: tuple[Indices, ...]
    is_exact: bool


@dataclass(frozen=True, eq=False)
class _States:
    """Totals of beginnings of plans: values float64 [states], costs float64 [budgets, states]."""

    values: Vector
    costs: Matrix

    def at(self, chosen: Indices | NDArray[np.bool_]) -> _States:
        return _States(self.values[chosen], self.costs[:, chosen])


def _search(problem: _Problem, bounds: _Bounds, limit: int) -> _Found:
    """All undominated plans within the bounds; at most `limit` states are kept after each layer."""
    states = _States(np.zeros(1), np.zeros((len(problem.costs), 1)))
    steps: list[tuple[Indices, Indices]] = []
    rests = _Rests(problem, bounds)
    is_exact = True
    for place, layer in enumerate(rests.order):
        able = rests.options(layer)
        states, (parents, options) = _extended(states, problem.values[layer, able], problem.costs[:, layer, able])
        kept = rests.promising(states, place)
        kept = kept[_undominated_states(states.at(kept))]
        if len(kept) > limit:
            kept, is_exact = kept[_one_of_each_bucket(states.at(kept), limit)], False
        states = states.at(kept)
        steps.append((parents[kept], able[options[kept]]))
    plans = (_traced(steps, rests.order, state) for state in range(len(states.values)))
    return _Found(tuple(plan for plan in plans if (np.array(problem.cost(plan)) <= bounds.budgets).all()), is_exact)


def _extended(states: _States, values: Vector, costs: Matrix) -> tuple[_States, tuple[Indices, Indices]]:
    """Every state with every option; and of which state and option each is."""
    parents, options = np.divmod(np.arange(len(states.values) * len(values)), len(values))
    total = states.costs[:, parents] + costs[:, options]
    return _States(states.values[parents] + values[options], total), (parents, options)


class _Rests:
    """An order of the layers, and the least that those behind each of them add.

    Attributes:
        order: The layers that decide most come first, int64 [layers]: what remains is then known the better.
    """

    def __init__(self, problem: _Problem, bounds: _Bounds) -> None:
        real = problem.origin >= 0
        costs = np.where(real, problem.costs, 0.0)
        weighted = problem.values + np.einsum("b,blo->lo", bounds.multipliers, costs)
        least = weighted.min(1)
        self._bounds = bounds
        self._excess = np.where(real, weighted - least[:, None], math.inf)
        self.order = np.argsort(-_decides(problem, bounds), kind="stable")
        self._slack = _ROUNDING * (_magnitude(np.where(real, weighted, 0.0)) + abs(bounds.paid))
        self._gap = bounds.value - (float(least.sum()) - bounds.paid) + self._slack
        self._least = _sums_behind(least[self.order]) - bounds.paid
        behind = [_sums_behind(cost.min(1)[self.order]) for cost in problem.costs]
        self._costs = np.array(behind).reshape(costs.shape[:2])
        self._cost_slack = [_ROUNDING * _magnitude(cost) for cost in costs]

    def options(self, layer: int) -> Indices:
        """Those of the layer that a plan as good as the known one may take."""
        excess = self._excess[layer]
        return np.flatnonzero(np.isfinite(excess) & (excess <= self._gap))

    def promising(self, states: _States, place: int) -> Indices:
        """Of the states behind the layer at `place` those that can still fit and become as good as the known plan."""
        bounds = self._bounds
        fits = np.ones(len(states.values), np.bool_)
        for cost, rest, budget, slack in zip(states.costs, self._costs[:, place], bounds.budgets, self._cost_slack):
            fits &= cost + rest <= budget + slack
        reach = states.values + bounds.multipliers @ states.costs + self._least[place]
        return np.flatnonzero(fits & (reach <= bounds.value + self._slack))


def _decides(problem: _Problem, bounds: _Bounds) -> Vector:
    """How much the choice in each layer changes, float64 [layers]."""
    real = problem.origin >= 0
    ranges = [
        np.where(real, figures, -math.inf).max(1) - np.where(real, figures, math.inf).min(1)
        for figures in (problem.values, *problem.costs)
    ]
    return np.asarray(ranges[0] + sum(m * cost for m, cost in zip(bounds.multipliers, ranges[1:])), np.float64)


def _magnitude(figures: Matrix) -> float:
    """Bound of the sums of one figure of each layer."""
    return float(np.abs(figures).max(1).sum())


def _sums_behind(least: Vector) -> Vector:
    """Sum of what comes after each element."""
    return np.append(np.cumsum(least[::-1])[::-1], 0.0)[1:]


def _traced(steps: Sequence[tuple[Indices, Indices]], order: Indices, state: int) -> Indices:
    """The option of each layer on the way to a final state."""
    plan = np.zeros(len(steps), np.int64)
    for layer, (parents, options) in zip(order[::-1], reversed(steps)):
        plan[layer], state = options[state], int(parents[state])
    return plan


def _undominated_states(states: _States) -> Indices:
    """Of the states those of which no other is as good in value and all costs; of equals the first."""
    if len(states.costs) == 2:
        return _undominated_in_space(states)
    order = np.lexsort((states.values, *states.costs))
    values = states.values[order]
    before = np.append(math.inf, np.minimum.accumulate(values)[:-1])
    return np.asarray(order[values < before], np.int64)


def _undominated_in_space(states: _States) -> Indices:
    """For two costs, in blocks: each against the staircase of those before, then among themselves."""
    first, second = states.costs
    order = np.lexsort((states.values, second, first))
    ranks = np.unique(second, return_inverse=True)[1][order]
    values = states.values[order]
    stair = np.full(int(ranks.max(initial=0)) + 1, math.inf)  # the least value at or below each rank
    kept = np.zeros(len(order), np.bool_)
    for start in range(0, len(order), _BLOCK):
        rank, value = ranks[start : start + _BLOCK], values[start : start + _BLOCK]
        alive = np.flatnonzero(stair[rank] > value)
        rank, value = rank[alive], value[alive]
        beats = (rank[:, None] <= rank) & (value[:, None] <= value)
        alive = alive[~np.triu(beats, 1).any(0)]
        kept[start + alive] = True
        np.minimum.at(stair, ranks[start + alive], values[start + alive])
        np.minimum.accumulate(stair, out=stair)
    return np.asarray(order[kept], np.int64)


def _one_of_each_bucket(states: _States, limit: int) -> Indices:
    """The cheapest state by each cost, and of each bucket of costs the one of the least value."""
    a_side = limit if len(states.costs) == 1 else math.isqrt(limit)
    bucket = np.zeros(len(states.values), np.int64)
    for cost in states.costs:
        width = float(np.ptp(cost)) / a_side
        place = np.floor((cost - cost.min()) / width) if width else np.zeros_like(cost)
        bucket = bucket * a_side + np.minimum(place, a_side - 1).astype(np.int64)
    order = np.lexsort((states.values, bucket))
    leads = np.append(True, np.diff(bucket[order]) > 0)
    cheapest = [int(cost.argmin()) for cost in states.costs]
    return np.unique(np.append(order[leads], cheapest))


def _thinned_front(front: Sequence[Plan], figure: Figure, points: int) -> tuple[Plan, ...]:
    """The ends, and of each step of the size between them the plan of the least loss."""
    if len(front) <= points:
        return tuple(front)
    low, high = _size(front[0], figure), _size(front[-1], figure)
    last_of = {}
    for plan in front[1:-1]:
        last_of[int((_size(plan, figure) - low) / (high - low) * (points - 2))] = plan
    return (front[0], *last_of.values(), front[-1])
