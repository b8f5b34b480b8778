"""The Pareto figure: the front is the front, names cover neither one another nor the edge, no false points."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting import figures, kept, pareto
from pipeline.reporting.pareto import Plane, Spot

LOG = Plane("t", "size", "loss", log=True)
NUMBERS = st.floats(0, 10, allow_nan=False) | st.just(float("nan")) | st.just(float("inf"))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.booleans())
def test_the_front_holds_what_nothing_betters(places, higher):
    spots = [Spot(f"p{index}", x, y) for index, (x, y) in enumerate(places)]
    sign = -1 if higher else 1
    finite = [spot for spot in spots if abs(spot.x) + abs(spot.y) < float("inf")]

    def bettered(spot):
        return any(
            other.x <= spot.x and sign * other.y <= sign * spot.y and (other.x, other.y) != (spot.x, spot.y)
            for other in finite
        )

    best = pareto.front(spots, higher)
    assert {(spot.x, spot.y) for spot in best} == {(spot.x, spot.y) for spot in finite if not bettered(spot)}
    assert best == sorted(best, key=lambda spot: spot.x)


def test_names_cover_neither_one_another_nor_the_edge():
    crowd = [
        Spot(f"policy_of_index_{index}", 1 + index % 3 / 10, 0.5 + 0.01 * index, kind=index % 4) for index in range(36)
    ]
    front = [Spot(f"best_{index}", 1 + index / 20, 0.4 * 0.9**index) for index in range(16)]
    drawn = pareto.figure(LOG, [*crowd, *front, Spot("full", 4, 0.0, reference=True)])
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="name">([^<]+)<', drawn)
    shown = [name for *_, name in names]
    assert "full" in shown
    assert not any(name.startswith("policy") for name in shown)
    boxes = [box(float(x), float(y), anchor, name) for x, y, anchor, name in names]
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(
        left >= 0 and right <= pareto.WIDTH and top >= 0 and low <= pareto.HEIGHT for left, top, right, low in boxes
    )


def box(x: float, y: float, anchor: str, name: str) -> tuple[float, float, float, float]:
    """Return the box that a name fills, letters taken for as wide as the figures take them."""
    width = len(name) * figures.CHAR_WIDTH
    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return left, y - 9, left + width, y + 3


def test_a_logarithmic_axis_keeps_ratios_and_holds_zero_on_its_edge():
    drawn = pareto.figure(LOG, [Spot(f"p{y}", 1, y) for y in (0.01, 0.1, 1.0, 0.0)])
    heights = dict(re.findall(r"<title>p([\d.]+);.*?translate\([\d.]+ ([\d.]+)\)", drawn))
    assert float(heights["0.01"]) - float(heights["0.1"]) == pytest.approx(
        float(heights["0.1"]) - float(heights["1.0"]), abs=0.2
    )
    assert heights["0.0"] == heights["0.01"]  # the lowest power of ten


def test_what_is_not_finite_is_not_drawn():
    nan = float("nan")
    drawn = pareto.figure(LOG, [Spot("a<b", 1, 0.5), Spot("bad", nan, 1), Spot("worse", 1, float("inf"))])
    assert "a&lt;b" in drawn
    assert not {"bad", "worse", "nan", "inf"} & set(re.findall(r"\w+", drawn))
    assert pareto.figure(LOG, [])


def test_the_picture_of_what_was_kept_covers_what_was_kept():
    drawn = kept.picture([[1.0, 1.0, 0.0, 0.01], [0.0, 0.5, 0.5, float("nan")]], "t")
    assert 'viewBox="0 0 4 2"' in drawn
    assert re.findall(r'<path d="([^"]+)" class="(\w+)"', drawn) == [
        ("M3 0h1v1h-1z", "shade1"),
        ("M1 1h2v1h-2z", "shade3"),
        ("M0 0h2v1h-2z", "shade5"),
    ]
