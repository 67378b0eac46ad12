"""What `--target` can name: makes a backend from the options of a compile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from backends.base import Capabilities, DoesNotFitError, Estimate, raise_unsupported
from backends.cpu import backend as cpu_backend
from backends.cpu import plan as cpu_plan
from backends.cpu import tuning
from backends.cpu.machine import Machine
from backends.cpu.tiles import Tile
from backends.fpga import program as fpga_program
from backends.fpga.backend import FpgaBackend
from backends.fpga.emit import emit
from backends.fpga.estimate import estimate, operation_costs
from backends.fpga.host.emit import emit_host
from backends.fpga.schedule import Options
from backends.layers import LayerGraph, macs
from compiler import artefact, costs
from compiler.costs import Step
from compiler.report import TargetFacts
from compiler.version import VERSION
from hw.config import AcceleratorConfig, ConfigError, array_config
from sim.program import Program

NAMES = {
    "fpga": "an accelerator generated in Amaranth, as Verilog, with its program and memory images",
    "cpu": "this or another x86-64 processor: a shared library with integer kernels, C sources around them",
    "arm64": "64-bit ARM Linux (--mcpu, cortex-a72 by default): a static library without a runtime, and a header",
    "armv7": "32-bit ARM Linux with NEON (--mcpu, cortex-a7 by default): the same",
    "cortex-m": "bare metal (--mcpu, cortex-m4 by default): the same, with a linker script to start from",
    "reference": "the integer arithmetic in numpy; quantized model and accuracy only",
}
MEMORIES = {
    "activations": ("activation_words", lambda config: config.word_bits),
    "weights": ("weight_words", lambda config: config.weight_word_bits),
    "parameters": ("parameter_words", None),
    "blocks": ("block_words", None),
    "taps": ("tap_words", None),
    "tables": ("table_words", None),
    "instructions": ("instructions", None),
}
"""Name of a memory to (field of the configuration, bits of a word where the size is given in bytes)."""


BYTES_MAX, WORDS_MAX = 1 << 30, 1 << 24
"""No FPGA has more, nor could a simulation hold it."""


INT8 = Capabilities(weight_bits=tuple(range(2, 9)), activation_bits=(8,))
"""int8 arithmetic: narrower weights are int8 codes of a smaller range."""


class OptionError(ValueError):
    """An option of the compile has a value that does not exist."""


class Choices(Protocol):
    """The options that a target looks at; see pipeline.CompileOptions."""

    @property
    def target(self) -> str: ...
    @property
    def array(self) -> tuple[int, int]: ...
    @property
    def memory(self) -> Mapping[str, int]: ...
    @property
    def dense(self) -> bool: ...
    @property
    def mcpu(self) -> str | None: ...
    @property
    def ram(self) -> int | None: ...
    @property
    def flash(self) -> int | None: ...
    @property
    def tune(self) -> int: ...


class Plan(Protocol):
    """A network that is scheduled for a target, before anything is written."""

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """Of each segment, in order of execution."""

    @property
    def estimate(self) -> Estimate:
        """Of one inference."""

    def program(self) -> Program | None:
        """With addresses; None where the target has no program.

        Raises:
            DoesNotFitError: The target's memories are too small; names the layer.
        """

    @property
    def footprint(self) -> Mapping[str, int]:
        """Bytes of a CPU target by what they hold."""

    @property
    def tiles(self) -> Mapping[str, str]:
        """Layer to the tile of a CPU target's kernel."""

    def build(self, folder: Path, order: Sequence[str]) -> None:
        """Write the target's files into an artefact.

        Args:
            folder: The artefact.
            order: What host and target do in turn, a sentence for each, for who writes a host program.
        """


class Target(Protocol):
    """What the pipeline needs of a target."""

    @property
    def is_hardware(self) -> bool:
        """Whether there is something to simulate."""

    @property
    def capabilities(self) -> Capabilities:
        """What arithmetic it has."""

    def facts(self) -> TargetFacts:
        """For report and manifest."""

    def check(self, graphs: Sequence[LayerGraph]) -> None:
        """Look for layers that the target cannot execute.

        Raises:
            UnsupportedOpError: With every such layer.
        """

    def plan(self, graphs: Sequence[LayerGraph]) -> Plan:
        """Schedule segments, which the host enters in this order.

        Raises:
            UnsupportedOpError: As `check`.
        """


def make(options: Choices) -> Target:
    """The target that the options name.

    Raises:
        OptionError: No such target or memory.
        ConfigError: An accelerator cannot have these parameters.
    """
    if options.tune and options.target in NAMES and options.target not in cpu_backend.TARGETS:
        error = OptionError(f"--tune: {options.target!r} has no kernels to time")
        error.add_note("remedy: leave --tune out, or compile with --target cpu")
        raise error
    if options.target == "fpga":
        try:
            return Fpga(_config(options), options.dense)
        except ConfigError as refusal:
            refusal.add_note("remedy: correct --array (pixels x rows, for example 16x8) or --memory")
            raise
    if options.target in cpu_backend.TARGETS:
        return _cpu(options)
    if options.target == "reference":
        return Reference()
    error = OptionError(f"target must be one of {', '.join(NAMES)}, not {options.target!r}")
    error.add_note("remedy: see `edgec targets`")
    raise error


@dataclass(frozen=True, eq=False)
class ReferencePlan:
    """Every layer alone, in numpy."""

    graphs: Sequence[LayerGraph]

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        return tuple(costs.steps_of(graph) for graph in self.graphs)

    @property
    def estimate(self) -> Estimate:
        layers = [layer for graph in self.graphs for layer in graph.layers]
        return Estimate(macs=sum(map(macs, layers)), weight_bytes=sum(map(costs.weight_bytes, layers)))

    @property
    def footprint(self) -> Mapping[str, int]:
        return {}

    @property
    def tiles(self) -> Mapping[str, str]:
        return {}

    def program(self) -> None:
        return None

    def build(self, folder: Path, order: Sequence[str]) -> None:
        """Nothing: the quantized model is the artefact."""


@dataclass(frozen=True)
class Reference:
    """Runs on the host, in numpy."""

    is_hardware: bool = False
    capabilities: Capabilities = INT8

    def facts(self) -> TargetFacts:
        return TargetFacts("reference")

    def check(self, graphs: Sequence[LayerGraph]) -> None:
        """It executes all layers."""

    def plan(self, graphs: Sequence[LayerGraph]) -> ReferencePlan:
        return ReferencePlan(graphs)


@dataclass(frozen=True, eq=False)
class CpuPlan:
    """A network with its layouts, kernels and memory chosen: one plan for each entry."""

    planned: tuple[cpu_plan.Plan, ...]
    ram: int | None = None
    flash: int | None = None
    written: dict[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        return tuple(
            tuple(replace(step, activation_bytes=plan.alive[step.name]) for step in costs.steps_of(plan.graph))
            for plan in self.planned
        )

    @property
    def estimate(self) -> Estimate:
        work = sum(macs(layer) for plan in self.planned for layer in plan.graph.layers)
        return Estimate(macs=work, weight_bytes=sum(plan.weight_bytes for plan in self.planned))

    @property
    def footprint(self) -> Mapping[str, int]:
        return _added(map(cpu_backend.bytes_of, self.planned)) | self.written

    @property
    def tiles(self) -> Mapping[str, str]:
        return {layer: tile for plan in self.planned for layer, tile in cpu_backend.tiles_of(plan).items()}

    def program(self) -> None:
        """None; checks the memory that is known before anything is built."""
        arena = sum(plan.arena.size for plan in self.planned)
        if self.ram is not None and arena > self.ram:
            alive = {name: size for plan in self.planned for name, size in plan.alive.items()}
            most = sorted(alive, key=lambda name: -alive[name])[:3]
            told = ", ".join(f"'{name}' {alive[name]:,}" for name in most)
            error = DoesNotFitError(f"the maps need {arena:,} bytes, --ram has {self.ram:,}; most: {told}")
            error.add_note("remedy: a smaller input or fewer channels in these layers")
            raise error
        self._check_flash(sum(len(plan.constants) for plan in self.planned), "constants alone need")

    def _check_flash(self, size: int, what: str) -> None:
        if self.flash is None or size <= self.flash:
            return
        layers = [layer for plan in self.planned for layer in plan.graph.layers]
        heavy = sorted(layers, key=lambda layer: -costs.weight_bytes(layer))[:3]
        told = ", ".join(f"'{layer.name}' {costs.weight_bytes(layer):,}" for layer in heavy)
        error = DoesNotFitError(f"{what} {size:,} bytes, --flash has {self.flash:,}; most weights: {told}")
        error.add_note("remedy: compress with --max-size or --max-macs, which takes channels out")
        raise error

    def build(self, folder: Path, order: Sequence[str]) -> None:
        """One bundle for each entry; where there are several, ORDER.txt says what comes when."""
        self.program()
        bundles = artefact.cpu_bundles(folder, len(self.planned))
        sizes = []
        for plan, bundle in zip(self.planned, bundles, strict=True):
            bundle.mkdir(parents=True)
            sizes.append(cpu_backend.write(plan, bundle))
        self.written.update(_added(sizes))
        if order:
            (folder / artefact.CPU / "ORDER.txt").write_text("\n".join(order) + "\n", encoding="utf-8")
        self._check_flash(self.written.get("flash_bytes", 0), "code and constants need")


def _added(sizes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Bytes of several bundles together."""
    total: dict[str, int] = {}
    for each in sizes:
        for name, size in each.items():
            total[name] = total.get(name, 0) + size
    return total


@dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        ram, flash: Most bytes.
        tune: How many tiles are timed for each layer shape, by `tuned`; 0 without tuning.
        tiles: Shape of a layer to its tile; others have the default.
    """

    name: str
    machine: Machine
    ram: int | None = None
    flash: int | None = None
    tune: int = 0
    tiles: Mapping[str, Tile] = field(default_factory=dict)
    is_hardware: bool = False
    capabilities: Capabilities = INT8

    def facts(self) -> TargetFacts:
        machine = self.machine
        config = {"mcpu": machine.cpu, "triple": machine.triple, "dot": machine.dot.value, "lanes": machine.lanes}
        return TargetFacts(self.name, config=config | ({"tune": self.tune} if self.tune else {}))

    def tuned(self, graphs: Sequence[LayerGraph], progress: tuning.Progress) -> tuple[Cpu, tuple[str, ...]]:
        """With the tiles that are fastest on this processor, and warnings; itself without `tune`."""
        if not self.tune:
            return self, ()
        self.check(graphs)
        found = tuning.tune(graphs, self.machine, self.tune, VERSION, progress)
        return replace(self, tiles=found.tiles), found.warnings

    def check(self, graphs: Sequence[LayerGraph]) -> None:
        raise_unsupported(cpu_backend.CpuBackend(self.machine), [layer for graph in graphs for layer in graph.layers])

    def plan(self, graphs: Sequence[LayerGraph]) -> CpuPlan:
        self.check(graphs)
        planned = tuple(cpu_plan.make_plan(graph, self.machine, self.tiles) for graph in graphs)
        return CpuPlan(planned, self.ram, self.flash)


def _cpu(options: Choices) -> Cpu:
    try:
        machine = cpu_backend.machine(options.mcpu, options.target)
    except ValueError as refusal:
        error = OptionError(str(refusal))
        for note in getattr(refusal, "__notes__", ()):
            error.add_note(note)
        raise error from refusal
    if options.tune and (why := tuning.why_not_here(machine)):
        error = OptionError(f"--tune: {why}")
        error.add_note("remedy: leave --tune out, or compile on the processor that the network is for")
        raise error
    return Cpu(options.target, machine, options.ram, options.flash, options.tune)


@dataclass(frozen=True, eq=False)
class FpgaPlan:
    """A network that is scheduled for an accelerator: one plan for each entry."""

    planned: tuple[fpga_program.Plan, ...]
    config: AcceleratorConfig

    @property
    def steps(self) -> tuple[tuple[Step, ...], ...]:
        return tuple(
            tuple(
                Step(c.name, c.layers, c.tensor, c.cycles, c.instructions, c.activation_bytes, c.multipliers)
                for c in operation_costs(planned, self.config)
            )
            for planned in self.planned
        )

    @property
    def estimate(self) -> Estimate:
        return estimate(self.planned, self.config)

    @cached_property
    def _placed(self) -> Program:
        return fpga_program.place(self.planned, self.config)

    @property
    def footprint(self) -> Mapping[str, int]:
        return {}

    @property
    def tiles(self) -> Mapping[str, str]:
        return {}

    def program(self) -> Program:
        return self._placed

    def build(self, folder: Path, order: Sequence[str]) -> None:
        emit(self._placed, folder)
        tensors = [t for planned in self.planned for t in (*planned.graph.inputs, *planned.graph.outputs)]
        emit_host(self._placed, folder, {t.name: (t.scale, t.zero_point) for t in tensors}, order)


@dataclass(frozen=True)
class Fpga:
    """An accelerator of its own."""

    config: AcceleratorConfig
    dense: bool = False
    is_hardware: bool = True

    @property
    def capabilities(self) -> Capabilities:
        return replace(INT8, channels=self.config.rows)

    def facts(self) -> TargetFacts:
        config = self.config
        return TargetFacts(
            name="fpga",
            array=f"{config.pixels}x{config.rows}",
            macs_per_cycle=config.macs_per_cycle,
            config=asdict(config),
            config_id=f"{config.config_id:#010x}",
        )

    def check(self, graphs: Sequence[LayerGraph]) -> None:
        raise_unsupported(FpgaBackend(self.config), [layer for graph in graphs for layer in graph.layers])

    def plan(self, graphs: Sequence[LayerGraph]) -> FpgaPlan:
        self.check(graphs)
        options = Options(dense=self.dense)
        return FpgaPlan(tuple(fpga_program.make_plan(graph, self.config, options) for graph in graphs), self.config)


def _config(options: Choices) -> AcceleratorConfig:
    """The array's default, with the memories that were asked for, rounded up to whole words."""
    pixels, rows = options.array
    config = array_config(pixels, rows)
    for name, size in options.memory.items():
        if name not in MEMORIES:
            raise OptionError(f"--memory must name one of {', '.join(MEMORIES)}, not {name!r}")
        field, bits = MEMORIES[name]
        if size > (most := WORDS_MAX if bits is None else BYTES_MAX):
            raise OptionError(f"--memory {name} must be at most {most}, not {size}")
        words = size if bits is None else -(-size * 8 // bits(config))
        if name == "activations":
            words = -(-words // pixels) * pixels
        config = replace(config, **{field: words})  # type: ignore[arg-type]
    return config
