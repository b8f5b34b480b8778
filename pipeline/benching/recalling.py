"""Recall under a policy: facts are asked for after the cache has been cut."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import enter
from pipeline.engines.cache import KvEngine
from pipeline.engines.generate import greedy
from pipeline.engines.stream import Stream, room
from pipeline.kv.policy import Policy
from pipeline.tasks.recall import RecallTask


def answer(engine: KvEngine, policy: Policy, task: RecallTask, prompts: Prompts, read: int) -> list[int]:
    """Return the greedy answer after ``read`` tokens of the prompt were prefilled and cut and the rest was fed.

    ``read`` is the whole prompt where the question may vote for what stays, and ends before the question where not.
    """
    ids = list(task.prompt_ids)
    cache = engine.cache(room(engine, policy, read, len(ids) + len(task.answer_ids)))
    try:
        stream = Stream(engine, cache, policy)
        logits = enter(stream, policy, ids[:read], prompts)[0]
        if read < len(ids):
            logits = stream.feed(ids[read:])
        return list(greedy(stream, logits, len(task.answer_ids)))
    finally:
        cache.close()


def reads(policy: Policy, task: RecallTask) -> dict[str, int]:
    """Return how much of a task's prompt is read before the cut: with the question in sight, and without.

    An online policy cuts as it reads, so that the two are one.
    """
    whole = len(task.prompt_ids)
    cuts_at_the_end = not policy.online and (policy.cuts or policy.narrowing)
    return {"seen": whole, "unseen": task.question_at} if cuts_at_the_end else {"seen": whole}


def asked(engine: KvEngine, policies: Sequence[Policy], task: RecallTask) -> list[dict[str, list[int]]]:
    """Return for each policy its answers to one task, by whether the question was seen when the cache was cut."""
    shared = {
        read: Prompts(engine, list(task.prompt_ids[:read]), policies)
        for read in (len(task.prompt_ids), task.question_at)
    }
    return [
        {name: answer(engine, policy, task, shared[read], read) for name, read in reads(policy, task).items()}
        for policy in policies
    ]
