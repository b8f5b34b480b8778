"""A small SVG layer: escaped elements, round ticks and a frame that maps data to a drawing. Colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 46


def element(name: str, *content: str, **attributes: object) -> Markup:
    """Return one element; ``class_`` becomes class, underscores become dashes, everything is escaped."""
    pairs = ((key.rstrip("_").replace("_", "-"), _value(value)) for key, value in attributes.items())
    opening = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in pairs)
    inner = Markup("").join(escape(part) for part in content)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), opening, inner)


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def drawing(title: str, *content: str, width: int = WIDTH, height: int = HEIGHT) -> Markup:
    """Return a whole figure that scales with its place and reads itself out as ``title``."""
    box = f"0 0 {width} {height}"
    return element("svg", element("title", title), *content, viewBox=box, role="img", aria_label=title)


def label(x: float, y: float, words: str, anchor: str = "middle", class_: str = "tick", **more: object) -> Markup:
    """Return a line of text at a point."""
    return element("text", words, x=float(x), y=float(y), text_anchor=anchor, class_=class_, **more)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers that span [low, high], at most ``most`` + 2 of them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Return the powers of ten that span [low, high], at least two; both are above zero."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(first + 1, last) + 1)]


def short(value: float) -> str:
    """Return a number in three significant digits, or all of a longer integer part."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Frame:
    """Axes over round ticks; ``x`` and ``y`` map data to drawing units, ``log`` the vertical one by its logarithm."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    log: bool = False

    def x(self, value: float) -> float:
        """Map a value on the horizontal axis."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (value - low) / ((high - low) or 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Map a value on the vertical axis, which points up; a logarithmic one has all below it on its lower edge."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        if self.log:
            low, value, high = (math.log10(max(low, number)) for number in (low, value, high))
        return self.height - BOTTOM - (value - low) / ((high - low) or 1) * (self.height - TOP - BOTTOM)

    def axes(self) -> Markup:
        """Draw faint horizontal lines, tick numbers and the two labels."""
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        lines = [
            element("line", x1=LEFT, x2=right, y1=self.y(tick), y2=self.y(tick), class_="grid") for tick in self.y_ticks
        ]
        rows = [label(LEFT - 8, self.y(tick) + 4, short(tick), "end") for tick in self.y_ticks]
        columns = [label(self.x(tick), bottom + 18, short(tick)) for tick in self.x_ticks]
        middle = (TOP + bottom) / 2
        names = [
            label((LEFT + right) / 2, self.height - 6, self.x_label, class_="axis"),
            label(12, middle, self.y_label, class_="axis", transform=f"rotate(-90 12 {middle:g})"),
        ]
        return element("g", *lines, *rows, *columns, *names)
