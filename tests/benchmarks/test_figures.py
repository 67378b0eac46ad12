import pytest

from benchmarks.figures import Figure, Limit, at_least, at_most


@pytest.mark.parametrize(
    ("value", "bar", "aim", "verdict"),
    [
        (None, at_least(1), None, "none"),
        (1.0, None, None, "-"),
        (0.9, at_least(1), None, "below"),
        (1.0, at_least(1), at_least(2), "bar"),
        (2.0, at_least(1), at_least(2), "aim"),
        (0.5, at_most(0.5), None, "aim"),
        (float("nan"), at_most(0.5), None, "below"),
    ],
)
def test_a_verdict_says_what_was_reached(
    value: float | None, bar: Limit | None, aim: Limit | None, verdict: str
) -> None:
    figure = Figure("row", "what", value, bar=bar, aim=aim)
    assert figure.verdict == verdict
    assert figure.fails == (verdict in ("none", "below"))
