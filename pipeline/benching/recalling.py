"""Recall under a policy: facts are asked for after the cache has been cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import enter
from pipeline.engines import greedy
from pipeline.engines.cache import KvEngine
from pipeline.engines.opening import opened
from pipeline.engines.stream import room
from pipeline.kv.policy import Policy
from pipeline.tasks import recall
from pipeline.tasks.recall import RecallTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Question(Protocol):
    """A prompt that ends with a question, and how long an answer may be."""

    prompt_ids: Sequence[int]
    tokens: int
    stop: int | None


@dataclass(frozen=True)
class Answer:
    """A greedy answer, and how many entries a layer its tokens saw on average, and those fed before it."""

    ids: list[int]
    entries: float


def answer(
    engine: KvEngine,
    policy: Policy,
    question: Question,
    prompts: Prompts,
    read: int,
    words: PreTrainedTokenizerBase | None = None,
) -> Answer:
    """Return the greedy answer after ``read`` tokens of the prompt were prefilled and cut and the rest was fed.

    ``read`` is the whole prompt where the question may vote for what stays, and ends before the question where not.
    ``words`` is the tokenizer that policies with a summary need.
    """
    ids = list(question.prompt_ids)
    cache = engine.cache(room(engine, policy, read, len(ids) + question.tokens))
    try:
        stream = opened(engine, cache, policy, words)
        logits = enter(stream, policy, ids[:read], prompts)[0]
        if read < len(ids):
            logits = stream.feed(ids[read:])
        given = greedy.decode(stream, logits[-1], question.tokens, question.stop)
        fed = stream.seen - (0 if policy.online else read)
        return Answer(given, stream.attended / (engine.shape.layers * max(1, fed)))
    finally:
        cache.close()


def reads(policy: Policy, task: RecallTask) -> dict[str, int]:
    """Return how much of a task's prompt is read before the cut: with the question in sight, and without.

    An online policy cuts as it reads, so that the two are one.
    """
    whole = len(task.prompt_ids)
    cuts_at_the_end = not policy.online and (policy.cuts or policy.narrowing)
    return {"seen": whole, "unseen": task.question_at} if cuts_at_the_end else {"seen": whole}


def asked(
    engine: KvEngine, policies: Sequence[Policy], task: RecallTask, words: PreTrainedTokenizerBase | None = None
) -> list[dict[str, list[int]]]:
    """Return for each policy its answers to one task, by whether the question was seen when the cache was cut."""
    shared = {
        read: Prompts(engine, list(task.prompt_ids[:read]), policies)
        for read in (len(task.prompt_ids), task.question_at)
    }
    return [
        {
            name: answer(engine, policy, task, shared[read], read, words).ids
            for name, read in reads(policy, task).items()
        }
        for policy in policies
    ]


def add_recall(rows: Sequence[dict], tasks: dict[str, list[RecallTask]], answers: Sequence[list[dict]]) -> None:
    """Add the shares of right answers to a row a policy; ``answers`` are those to all tasks, kind after kind."""
    given = iter(answers)
    for kind, asked_of_kind in tasks.items():
        by_policy = zip(*(next(given) for _ in asked_of_kind), strict=True)
        for one, found in zip(rows, by_policy, strict=True):
            one.setdefault("recall", {})[kind] = {
                sight: recall.score(asked_of_kind, [answer[sight] for answer in found]) for sight in found[0]
            }
