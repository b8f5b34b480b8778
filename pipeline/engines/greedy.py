"""Greedy decoding of a stream: the likeliest token, every time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.engines.stream import Stream


def best(logits: np.ndarray) -> int:
    """Return the likeliest token of float32 logits [vocabulary]; of equal ones the first."""
    return int(np.argmax(logits))


def decode(stream: Stream, logits: np.ndarray, tokens: int, stop: int | None = None) -> list[int]:
    """Return the next ``tokens`` ids after float32 ``logits`` [vocabulary], the stream's newest.

    ``stop`` ends them early and is the last one then. The last id is returned without being fed.
    """
    return list(continuation(stream, logits, tokens, stop))


def continuation(stream: Stream, logits: np.ndarray, tokens: int, stop: int | None = None) -> Iterator[int]:
    """Yield what :func:`decode` returns, each id as it is known; it is fed when the next one is asked for."""
    for left in range(tokens, 0, -1):
        token = best(logits)
        yield token
        if token == stop or left == 1:
            return
        logits = stream.feed([token])[-1]
