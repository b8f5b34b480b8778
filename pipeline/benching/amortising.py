"""What summaries cost in the long run: a conversation, held as chat holds it, under every policy that makes any."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline import prompts
from pipeline.benching.stopwatch import timed
from pipeline.engines.cache import KvEngine
from pipeline.engines.opening import opened
from pipeline.engines.stream import Stream, room
from pipeline.engines.summary.account import Account
from pipeline.kv.policy import Policy
from pipeline.metrics.measure import measure
from pipeline.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.benching.plan import Case, Plan

LENGTH = 8  # of the conversation, times the greatest depth


@dataclass(frozen=True)
class Turn:
    """Token ids of a user's message, with all that came since the one before, and of the reply's text."""

    asked: Sequence[int]
    reply: Sequence[int]


def turns(words: PreTrainedTokenizerBase, dialogues: Sequence[Sequence[Message]], tokens: int) -> Iterator[Turn]:
    """Yield the turns of dialogues, one after another and from the first again, until ``tokens`` have been asked."""
    pending: list[Message] = []
    count = 0
    for message in itertools.chain.from_iterable(itertools.cycle(dialogues)):
        if message["role"] == "assistant" and pending and pending[-1]["role"] == "user":
            turn = Turn(prompts.history_ids(words, pending), prompts.answer_ids(words, message["content"])[:-1])
            count += len(turn.asked)
            if count > tokens:
                return
            yield turn
            pending = []
        pending.append(message)


def summarises(case: Case) -> bool:
    """Tell whether a case makes summaries."""
    return bool(case.policy.summary and case.policy.summary.mode != "none")


def add_shares(engine: KvEngine, planned: Plan, rows: Sequence[dict], bar: tqdm) -> None:
    """Hold the conversation under every case that summarises; add what it took to the rows of the greatest depth."""
    deepest = [row for row in rows if row["depth"] == max(planned.documents)]
    for row, case in zip(deepest, planned.cases, strict=True):
        if planned.turns and summarises(case):
            row["conversation"] = held(engine, case.policy, planned.turns, planned.words)
            bar.update()


def held(engine: KvEngine, policy: Policy, talk: Sequence[Turn], words: PreTrainedTokenizerBase) -> dict:
    """Return what summaries took of a conversation's time, and how many there were."""
    cache = engine.cache(room(engine, policy, 0, sum(len(turn.asked) + len(turn.reply) for turn in talk)))
    try:
        stream = opened(engine, cache, policy, words)
        _, seconds = timed(converse, stream, talk, prompts.opening_ids(words))
        return _figures(stream.account, stream.seen, seconds)
    finally:
        cache.close()


def converse(stream: Stream, talk: Sequence[Turn], opening: Sequence[int]) -> None:
    """Read every message and decode every reply token by token, which the next turn reads again as history."""
    for turn in talk:
        stream.tentative = False
        stream.feed(turn.asked)
        point = stream.checkpoint()
        stream.tentative = True
        stream.feed(opening)
        for token in turn.reply:
            stream.feed([token])
        stream.resume(point)


def _figures(account: Account, tokens: int, seconds: float) -> dict:
    share = (account.writing + account.inserting) / seconds
    return {
        "tokens": measure(tokens, unit="tokens"),
        "made": measure(account.made, unit="summaries"),
        "failures": measure(account.failures, unit="failures", better="lower"),
        "retries": measure(account.retries, unit="attempts", better="lower"),
        "fallbacks": measure(account.fallbacks, unit="summaries", better="lower"),
        "computed": measure(account.computed, unit="tokens", better="lower"),
        "seconds": measure(seconds, unit="s", better="lower"),
        "share": measure(share, unit="share", better="lower"),
    }
