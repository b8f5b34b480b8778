"""The record of speed: rows and bounds as they come, and how the times of tokens are summed up."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.metrics import speed
from pipeline.metrics.measure import measure

log = logging.getLogger(__name__)


@dataclass
class Record:
    """Rows and bounds as they come, each told in a line."""

    bar: tqdm
    rows: list[dict] = field(default_factory=list)
    bounds: list[dict] = field(default_factory=list)

    def add(self, line: str, **row: Any) -> None:
        """Take in a row."""
        self.rows.append(row)
        self.bar.update()
        log.info("speed: %s", line)

    def bound(self, what: str, value: float, most: float, unit: str) -> None:
        """Hold a value to a bound; nothing fails if it does not hold."""
        holds = bool(value <= most)
        self.bounds.append(
            {"what": what, "value": measure(value, unit=unit, better="lower"), "bound": most, "holds": holds}
        )
        log.info("speed: %s: %.3g %s, at most %g: %s", what, value, unit, most, "holds" if holds else "DOES NOT HOLD")


def of_blocks(times: np.ndarray) -> float:
    """Return the median over blocks of the mean time of a token, in milliseconds: cuts within a block count."""
    return float(1e3 * np.median(times.mean(1)))


def above(times: np.ndarray, others: np.ndarray) -> float:
    """Return by how many percent a token takes longer, block by block; the median over blocks."""
    return float(100 * np.median(times.mean(1) / others.mean(1) - 1))


def tpot(times: np.ndarray) -> dict:
    """Return a row's times per output token."""
    return {
        "tpot_ms": measure(of_blocks(times), n=len(times), unit="ms", better="lower"),
        "tpot_ms_median": speed.median_token(times.ravel()),
        "tpot_ms_p95": speed.slow_token(times.ravel()),
    }
