"""Questions about one context: under every policy each is answered as if it were the only one."""

from __future__ import annotations

import pytest

from pipeline import recipes
from pipeline.benching import recalling
from pipeline.benching.prompts import Prompts
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.kv import recipe
from pipeline.tasks import recall

pytest_plugins = ["tests.gguf_models"]


@pytest.fixture(scope="module")
def engine(tiny_gguf):
    """The tiny model."""
    with LlamaKvEngine(tiny_gguf("Q8_0"), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tasks(tokenizer) -> list[recall.RecallTask]:
    """Questions about one context."""
    (made,) = recall.contexts(tokenizer, "records", 400, 1, seed=1, questions=3)
    return made


@pytest.mark.parametrize("name", recipes.names("kv"))
def test_every_question_is_asked_as_if_it_were_the_only_one(engine, tasks, tokenizer, name):
    policy = recipe.read(name).policy(96, 8, engine.shape.layers)
    together = ask(engine, policy, tasks, tokenizer)
    alone = [answer for task in reversed(tasks) for answer in ask(engine, policy, [task], tokenizer)]
    assert together == alone[::-1]


def ask(engine, policy, tasks, tokenizer) -> list[recalling.Answer]:
    """Return the answers to tasks of one context, which is read afresh."""
    context = Prompts(engine, tasks[0].prompt_ids[: tasks[0].question_at], [policy])
    return recalling.late(engine, policy, tasks, context, tokenizer)
