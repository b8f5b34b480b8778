"""Greedy decoding from a stream, whatever its policy."""

from __future__ import annotations

import numpy as np

from pipeline.engines.stream import Stream


def greedy(stream: Stream, logits: np.ndarray, most: int, stop: int | None = None) -> list[int]:
    """Return the continuation behind the newest of float32 ``logits`` [n, vocabulary]: up to ``stop``, ``most`` tokens.

    The last one is not fed.
    """
    given = [int(np.argmax(logits[-1]))]
    while len(given) < most and given[-1] != stop:
        given.append(int(np.argmax(stream.feed(given[-1:])[-1])))
    return given
