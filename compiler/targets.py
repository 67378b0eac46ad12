"""What `--target` can name: makes a backend from the options of a compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from backends.layers import LayerGraph
from compiler import artefact
from compiler.report import TargetFacts
from hw.config import AcceleratorConfig, array_config
from sim.program import Program

NAMES = {
    "fpga": "an accelerator generated in Amaranth, as Verilog, with its program and memory images",
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


class Target(Protocol):
    """What the pipeline needs of a target."""

    is_hardware: bool

    def facts(self) -> TargetFacts:
        """For report and manifest."""

    def plan(self, graph: LayerGraph) -> Program | None:
        """The scheduled program, or None where the target has none.

        Raises:
            DoesNotFitError: The network is too large for the target.
        """

    def multipliers(self) -> int | None:
        """Hardware multipliers of the whole accelerator."""

    def build(self, graph: LayerGraph, program: Program | None, folder: Path) -> None:
        """Write the target's files into an artefact."""


def make(options: Choices) -> Target:
    """The target that the options name.

    Raises:
        OptionError: No such target or memory.
        ConfigError: An accelerator cannot have these parameters.
    """
    if options.target == "fpga":
        return Fpga(_config(options), options.dense)
    if options.target == "reference":
        return Reference()
    error = OptionError(f"target must be one of {', '.join(NAMES)}, not {options.target!r}")
    error.add_note("remedy: see `edgec targets`")
    raise error


@dataclass(frozen=True)
class Reference:
    """Runs on the host, in numpy."""

    is_hardware: bool = False

    def facts(self) -> TargetFacts:
        return TargetFacts("reference")

    def plan(self, graph: LayerGraph) -> None:
        return None

    def multipliers(self) -> None:
        return None

    def build(self, graph: LayerGraph, program: Program | None, folder: Path) -> None:
        """Nothing: the quantized model is the artefact."""


@dataclass(frozen=True)
class Fpga:
    """An accelerator of its own."""

    config: AcceleratorConfig
    dense: bool = False
    is_hardware: bool = True

    def facts(self) -> TargetFacts:
        config = self.config
        return TargetFacts(
            name="fpga",
            array=f"{config.pixels}x{config.rows}",
            macs_per_cycle=config.macs_per_cycle,
            config={name: getattr(config, name) for name in AcceleratorConfig.__dataclass_fields__},
            config_id=f"{config.config_id:#010x}",
        )

    def plan(self, graph: LayerGraph) -> Program:
        from backends.fpga.program import build_program
        from backends.fpga.schedule import Options

        return build_program(graph, self.config, Options(dense=self.dense))

    def multipliers(self) -> int | None:
        return None

    def build(self, graph: LayerGraph, program: Program | None, folder: Path) -> None:
        from backends.fpga.emit import accelerator_verilog

        assert program is not None
        program.save(folder / artefact.PROGRAM)
        rtl = folder / artefact.RTL
        rtl.parent.mkdir()
        rtl.write_text(accelerator_verilog(self.config), encoding="utf-8")


def _config(options: Choices) -> AcceleratorConfig:
    """The array's default, with the memories that were asked for, rounded up to whole words."""
    pixels, rows = options.array
    config = array_config(pixels, rows)
    for name, size in options.memory.items():
        if name not in MEMORIES:
            raise OptionError(f"--memory must name one of {', '.join(MEMORIES)}, not {name!r}")
        field, bits = MEMORIES[name]
        words = size if bits is None else -(-size * 8 // bits(config))
        if name == "activations":
            words = -(-words // pixels) * pixels
        config = replace(config, **{field: words})
    return config
