"""Recall under a policy: facts are asked for after the cache has been cut, or as it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import reading
from pipeline.engines import greedy
from pipeline.engines.cache import KvEngine
from pipeline.kv.policy import Policy
from pipeline.tasks import recall
from pipeline.tasks.recall import RecallTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Question(Protocol):
    """A prompt that ends with a question, from ``question_at`` on, and how long an answer may be."""

    prompt_ids: Sequence[int]
    question_at: int
    tokens: int
    stop: int | None


@dataclass(frozen=True)
class Answer:
    """A greedy answer, and how many entries a layer its tokens saw on average, and those fed before it."""

    ids: list[int]
    entries: float


def late(
    engine: KvEngine,
    policy: Policy,
    questions: Sequence[Question],
    context: Prompts,
    words: PreTrainedTokenizerBase | None = None,
) -> list[Answer]:
    """Return the greedy answers to questions about one ``context``, which is read and cut before any of them comes.

    It is read once, and each question is asked as if it were the only one. ``words`` is the tokenizer that policies
    with a summary need.
    """
    read = questions[0].question_at
    most = max(len(question.prompt_ids) - read + question.tokens for question in questions)
    found = []
    with reading(engine, policy, questions[0].prompt_ids[:read], context, most, words) as (stream, _):
        start, attended = stream.checkpoint(), stream.attended
        for question in questions:
            stream.resume(start)
            before = stream.attended
            logits = stream.feed(question.prompt_ids[read:])
            ids = greedy.decode(stream, logits[-1], question.tokens, question.stop)
            fed = stream.seen - (0 if policy.online else read)
            found.append(Answer(ids, (attended + stream.attended - before) / (engine.shape.layers * fed)))
    return found


def voted(
    engine: KvEngine,
    policy: Policy,
    question: Question,
    prompt: Prompts,
    words: PreTrainedTokenizerBase | None = None,
) -> list[int]:
    """Return the greedy answer where the question is part of the ``prompt`` and may vote for what stays."""
    with reading(engine, policy, question.prompt_ids, prompt, question.tokens, words) as (stream, logits):
        return greedy.decode(stream, logits, question.tokens, question.stop)


def votes(policy: Policy) -> bool:
    """Tell whether a question may be seen by a cut: an online policy cuts as it reads, others once, or never."""
    return not policy.online and bool(policy.cuts or policy.narrowing)


def asked(
    engine: KvEngine,
    policies: Sequence[Policy],
    tasks: Sequence[RecallTask],
    words: PreTrainedTokenizerBase | None = None,
) -> list[dict[str, list[list[int]]]]:
    """Return for each policy its answers to the tasks of one context, by whether a question was seen at the cut.

    Where it can be, that is asked of the first task alone, since it takes a prompt of its own; where there is no such
    cut, the answers are filed as seen.
    """
    first = tasks[0]
    context, whole = (Prompts(engine, first.prompt_ids[:end], policies) for end in (first.question_at, None))
    answers = []
    for policy in policies:
        unseen = [answer.ids for answer in late(engine, policy, tasks, context, words)]
        seen = [voted(engine, policy, first, whole, words)] if votes(policy) else []
        answers.append({"seen": seen, "unseen": unseen} if seen else {"seen": unseen})
    return answers


def add_recall(rows: Sequence[dict], tasks: dict[str, list[list[RecallTask]]], answers: Sequence[list[dict]]) -> None:
    """Add the shares of right answers to a row a policy; ``answers`` are those about all contexts, kind after kind."""
    given = iter(answers)
    for kind, contexts in tasks.items():
        by_policy = zip(*(next(given) for _ in contexts), strict=True)
        for row, found in zip(rows, by_policy, strict=True):
            row.setdefault("recall", {})[kind] = {sight: _share(contexts, found, sight) for sight in found[0]}


def _share(contexts: Sequence[Sequence[RecallTask]], found: Sequence[dict], sight: str) -> dict:
    """Return the share of right answers; of a context the first tasks were asked, as many as there are answers."""
    answers = [about[sight] for about in found]
    tasks = [context[: len(given)] for context, given in zip(contexts, answers, strict=True)]
    return recall.score(list(chain(*tasks)), list(chain(*answers)))
