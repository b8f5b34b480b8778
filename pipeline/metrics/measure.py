"""A measured number with what is needed to read it: uncertainty, sample size, unit and direction."""

from __future__ import annotations

import math
from typing import Any, Literal


def measure(
    value: float,
    *,
    stderr: float | None = None,
    ci95: tuple[float, float] | None = None,
    n: int | None = None,
    unit: str | None = None,
    better: Literal["higher", "lower"] | None = None,
) -> dict[str, Any]:
    """Return the record of one measured number, as every JSON in eval/ holds it.

    ``stderr`` is the standard error of ``value``, ``ci95`` its 95 % confidence interval, ``n`` the number of
    samples. Numbers that are not finite are kept as the strings "nan", "inf" and "-inf": JSON has no other word.
    """
    return {
        "value": _plain(value),
        "stderr": None if stderr is None else _plain(stderr),
        "ci95": None if ci95 is None else [_plain(bound) for bound in ci95],
        "n": n,
        "unit": unit,
        "better": better,
    }


def _plain(number: float) -> float | int | str:
    if isinstance(number, int):
        return number
    number = float(number)
    return float(f"{number:.6g}") if math.isfinite(number) else str(number)
