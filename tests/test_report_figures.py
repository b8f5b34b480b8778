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


def test_a_logarithmic_axis_keeps_ratios_and_holds_zero_on_its_edge():
    names = [f"p{index}" for index in range(4)]
    points = [figures.Point(name, 1, y) for name, y in zip(names, (0.01, 0.1, 1.0, 0.0), strict=True)]
    drawn = figures.log_scatter("t", points, "x", "y")
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', drawn)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[3] == heights[0]  # 0.01 is the lowest power of ten
    assert "nan" not in figures.log_scatter("t", [figures.Point("a", 1, float("nan"))], "x", "y")
    assert figures.log_scatter("t", [figures.Point("a", 1, 0.0)], "x", "y")


def test_a_crowd_of_points_is_drawn_within_the_frame():
    points = [figures.Point(f"policy_{index}", 0.5, 0.001 * 1.2**index) for index in range(36)]
    drawn = figures.log_scatter("t", points, "x", "y")
    width, height = (float(side) for side in re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn).groups())
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*class="name"', drawn)
    assert len(names) == 36
    assert all(0 < float(x) < width and 0 < float(y) < height for x, y in names)
    assert len(set(names)) == 36


def test_bars_start_at_zero_and_keep_their_proportions():
    drawn = figures.bars("t", [figures.Bar("a", 2.0), figures.Bar("b", 1.0)], "ms")
    starts = {float(x) for x in re.findall(r'<rect x="([\d.]+)"', drawn)}
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', drawn)]
    assert len(starts) == 1
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
