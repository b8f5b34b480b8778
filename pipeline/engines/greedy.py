"""Greedy decoding of a stream: the likeliest token, every time."""

from __future__ import annotations

import numpy as np

from pipeline.engines.stream import Stream


def best(logits: np.ndarray) -> int:
    """Return the likeliest token of float32 logits [vocabulary]; of equal ones the first."""
    return int(np.argmax(logits))


def decode(stream: Stream, logits: np.ndarray, tokens: int, stop: int | None = None) -> list[int]:
    """Return the next ``tokens`` ids after float32 ``logits`` [vocabulary], the stream's newest.

    ``stop`` ends them early and is the last one then. The last id is returned without being fed.
    """
    ids = [best(logits)]
    while len(ids) < tokens and ids[-1] != stop:
        ids.append(best(stream.feed(ids[-1:])[-1]))
    return ids
