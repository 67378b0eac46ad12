"""The choice of one option for each layer: as good as trying all, within every budget, honest where none is kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.budget import Choice, Option, Plan, choose, pareto, plan_of

Options = Sequence[Sequence[Option]]

FIGURE = st.integers(0, 30)
LAYER = st.lists(st.builds(Option, st.just("o"), FIGURE.map(float), FIGURE, FIGURE), min_size=1, max_size=4)
NETWORK = st.lists(LAYER, min_size=0, max_size=5)
BUDGET = st.none() | st.integers(-2, 120)
"""Whole numbers, so that sums are exact and equality means what it says."""


def every_plan(options: Options) -> list[Plan]:
    return [plan_of(options, indices) for indices in itertools.product(*(range(len(layer)) for layer in options))]


def keeps(plan: Plan, loss: float | None, size: int | None, macs: int | None) -> bool:
    limits = zip((plan.loss, plan.bytes, plan.macs), (loss, size, macs))
    return all(limit is None or figure <= limit for figure, limit in limits)


def network(layers: int, options: int, seed: int) -> list[list[Option]]:
    """Losses and sizes over several orders of magnitude, as those of a convolutional network."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(layers):
        weights, sensitivity = int(10 ** rng.uniform(3.5, 6.4)), 10 ** rng.uniform(-3, 1)
        bits, kept = rng.uniform(1.2, 8, options), rng.uniform(0.4, 1, options)
        loss = sensitivity * (2 ** (-2 * bits) * rng.lognormal(0, 0.5, options) + 0.1 * (1 - kept) ** 2)
        result.append(
            [
                Option(f"W{b:.1f}", float(cost), int(weights * b / 8 * k), int(50 * weights * k))
                for b, k, cost in zip(bits, kept, loss)
            ]
        )
    return result


@given(NETWORK, BUDGET, BUDGET, BUDGET, st.sampled_from(["bytes", "macs"]))
def test_choice_is_as_good_as_the_best_of_all_plans(
    options: Options, loss: int | None, size: int | None, macs: int | None, smallest: str
) -> None:
    found = choose(options, max_loss=loss, max_bytes=size, max_macs=macs, smallest=smallest)  # type: ignore[arg-type]
    objective = "loss" if loss is None else smallest
    fitting = [getattr(plan, objective) for plan in every_plan(options) if keeps(plan, loss, size, macs)]
    assert found.is_feasible == bool(fitting)
    assert found.plan == plan_of(options, found.plan.indices)
    assert keeps(found.plan, loss, size, macs) == found.is_feasible
    assert found.is_exact
    if fitting:
        assert getattr(found.plan, objective) == min(fitting)
        assert found.bound is not None
        assert found.bound <= min(fitting)


@given(NETWORK)
def test_front_is_the_front_of_all_plans(options: Options) -> None:
    expected: list[tuple[int, float]] = []
    for size, loss in sorted({(plan.bytes, plan.loss) for plan in every_plan(options)}):
        if not expected or loss < expected[-1][1]:
            expected.append((size, loss))
    assert [(plan.bytes, plan.loss) for plan in pareto(options)] == expected


@given(NETWORK, st.integers(0, 120), st.integers(0, 120))
def test_more_bytes_never_lose_more(options: Options, one: int, other: int) -> None:
    tight, wide = (choose(options, max_bytes=limit) for limit in sorted((one, other)))
    assert wide.is_feasible >= tight.is_feasible
    if tight.is_feasible:
        assert wide.plan.loss <= tight.plan.loss


@given(NETWORK, st.integers(0, 100), st.integers(0, 100))
def test_nearest_plan_exceeds_bytes_and_macs_by_the_smallest_share(options: Options, size: int, macs: int) -> None:
    found = choose(options, max_bytes=size, max_macs=macs)

    def excess(plan: Plan) -> float:
        return max(0, plan.bytes - size) / max(size, 1) + max(0, plan.macs - macs) / max(macs, 1)

    assert excess(found.plan) == min(map(excess, every_plan(options)))


@given(NETWORK, st.integers(0, 60), st.integers(0, 60))
def test_nearest_plan_keeps_to_the_loss_if_any_does(options: Options, loss: int, macs: int) -> None:
    found = choose(options, max_loss=loss, max_macs=macs)
    within = [plan for plan in every_plan(options) if plan.loss <= loss]
    if not within:
        assert found.plan.loss == min(plan.loss for plan in every_plan(options))
    elif not found.is_feasible:
        assert found.plan.loss <= loss
        assert found.plan.macs == min(plan.macs for plan in within)


def test_a_missed_budget_is_named_with_figures() -> None:
    found = choose([[Option("W8", 0.0, 2000, 7)], [Option("W8", 0.5, 1000, 7)]], max_bytes=1500, max_macs=20)
    assert not found.is_feasible
    assert found.missed == ("3,000 bytes instead of at most 1,500",)
    assert choose([[Option("W8", 0.5, 1, 1)]], max_loss=0.25).missed == ("loss 0.5 instead of at most 0.25",)


def test_no_layers_cost_nothing() -> None:
    assert choose([], max_bytes=0) == Choice(Plan((), 0.0, 0, 0), bound=0.0)
    assert pareto([]) == (Plan((), 0.0, 0, 0),)


@pytest.mark.parametrize(("loss", "size"), [(float("nan"), 1), (float("inf"), 1), (0.0, -1), (0.0, 1 << 53)])
def test_an_option_without_a_meaning_is_refused(loss: float, size: int) -> None:
    with pytest.raises(ValueError, match="option 'W4': (the loss|bytes) must be"):
        Option("W4", loss, size, 0)


def test_a_layer_without_options_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 1 has no options"):
        choose([[Option("W8", 0.0, 1, 1)], []])


def test_a_budget_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget of loss must be a number, not nan"):
        choose([], max_loss=float("nan"))


@pytest.mark.parametrize("seed", range(3))
def test_a_large_network_is_solved_exactly_and_to_the_byte(seed: int) -> None:
    options = network(54, 20, seed)
    sizes = [sorted(option.bytes for option in layer) for layer in options]
    least, most = sum(layer[0] for layer in sizes), sum(layer[-1] for layer in sizes)
    budget = least + (most - least) // 5
    found = choose(options, max_bytes=budget)
    assert found.is_exact
    assert found.plan.bytes <= budget
    assert found.bound is not None
    assert found.plan.loss <= 1.02 * found.bound
    # The other way round the same problem has the same answer: no fewer bytes have this loss.
    back = choose(options, max_loss=found.plan.loss)
    assert back.plan.bytes <= found.plan.bytes
    assert back.is_exact
    # One byte less than the optimum's size cannot have its loss.
    assert choose(options, max_loss=back.plan.loss, max_bytes=back.plan.bytes - 1).missed


def test_two_budgets_of_a_large_network_come_near_their_bound() -> None:
    options = network(54, 20, 1)
    limits = [sum(getattr(layer[0], name) for layer in options) for name in ("bytes", "macs")]
    found = choose(options, max_bytes=limits[0] // 2, max_macs=int(limits[1] * 0.8))
    assert found.is_feasible
    assert found.bound is not None
    assert found.plan.loss <= 1.1 * found.bound


def test_front_of_a_large_network_is_within_its_points() -> None:
    front = pareto(network(30, 12, 0), points=40)
    assert 12 <= len(front) <= 40
    assert all(a.bytes < b.bytes and a.loss > b.loss for a, b in itertools.pairwise(front))
