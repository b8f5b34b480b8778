"""Lossless decoding: a stream under any policy drafts, full KV verifies, and the text is full KV's greedy text.

Speculative decoding (Leviathan et al., 2023, arXiv 2211.17192) in its greedy case: a draft is accepted as long as it
is what the verifier would have chosen. The draft is the same model with a compressed cache, as in TriForce (Sun et
al., 2024, arXiv 2404.11912) and MagicDec (Chen et al., 2024, arXiv 2408.11049). Both caches are held; memory is not
saved.

Every token is the verifier's own choice among logits that full KV gives to a block of tokens. Kernels round a block
otherwise than a single token, and with quantised weights, whose inputs are rounded to eight bits as well, the logits
then differ by tenths. So all blocks have one size, filled up with tokens that are taken back: a token's row then does
not depend on the tokens around it, and the text is that of full KV which scores every token in such a block
(:func:`alone`), whatever was drafted. From full KV fed one by one it may part where two tokens nearly tie;
:func:`shortfall` says how nearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.engines.greedy import best
from pipeline.engines.stream import Mark, Stream

ROWS = 4  # tokens that llama.cpp's kernels compute at once; a rest of fewer is rounded otherwise


@dataclass(frozen=True)
class Verified:
    """A text and what it took."""

    ids: list[int]
    drafted: int
    accepted: int
    calls: int  # verifications; each gives what it accepts and a token of its own


@dataclass(frozen=True)
class Burst:
    """Tokens drafted in a row."""

    ids: list[int]
    marks: list[Mark]  # where the draft stood before it was fed each of them


def block_size(most: int) -> int:
    """Return how many tokens full KV scores at once where at most ``most`` are drafted; its cache needs that room."""
    return -(-(most + 1) // ROWS) * ROWS


def alone(full: Stream, first: int, tokens: int, most: int) -> list[int]:
    """Return the text that :func:`decode` gives whatever is drafted: every token is scored in a block of that size."""
    ids = [first]
    while len(ids) < tokens:
        ids.append(verify(full, ids[-1], [], block_size(most))[1])
    return ids


def decode(full: Stream, draft: Stream, first: int, tokens: int, most: int) -> Verified:
    """Return ``tokens`` ids, ``first`` among them: full KV's choice after the prompt, which both streams have read.

    At most ``most`` tokens are drafted for a verification. A cut cannot be undone, so a burst ends before the token
    that would bring one: policies cut on accepted tokens alone, as if they had decoded the text by themselves.
    """
    ids, unread = [first], [first]
    drafted = accepted = calls = 0
    while len(ids) < tokens:
        burst = propose(draft, unread, min(most, tokens - len(ids) - 1))
        agreed, own = verify(full, ids[-1], burst.ids, block_size(most))
        if agreed < len(burst.ids):
            draft.rewind(burst.marks[agreed])
            unread = [own]
        else:
            unread = [*(burst.ids[-1:] or unread), own]
        ids += [*burst.ids[:agreed], own]
        drafted, accepted, calls = drafted + len(burst.ids), accepted + agreed, calls + 1
    return Verified(ids, drafted, accepted, calls)


def propose(draft: Stream, unread: Sequence[int], most: int) -> Burst:
    """Return up to ``most`` tokens that the draft would go on with after those it has not read, which are accepted."""
    burst = Burst([], [])
    coming = unread
    while len(burst.ids) < most and (not burst.ids or draft.room is None or draft.room > 1):
        burst.ids.append(best(draft.feed(coming)[-1]))
        burst.marks.append(draft.mark())
        coming = burst.ids[-1:]
    return burst


def verify(full: Stream, newest: int, drafts: Sequence[int], block: int) -> tuple[int, int]:
    """Return how many drafts after the ``newest`` token full KV agrees with, and its own token after them.

    All are scored in one append of ``block`` tokens; what it does not agree with, and what fills it up, is taken back.
    """
    coming = [newest, *drafts]
    scores = full.feed([*coming, *[newest] * (block - len(coming))], every=True)
    choices = scores.argmax(axis=-1)
    agreed = int(np.logical_and.accumulate(choices[: len(drafts)] == np.asarray(drafts, dtype=choices.dtype)).sum())
    full.rewind(Mark(full.seen - block + agreed + 1, scores[agreed]))
    return agreed, int(choices[agreed])


def shortfall(full: Stream, logits: np.ndarray, ids: Sequence[int]) -> float:
    """Return the most that a token's logit lies below the best one when full KV reads ``ids`` one by one.

    It is 0 where the text is full KV's greedy text, and as small as rounding where it parts from it at a tie.
    ``logits`` float32 [vocabulary] are those after the prompt that the stream has read.
    """
    most = 0.0
    for token in ids:
        most = max(most, float(logits.max() - logits[token]))
        logits = full.feed([token])[-1]
    return most
