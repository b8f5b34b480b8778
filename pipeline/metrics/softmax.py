"""Log-sum-exp and token likelihoods of logits in numpy: float32 in, float64 sums, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK_ELEMENTS = 1 << 18  # of one temporary: it stays in the cache, and a large vocabulary never doubles the memory


def blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Yield slices over ``rows`` so that one block holds about BLOCK_ELEMENTS logits."""
    step = max(1, BLOCK_ELEMENTS // vocabulary)
    return (slice(start, start + step) for start in range(0, rows, step))


def exponentials(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return exp(logits - top), its float64 row sums and log-sum-exp; logits are finite [rows, vocabulary]."""
    top = logits.max(axis=-1, keepdims=True)
    exp = np.exp(logits - top)
    total = exp.sum(axis=-1, dtype=np.float64)
    return exp, total, np.log(total) + top[:, 0]


def token_nll(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return -log p of each id in nats, float64 [tokens], from logits [tokens, vocabulary]."""
    ids = np.asarray(ids, dtype=np.int64)
    nll = np.empty(len(ids), dtype=np.float64)
    for block in blocks(*logits.shape):
        picked = np.take_along_axis(logits[block], ids[block, None], axis=-1)[:, 0]
        nll[block] = exponentials(logits[block])[2] - picked
    return nll
