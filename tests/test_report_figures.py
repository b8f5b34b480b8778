"""The report's numbers and figures: rounding that says so, few ticks, nothing that is not finite, true bars."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting import figures, svg
from pipeline.reporting.measured import Measure
from pipeline.reporting.table import measured, number, plain


@pytest.mark.parametrize(
    ("value", "digits", "signed", "shown"),
    [
        (1234.5, 1, False, "1,234.5"),
        (-0.001, 2, True, "0.00"),
        (-1.5, 1, True, "−1.5"),
        (1.5, 1, True, "+1.5"),
    ],
)
def test_plain_numbers(value, digits, signed, shown):
    assert plain(value, digits, signed) == shown


def test_numbers_that_round_to_nothing_say_so():
    assert number(0.00001, 4).text == "<0.0001"
    assert number(0.0, 4).text == "0.0000"
    assert number(float("nan")).sort is None
    assert measured(Measure(value=0.1, stderr=0.000002), 4).detail == "± 2e-06"


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_span_the_data(low, span):
    found = svg.ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-6 * span + 1e-9 * abs(low)
    assert found[-1] >= low + span - 1e-6 * span - 1e-9 * abs(low)


def test_figures_leave_out_what_is_not_finite():
    nan = float("nan")
    points = [figures.Point("a<b", 1, 2), figures.Point("bad", 1, nan)]
    drawn = figures.scatter("t", points, "x", "y") + figures.bars(
        "t", [figures.Bar("bad", nan), figures.Bar("c", 1)], "ms"
    )
    assert "a&lt;b" in drawn
    assert "bad" not in drawn
    assert "nan" not in drawn
    assert "nan" not in figures.curves("t", [figures.Series("s", [(0, nan), (1, 2.0)])], "x", "y")
    assert figures.scatter("t", [], "x", "y")


def test_a_whisker_spans_what_is_known():
    drawn = figures.bars(
        "t", [figures.Bar("a", 2.0, 1.5, 2.5), figures.Bar("b", 1.0, float("nan"), float("inf"))], "ms"
    )
    whiskers = re.findall(r'<path d="M([\d.]+) [\d.]+H([\d.]+)', drawn)
    assert len(whiskers) == 1
    start, end = map(float, whiskers[0])
    width = float(re.findall(r'width="([\d.]+)"', drawn)[0])
    assert end - start == pytest.approx(width / 2, abs=0.2)


def test_bars_start_at_zero_and_keep_their_proportions():
    drawn = figures.bars("t", [figures.Bar("a", 2.0), figures.Bar("b", 1.0)], "ms")
    starts = {float(x) for x in re.findall(r'<rect x="([\d.]+)"', drawn)}
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    assert len(starts) == 1
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
