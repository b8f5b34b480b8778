"""Recall in dialogues: a conversation comes turn by turn, what its tokens saw is counted, right answers score."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import prompts
from pipeline.benching import conversing
from pipeline.benching.conversing import Judge
from pipeline.benching.recalling import Answer
from pipeline.engines import greedy
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.engines.stream import Stream, room
from pipeline.kv import recipe
from pipeline.kv.policy import FULL
from pipeline.metrics import bert_f1
from pipeline.tasks import dialogue

from .bench_runs import chats
from .conftest import ROOT

pytest_plugins = ["tests.gguf_models"]


@pytest.fixture(scope="module")
def engine(tiny_gguf):
    """The tiny model."""
    with LlamaKvEngine(tiny_gguf("Q4_0"), threads=1) as loaded:
        yield loaded


@pytest.fixture
def task(tokenizer) -> dialogue.DialogueTask:
    """A conversation of some turns."""
    (made,) = dialogue.conversations(tokenizer, [chat["messages"] for chat in chats(40)], 700, 1, seed=1)
    return made[-1]


def turns(tokenizer, task: dialogue.DialogueTask) -> list[list[int]]:
    """Return the prompt's ids, cut before every user turn."""
    opening = prompts.prompt_ids(tokenizer, [{"role": "user", "content": "。"}])[:2]
    ids = list(task.prompt_ids)
    starts = [at for at in range(len(ids)) if ids[at : at + 2] == opening]
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


@pytest.mark.parametrize("name", ["streaming_llm", "context_shift", "h2o_online"])
def test_an_online_policy_reads_turn_by_turn(engine, tokenizer, task, name):
    policy = recipe.read(name).policy(64, 8, engine.shape.layers)
    ((found,),) = conversing.asked(engine, [policy], [task])
    cache = engine.cache(room(engine, policy, len(task.prompt_ids), len(task.prompt_ids) + task.tokens))
    stream = Stream(engine, cache, policy)
    assert len(turns(tokenizer, task)) > 3
    for turn in turns(tokenizer, task):
        logits = stream.feed(turn)
    expected = greedy.decode(stream, logits[-1], task.tokens, task.stop)
    cache.close()
    assert found.ids == expected
    assert found.entries == pytest.approx(stream.attended / engine.shape.layers / stream.seen)


def test_what_full_kv_holds_grows_by_a_token_at_a_time(engine, task):
    ((found,),) = conversing.asked(engine, [FULL], [task])
    last = len(task.prompt_ids) + len(found.ids) - 1  # the last token of the answer is not fed
    assert found.entries == pytest.approx(np.mean(np.arange(task.question_at + 1, last + 1)))
    entry = FULL.precision.kv_bytes(engine.shape, 1)
    assert conversing.held(engine, FULL, [found])["value"] == pytest.approx(entry * found.entries, rel=1e-5)


def test_right_answers_score(tokenizer, task, monkeypatch):
    monkeypatch.chdir(ROOT)
    scorer = bert_f1.open_scorer(bert_f1.read("nano-bert"))
    judge = Judge(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), scorer, seed=1)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{task.answer}。好。", "不清楚。")]
    right, wrong = (conversing.scores([task], [Answer([*one, task.stop], 1.0)], judge) for one in ids)
    assert (right["exact_match"]["value"], wrong["exact_match"]["value"]) == (1, 0)
    assert right["bert_f1"]["value"] == pytest.approx(1, abs=1e-4)
    assert wrong["bert_f1"]["value"] < 0.99
