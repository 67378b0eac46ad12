"""The report of a compression: a schema that survives a round trip, the survey's figures, a page that needs nothing."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from io import StringIO

import pytest
from rich.console import Console

from compiler import compress_report
from compiler.compress_html import to_html
from compiler.compress_report import (
    NO_COSTS,
    CompressReport,
    Costs,
    FileParts,
    FrontPoint,
    LayerFigures,
    Limits,
    PassOutcome,
    Probe,
    compression_rate,
    space_saving,
    speed_up,
)
from compiler.metrics import Comparison
from compiler.report import ModelFacts
from tests.compiler.test_report import Page

LAYERS = (
    LayerFigures(
        "conv[1]",
        "Conv",
        Costs(4000, 20_000, 9000),
        Costs(400, 10_000, 3000),
        "rank 8, W4",
        "smallest within 1pt",
        bits=4,
        activation_bits=8,
        sparsity=0.25,
        rank=8,
        channels=(16, 12),
        sqnr_db=31.5,
        sensitivity=0.125,
        loss=0.002,
    ),
    LayerFigures("<fc>", "Gemm", Costs(1000, 5000, 2000), Costs(125, 5000, 700), "W3", "", bits=3, sqnr_db=math.inf),
    LayerFigures("gone", "Conv", Costs(96, 500, 300), NO_COSTS, "removed", "no channel depends on the input"),
)
QUALITY = Comparison(
    "top-1 accuracy", "pt", 400, 0.925, 0.92, 0.005, (-0.0075, 0.0175), 0.0125, 0.003, 0.002, ((0, 40, 0.975),)
)
REPORT = CompressReport(
    edgec="0.2.0",
    model=ModelFacts("net", "ab", "pytorch 2", 17, {"x": (1, 3, 8, 8)}, {"y": (1, 10)}, 5096, 2048),
    calibration={"source": "c.npz", "samples": 400},
    samples="200 samples to calibrate on and 200 others to choose by",
    limits=Limits("1.0pt", 600, None),
    layers=LAYERS,
    before=Costs(5096, 25_500, 11_300),
    cleaned=Costs(5000, 25_000, 11_000),
    after=Costs(637, 15_000, 3700),
    parts=FileParts(400, 16, 60, 61, 80, 20),
    onnx_bytes=1800,
    quality=QUALITY,
    quality_why="labels, and 10 outputs",
    others={"devtest": replace(QUALITY, samples=500)},
    front=(
        FrontPoint(400, 15_000, 2.0, 0.05, True),
        FrontPoint(637, 15_000, 0.5, 0.005, True, True),
        FrontPoint(2000, 25_000, 1e-3),
    ),
    probes=(Probe(0.5, 0.4, ("entropy", "prune")), Probe(2.0, 2.5), Probe(1.0, 0.9)),
    passes=(
        PassOutcome("low-rank", "kept", 1, drop=0.0025, skipped={"<fc>": "a reason"}),
        PassOutcome("circulant", "rolled back", 2, "the drop of 3.00 pt is above 1.0pt", 0.03, {}, {"blocks": 4.0}),
    ),
    warnings=("watch <out>",),
    tools={"numpy": "2"},
)


def shown(report: CompressReport) -> str:
    stream = StringIO()
    compress_report.show(report, Console(file=stream, width=160))
    return stream.getvalue()


def test_json_says_what_it_is() -> None:
    document = json.loads(compress_report.to_json(REPORT), parse_constant=pytest.fail)
    assert (document["kind"], document["schema"]) == ("edgec-compression", 1)
    assert document["parts"]["total"] == 637
    assert document["layers"][1]["sqnr_db"] is None
    assert document["rank_correlation"] == 1.0


def test_json_round_trips() -> None:
    document = json.loads(compress_report.to_json(REPORT))
    again = compress_report.from_dict(document)
    assert json.loads(compress_report.to_json(again)) == document
    without_infinity = replace(REPORT, layers=(LAYERS[0], replace(LAYERS[1], sqnr_db=None), LAYERS[2]))
    assert again == without_infinity


def test_json_of_the_least_report_round_trips() -> None:
    least = replace(
        REPORT, quality=None, others={}, front=(), probes=(), passes=(), layers=(), limits=Limits(), onnx_bytes=None
    )
    assert compress_report.from_dict(json.loads(compress_report.to_json(least))) == least
    assert "not measured" in to_html(least)
    assert "637 of 5,096 bytes" in shown(least)


def test_figures_are_the_surveys() -> None:
    before, after = Costs(1000, 600, 0), Costs(125, 300, 0)
    assert (compression_rate(before, after), speed_up(before, after), space_saving(before, after)) == (8, 2, 0.875)
    assert compression_rate(before, NO_COSTS) == math.inf
    assert compression_rate(NO_COSTS, NO_COSTS) is None
    assert space_saving(NO_COSTS, NO_COSTS) is None
    survey = json.loads(compress_report.to_json(REPORT))["survey"]
    assert survey == {"compression_rate": 8.0, "speed_up": 1.7, "space_saving": 0.875}


def test_costs_add_up() -> None:
    assert sum((layer.before for layer in LAYERS), NO_COSTS) == REPORT.before


def test_parts_add_up_to_the_file() -> None:
    assert sum(asdict(REPORT.parts).values()) == REPORT.parts.total == REPORT.after.bytes


def test_rank_correlation_needs_three_probes() -> None:
    assert REPORT.rank_correlation == 1.0
    assert replace(REPORT, probes=REPORT.probes[:2]).rank_correlation is None


def test_terminal_shows_every_figure() -> None:
    text = shown(REPORT)
    for expected in (
        *("conv[1]", "<fc>", "rank 8, W4", "25 %", "10.0x", "31.5 dB", "gone"),
        "637 of 5,096 bytes, 8.0x (saves 87.5 %)",
        "7.8x of the 5,000 bytes without dead channels",
        "15,000 of 25,500, 1.70x (1.67x without dead channels)",
        "codes 400, codebooks 16, scales 60, biases 61, graph 80, headers 20",
        "top-1 accuracy 92.50 % to 92.00 % on 400 samples",
        "0.50 pt (95 %: -0.75 pt to 1.75 pt), at most 1.0pt",
        "1.25 % of predictions changed, mean KL 0.003, mean probability of the right class -0.20 pt",
        "devtest",
        "Spearman 1.000 with 3 measured plans",
        "circulant: rolled back: the drop of 3.00 pt is above 1.0pt",
        "warning: watch <out>",
    ):
        assert expected in text


def test_a_missed_limit_is_told_everywhere() -> None:
    missed = replace(REPORT, limits=Limits("", 600, None, ("637 bytes instead of at most 600",)))
    assert "missed: 637 bytes instead of at most 600" in shown(missed)
    page = to_html(missed)
    assert "class='verdict bad'" in page
    assert "637 bytes instead of at most 600" in page


def test_page_is_well_formed_and_fetches_nothing() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    assert page.open == []
    assert page.fetched == []


def test_page_shows_every_part() -> None:
    page = Page()
    page.feed(to_html(REPORT))
    for text in (
        *("watch <out>", "400 of 4,000 (10.0x)", "4, 25 % zeros", "smallest within 1pt", "12 of 16", "8 bits", "0.125"),
        *("rolled back", "<fc>: a reason", "3.00 pt", "predicted 0.5, measured 0.4", "637 bytes, drop 0.50 pt"),
        *("2,000 bytes, loss 0.001", "97.5 %", "devtest"),
    ):
        assert text in page.text, text


@pytest.mark.parametrize(
    "front",
    [
        (FrontPoint(5, 1, 0.0), FrontPoint(9, 1, -1.0)),
        (FrontPoint(5, 1, 2.0, math.inf), FrontPoint(5, 1, 2.0, 0.1)),
        (FrontPoint(0, 0, 0.0, 0.0), FrontPoint(0, 0, 0.0, 0.0)),
        (FrontPoint(5, 1, math.nan), FrontPoint(6, 1, 1.0)),
    ],
)
def test_figures_bear_points_that_logarithms_do_not(front: tuple[FrontPoint, ...]) -> None:
    page = Page()
    page.feed(to_html(replace(REPORT, front=front)))
    assert page.open == []
    assert "nan" not in page.text
    assert "inf" not in page.text.replace("inference", "")


def test_no_text_depends_on_anything_but_the_report() -> None:
    assert compress_report.to_json(REPORT) == compress_report.to_json(replace(REPORT))
    assert to_html(REPORT) == to_html(replace(REPORT))
