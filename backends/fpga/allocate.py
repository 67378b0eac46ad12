"""Fourth phase: a base address for every stored tensor. Tensors that never live together share words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from backends.base import DoesNotFitError
from backends.fpga.fold import Operation
from backends.fpga.layout import MapLayout
from backends.layers import LayerGraph
from hw.config import AcceleratorConfig

_SHUFFLES = 200


@dataclass(frozen=True)
class Lifetime:
    """Words that a tensor occupies while operations [first, last] run; inputs begin at -1."""

    tensor: str
    words: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are needed at some time."""
        return self.first <= other.last and other.first <= self.last


def lifetimes(
    graph: LayerGraph, operations: Sequence[Operation], layouts: Mapping[str, MapLayout]
) -> tuple[Lifetime, ...]:
    """When each stored tensor is needed. Outputs live to the end: the host reads them then."""
    first = {t.name: -1 for t in graph.inputs} | {op.output.name: i for i, op in enumerate(operations)}
    last = dict(first)
    for i, op in enumerate(operations):
        last |= {t.name: i for t in op.reads}
    last |= {t.name: len(operations) for t in graph.outputs}
    return tuple(Lifetime(name, layouts[name].words, first[name], last[name]) for name in first)


def allocate(
    graph: LayerGraph,
    operations: Sequence[Operation],
    layouts: Mapping[str, MapLayout],
    config: AcceleratorConfig,
) -> dict[str, int]:
    """Base address of every stored tensor.

    Raises:
        DoesNotFitError: No order of placement found fits the activation memory.
    """
    lives = lifetimes(graph, operations, layouts)
    bases, words = _densest(lives, config.activation_words)
    if words > config.activation_words:
        raise _too_large(lives, operations, words, config)
    return bases


def needed_words(graph: LayerGraph, operations: Sequence[Operation], layouts: Mapping[str, MapLayout]) -> int:
    """Words of the smallest activation memory for which an order of placement is found."""
    return _densest(lifetimes(graph, operations, layouts), enough=0)[1]


def peak_words(graph: LayerGraph, operations: Sequence[Operation], layouts: Mapping[str, MapLayout]) -> tuple[int, ...]:
    """Words alive while each operation runs: a lower bound of the memory that it needs."""
    lives = lifetimes(graph, operations, layouts)
    return tuple(sum(t.words for t in lives if t.first <= i <= t.last) for i in range(len(operations)))


def _densest(lives: tuple[Lifetime, ...], enough: int) -> tuple[dict[str, int], int]:
    """Bases and words of the first order that takes `enough` words, or of the best one."""
    best: tuple[dict[str, int], int] | None = None
    for order in _orders(lives):
        placed = _place(order)
        best = placed if best is None or placed[1] < best[1] else best
        if best[1] <= enough:
            break
    assert best is not None
    return best


def _orders(lives: tuple[Lifetime, ...]) -> Iterator[tuple[Lifetime, ...]]:
    """Orders of placement, the promising ones first."""
    yield tuple(sorted(lives, key=lambda t: (-t.words, t.first)))
    yield tuple(sorted(lives, key=lambda t: (t.first, -t.words)))
    yield tuple(sorted(lives, key=lambda t: (t.first - t.last, -t.words)))
    yield tuple(sorted(lives, key=lambda t: -t.words * (t.last - t.first + 1)))
    random = Random(0)
    for _ in range(_SHUFFLES):
        yield tuple(sorted(lives, key=lambda t: -t.words * random.uniform(0.5, 1.0)))


def _place(order: tuple[Lifetime, ...]) -> tuple[dict[str, int], int]:
    """First fit: each tensor at the lowest address that is free for its whole life; also the words used."""
    bases: dict[str, int] = {}
    placed: list[Lifetime] = []
    for tensor in order:
        busy = sorted((bases[t.tensor], bases[t.tensor] + t.words) for t in placed if t.overlaps(tensor))
        base = 0
        for start, end in busy:
            if start - base >= tensor.words:
                break
            base = max(base, end)
        bases[tensor.tensor] = base
        placed.append(tensor)
    return bases, max((bases[t.tensor] + t.words for t in order), default=0)


def _too_large(
    lives: tuple[Lifetime, ...], operations: Sequence[Operation], words: int, config: AcceleratorConfig
) -> DoesNotFitError:
    needs = [sum(t.words for t in lives if t.first <= i <= t.last) for i in range(len(operations))]
    worst = max(range(len(needs)), key=needs.__getitem__)
    needed, available = max(words, needs[worst]) * config.rows, config.activation_words * config.rows
    return DoesNotFitError(
        f"layer '{operations[worst].name}': the maps that are alive need {needs[worst] * config.rows} bytes of "
        f"activation memory ({needed} with gaps), the accelerator has {available}"
    )
