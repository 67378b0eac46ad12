"""The command line: parse, call, print, exit code. No logic of its own."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from compiler.version import VERSION

if TYPE_CHECKING:  # numpy, onnx and onnxruntime take a second to load: `edgec --help` does without
    from compiler.compression import CompressOptions
    from compiler.evaluate import RunResult, SimulationResult
    from compiler.pipeline import CompileOptions

P = ParamSpec("P")
ProgressCallback = Callable[[str, int, int], None]

OK, DIFFERS, USAGE, MODEL, PASS, TARGET, TOOL, MISSED, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 7, 70, 130

EXIT_CODES = {
    "CycleError": DIFFERS,
    "MisbehaviourError": DIFFERS,
    "ArtefactError": USAGE,
    "ConfigError": USAGE,
    "ProgramError": USAGE,
    "OptionError": USAGE,
    "ModelError": MODEL,
    "ContainerError": MODEL,
    "CalibrationError": MODEL,
    "StatisticsError": MODEL,
    "HostError": MODEL,
    "PassError": PASS,
    "PreconditionError": PASS,
    "PostconditionError": PASS,
    "InvariantError": PASS,
    "UnsupportedOpError": TARGET,
    "DoesNotFitError": TARGET,
    "WrongProcessorError": TARGET,
    "BundleError": USAGE,
    "ToolNotFound": TOOL,
    "SimError": TOOL,
    "MissingExtraError": TOOL,
    "EmulatorMissingError": TOOL,
    "EmulationError": DIFFERS,
    "LinkError": TOOL,
    "CompressError": INTERNAL,
}
"""Name of an error class to exit code; a class without a line here counts as its nearest base class."""

EXIT_HELP = """\b
Exit codes: 0 done (and verified), 1 hardware and reference differ, 2 wrong usage or folder, 3 model or samples,
4 a pass, 5 the target cannot run it, 6 a tool is missing or failed, 70 a fault of edgec, 130 interrupted."""


BUDGET_EXIT_HELP = EXIT_HELP.replace("70 a fault", "7 a budget is missed (the nearest result is written), 70 a fault")


class Edgec(click.Group):
    """Turns errors into text on stderr and the exit code of the table."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted: nothing was written", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            sys.stdout = None  # the reader has gone: nothing to flush at exit
            ctx.exit(OK)
        except Exception as error:  # noqa: BLE001 - the one place that ends every error
            if ctx.find_root().meta.get("debug"):
                traceback.print_exc()
            ctx.exit(_tell(error))
        ctx.exit(code or OK)


def _tell(error: Exception) -> int:
    """Print an error; its exit code."""
    code = next((EXIT_CODES[c.__name__] for c in type(error).__mro__ if c.__name__ in EXIT_CODES), INTERNAL)
    if code == INTERNAL and isinstance(error, OSError) and error.filename:
        code = USAGE
    message, *more = str(error).splitlines() or [type(error).__name__]
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message if code != INTERNAL else f"a fault of edgec: {type(error).__name__}: {message}", err=True)
    notes = getattr(error, "__notes__", [])
    remedies = [note.removeprefix("remedy: ") for note in notes if note.startswith("remedy: ")]
    places = [note.removeprefix("in ") for note in notes if not note.startswith("remedy: ")]
    if code == INTERNAL:
        remedies.append(f"please report it with {_save_traceback(error)}")
    for label, texts in (("in", [", ".join(reversed(places))] if places else []), ("also", more), ("remedy", remedies)):
        for text in texts:
            click.echo(f"  {label + ':':<7} {text}", err=True)
    return code


def _save_traceback(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="edgec-traceback-", suffix=".txt", delete=False) as file:
        file.write(f"edgec {VERSION}, Python {sys.version}\n{' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=file)
    return file.name


# Options


class Array(click.ParamType):
    """`16x8`: pixels x rows."""

    name = "PxQ"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        pixels, _, rows = str(value).lower().partition("x")
        if not (pixels.isdecimal() and rows.isdecimal()):
            self.fail(f"{value!r} must be pixels x rows, for example 16x8", param, ctx)
        return int(pixels), int(rows)


class InputShape(click.ParamType):
    """`name=1,3,224,224`."""

    name = "NAME=SHAPE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        name, _, shape = str(value).rpartition("=")
        dims = shape.split(",")
        if not name or not all(dim.isdecimal() and int(dim) > 0 for dim in dims):
            self.fail(f"{value!r} must be a name and a shape, for example input=1,3,224,224", param, ctx)
        return name, tuple(map(int, dims))


class Numbers(click.ParamType):
    """`0.5` or one number for each channel, `0.5,0.5,0.4`."""

    name = "NUMBERS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(_fraction(number) for number in str(value).split(","))
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} must be numbers separated by commas, for example 1/255 or 0.5,0.5,0.4", param, ctx)


def _fraction(text: str) -> float:
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / float(denominator) if slash else float(numerator)


class Bits(click.ParamType):
    """Of weights: 2 to 8, or 16."""

    name = "BITS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if str(value) not in {"2", "3", "4", "5", "6", "7", "8", "16"}:
            self.fail(f"weights have 2 to 8 or 16 bits, not {value!r}", param, ctx)
        return int(str(value))


class Size(click.ParamType):
    """`65536`, `64K` or `1M`, in bytes."""

    name = "BYTES"
    _SUFFIX = {"K": 1 << 10, "M": 1 << 20}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).removesuffix("B").removesuffix("i")
        factor = self._SUFFIX.get(text[-1:].upper(), 1)
        digits = text[:-1] if factor > 1 else text
        if not digits.isdecimal():
            self.fail(f"{value!r} must be a size in bytes, for example 64K", param, ctx)
        return int(digits) * factor


class Memory(click.ParamType):
    """`1M` (or `1MiB`), or `activations=1M,weights=512K,instructions=256`."""

    name = "SIZES"
    _SUFFIX = {"K": 1 << 10, "M": 1 << 20}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        sizes = {}
        for part in str(value).split(","):
            name, _, size = part.rpartition("=")
            size = size.removesuffix("B").removesuffix("i")
            factor = self._SUFFIX.get(size[-1:].upper(), 1)
            digits = size[:-1] if factor > 1 else size
            if not digits.isdecimal():
                self.fail(f"{part!r} must be a size, for example 128K or weights=512K", param, ctx)
            sizes[name or "activations"] = int(digits) * factor
        return sizes


def _common(command: Callable[P, int | None]) -> Callable[P, int | None]:
    """-v and --debug, on every command."""

    @click.option("-v", "--verbose", is_flag=True, help="Tell every stage on stderr.")
    @click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, verbose: bool, debug: bool, **options: object) -> int | None:
        ctx.find_root().meta.update(verbose=verbose, debug=debug)
        return command(**options)  # type: ignore[arg-type,call-arg]

    return wrapped  # type: ignore[return-value]


_input_shape_option = click.option(
    "--input-shape",
    "--shape",
    "input_shape",
    type=InputShape(),
    multiple=True,
    help="Shape of a dynamic input; may be repeated.",
)


def _model_options(command: Callable[P, int | None]) -> Callable[P, int | None]:
    """What `compile` and `check` share."""
    options = [
        click.option("--target", default="fpga", show_default=True, help="See `edgec targets`."),
        click.option("--mcpu", help="Processor of a CPU target, as LLVM names it; this one by default."),
        click.option("--ram", type=Size(), help="Most bytes of a CPU target's maps, for example 20K."),
        click.option("--flash", type=Size(), help="Most bytes of its code and constants."),
        click.option("--array", type=Array(), default="16x8", show_default=True, help="Multipliers: pixels x rows."),
        click.option(
            "--memory",
            type=Memory(),
            default={},
            help="Activation memory in bytes, or NAME=SIZE,... with NAME one of activations, weights (bytes), "
            "parameters, blocks, taps, tables, instructions (words).",
        ),
        _input_shape_option,
        click.option("--dense", is_flag=True, help="Keep zero weights: no block skipping, no dead-channel removal."),
        click.option(
            "--no-host",
            is_flag=True,
            help="An error where the target cannot run a layer in the middle, instead of a cut and the host.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _sample_options(command: Callable[P, int | None]) -> Callable[P, int | None]:
    """Samples and their preprocessing."""
    options = [
        click.option(
            "--calib",
            type=click.Path(path_type=Path),
            help="Calibration samples: .npz or .npy, of the input's name or `x`; or a folder of images.",
        ),
        click.option(
            "--input-scale",
            type=Numbers(),
            default=(),
            help="x = (sample - mean) * scale: one number or one for each channel.",
        ),
        click.option("--input-mean", type=Numbers(), default=(), help="See --input-scale."),
        click.option(
            "--image-order",
            type=click.Choice(["rgb", "bgr"]),
            default="rgb",
            show_default=True,
            help="Channels of images.",
        ),
        click.option(
            "--image-fit",
            type=click.Choice(["crop", "stretch"]),
            default="crop",
            show_default=True,
            help="How images get the input's size: scaled to cover it and cropped to the middle, or stretched.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _budget_options(command: Callable[P, int | None]) -> Callable[P, int | None]:
    """How far to compress."""
    kinds = "top-1, agreement, auc, reconstruction, kl, relative-error, margin, rank"
    bits = click.Choice(["4", "8", "16"])
    seeds, threads = click.IntRange(min=0), click.IntRange(1, 64)
    options = [
        click.option(
            "--eval", "evaluation", type=click.Path(path_type=Path), help="Samples to choose by, not calibrated on."
        ),
        click.option(
            "--max-drop", help="Most that the metric may lose: 1.0pt (points), 2% (of an error) or 0.01 (as it is)."
        ),
        click.option("--max-size", type=Size(), help="Most bytes of model.edgec, for example 64K."),
        click.option("--max-macs", type=click.IntRange(min=1), help="Most multiply-accumulates of one inference."),
        click.option("--fewest-macs", is_flag=True, help="Spend --max-drop on multiplications instead of bytes."),
        click.option("--pareto", type=click.IntRange(0), default=0, help="Carry out and measure so many plans."),
        click.option("--metric", help=f"What judges: {kinds}."),
        click.option("--weights", type=Bits(), default=8, show_default=True, help="2 to 8 or 16, without a budget."),
        click.option("--activations", type=bits, default="8", show_default=True, help="Bits of an activation."),
        click.option("--symmetric", is_flag=True, help="Every activation's zero point is 0."),
        click.option("--power-of-two", is_flag=True, help="Every activation's scale is a power of two."),
        click.option("--stochastic", is_flag=True, help="Round weights stochastically, by --seed."),
        click.option("--only", multiple=True, help="Use this method family alone; may be repeated."),
        click.option("--without", multiple=True, help="Leave this method family out; may be repeated."),
        click.option("--no-guard", is_flag=True, help="Use the families of --only in every layer, at any cost."),
        click.option("--seed", type=seeds, default=0, show_default=True, help="Of split, probes and rounding."),
        click.option("--threads", type=threads, default=2, show_default=True, help="The result is the same."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


class NewFile(click.Path):
    """A file to write, in a folder that exists: a long simulation must not end in an error."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))  # type: ignore[arg-type]
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            self.fail(f"{str(path)!r} cannot be written: {str(path.parent)!r} is no folder that can be written to")
        return path


_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_model_argument = click.argument("model", type=click.Path(path_type=Path))
_artefact_argument = click.argument("folder", type=click.Path(path_type=Path))


# Commands


@click.group(cls=Edgec, epilog=EXIT_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="edgec")
def cli() -> None:
    """Compile a float ONNX network into an int8 FPGA accelerator, or a CPU library, that is proven bit-exact.

    \b
    Start here:
      edgec doctor
      edgec compile examples/digits_cnn.onnx --calib examples/digits_calib.npz -o out
      edgec eval out --data examples/digits_test.npz
    """


@cli.command(name="compile", epilog=BUDGET_EXIT_HELP)
@_model_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Artefact folder.")
@_model_options
@_sample_options
@_budget_options
@click.option("--no-verify", is_flag=True, help="Do not simulate the result.")
@click.option("--float", "is_float", is_flag=True, help="Compute in float32 on the CPU target; nothing is quantized.")
@click.option(
    "--tune",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Time up to N tile shapes for each distinct layer on this processor (--target cpu) and keep the fastest. The "
    "results are the same. Measurements are kept in ~/.cache/edgec/tiles.",
)
@_json_option
@_common
def compile_command(
    model: Path, output: Path, no_verify: bool, is_float: bool, tune: int | None, as_json: bool, **options: object
) -> int:
    """Compile MODEL (.onnx) into an artefact folder, and verify it in simulation.

    \b
    Examples:
      edgec compile net.onnx --calib samples.npz -o out
      edgec compile net.onnx --calib photos/ --input-scale 1/255 -o out
      edgec compile net.onnx --calib samples.npz --max-drop 1.0pt -o out      with compressed weights
      edgec compile net.onnx --array 8x2 --memory 64K --no-verify -o out
      edgec compile net.onnx --target cpu --calib samples.npz -o out          a library for this processor
      edgec compile net.onnx --target cortex-m --mcpu cortex-m7 --ram 64K -o out
      edgec compile net.onnx --target cpu --float -o out                      the same in float32
      edgec compile net.onnx --target cpu --tune 8 --calib samples.npz -o out
    """
    from compiler import pipeline, report

    target = {name: options.pop(name) for name in ("target", "mcpu", "ram", "flash", "array", "memory", "dense")}
    may_cut = not options.pop("no_host")
    asked = _compress_options(options)
    shared = {name: getattr(asked, name) for name in ("calibration", "scale", "mean", "images", "input_shapes")}
    compression = None if asked == type(asked)(**shared) else asked
    settings = pipeline.CompileOptions(
        **target,  # type: ignore[arg-type]
        **shared,
        compression=compression,
        may_cut=may_cut,
        verify=not no_verify,
        is_float=is_float,
        tune=tune or 0,
    )
    with _progress() as progress:
        result = pipeline.compile(model, output, settings, progress)
    _print(report.to_json(result).rstrip()) if as_json else report.show(result, _console())
    if not as_json:
        _print(f"wrote {output}")
    if result.verify is not None and not result.verify.passed:
        return DIFFERS
    return MISSED if result.missed else OK


@cli.command(epilog=BUDGET_EXIT_HELP)
@_model_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@_input_shape_option
@_sample_options
@_budget_options
@_json_option
@_common
def compress(model: Path, output: Path, as_json: bool, **options: object) -> int:
    """Make MODEL (.onnx) smaller without training: model.onnx (QDQ) and model.edgec (entropy coded).

    \b
    Examples:
      edgec compress net.onnx --calib samples.npz -o out                      8-bit weights and activations
      edgec compress net.onnx --calib samples.npz --max-drop 1.0pt -o out     as small as a point of accuracy allows
      edgec compress net.onnx --calib samples.npz --max-size 32K -o out       as good as 32 KiB allow
      edgec decompress out/model.edgec -o model.onnx
    """
    from compiler import compress as flow
    from compiler import compress_report

    settings = _compress_options(options)
    with _progress() as progress:
        result = flow.compress(model, output, settings, progress)
    _print(compress_report.to_json(result).rstrip()) if as_json else compress_report.show(result, _console())
    if not as_json:
        _print(f"wrote {output}")
    return MISSED if result.limits.missed else OK


@cli.command(epilog=EXIT_HELP)
@_model_argument
@_model_options
@_json_option
@_common
def check(model: Path, as_json: bool, **options: object) -> int:
    """Say in seconds whether MODEL fits the target, and what each layer costs; nothing is written.

    \b
    Example:
      edgec check net.onnx --array 8x2
    """
    from compiler import pipeline, report

    with _progress() as progress:
        result, problem = pipeline.check(model, _options(options), progress)
    _print(report.to_json(result).rstrip()) if as_json else report.show(result, _console())
    return _tell(problem) if problem else OK


@cli.command(epilog=EXIT_HELP)
@_artefact_argument
@click.option("--input", "inputs", type=click.Path(path_type=Path), required=True, help="Samples, .npz or .npy.")
@click.option("--output", type=NewFile(), help="Write the network's float outputs here (.npz).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first samples.")
@click.option("--wave", type=NewFile(), help="Write a waveform (.vcd) of the run.")
@_json_option
@_common
def simulate(
    folder: Path, inputs: Path, output: Path | None, limit: int | None, wave: Path | None, as_json: bool
) -> int:
    """Run samples through the simulated hardware of an artefact.

    \b
    Example:
      edgec simulate out --input samples.npz --output results.npz
    """
    from compiler import evaluate

    with _progress() as progress:
        result = evaluate.simulate_file(folder, inputs, output, limit=limit, wave=wave, progress=progress)
    text = f"{result.samples} samples, {result.cycles:,} cycles each, as scheduled"
    return _tell_outputs(result, text, output, as_json)


@cli.command(epilog=EXIT_HELP)
@_artefact_argument
@click.option("--input", "inputs", type=click.Path(path_type=Path), required=True, help="Samples, .npz or .npy.")
@click.option("--output", type=NewFile(), help="Write the network's float outputs here (.npz).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first samples.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="The result is the same.")
@_json_option
@_common
def run(
    folder: Path, inputs: Path, output: Path | None, limit: int | None, threads: int, as_json: bool
) -> int:
    """Run samples on this processor, through an artefact of --target cpu.

    \b
    Example:
      edgec run out --input samples.npz --output results.npz
    """
    from compiler import evaluate

    with _progress() as progress:
        result = evaluate.run_file(folder, inputs, output, limit=limit, threads=threads, progress=progress)
    return _tell_outputs(result, f"{result.samples} samples", output, as_json)


@cli.command(epilog=EXIT_HELP)
@_artefact_argument
@click.option("--inputs", type=click.IntRange(min=0), default=4, show_default=True, help="Calibration samples to run.")
@click.option("--random", type=click.IntRange(min=0), default=2, show_default=True, help="Random inputs to run.")
@click.option("--input", "file", type=click.Path(path_type=Path), help="Samples to run instead, .npz or .npy.")
@click.option("--wave", type=NewFile(), help="Write a waveform (.vcd) of the run.")
@click.option("--junit", type=NewFile(), help="Write the verdict as JUnit XML.")
@_json_option
@_common
def verify(
    folder: Path, inputs: int, random: int, file: Path | None, wave: Path | None, junit: Path | None, as_json: bool
) -> int:
    """Compare the simulated hardware of an artefact with the reference: every element of every layer, every cycle.

    \b
    Examples:
      edgec verify out
      edgec verify out --inputs 0 --random 20
    """
    from compiler import evaluate, report

    with _progress() as progress:
        facts, warnings = evaluate.verify_folder(
            folder, limit=inputs, random=random, file=file, wave=wave, progress=progress
        )
    _warn(warnings)
    if as_json:
        _print(json.dumps(evaluate.verify_json(facts), indent=1))
    else:
        _print(report.verdict(facts))
        for line in facts.differences:
            _print(f"  {line}")
    if junit:
        junit.write_text(evaluate.junit(folder.name, facts), encoding="utf-8")
    return OK if facts.passed else DIFFERS


@cli.command(name="eval", epilog=EXIT_HELP)
@_artefact_argument
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Samples `x` (or the input's name) and labels `y`."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first samples.")
@click.option("--no-rtl", is_flag=True, help="Leave the simulated hardware out.")
@_json_option
@_common
def eval_command(folder: Path, data: Path, limit: int | None, no_rtl: bool, as_json: bool) -> int:
    """Accuracy of an artefact as float, quantized, reference and simulated hardware, side by side.

    \b
    Example:
      edgec eval out --data test.npz
    """
    from compiler import evaluate, report

    with _progress() as progress:
        result = evaluate.evaluate(folder, data, limit=limit, rtl=not no_rtl, progress=progress)
    _warn(result.warnings)
    if as_json:
        _print(json.dumps(report.finite(result.facts()), indent=1))
    else:
        _console().print(result.table())
    return OK if not result.differs else DIFFERS


@cli.command(epilog=EXIT_HELP)
@_artefact_argument
@click.option("--program", is_flag=True, help="List the instructions with all their fields.")
@_json_option
@_common
def inspect(folder: Path, program: bool, as_json: bool) -> int:
    """Show what an artefact holds: report, files and their hashes, instructions.

    \b
    Example:
      edgec inspect out --program
    """
    from compiler import inspection

    if as_json:
        _print(json.dumps(inspection.facts(folder, program=program), indent=1))
    else:
        inspection.show(folder, _console(), program=program)
    return OK


@cli.command(epilog=EXIT_HELP)
@click.argument("container", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=NewFile(), required=True, help="ONNX file to write.")
@_json_option
@_common
def decompress(container: Path, output: Path, as_json: bool) -> int:
    """Turn CONTAINER (.edgec) back into the ONNX file that it was made of, byte for byte.

    \b
    Examples:
      edgec decompress model.edgec -o model.onnx
      edgec decompress model.edgec -o model.onnx --json
    """
    from compiler.container import files

    found = files.decompress(container, output)
    if as_json:
        _print(json.dumps(found.facts(), indent=1))
    else:
        _print(f"wrote {output}: {found.onnx_bytes:,} bytes from {found.container_bytes:,}")
    return OK


@cli.command(epilog=EXIT_HELP)
@_json_option
@_common
def doctor(as_json: bool) -> int:
    """Say which tools are found, which are missing, and how to get each.

    \b
    Example:
      edgec doctor --json
    """
    from compiler import doctor as examination

    findings = examination.examine()
    if as_json:
        _print(json.dumps([examination.facts(finding) for finding in findings], indent=1))
    else:
        _console().print(examination.table(findings))
    return OK if all(finding.found or not finding.required for finding in findings) else TOOL


@cli.command(epilog=EXIT_HELP)
@_json_option
@_common
def targets(as_json: bool) -> int:
    """List the targets and the operators they take.

    \b
    Example:
      edgec targets --json
    """
    from compiler import inspection

    listed = inspection.targets()
    if as_json:
        _print(json.dumps(listed, indent=1))
    else:
        for name, target in listed.items():
            _print(f"{name:<10} {target['what']}")
            _print(f"{'':<10} operators: {', '.join(target['operators'])}")
    return OK


def _compress_options(options: dict[str, object]) -> CompressOptions:
    from compiler.compression import Budget, CompressOptions, chosen_families
    from compiler.images import Fit, ImageOptions, Order
    from passes.scales import ActivationConfig

    take = options.pop
    activations = ActivationConfig(
        bits=int(str(take("activations"))),
        symmetric=bool(take("symmetric")),
        power_of_two=bool(take("power_of_two")),
    )
    budget = Budget(
        max_drop=take("max_drop"),  # type: ignore[arg-type]
        max_bytes=take("max_size"),  # type: ignore[arg-type]
        max_macs=take("max_macs"),  # type: ignore[arg-type]
        fewest_macs=bool(take("fewest_macs")),
        is_guarded=not take("no_guard"),
        points=int(str(take("pareto"))),
    )
    images = ImageOptions(Order(str(take("image_order"))), Fit(str(take("image_fit"))))
    families = chosen_families(take("only"), take("without"))  # type: ignore[arg-type]
    shapes = dict(take("input_shape"))  # type: ignore[call-overload]
    return CompressOptions(
        calibration=take("calib"),  # type: ignore[arg-type]
        scale=take("input_scale"),  # type: ignore[arg-type]
        mean=take("input_mean"),  # type: ignore[arg-type]
        images=images,
        input_shapes=shapes,
        is_stochastic=bool(take("stochastic")),
        activations=activations,
        families=families,
        budget=budget,
        **options,  # type: ignore[arg-type]
    )


def _options(options: dict[str, object], **more: object) -> CompileOptions:
    from compiler.pipeline import CompileOptions

    shapes = dict(options.pop("input_shape"))  # type: ignore[call-overload]
    may_cut = not options.pop("no_host")
    return CompileOptions(**options, **more, input_shapes=shapes, may_cut=may_cut)  # type: ignore[arg-type]


# Output


def _print(text: str) -> None:
    click.echo(text)


def _tell_outputs(result: SimulationResult | RunResult, text: str, output: Path | None, as_json: bool) -> int:
    """What became of samples: `text` and the file of their outputs, or all of it as JSON."""
    from compiler import report

    _warn(result.warnings)
    if as_json:
        _print(json.dumps(report.finite(result.facts()), indent=1))
    else:
        _print(text)
        if output:
            _print(f"wrote {output}: {', '.join(result.outputs)}")
    return OK


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or console.width > 120 else Console(width=120)


@contextmanager
def _progress() -> Iterator[ProgressCallback]:
    """A bar on stderr when that is a terminal, lines with -v, else silence."""
    console = Console(stderr=True)
    if click.get_current_context().find_root().meta.get("verbose"):
        yield _Lines().tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield tell


class _Lines:
    """One line for each stage."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, what: str, done: int, total: int) -> None:
        if what != self._last:
            click.echo(what, err=True)
            self._last = what


def main() -> None:
    """The console script. A polite kill ends like an interrupt: nothing stays half-written."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    cli()


if __name__ == "__main__":
    main()
