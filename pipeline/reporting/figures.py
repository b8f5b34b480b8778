"""The report's figures as inline SVG: curves, labelled points and bars from zero. Numbers in, markup out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.reporting import svg
from pipeline.reporting.svg import Frame, element, label

CHAR_WIDTH, LABEL_HEIGHT, DOT = 6.6, 14, 5
BAR_PITCH, BAR_HEIGHT, NAME_WIDTH = 34, 14, 132
CROWD, CROWD_PITCH = 16, 20  # more bars than a crowd's are drawn closer


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points; a ``marked`` one carries a dot at each point. The last line stands out."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


@dataclass(frozen=True)
class Point:
    """A named point; a reference is drawn hollow."""

    name: str
    x: float
    y: float
    reference: bool = False


@dataclass(frozen=True)
class Bar:
    """A named length and the range it may take, such as a standard error's, or up to a 95th percentile."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    reference: bool = False


def curves(title: str, series: Sequence[Series], x_label: str, y_label: str, zero: bool = False) -> Markup:
    """Draw lines over a common axis, from ``zero`` where asked; points that are not finite are left out."""
    series = [Series(one.name, _finite(one.points), one.marked) for one in series]
    xs = [x for one in series for x, _ in one.points] or [0, 1]
    ys = [y for one in series for _, y in one.points] or [0, 1]
    frame = Frame(svg.ticks(0, max(xs)), svg.ticks(0 if zero else min(ys), max(ys)), x_label, y_label)
    lines = [_line(frame, one) for one in series]
    return svg.drawing(title, frame.axes(), *lines)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _line(frame: Frame, series: Series) -> Markup:
    spots = [(frame.x(x), frame.y(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    marks = [element("circle", cx=x, cy=y, r=3.5) for x, y in spots] if series.marked else []
    return element("g", element("polyline", points=path), *marks, class_="line")


def scatter(title: str, points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Draw named points with both axes from zero; names move to where they cover nothing."""
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    top = [max((getattr(point, axis) for point in points), default=1) or 1 for axis in "xy"]
    return _named(title, points, Frame(svg.ticks(0, top[0]), svg.ticks(0, top[1]), x_label, y_label))


def _named(title: str, points: Sequence[Point], frame: Frame) -> Markup:
    spots = [(frame.x(point.x), frame.y(point.y)) for point in points]
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in spots]
    drawn = [frame.axes()]
    for point, (x, y) in zip(points, spots, strict=True):
        drawn.append(_dot(point, x, y))
        place, box = free_place(point.name, x, y, taken, frame)
        taken.append(box)
        drawn.append(label(*place[:2], point.name, place[2], class_="name"))
    return svg.drawing(title, *drawn, width=frame.width, height=frame.height)


def _dot(point: Point, x: float, y: float) -> Markup:
    hint = element("title", f"{point.name}: {point.x:.4g}, {point.y:.4g}")
    return element("circle", hint, cx=x, cy=y, r=DOT, class_="hollow" if point.reference else "dot")


def free_place(name: str, x: float, y: float, taken: Sequence[tuple], frame: Frame) -> tuple[tuple, tuple]:
    """Return (x, y, anchor) and the box of a name near a point: the place that overlaps what is drawn least."""
    width, gap = len(name) * CHAR_WIDTH, DOT + 5
    sides = [(x + gap, "start"), (x - gap, "end")]
    places = [(side, y + 4, anchor) for side, anchor in sides]
    places += [(x, y - gap, "middle"), (x, y + gap + 8, "middle")]
    steps = (-1, 1, -2, 2, -3)
    places += [(side, y + 4 + step * LABEL_HEIGHT, anchor) for step in steps for side, anchor in sides]
    shift = {"start": 0, "end": width, "middle": width / 2}
    boxes = [(a - shift[c], b - LABEL_HEIGHT + 3, a - shift[c] + width, b + 3) for a, b, c in places]
    edges = (svg.LEFT, 0, frame.width, frame.height - svg.BOTTOM + 8)
    return min(zip(places, boxes, strict=True), key=lambda pair: _cost(pair[1], taken, edges))


def _cost(box: tuple, taken: Sequence[tuple], frame: tuple) -> float:
    outside = max(0, frame[0] - box[0], box[2] - frame[2], frame[1] - box[1], box[3] - frame[3])
    covered = sum(
        max(0, min(box[2], other[2]) - max(box[0], other[0])) * max(0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return covered + 100 * outside


def bars(title: str, items: Sequence[Bar], unit: str) -> Markup:
    """Draw horizontal bars from zero, each with its value, and a whisker up to ``high``."""
    items = [item for item in items if math.isfinite(item.value)]
    top = max((max(item.value, _range(item)[1]) for item in items), default=1) or 1
    left = max([NAME_WIDTH, *(len(item.name) * CHAR_WIDTH + 14 for item in items)])
    scale, pitch = (svg.WIDTH - left - 96) / top, CROWD_PITCH if len(items) > CROWD else BAR_PITCH
    rows = [_bar(item, (left, index * pitch + 8), scale, unit) for index, item in enumerate(items)]
    return svg.drawing(title, *rows, height=len(items) * pitch + 12)


def _bar(item: Bar, corner: tuple[float, float], scale: float, unit: str) -> Markup:
    left, y = corner
    middle, end = y + BAR_HEIGHT / 2, left + item.value * scale
    start, reach = (left + max(0, edge) * scale for edge in _range(item))
    shape = {"x": left, "y": y, "width": end - left, "height": BAR_HEIGHT, "rx": 2}
    return element(
        "g",
        label(left - 10, middle + 4.5, item.name, "end", "name"),
        element("rect", **shape, class_="barref" if item.reference else "bar"),
        _whisker(start, reach, middle) if reach > start else "",
        label(max(end, reach) + 8, middle + 4.5, f"{svg.short(item.value)} {unit}", "start", "tick"),
    )


def _range(item: Bar) -> tuple[float, float]:
    """Return where a bar's whisker starts and ends: at the value itself where an edge is unknown."""
    low, high = (item.value if edge is None or not math.isfinite(edge) else edge for edge in (item.low, item.high))
    return low, high


def _whisker(start: float, end: float, y: float) -> Markup:
    path = f"M{start:.1f} {y:.1f}H{end:.1f}M{start:.1f} {y - 3:.1f}v6M{end:.1f} {y - 3:.1f}v6"
    return element("path", d=path, class_="whisker")
