"""The report: a schema that survives a round trip, figures that add up, a page that needs nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from compiler import report
from compiler.report import (
    AccuracyRow,
    CompileReport,
    HostNode,
    LayerRow,
    MapEntry,
    MemoryUse,
    ModelFacts,
    PassRow,
    TargetFacts,
    VerifyFacts,
)
from compiler.report_html import to_html

LAYERS = (
    LayerRow("conv[1]", "Conv+Add", (8, 4, 4), 1024, 100, 0.64, 64, 1, 512, 16, 41.5),
    LayerRow("<pool>", "AveragePool", (8, 1, 1), 0, 20, None, 0, 1, 144, 16, float("inf")),
)
REPORT = CompileReport(
    edgec="0.1.0",
    model=ModelFacts("net", "ab", "pytorch 2", 17, {"x": (1, 3, 8, 8)}, {"y": (1, 10)}, 4096, 2048),
    target=TargetFacts("fpga", "8x2", 16, {"pixels": 8}, "0x1"),
    calibration={"source": "c.npz", "samples": 3},
    macs=1024,
    source_macs=2048,
    cycles=115,
    multipliers=23,
    utilisation=0.56,
    weight_bytes=64,
    stored_weight_bytes=72,
    layers=LAYERS,
    host_nodes=(HostNode("softmax", "Softmax", "tail", "no layer does this"),),
    memory=(MemoryUse("activations", 30, 40, 16),),
    activation_map=(MapEntry("x", 0, 12, -1, 0), MapEntry("conv[1]", 12, 18, 0, 2)),
    verify=VerifyFacts(3, 1, 500, 2, 0, 12, 0, 115),
    accuracy=(AccuracyRow("float", "accuracy", 98.0, "%"), AccuracyRow("RTL", "accuracy", 97.5, "%")),
    passes=(PassRow("quantize", 2, {"<node>": "a reason"}, {"m": 1.0}),),
    warnings=("watch <out>",),
    tools={"numpy": "2"},
)
NAMED = {
    *("model", "target", "macs", "cycles", "multipliers", "utilisation", "weight_bytes", "layers", "host_nodes"),
    *("verify", "tools", "kind", "schema"),
}


class Page(HTMLParser):
    """Collects tags that stay open, and anything that would be fetched."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "xlink:href")]
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_json_has_every_field_that_is_promised() -> None:
    document = json.loads(report.to_json(REPORT))
    assert set(document) >= NAMED
    assert (document["kind"], document["schema"]) == ("edgec-report", 1)
    assert {"inputs", "elements", "mismatches"} <= set(document["verify"])


def test_json_round_trips() -> None:
    document = json.loads(report.to_json(REPORT))
    again = report.from_dict(document)
    assert json.loads(report.to_json(again)) == document
    assert again.layers[0] == LAYERS[0]


def test_json_has_no_infinity() -> None:
    document = json.loads(report.to_json(REPORT), parse_constant=pytest.fail)
    assert document["layers"][1]["sqnr_db"] is None


def test_page_is_well_formed_and_fetches_nothing() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    assert page.open == []
    assert page.fetched == []


def test_page_escapes_names_and_shows_every_part() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    for text in ("<pool>", "watch <out>", "softmax", "30 of 40 words", "97.50 %", "41.5 dB", "<node>: a reason"):
        assert text in page.text


def test_page_says_that_a_verification_failed() -> None:
    bad = replace(REPORT, verify=VerifyFacts(1, 0, 500, 2, 7, 12, 1, 115, ("layer 'conv[1]': element ...",)))
    text = to_html(bad)
    assert "FAILED: 7 of 500 elements differ, 1 instructions take another time" in text
    assert "class='verdict bad'" in text
    assert "layer &#x27;conv[1]&#x27;" in text


def test_terminal_shows_names_that_look_like_markup() -> None:
    stream = StringIO()
    report.show(REPORT, Console(file=stream, width=160))
    shown = stream.getvalue()
    told = ("host (tail): softmax (Softmax)", "warning: watch <out>", "115 (56 %", "2,048 with dead channels")
    for text in ("conv[1]", "<pool>", *told):
        assert text in shown


def test_nothing_compared_is_not_a_success() -> None:
    assert not VerifyFacts(0, 0, 0, 0, 0, 0, 0, 0).passed
    assert VerifyFacts(1, 0, 1, 1, 0, 0, 0, 0).passed
    assert not VerifyFacts(1, 0, 1, 1, 0, 1, 1, 0).passed


@pytest.mark.parametrize(
    ("macs", "cycles", "lanes", "expected"),
    [(100, 10, 20, 0.5), (0, 10, 20, None), (100, None, 20, None), (1, 1, None, None)],
)
def test_utilisation(macs: int, cycles: int | None, lanes: int | None, expected: float | None) -> None:
    assert report.utilisation(macs, cycles, lanes) == expected
