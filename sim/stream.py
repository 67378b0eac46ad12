"""cocotb agents for Amaranth streams (`i__payload`, `i__valid`, `i__ready`): source, sink and rule monitor.

The rules of a stream (Amaranth, stdlib/stream): a payload that is offered stays, unchanged, until it is taken, and
`valid` does not wait for `ready`. A StreamMonitor asserts the first; a sink with `lazy` ready shows the second.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.handle import LogicArrayObject, LogicObject
from cocotb.triggers import RisingEdge

CLOCK_NS = 10
RESET_CYCLES = 4

Dut = Any
"""The component under test: cocotb finds its signals by name at run time."""


class StreamRuleError(AssertionError):
    """A stream broke a rule."""


@dataclass(frozen=True)
class Pins:
    """The signals of one stream and the clock domain it is in."""

    name: str
    payload: LogicArrayObject | LogicObject
    valid: LogicObject
    ready: LogicObject | None
    clock: LogicObject
    reset: LogicObject | None

    @classmethod
    def of(cls, dut: Dut, prefix: str) -> "Pins":
        """The stream `prefix` of a component converted by Amaranth; without `ready` where it has none."""
        payload, valid = getattr(dut, f"{prefix}__payload"), getattr(dut, f"{prefix}__valid")
        return cls(prefix, payload, valid, getattr(dut, f"{prefix}__ready", None), dut.clk, getattr(dut, "rst", None))


def pauses(probability: float, seed: int = 0) -> Iterator[bool]:
    """Whether an agent pauses in each cycle; the generator of every agent, also of cocotbext-axi."""
    generator = random.Random(seed)
    return iter(lambda: generator.random() < probability, None)


async def start(dut: Dut) -> None:
    """Start the clock and reset the component."""
    Clock(dut.clk, CLOCK_NS, unit="ns").start()
    await reset(dut)


async def reset(dut: Dut) -> None:
    """Hold `rst` for a few cycles."""
    dut.rst.value = 1
    for _ in range(RESET_CYCLES):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


class StreamSource:
    """Offers payloads.

    Args:
        pins: Of an input stream of the component under test.
        pause: Whether to leave a gap before the next payload, for each idle cycle.
    """

    def __init__(self, pins: Pins, pause: Iterable[bool] = ()) -> None:
        self._pins, self._pause = pins, iter(pause or repeat(False))
        self._junk = random.Random(1)
        pins.valid.value = 0

    async def send(self, payloads: Sequence[int]) -> None:
        """Transfer `payloads` (signed or unsigned) one after the other; the payload is junk between them."""
        pins = self._pins
        for payload in payloads:
            while next(self._pause):
                self._drive(0, self._junk.getrandbits(len(pins.payload)))
                await RisingEdge(pins.clock)
            self._drive(1, payload)
            await RisingEdge(pins.clock)
            while pins.ready is not None and not int(pins.ready.value):
                await RisingEdge(pins.clock)
        self._drive(0, 0)

    def _drive(self, valid: int, payload: int) -> None:
        self._pins.valid.value = valid
        self._pins.payload.value = payload & ((1 << len(self._pins.payload)) - 1)


class StreamSink:
    """Takes payloads.

    Args:
        pins: Of an output stream of the component under test.
        pause: Whether to hold `ready` low, for each cycle.
        lazy: Raise `ready` only after `valid`, to show that `valid` does not wait for it.
    """

    def __init__(self, pins: Pins, pause: Iterable[bool] = (), *, lazy: bool = False) -> None:
        self._pins, self._pause, self._lazy = pins, iter(pause or repeat(False)), lazy
        if pins.ready is not None:
            pins.ready.value = 0

    async def receive(self, count: int, *, max_cycles: int = 100_000) -> list[int]:
        """The next `count` payloads, unsigned (see `signed`).

        Raises:
            TimeoutError: They did not come within `max_cycles`.
        """
        pins, seen = self._pins, False
        taken: list[int] = []
        for _ in range(max_cycles):
            if len(taken) == count:
                break
            ready = not next(self._pause) and (seen or not self._lazy)
            if pins.ready is not None:
                pins.ready.value = int(ready)
            await RisingEdge(pins.clock)
            seen = bool(int(pins.valid.value))
            if seen and (ready or pins.ready is None):
                taken.append(int(pins.payload.value))
                seen = False
        if pins.ready is not None:
            pins.ready.value = 0
        if len(taken) < count:
            raise TimeoutError(f"stream {pins.name}: {len(taken)} of {count} payloads came in {max_cycles} cycles")
        return taken


class StreamMonitor:
    """Watches a stream from now on; a broken rule fails the test.

    Attributes:
        transfers: Payloads taken, unsigned.
        cycles: Cycle of each transfer, counted from the start of the monitor.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self.transfers: list[int] = []
        self.cycles: list[int] = []
        self._task = cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        offered: int | None = None
        cycle = 0
        while True:
            await RisingEdge(self._pins.clock)
            cycle += 1
            offered = self._step(offered, cycle)

    def _step(self, offered: int | None, cycle: int) -> int | None:
        """One cycle: check it against what was `offered` before, return what is offered and not taken."""
        pins = self._pins
        if pins.reset is not None and int(pins.reset.value):
            return None
        valid, payload = int(pins.valid.value), int(pins.payload.value)
        if offered is not None and not valid:
            raise StreamRuleError(f"stream {pins.name}: valid fell before the payload was taken (cycle {cycle})")
        if offered is not None and payload != offered:
            raise StreamRuleError(
                f"stream {pins.name}: the payload changed from {offered:#x} to {payload:#x} before it was taken "
                f"(cycle {cycle})"
            )
        if not valid:
            return None
        if pins.ready is None or int(pins.ready.value):
            self.transfers.append(payload)
            self.cycles.append(cycle)
            return None
        return payload


def signed(value: int, bits: int) -> int:
    """The two's complement reading of an unsigned `value`."""
    return value - (1 << bits) if value >> (bits - 1) else value
