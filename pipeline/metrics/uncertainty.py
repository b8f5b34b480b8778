"""Standard errors and 95 % confidence intervals over dialogues, and the seeded derangement of the shuffled control."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.metrics.measure import measure

RESAMPLES = 2000
Z95 = 1.959964


def mean_measure(values: ArrayLike, seed: int, **about: Any) -> dict:
    """Return the record of a mean; ``about`` are unit and direction for ``measure``.

    The interval is the percentile bootstrap over the values (Efron, 1979), ``RESAMPLES`` times with ``seed``.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    draws = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    stderr = values.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return measure(values.mean(), stderr=stderr, ci95=(low, high), n=n, **about)


def ratio_measure(numerators: ArrayLike, denominators: ArrayLike, **about: Any) -> dict:
    """Return the record of a ratio of sums, with a normal interval; ``about`` as in :func:`mean_measure`."""
    value, stderr = ratio(numerators, denominators)
    ci95 = (value - Z95 * stderr, value + Z95 * stderr)
    return measure(value, stderr=stderr, ci95=ci95, n=len(numerators), **about)


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float]:
    """Return (r, standard error) of r = sum(numerators) / sum(denominators), one pair of sums for each dialogue.

    Tokens of one dialogue are not independent, so the dialogue is the sampling unit: with residuals
    e = numerator - r * denominator, Var(r) = n / (n - 1) * sum(e^2) / sum(denominators)^2 (Cochran, 1977, ch. 6).
    """
    top, bottom = (np.asarray(side, dtype=np.float64) for side in (numerators, denominators))
    value, n = top.sum() / bottom.sum(), len(top)
    residuals = top - value * bottom
    variance = n / (n - 1) * (residuals**2).sum() / bottom.sum() ** 2 if n > 1 else float("nan")
    return float(value), float(np.sqrt(variance))


def derangement(n: int, seed: int) -> np.ndarray:
    """Return a random permutation of ``range(n)`` in one cycle, so that nothing stays in place; ``n`` is above 1."""
    if n < 2:
        raise ValueError(f"no derangement of {n} items")
    order = np.random.default_rng(seed).permutation(n)
    moved = np.empty(n, dtype=np.int64)
    moved[order] = np.roll(order, 1)
    return moved
