"""The sample prompts of evaluate answered under full KV and under policies, with what was evicted meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from pipeline import io, prompts
from pipeline.benching.plan import Plan
from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import reading
from pipeline.config import Evaluate
from pipeline.engines import greedy
from pipeline.engines.cache import KvEngine
from pipeline.engines.stream import Stream
from pipeline.kv.policy import Policy
from pipeline.metrics.measure import measure
from pipeline.tasks import samples as sampled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """A prompt to answer greedily, until ``stop`` or ``tokens`` of an answer."""

    id: str
    prompt_ids: list[int]
    tokens: int
    stop: int


def samples(words: PreTrainedTokenizerBase, dialogues: Path, evaluate: Evaluate) -> list[Sample]:
    """Return the prompts whose answers evaluate shows, to be answered as it does."""
    records = list(islice(io.read_jsonl(dialogues), evaluate.dialogues))
    stop = prompts.end_of_turn_id(words)
    return [
        Sample(
            records[place]["id"],
            prompts.prompt_ids(words, records[place]["messages"][:-1]),
            evaluate.max_new_tokens,
            stop,
        )
        for place in sampled.chosen(records, evaluate.samples)
    ]


def rows(engine: KvEngine, planned: Plan, samples: Sequence[Sample], bar: tqdm) -> list[dict]:
    """Return the answers of every case to all samples, full KV first; none where no policy is to answer."""
    policies = [case.policy for case in planned.answering]
    given = []
    for sample in samples if policies else ():
        shared = Prompts(engine, sample.prompt_ids, policies)
        given.append([answer(engine, policy, sample, shared, planned.words) for policy in policies])
        bar.update(len(policies))
    return [
        {"policy": case.name, "budget": case.budget, "answers": list(answers)}
        for case, answers in zip(planned.answering, zip(*given, strict=True), strict=True)
    ]


def answer(engine: KvEngine, policy: Policy, sample: Sample, shared: Prompts, words: PreTrainedTokenizerBase) -> dict:
    """Return the record of a greedy answer: its text, the entries at its end, and what was evicted until then."""
    with reading(engine, policy, sample.prompt_ids, shared, sample.tokens, words) as (stream, logits):
        ids = greedy.decode(stream, logits, sample.tokens, sample.stop)
        return {
            "id": sample.id,
            "answer": words.decode(ids, skip_special_tokens=True),
            "entries": measure(float(np.mean(stream.lives)), unit="entries"),
            "evicted": measure(evicted(stream), unit="entries"),
        }


def evicted(stream: Stream) -> float:
    """Return how many of the tokens fed have no entry any more, a layer and KV head."""
    living = [int((origins >= 0).sum()) / len(origins) for origins in stream.origins()]  # a summary's are negative
    return stream.seen - float(np.mean(living))
