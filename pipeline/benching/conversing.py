"""Recall in dialogues under every policy: exact match, BERT-F1 of the answer's sentence, and the KV bytes it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import prompts
from pipeline.benching import recalling
from pipeline.benching.plan import Plan
from pipeline.benching.prompts import Prompts
from pipeline.benching.recalling import Answer
from pipeline.config import Params
from pipeline.engines.cache import KvEngine
from pipeline.kv.policy import Policy
from pipeline.metrics import bert_f1, uncertainty
from pipeline.metrics.measure import measure
from pipeline.tasks import dialogue, recall
from pipeline.tasks.dialogue import DialogueTask

if TYPE_CHECKING:
    from bert_score import BERTScorer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Judge:
    """What turns answers into scores."""

    decode: Callable[[Sequence[int]], str]  # special tokens left out
    scorer: BERTScorer
    seed: int


def judge(params: Params, tokenizer: Path) -> Judge:
    """Return the judge with the scorer that params.yaml names; raise UserError if it is not to be had."""
    words = prompts.load_tokenizer(tokenizer)
    scorer = bert_f1.open_scorer(bert_f1.read(params.evaluate.scorer))
    return Judge(lambda ids: words.decode(ids, skip_special_tokens=True), scorer, params.runtime.seed)


def add_dialogue_recall(
    engine: KvEngine, planned: Plan, rows: Sequence[dict], answers: Sequence[list[list[Answer]]], judge: Judge
) -> None:
    """Add to a row a case what was right of its answers; ``answers`` are those about all conversations."""
    tasks = list(chain(*planned.dialogues))
    for row, case, about in zip(rows, planned.cases, zip(*answers, strict=True), strict=True):
        given = list(chain(*about))
        row["dialogue_recall"] = scores(tasks, given, judge)
        row["dialogue_recall"]["kv_bytes_mean"] = held(engine, case.policy, given)


def asked(
    engine: KvEngine,
    policies: Sequence[Policy],
    tasks: Sequence[DialogueTask],
    words: PreTrainedTokenizerBase | None = None,
) -> list[list[Answer]]:
    """Return for each policy its answers about one conversation; it has seen no question when it cuts.

    A conversation comes turn by turn. Online policies cut as it comes; the others read it whole up to the question,
    cut, and then read the question.
    """
    conversation = Prompts(engine, tasks[0].prompt_ids[: tasks[0].question_at], policies)
    return [recalling.late(engine, policy, tasks, conversation, words) for policy in policies]


def scores(tasks: Sequence[DialogueTask], answers: Sequence[Answer], judge: Judge) -> dict:
    """Return how many answers begin with the value asked for, and how alike the sentences are to the references."""
    sentences = [dialogue.sentence(task, judge.decode(one.ids)) for task, one in zip(tasks, answers, strict=True)]
    f1 = bert_f1.scores(judge.scorer, sentences, [task.reference for task in tasks])
    return {
        "exact_match": recall.score(tasks, [one.ids for one in answers]),
        "bert_f1": uncertainty.mean_measure(f1, judge.seed, better="higher"),
    }


def held(engine: KvEngine, policy: Policy, answers: Sequence[Answer]) -> dict:
    """Return the bytes of the entries that tokens saw on average; of whole prompts those after them alone count."""
    entries = float(np.mean([one.entries for one in answers]))
    return measure(entries * policy.precision.kv_bytes(engine.shape, 1), unit="bytes", better="lower")
