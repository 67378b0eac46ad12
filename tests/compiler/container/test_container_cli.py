"""edgec decompress: the same bytes, in one step, and refusals with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compiler.cli import MODEL, OK, USAGE, cli
from compiler.container import pack
from tests.support.containers import quantized_file


@pytest.fixture
def container(tmp_path: Path) -> Path:
    path = tmp_path / "model.edgec"
    path.write_bytes(pack(quantized_file()))
    return path


def test_a_container_becomes_its_onnx_file(container: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["decompress", str(container), "-o", str(tmp_path / "model.onnx")])
    assert result.exit_code == OK
    assert (tmp_path / "model.onnx").read_bytes() == quantized_file()
    assert "bytes from" in result.stdout


def test_json_tells_where_the_bytes_go(container: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["decompress", str(container), "-o", str(tmp_path / "m.onnx"), "--json"])
    facts = json.loads(result.stdout)
    assert sum(facts["parts"].values()) == facts["container_bytes"] == container.stat().st_size
    assert facts["onnx_bytes"] == len(quantized_file())


def test_a_damaged_container_leaves_nothing_behind(container: Path, tmp_path: Path) -> None:
    container.write_bytes(container.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(cli, ["decompress", str(container), "-o", str(tmp_path / "model.onnx")])
    assert result.exit_code == MODEL
    assert "not an intact edgec container" in result.stderr
    assert str(container) in result.stderr
    assert "remedy:" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_container_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["decompress", str(tmp_path / "no.edgec"), "-o", str(tmp_path / "model.onnx")])
    assert result.exit_code == MODEL
    assert "no.edgec cannot be read: No such file or directory" in result.stderr


def test_a_destination_without_a_folder_is_refused_first(container: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["decompress", str(container), "-o", str(tmp_path / "no" / "model.onnx")])
    assert result.exit_code == USAGE
    assert "no folder that can be written to" in result.stderr
