"""What a table is, whatever it is printed in: columns that know their direction, cells that know how they sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.reporting.measured import Measure

ABSENT = "–"
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


@dataclass(frozen=True)
class Cell:
    """One value: ``detail`` is set smaller behind it, ``sort`` orders it; ``share`` is a bar's length from 0 to 1.

    ``heat``, from 0 to 1, is how deeply the cell is coloured; its detail then shows on hover.
    """

    text: str
    detail: str = ""
    sort: float | None = None
    share: float | None = None
    heat: float | None = None


@dataclass(frozen=True)
class Column:
    """A heading with its meaning, the direction that is better, and how an item becomes its cell."""

    label: str
    cell: Callable[[Any], Cell]
    title: str = ""
    better: str | None = None
    numeric: bool = True
    bar: bool = False  # draw a bar from zero under the number, the column's largest being full length

    @property
    def arrow(self) -> str:
        """The arrow that readers of evaluation tables expect."""
        return ARROWS[self.better]


def words(label: str, cell: Callable[[Any], Cell], title: str = "") -> Column:
    """Return a column of text."""
    return Column(label, cell, title, numeric=False)


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells; ``marked`` holds the indices of rows to set off."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()

    @property
    def sortable(self) -> bool:
        """Whether there is an order to choose."""
        return len(self.rows) > 2


def build(columns: Sequence[Column], items: Iterable[Any], marked: Callable[[Any], bool] = lambda item: False) -> Table:
    """Return the table of ``items``, one row each."""
    items = list(items)
    cells = [[column.cell(item) for item in items] for column in columns]
    cells = [_with_bars(line) if column.bar else line for column, line in zip(columns, cells, strict=True)]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table(columns, rows, frozenset(index for index, item in enumerate(items) if marked(item)))


def _with_bars(cells: list[Cell]) -> list[Cell]:
    top = max((cell.sort for cell in cells if cell.sort is not None), default=0)
    return [replace(cell, share=cell.sort / top) if top > 0 and cell.sort is not None else cell for cell in cells]


def number(value: float, digits: int = 2, signed: bool = False, detail: str = "") -> Cell:
    """Return a number with fixed decimals; one that is not finite is shown as such and sorts last."""
    if not math.isfinite(value):
        return Cell(str(value))
    if not signed and 0 < value < 10**-digits / 2:
        return Cell(f"<{10**-digits:.{digits}f}", sort=value)
    return Cell(plain(value, digits, signed), detail, sort=value)


def _error(value: float, digits: int) -> str:
    return plain(value, digits) if value >= 10**-digits / 2 else f"{value:.0e}"


def plain(value: float, digits: int, signed: bool = False) -> str:
    """Return a number as text: thousands separated, a true minus sign, no negative zero."""
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def measured(measure: Measure, digits: int = 2, scale: float = 1, ci: bool = False) -> Cell:
    """Return a measured number with its standard error, or with its 95 % interval where ``ci`` asks for it."""
    detail = ""
    if ci and measure.ci95:
        detail = interval(*(bound * scale for bound in measure.ci95), digits)
    elif measure.stderr and math.isfinite(measure.stderr):  # 0: a reference beside itself
        detail = f"± {_error(measure.stderr * scale, digits)}"
    return number(measure.value * scale, digits, detail=detail)


def percent(share: float, digits: int = 0, signed: bool = False) -> str:
    """Return a share as a percentage, its sign kept on the same line."""
    return f"{plain(100 * share, digits, signed)}\u00a0%"


def interval(low: float, high: float, digits: int, signed: bool = False) -> str:
    """Return a confidence interval as text."""
    return f"[{plain(low, digits, signed)}, {plain(high, digits, signed)}]"


def text(value: Any) -> Cell:
    """Return a value as plain text; nothing is shown as a dash."""
    return Cell(ABSENT if value is None or value == "" else str(value))
