"""The chat format: Qwen3 with thinking off, one boundary between prompt and answer, and text that stays text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.errors import UserError

TWO_TURNS = [
    {"role": "user", "content": "睡不着"},
    {"role": "assistant", "content": "睡前少看手机。"},
    {"role": "user", "content": "能喝茶吗？"},
    {"role": "assistant", "content": "晚上不宜。"},
]


def test_prompt_shows_the_think_block_on_the_newest_turn_alone(tokenizer):
    assert prompts.prompt_text(tokenizer, TWO_TURNS[:3]) == (
        "<|im_start|>user\n睡不着<|im_end|>\n"
        "<|im_start|>assistant\n睡前少看手机。<|im_end|>\n"
        "<|im_start|>user\n能喝茶吗？<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_a_whole_dialogue_is_its_prompt_and_its_answer(tokenizer):
    prompt, answer = prompts.example_ids(tokenizer, TWO_TURNS)
    whole = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)
    assert tokenizer.decode(prompt + answer) + "\n" == whole
    assert answer[-1] == prompts.end_of_turn_id(tokenizer)


def test_a_system_message_comes_first(tokenizer):
    messages = [{"role": "system", "content": "简明回答"}, TWO_TURNS[0]]
    assert prompts.prompt_text(tokenizer, messages).startswith(
        "<|im_start|>system\n简明回答<|im_end|>\n<|im_start|>user"
    )


def test_every_assistant_turn_is_learned_in_its_own_context():
    assert [len(turn) for turn in prompts.turns(TWO_TURNS)] == [2, 4]


@given(
    st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", "</think>", "好", " ", "<", "|"]), max_size=8)
)
def test_text_never_becomes_a_control_token(tokenizer, pieces):
    text = "".join(pieces)
    control = set(tokenizer.get_added_vocab().values())
    answer = prompts.answer_ids(tokenizer, text)
    assert not control & set(answer[:-1])
    frame = prompts.prompt_ids(tokenizer, [{"role": "user", "content": ""}])
    prompt = prompts.prompt_ids(tokenizer, [{"role": "user", "content": text}])
    assert sum(i in control for i in prompt) == sum(i in control for i in frame)


PIECES = ["<|im_start|>", "<|im_end|>", "<think>", "好", "e", "\u0301", " ", "\n", "<", "|"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), max_size=4)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=3))
def test_a_conversation_rendered_in_parts_is_the_whole(tokenizer, chunks):
    parts = [[{"role": role, "content": text} for role, text in [*part, ("user", "?")]] for part in chunks]
    found = [i for part in parts for i in prompts.history_ids(tokenizer, part)] + prompts.opening_ids(tokenizer)
    assert found == prompts.prompt_ids(tokenizer, [message for part in parts for message in part])


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer"):
        prompts.load_tokenizer(tmp_path)


def test_text_is_normalised_as_every_tokenizer_sees_it(tokenizer):
    assert prompts.defuse(tokenizer, "cafe\u0301 \u212b \uf90a") == "café Å 金"
