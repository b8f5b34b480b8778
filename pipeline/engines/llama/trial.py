"""One trial of a KV-cache policy: a document's prompt and its true continuation, timed and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.stream import Stream
from pipeline.kv.policy import Policy


@dataclass(frozen=True)
class Document:
    """Token ids in two parts: the prompt, and the text that truly follows it."""

    prompt: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Trial:
    """What one trial gave; times in seconds, on the wall."""

    first_token: float  # prefill, eviction included
    tokens: np.ndarray  # float64 [timed], each token's decoding, eviction included
    entries_peak: int
    entries: int
    kv_bytes_peak: int  # accounted at the peak
    kv_bytes: int  # measured at the end


def run(
    model: Any, policy: Policy, document: Document, *, warmup: int, timed: int, flash_attention: bool, threads: int
) -> tuple[Trial, np.ndarray]:
    """Prefill the prompt, decode ``warmup`` and ``timed`` true tokens one by one, then score the rest in blocks.

    Also return float32 logits [continuation, vocabulary], the predictions of the continuation. Between two cuts a
    block and single tokens are the same computation, so the scores are those of single steps.
    """
    cells = policy.most_entries(len(document.prompt) + len(document.continuation))
    with Context(
        model, n_ctx=cells, threads=threads, precision=policy.precision, flash_attention=flash_attention
    ) as context:
        stream = Stream(context, policy)
        logits, first_token = _timed(stream.feed, document.prompt)
        scores, seconds = [logits], []
        for token in document.continuation[: warmup + timed]:
            logits, elapsed = _timed(stream.feed, [token])
            scores.append(logits)
            seconds.append(elapsed)
        if rest := document.continuation[warmup + timed : -1]:
            scores.append(stream.feed(rest, every=True))
        shape = library.cache_shape(model)
        trial = Trial(
            first_token=first_token,
            tokens=np.array(seconds[warmup:]),
            entries_peak=stream.peak,
            entries=stream.live,
            kv_bytes_peak=policy.precision.kv_bytes(shape, stream.peak),
            kv_bytes=context.kv_bytes(shape.layers, stream.live),
        )
    return trial, np.concatenate(scores)[: len(document.continuation)]


def _timed(action: Callable[..., np.ndarray], *arguments: Any) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    result = action(*arguments)
    return result, time.perf_counter() - started
