"""Speed of token generation from wall times: time to first token, time per output token, tokens a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.measure import measure


def first_token(seconds: Sequence[float]) -> dict:
    """Return the median time to first token in seconds, one value a repetition."""
    return measure(np.median(seconds), stderr=_stderr(seconds), n=len(seconds), unit="s", better="lower")


def median_token(seconds: np.ndarray) -> dict:
    """Return the median time per output token in milliseconds."""
    return measure(1e3 * np.median(seconds), n=len(seconds), unit="ms", better="lower")


def slow_token(seconds: np.ndarray) -> dict:
    """Return the 95th percentile of the time per output token in milliseconds."""
    return measure(1e3 * np.quantile(seconds, 0.95), n=len(seconds), unit="ms", better="lower")


def rate(repetitions: Sequence[np.ndarray]) -> dict:
    """Return tokens a second over all tokens; the standard error is over repetitions' own rates."""
    rates = [len(seconds) / seconds.sum() for seconds in repetitions]
    seconds = np.concatenate(repetitions)
    value = len(seconds) / seconds.sum()
    return measure(value, stderr=_stderr(rates), n=len(seconds), unit="tokens/s", better="higher")


def _stderr(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
