"""Continuous batching: many prompts continued greedily at once, each slot taking the next prompt when its own ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.engines.llama.context import Context


@dataclass
class _Job:
    """One prompt in a slot: the ids it still has to feed, the next position, and the answer so far."""

    index: int
    sequence: int
    feed: Sequence[int]
    position: int = 0
    answer: list[int] = field(default_factory=list)


def greedy(
    context: Context, prompts: Sequence[Sequence[int]], slots: int, max_new_tokens: int, stop: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index, greedy continuation) as prompts end, on ``stop`` (included) or at ``max_new_tokens``."""
    waiting = deque(enumerate(prompts))
    free = deque(range(slots))
    running: list[_Job] = []
    while waiting or running:
        while waiting and free:
            index, prompt = waiting.popleft()
            running.append(_Job(index, free.popleft(), prompt))
        for job, token in _step(context, running):
            job.answer.append(token)
            job.feed = [token]
            if token == stop or len(job.answer) == max_new_tokens:
                running.remove(job)
                context.clear(job.sequence)
                free.append(job.sequence)
                yield job.index, job.answer


def _step(context: Context, running: Sequence[_Job]) -> list[tuple[_Job, int]]:
    """Decode one batch over all jobs; return those whose next token is known, with it.

    Answers go first, one token each; prompts share the room that is left, and a long one takes several batches.
    """
    room = context.n_batch
    shares = []
    for job in sorted(running, key=lambda job: (len(job.feed), job.sequence)):
        shares.append((job, min(len(job.feed), room)))
        room -= shares[-1][1]
    scores = context.decode(
        np.concatenate([job.feed[:share] for job, share in shares]),
        np.concatenate([np.arange(job.position, job.position + share) for job, share in shares]),
        np.concatenate([np.full(share, job.sequence) for job, share in shares]),
        np.concatenate([np.arange(share) == len(job.feed) - 1 for job, share in shares]),
    )
    complete = [job for job, share in shares if share == len(job.feed)]
    for job, share in shares:
        job.position += share
        job.feed = job.feed[share:]
    return list(zip(complete, scores.argmax(axis=1).tolist(), strict=True))


def in_order(results: Iterable[tuple[int, list[int]]]) -> Iterator[list[int]]:
    """Yield the answers of (index, answer) pairs by index, as soon as each one's turn has come."""
    early: dict[int, list[int]] = {}
    turn = 0
    for index, answer in results:
        early[index] = answer
        while turn in early:
            yield early.pop(turn)
            turn += 1
