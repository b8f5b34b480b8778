"""Perplexity and bits a character of reference answers, with standard errors that respect dialogues."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.metrics import uncertainty
from pipeline.metrics.measure import measure


def perplexity(nlls: Sequence[Sequence[float]]) -> dict:
    """Return exp of the mean negative log-likelihood (nats) of all answer tokens; one sequence a dialogue.

    The mean is a ratio of sums over dialogues (``uncertainty.ratio``); by the delta method the standard error of
    exp(r) is exp(r) times that of r, and the interval is exp of r's own normal interval.
    """
    rate, stderr = uncertainty.ratio([sum(tokens) for tokens in nlls], [len(tokens) for tokens in nlls])
    low, high = (math.exp(rate + sign * uncertainty.Z95 * stderr) for sign in (-1, 1))
    value = math.exp(rate)
    return measure(value, stderr=value * stderr, ci95=(low, high), n=len(nlls), better="lower")


def bits_per_char(nlls: Sequence[Sequence[float]], characters: Sequence[int]) -> dict:
    """Return the bits that the answers cost for each of their characters, the end of turn included.

    Unlike perplexity it can be compared between models with different tokenizers.
    """
    bits = [sum(tokens) / math.log(2) for tokens in nlls]
    return uncertainty.ratio_measure(bits, characters, unit="bits/character", better="lower")
