"""Rows of `edgec compress`: what it makes of the four networks, judged beside onnxruntime's quantize_static.

Every figure comes from the file that `edgec decompress` wrote, in onnxruntime, on samples that neither calibrated nor
chose; a ratio is bytes of the fp32 initialisers over bytes of model.edgec.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import peers
from benchmarks.artefacts import Workshop
from benchmarks.figures import Figure, Limit, at_least, at_most
from benchmarks.studies import AD_STUDY, IC_STUDY, KWS_STUDY, STUDIES, VWW_STUDY, Compression, Study, compressed, judged

W8A8, W4A8, SMALLEST, FEWEST = "w8a8", "w4a8", "smallest", "fewest-macs"
PEER, TIME = "quantize-static", "search-time"
_TFLITE = {IC_STUDY.key: 88.8, KWS_STUDY.key: 90.75}
_CLASSES = {0: "no person", 1: "person"}
Bars = tuple[Limit | None, Limit | None]
_NONE: Bars = (None, None)


def w8a8(workshop: Workshop) -> Iterator[Figure]:
    """8-bit weights and activations on all four networks."""
    for study in (IC_STUDY, KWS_STUDY):
        made = compressed(workshop, study)
        tflite = f"official int8 tflite {_TFLITE[study.key]} %"
        yield from _classifier(W8A8, workshop, study, made, (at_most(0.5), at_most(0.1)), anchor=tflite)
        yield _ratio(W8A8, study, made)
    made = compressed(workshop, VWW_STUDY)
    yield from _margin(W8A8, workshop, made)
    yield from _classes(W8A8, made, at_least(98))
    yield _ratio(W8A8, VWW_STUDY, made)
    made = compressed(workshop, AD_STUDY)
    yield from _reconstruction(W8A8, made, (at_most(2), at_most(0.5)))
    yield _ratio(W8A8, AD_STUDY, made)


def w4a8(workshop: Workshop) -> Iterator[Figure]:
    """4-bit weights, 8-bit activations, no training."""
    bars: tuple[tuple[Study, Bars, Bars], ...] = (
        (IC_STUDY, (at_most(1.5), at_most(0.7)), (at_least(8), at_least(9))),
        (KWS_STUDY, (at_most(2), at_most(1)), (at_least(6), at_least(7.5))),
    )
    for study, drop, ratio in bars:
        made = compressed(workshop, study, "--weights", "4")
        yield from _classifier(W4A8, workshop, study, made, drop)
        yield _ratio(W4A8, study, made, ratio)
    made = compressed(workshop, VWW_STUDY, "--weights", "4")
    yield from _margin(W4A8, workshop, made, (at_most(0.3), at_most(0.2)))
    yield from _classes(W4A8, made)
    yield _ratio(W4A8, VWW_STUDY, made, (at_least(20), at_least(30)))
    made = compressed(workshop, AD_STUDY, "--weights", "4")
    yield from _rank(W4A8, made, (at_least(0.98), at_least(0.99)))
    yield from _reconstruction(W4A8, made)
    yield _ratio(W4A8, AD_STUDY, made, (at_least(6), at_least(7)))


def smallest(workshop: Workshop) -> Iterator[Figure]:
    """What --max-drop alone finds."""
    ratios: dict[str, Bars] = {
        IC_STUDY.key: (at_least(8), at_least(12)),
        KWS_STUDY.key: (at_least(7.5), at_least(10)),
        VWW_STUDY.key: (at_least(25), at_least(40)),
        AD_STUDY.key: (at_least(6), at_least(8)),
    }
    for study in STUDIES:
        made = compressed(workshop, study, "--max-drop", study.drop)
        yield from _within(SMALLEST, workshop, study, made)
        yield _ratio(SMALLEST, study, made, ratios[study.key])


def fewest_macs(workshop: Workshop) -> Iterator[Figure]:
    """What the same loss buys in multiplications, by channels and low rank."""
    for study, least, aim in ((IC_STUDY, 1.2, 1.6), (VWW_STUDY, 2.0, 2.5)):
        made = compressed(workshop, study, "--max-drop", study.drop, "--fewest-macs")
        what = f"{study.title}: MACs before over after"
        if made.failed:
            yield Figure(FEWEST, what, None, "x", note=made.failed)
            continue
        yield from _within(FEWEST, workshop, study, made)
        before, cleaned, after = (made.report[stage]["macs"] for stage in ("before", "cleaned", "after"))
        note = f"{before:,} as given, {cleaned:,} without dead channels, {after:,} in the file; {made.note}"
        yield Figure(FEWEST, what, before / after, "x", at_least(least), at_least(aim), note=note)
        if cleaned != before:
            yield Figure(FEWEST, f"{what}, dead channels gone on both sides", cleaned / after, "x", note=note)
        yield _ratio(FEWEST, study, made)


def search_time(workshop: Workshop) -> Iterator[Figure]:
    """Wall clock of the runs of row `smallest`."""
    for study in STUDIES:
        ran = compressed(workshop, study, "--max-drop", study.drop).ran
        note = f"{ran.cpu_seconds:.0f} CPU-seconds, at most {ran.peak_bytes / 1e6:.0f} MB"
        what = f"{study.title}: edgec compress --max-drop {study.drop}"
        yield Figure(TIME, what, ran.seconds, "s", at_most(120), at_most(45), note=note)


# Each kind of network


def _within(row: str, workshop: Workshop, study: Study, made: Compression) -> Iterator[Figure]:
    """Whether the judging samples agree that the loss is as bounded."""
    if study in (IC_STUDY, KWS_STUDY):
        yield from _classifier(row, workshop, study, made, (at_most(1), None))
    elif study is VWW_STUDY:
        yield from _agreement(row, made, at_least(98))
        yield from _classes(row, made)
        yield from _margin(row, workshop, made, _NONE)
    else:
        yield from _rank(row, made, (at_least(0.99), None))
        yield from _reconstruction(row, made)


def _classifier(
    row: str, workshop: Workshop, study: Study, made: Compression, bars: Bars, anchor: str = ""
) -> Iterator[Figure]:
    """Points of accuracy lost, with the paired interval, and the divergence beside quantize_static's."""
    what, divergence = f"{study.title}: accuracy lost", f"{study.title}: mean KL divergence from float"
    if made.failed:
        yield Figure(row, what, None, "pt", note=made.failed)
        return
    found = judged(study, "top-1", made.decoded)
    low, high = (100 * end for end in found.interval)
    note = f"float {100 * found.before:.2f} %, file {100 * found.after:.2f} %, 95 % paired {low:+.2f} to {high:+.2f} pt"
    note = f"{note}, {100 * (found.changed or 0):.1f} % of {found.samples} classes changed; {made.note}"
    # Shares are whole samples: what rounding leaves behind must not decide.
    yield Figure(row, what, round(100 * found.drop, 9), "pt", *bars, anchor, note)
    peer = peers.quantized(workshop, study)
    if peer.failed:
        yield Figure(row, divergence, None, "nats", note=peer.failed)
        return
    theirs = judged(study, "top-1", peer.model).mean_kl
    assert theirs is not None
    yield Figure(row, divergence, found.mean_kl, "nats", at_most(theirs), None, f"{peers.NAME} {theirs:.4g}")


def _margin(row: str, workshop: Workshop, made: Compression, bars: Bars | None = None) -> Iterator[Figure]:
    """Mean error of log p1 - log p0; without bars it is measured against quantize_static's."""
    what = f"{VWW_STUDY.title}: mean margin error"
    peer = peers.quantized(workshop, VWW_STUDY)
    if failed := made.failed or peer.failed:
        yield Figure(row, what, None, "nats", note=failed)
        return
    theirs = judged(VWW_STUDY, "margin", peer.model).drop
    found = judged(VWW_STUDY, "margin", made.decoded)
    bars = (at_most(theirs), at_most(theirs / 2)) if bars is None else bars
    yield Figure(row, what, found.drop, "nats", *bars, f"{peers.NAME} {theirs:.4g}", made.note)


def _classes(row: str, made: Compression, bar: Limit | None = None) -> Iterator[Figure]:
    """Agreement in each class of the float network."""
    if made.failed:
        yield Figure(row, f"{VWW_STUDY.title}: agreement", None, "%", note=made.failed)
        return
    for number, count, share in judged(VWW_STUDY, "agreement", made.decoded).agreement:
        what = f"{VWW_STUDY.title}: agreement, {_CLASSES[number]}"
        yield Figure(row, what, 100 * share, "%", bar, note=f"{count} crops")


def _agreement(row: str, made: Compression, bar: Limit) -> Iterator[Figure]:
    """Agreement over all crops."""
    what = f"{VWW_STUDY.title}: agreement"
    if made.failed:
        yield Figure(row, what, None, "%", note=made.failed)
        return
    found = judged(VWW_STUDY, "agreement", made.decoded)
    low, high = (100 * end for end in found.interval)
    note = f"95 % {100 - high:.2f} to {100 - low:.2f} %, {found.samples} crops; {made.note}"
    yield Figure(row, what, 100 * found.after, "%", bar, note=note)


def _reconstruction(row: str, made: Compression, bars: Bars = _NONE) -> Iterator[Figure]:
    """Relative change of the mean reconstruction error, either way, on both judging sets."""
    for number, samples in enumerate(AD_STUDY.judging):
        what = f"{AD_STUDY.title}: change of the mean reconstruction error, {samples.path.stem}"
        if made.failed:
            yield Figure(row, what, None, "%", note=made.failed)
            continue
        found = judged(AD_STUDY, "reconstruction", made.decoded, number)
        note = f"float {found.before:.4g}, file {found.after:.4g}, {found.samples} windows; {made.note}"
        yield Figure(row, what, 100 * abs(found.drop), "%", *bars, note=note)


def _rank(row: str, made: Compression, bars: Bars) -> Iterator[Figure]:
    """Spearman's correlation of the windows' errors with the float network's, on both judging sets."""
    for number, samples in enumerate(AD_STUDY.judging):
        what = f"{AD_STUDY.title}: Spearman of the windows' errors with float's, {samples.path.stem}"
        if made.failed:
            yield Figure(row, what, None, note=made.failed)
            continue
        found = judged(AD_STUDY, "rank", made.decoded, number)
        yield Figure(row, what, found.after, "", *bars, note=f"{found.samples} windows; {made.note}")


def _ratio(row: str, study: Study, made: Compression, bars: Bars = _NONE) -> Figure:
    """Size of the file, against the whole network and against what is left of it without dead channels."""
    what = f"{study.title}: fp32 initialisers over model.edgec"
    if made.failed:
        return Figure(row, what, None, "x", note=made.failed)
    parts = ", ".join(f"{name} {size:,}" for name, size in made.report["parts"].items() if name != "total")
    note = f"{made.packed_bytes:,} B: {parts}"
    before, cleaned = (made.report[stage] for stage in ("before", "cleaned"))
    if before["macs"] != cleaned["macs"]:
        alive = f"{cleaned['bytes'] / made.packed_bytes:.2f}x of the {cleaned['bytes']:,} B"
        note = f"{note}; {alive} that are left without dead channels"
    return Figure(row, what, made.ratio, "x", *bars, note=note)


# Beside quantize_static


def quantize_static(workshop: Workshop) -> Iterator[Figure]:
    """W8A8 beside onnxruntime's own tool: not worse, smaller, and how long either takes."""
    for study in STUDIES:
        made, peer = compressed(workshop, study), peers.quantized(workshop, study)
        if failed := made.failed or peer.failed:
            yield Figure(PEER, f"{study.title}: against {peers.NAME}", None, note=failed)
            continue
        yield from _not_worse(study, made.decoded, peer.model)
        theirs = made.float_bytes / peer.bytes
        note = f"{made.packed_bytes:,} and {peer.bytes:,} B; model.onnx {made.report['onnx_bytes']:,} B"
        what, anchor = f"{study.title}: model.edgec over its file", f"its file: {theirs:.2f}x smaller than fp32"
        yield Figure(PEER, what, made.packed_bytes / peer.bytes, "", at_most(1), None, anchor, note)
        note = f"{made.ran.seconds:.1f} and {peer.ran.seconds:.1f} s"
        what = f"{study.title}: seconds over its"
        yield Figure(PEER, what, made.ran.seconds / peer.ran.seconds, "", note=note)


def _not_worse(study: Study, ours: Path, theirs: Path) -> Iterator[Figure]:
    if study in (IC_STUDY, KWS_STUDY):
        found = judged(study, "top-1", ours, against=theirs)
        low, high = (100 * end for end in found.interval)
        what = f"{study.title}: accuracy behind it, lower end of the 95 % paired interval"
        note = f"file {100 * found.after:.2f} %, {low:+.2f} to {high:+.2f} pt behind"
        yield Figure(PEER, what, low, "pt", at_most(0), None, f"{peers.NAME} {100 * found.before:.2f} %", note)
    elif study is VWW_STUDY:
        own, other = (judged(study, "margin", model).drop for model in (ours, theirs))
        what = f"{study.title}: margin error over its"
        note = f"{own:.4g} and {other:.4g} nats"
        yield Figure(PEER, what, own / other, "", at_most(1), note=note)
    else:
        for number, samples in enumerate(study.judging):
            own, other = (abs(judged(study, "reconstruction", model, number).drop) for model in (ours, theirs))
            what = f"{study.title}: change of the reconstruction error over its, {samples.path.stem}"
            yield Figure(PEER, what, own / other, "", at_most(1), note=f"{100 * own:.3g} and {100 * other:.3g} %")
