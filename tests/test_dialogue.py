"""Dialogue recall: facts told early in a chat that fits the depth, a question that nothing before it gives away."""

from __future__ import annotations

from itertools import chain

import pytest

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.tasks import dialogue, facts
from pipeline.tasks.pools import pools

from .bench_runs import chats

MESSAGES = [chat["messages"] for chat in chats(40)]
DEPTHS = (320, 900)


@pytest.fixture(params=DEPTHS)
def tasks(request, tokenizer) -> list[dialogue.DialogueTask]:
    """Some tasks of one depth."""
    return list(chain(*dialogue.conversations(tokenizer, MESSAGES, request.param, 4, seed=1)))


def parts(tokenizer, task: dialogue.DialogueTask) -> tuple[str, str]:
    """Return the conversation and the question with the opened answer, as text."""
    ids = task.prompt_ids
    return tokenizer.decode(ids[: task.question_at]), tokenizer.decode(ids[task.question_at :])


def test_the_fact_is_told_early_and_asked_for_last(tokenizer, tasks):
    for task in tasks:
        told, question = parts(tokenizer, task)
        person, field = task.opening.removesuffix("：").split("的", 1)
        assert told.count(person) == 1
        assert told.index(person) < told.index(task.answer) < 0.75 * len(told)
        assert question.startswith("<|im_start|>user\n")
        assert person in question.splitlines()[1]
        assert question.endswith(f"</think>\n\n{task.opening}")
        assert task.answer not in question
        assert tokenizer.decode(task.answer_ids) == task.answer
        assert facts.held_out(person)
        assert field in facts.FIELDS


def test_the_conversation_is_whole_chat_turns_up_to_the_depth(tokenizer, tasks, request):
    depth = request.node.callspec.params["tasks"]
    for task in tasks:
        turns = parts(tokenizer, task)[0].split("<|im_start|>")[1:]
        assert [turn.split("\n")[0] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(turn.endswith("<|im_end|>\n") for turn in turns)
        longest = max(len(prompts.prompt_ids(tokenizer, messages)) for messages in MESSAGES)
        assert depth - 1.5 * longest < len(task.prompt_ids) <= depth
    lines = [pattern.split("{")[0] for pattern in pools().test.facts]
    opening = parts(tokenizer, tasks[0])[0].splitlines()[1]
    assert any(opening.startswith(line) for line in lines)


def test_same_seed_same_tasks_and_a_task_does_not_depend_on_how_many(tokenizer):
    few, many = (dialogue.conversations(tokenizer, MESSAGES, 320, n, seed=3) for n in (2, 4))
    assert few == many[:2]
    assert few != dialogue.conversations(tokenizer, MESSAGES, 320, 2, seed=4)


def test_the_sentence_of_an_answer_is_its_first(tasks):
    task = tasks[0]
    assert dialogue.sentence(task, f"{task.answer}。宜多休息。") == task.reference
    assert dialogue.sentence(task, "不知道") == task.opening + "不知道"


def test_a_depth_too_short_for_a_dialogue_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"dialogue depth 100: too short .* bench\.conversations to 0"):
        dialogue.conversations(tokenizer, MESSAGES, 100, 1, seed=1)
