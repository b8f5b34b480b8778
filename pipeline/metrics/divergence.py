"""How far a model's next-token distributions lie from a reference's on the same token ids: KL divergence, top-1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline.metrics import softmax, uncertainty


def kld(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return KL(reference || model) of each token in nats, float64 [tokens] (Kullback and Leibler, 1951).

    Both are finite logits [tokens, vocabulary]. Written as sum p (x - y) + lse(y) - lse(x), so that equal logits
    give exactly 0; rounding below 0 is cut, as the divergence has no negative values.
    """
    divergence = np.empty(len(logits), dtype=np.float64)
    for block in softmax.blocks(*logits.shape):
        x, y = reference[block], logits[block]
        exp, total, lse_x = softmax.exponentials(x)
        lse_y = softmax.exponentials(y)[2]
        expected = (exp * (x - y)).sum(axis=-1, dtype=np.float64) / total
        divergence[block] = expected + lse_y - lse_x
    return np.maximum(divergence, 0.0)


def same_top(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return for each token whether both have the same most likely next token, bool [tokens]."""
    return reference.argmax(axis=-1) == logits.argmax(axis=-1)


def mean_kld(klds: Sequence[ArrayLike]) -> dict:
    """Return the mean divergence of all tokens in nats; one sequence of per-token values a dialogue."""
    sums, counts = [np.sum(tokens) for tokens in klds], [len(tokens) for tokens in klds]
    return uncertainty.ratio_measure(sums, counts, unit="nats/token", better="lower")


def mean_same_top(same: Sequence[ArrayLike]) -> dict:
    """Return the share of all tokens with the same most likely next token; one sequence of booleans a dialogue."""
    sums, counts = [np.sum(tokens) for tokens in same], [len(tokens) for tokens in same]
    return uncertainty.ratio_measure(sums, counts, unit="share", better="higher")
