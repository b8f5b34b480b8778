"""The Pareto figure: what is best at each size. The front is drawn and named; all other points tell on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from pipeline.reporting import svg
from pipeline.reporting.figures import free_place
from pipeline.reporting.svg import Frame, element, label

WIDTH, HEIGHT = 560, 400
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
SIZE = 5  # half a mark's height
MARKS = (  # one for each kind of point, around (0, 0); a mark fills about the same area as any other
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -5.6L5.8 4.6H-5.8z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
)


@dataclass(frozen=True)
class Spot:
    """A named point: less of ``x`` is better; ``kind`` chooses its mark, a reference is drawn hollow."""

    name: str
    x: float
    y: float
    kind: int = 0
    reference: bool = False


@dataclass(frozen=True)
class Plane:
    """What is drawn over what; ``higher`` says that more of ``y`` is better, ``log`` that ratios of it count."""

    title: str
    x_label: str
    y_label: str
    higher: bool = False
    log: bool = False


def front(spots: Sequence[Spot], higher: bool = False) -> list[Spot]:
    """Return the spots that no other betters in one coordinate without losing in the other, by ascending ``x``."""
    sign = -1 if higher else 1
    found: list[Spot] = []
    for spot in sorted(_finite(spots), key=lambda spot: (spot.x, sign * spot.y)):
        if not found or sign * spot.y < sign * found[-1].y:
            found.append(spot)
    return found


def _finite(spots: Sequence[Spot]) -> list[Spot]:
    return [spot for spot in spots if math.isfinite(spot.x) and math.isfinite(spot.y)]


def figure(plane: Plane, spots: Sequence[Spot]) -> Markup:
    """Draw the spots with their front; one that is not finite is left out, zero stands on a logarithm's lower edge."""
    spots = _finite(spots)
    best = front(spots, plane.higher)
    frame = _frame(plane, spots)
    places = {spot: (frame.x(spot.x), frame.y(spot.y)) for spot in spots}
    rest = [spot for spot in spots if spot not in best]
    marks = [_mark(spot, places[spot], plane, "rest") for spot in rest]
    marks += [_mark(spot, places[spot], plane, "best") for spot in best]
    step, line = _step([places[spot] for spot in best])
    names = _names([*best, *(spot for spot in rest if spot.reference)], places, line, frame)
    return svg.drawing(plane.title, frame.axes(), step, *marks, *names, width=frame.width, height=frame.height)


def mark(kind: int) -> Markup:
    """Return the mark of a kind as a small drawing, for a legend."""
    shape = element("path", d=MARKS[kind % len(MARKS)])
    return element("svg", element("g", shape, class_=f"mark kind{kind}"), viewBox="-8 -8 16 16", aria_hidden="true")


def _frame(plane: Plane, spots: Sequence[Spot]) -> Frame:
    x_ticks = svg.ticks(0, max((spot.x for spot in spots), default=1) or 1)
    heights = [spot.y for spot in spots if spot.y > 0] or [1]
    y_ticks = svg.powers(min(heights), max(heights)) if plane.log else svg.ticks(0, max(heights))
    return Frame(x_ticks, y_ticks, plane.x_label, plane.y_label, WIDTH, HEIGHT, plane.log)


def _mark(spot: Spot, place: Place, plane: Plane, class_: str) -> Markup:
    x, y = place
    hint = element("title", f"{spot.name}; {plane.x_label}: {svg.short(spot.x)}; {plane.y_label}: {svg.short(spot.y)}")
    shape = element("path", d=MARKS[spot.kind % len(MARKS)], transform=f"translate({x:.1f} {y:.1f})")
    hollow = " hollow" if spot.reference else ""
    return element("g", hint, shape, class_=f"mark kind{spot.kind} {class_}{hollow}")


def _step(places: Sequence[Place]) -> tuple[Markup, list[Box]]:
    """Draw the front and return the boxes it fills: between two of its points the left one is the best to be had."""
    if len(places) < 2:
        return Markup(""), []
    path, boxes = "M{:.1f} {:.1f}".format(*places[0]), []
    for (x, y), (right, down) in pairwise(places):
        path += f"H{right:.1f}V{down:.1f}"
        boxes += [(x, y - 1, right, y + 1), (right - 1, min(y, down), right + 1, max(y, down))]
    return element("path", d=path, class_="front"), boxes


def _names(named: Sequence[Spot], places: dict[Spot, Place], line: Sequence[Box], frame: Frame) -> list[Markup]:
    """Name the spots where there is room; a name that would cover another is left to the mark's hint."""
    marks = [(x - SIZE, y - SIZE, x + SIZE, y + SIZE) for x, y in places.values()]
    boxes: list[Box] = []
    drawn = []
    for spot in named:
        place, box = free_place(spot.name, *places[spot], [*marks, *line, *boxes * 10], frame)
        if not any(_meet(box, other) for other in boxes):
            boxes.append(box)
            drawn.append(label(*place[:2], spot.name, place[2], class_="name"))
    return drawn


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
