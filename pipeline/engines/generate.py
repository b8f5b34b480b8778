"""Greedy continuation of a stream: the one loop that makes tokens under a KV-cache policy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.engines.stream import Stream


def greedy(stream: Stream, logits: np.ndarray, most: int, stop: int | None = None) -> Iterator[int]:
    """Yield the likeliest tokens after ``logits`` [n, vocabulary], up to and including ``stop``, ``most`` at most.

    A token is fed when the one after it is asked for, so that the last one never is.
    """
    for left in range(most, 0, -1):
        token = int(np.argmax(logits[-1]))
        yield token
        if token == stop or left == 1:
            return
        logits = stream.feed([token])
