"""One trial of a KV-cache policy: a document's prompt and its true continuation, timed and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.benching.prompts import Prompts
from pipeline.benching.stopwatch import timed
from pipeline.benching.work import Work
from pipeline.engines.cache import KvEngine
from pipeline.engines.opening import opened
from pipeline.engines.stream import Stream, room
from pipeline.engines.summary.account import Account
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Document:
    """Token ids in two parts: the prompt, and the text that truly follows it."""

    prompt: Sequence[int]
    continuation: Sequence[int]


@dataclass(frozen=True)
class Pace:
    """How many tokens of a continuation are decoded one by one: some to warm up, then those that are timed."""

    warmup: int
    timed: int


@dataclass(frozen=True)
class Trial:
    """What one trial gave; times in seconds, on the wall."""

    prefill: float  # until the prompt is in; of online policies with their eviction
    compress: float  # the cut at the prompt's end, and the move into the cache for decoding
    tokens: np.ndarray  # float64 [timed], each token's decoding, eviction included
    entries: list[int]  # of each layer at the end
    entries_peak: list[int]  # most of each layer, prefill included
    kv_bytes: int  # measured at the end
    kv_bytes_peak: int  # accounted at the peak
    state_bytes: int  # what the policy keeps beside keys and values
    host_bytes: int  # keys and values of entries that may come back
    flops_prefill: int
    flops_token: float  # of a decoded token, on average
    summary: Account | None  # what its summaries have cost, in whole
    seconds: float  # of the whole trial
    kept: list[np.ndarray]  # for each layer int64 [kv_heads, n], the tokens whose entries live at the end


def run(
    engine: KvEngine,
    policy: Policy,
    document: Document,
    prompts: Prompts,
    work: Work,
    pace: Pace,
    words: PreTrainedTokenizerBase | None = None,
) -> tuple[Trial, np.ndarray]:
    """Bring the prompt in, decode true tokens one by one at the ``pace``, then score the rest in blocks.

    Also return float32 logits [continuation, vocabulary], the predictions of the continuation. Between two cuts a
    block and single tokens are the same computation, so the scores are those of single steps. ``words`` is the
    tokenizer that policies with a summary need.
    """
    tokens = len(document.prompt) + len(document.continuation)
    cache = engine.cache(room(engine, policy, len(document.prompt), tokens))
    try:
        stream = opened(engine, cache, policy, words)
        first, peak, prefill, compress = enter(stream, policy, document.prompt, prompts)
        before = _counts(stream)
        spent = _work(work, before) if policy.online else work.prompt(policy, len(document.prompt))
        scores, seconds = [first], []
        for token in document.continuation[: pace.warmup + pace.timed]:
            logits, elapsed = timed(stream.feed, [token])
            scores.append(logits)
            seconds.append(elapsed)
        decoded = (_counts(stream) - before) / len(seconds)
        whole = prefill + compress + sum(seconds)
        if rest := document.continuation[pace.warmup + pace.timed : -1]:
            last, elapsed = timed(partial(stream.feed, rest, every=True))
            scores.append(last)
            whole += elapsed
        peaks = [max(pair) for pair in zip(peak, stream.peaks, strict=True)]
        trial = Trial(
            prefill=prefill,
            compress=compress,
            tokens=np.array(seconds[pace.warmup :]),
            entries=stream.lives,
            entries_peak=peaks,
            kv_bytes=cache.kv_bytes(),
            kv_bytes_peak=kv_bytes(engine, policy.precision, peaks),
            state_bytes=stream.state_bytes(),
            host_bytes=stream.host_bytes(),
            flops_prefill=spent,
            flops_token=_work(work, decoded),
            summary=stream.account,
            seconds=whole,
            kept=[origins.numpy() for origins in stream.origins()],
        )
    finally:
        cache.close()
    return trial, np.concatenate(scores)[: len(document.continuation)]


def _counts(stream: Stream) -> np.ndarray:
    """Return tokens computed, entries that they saw, and predictions besides the text's own."""
    aside = stream.aside
    return np.array([stream.seen + aside.tokens, stream.attended + aside.attended, aside.predictions])


def _work(work: Work, counts: np.ndarray) -> float:
    computed, attended, predicted = counts.tolist()
    return work.tokens(computed, attended, 1 + predicted)


def enter(
    stream: Stream, policy: Policy, ids: Sequence[int], prompts: Prompts
) -> tuple[np.ndarray, list[int], float, float]:
    """Bring a prompt in; return logits [1, vocabulary], each layer's most entries meanwhile, and two times."""
    if policy.online:
        logits, seconds = timed(stream.feed, ids)
        return logits, stream.peaks, seconds, 0.0
    snapshot, seconds = prompts.prefilled(policy)
    _, compress = timed(stream.take, snapshot)
    held = [snapshot.lives]
    if policy.narrowing:
        held.append(policy.narrowing.first_reading(len(snapshot.lives), len(ids), policy.budget))
    return snapshot.logits[None], max(held, key=sum), seconds, compress


@contextmanager
def reading(
    engine: KvEngine,
    policy: Policy,
    ids: Sequence[int],
    prompts: Prompts,
    tokens: int,
    words: PreTrainedTokenizerBase | None = None,
) -> Iterator[tuple[Stream, np.ndarray]]:
    """Give a stream that has read a prompt, with room for ``tokens`` more, and the logits after it."""
    cache = engine.cache(room(engine, policy, len(ids), len(ids) + tokens))
    try:
        stream = opened(engine, cache, policy, words)
        yield stream, enter(stream, policy, ids, prompts)[0][-1]
    finally:
        cache.close()


def kv_bytes(engine: KvEngine, precision: Precision, entries: Sequence[int]) -> int:
    """Return the accounted bytes of layers with so many entries each."""
    return sum(precision.kv_bytes(engine.shape, live) for live in entries) // engine.shape.layers
