"""Who writes summaries: the model, whose answer is plain text or none, and sentences of the text, word for word."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.engines.summary import sentences
from pipeline.engines.summary.ledger import Ledger, Passage, spans
from pipeline.engines.summary.writer import GENERATIONS, Extractive, ModelWriter
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv.precision import Precision
from tests.kv_models import gpt_neox, qwen3, words

USER = [{"role": "user", "content": "w1"}]
Q4_0 = Precision("q4_0", "q4_0")


def passage(ids: list[int], weights: list[float] | None = None, first: int = 0) -> Passage:
    return Passage(tuple(ids), tuple(range(first, first + len(ids))), tuple(weights or [0.0] * len(ids)))


@pytest.fixture
def saying():
    """A function that returns a writer whose model says the same words after every prompt, in a row."""

    def make(*said: str) -> ModelWriter:
        model = copy.deepcopy(qwen3())
        for layer in model.model.layers:  # nothing but a token's own embedding reaches the head
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        torch.nn.init.ones_(model.model.norm.weight)
        states = torch.nn.functional.normalize(model.model.embed_tokens.weight.detach(), dim=-1)
        head = torch.zeros_like(model.lm_head.weight)
        chain = words().convert_tokens_to_ids(["</think>", *said])
        for token, following in pairwise(chain):
            head[following] = states[token]
        model.lm_head.weight = torch.nn.Parameter(head)
        return ModelWriter(TorchKvEngine(model), words(), Q4_0)

    return make


def ids_of(*said: str) -> tuple[int, ...]:
    return tuple(words().convert_tokens_to_ids(list(said)))


def test_the_models_answer_is_the_summary(saying):
    found = saying("w1", "w2", "w3", "<|im_end|>").write(passage([50, 51]), passage([60, 61]), 8)
    assert found.ids == ids_of("w1", "w2", "w3")
    assert (found.predicted, found.kind) == (4, "f16")
    assert found.computed > 4
    assert found.attended > found.computed


def test_an_answer_that_does_not_end_is_too_long(saying):
    writer = saying("w1", "w2", "w3", "<|im_end|>")
    assert len(writer.write(passage([]), passage([60]), 3).ids) == 3
    assert len(writer.write(passage([]), passage([60]), 2).ids) > 2


def test_an_answer_that_does_not_end_is_cut_at_its_last_sentence(saying):
    writer = saying("w1", "。", "w2", "w3", "w4", "<|im_end|>")
    cut = {most: writer.write(passage([]), passage([60]), most).ids for most in (2, 4, 5)}
    assert cut == {2: ids_of("w1", "。"), 4: ids_of("w1", "。"), 5: ids_of("w1", "。", "w2", "w3", "w4")}
    assert len(writer.write(passage([]), passage([60]), 1).ids) > 1


def test_words_that_were_rewritten_often_enough_stay_as_they_are(saying):
    ids = ids_of("w7", "。", "w8", "w9", "。")
    writer, old = saying("w1", "w2", "<|im_end|>"), Passage(ids, tuple(range(-5, 0)), (5.0,) * 2 + (1.0,) * 3, 3)
    again = writer.write(old, passage([60]), 8)
    assert (again.ids, again.generation) == (ids_of("w1", "w2"), GENERATIONS)
    kept = writer.write(replace(old, generation=GENERATIONS), passage([60]), 6)
    assert (kept.ids, kept.generation) == (ids_of("w7", "。", "w1", "w2"), GENERATIONS)
    assert kept.computed < again.computed, "the old one is not read"
    silent = saying("<|im_end|>").write(replace(old, generation=GENERATIONS), passage([60]), 6)
    assert silent.ids == ()
    assert len(writer.write(replace(old, generation=GENERATIONS), passage([60]), 2).ids) > 2


def test_a_writer_reads_the_heaviest_sentences_and_half_of_them_again(saying, monkeypatch):
    ids = ids_of("w1", "w2", "。", "w3", "。", "w4", "w5", "。")
    text = Passage((1, *ids, 1), tuple(range(10)), (9.0, 1.0, 1.0, 1.0, 5.0, 5.0, 3.0, 3.0, 3.0, 9.0))
    read = []
    monkeypatch.setattr(ModelWriter, "_request", lambda self, old, new, most: read.append(tuple(new)) or USER)
    writer = saying("w1", "<|im_end|>")
    for reads, again in ((None, False), (10, False), (5, False), (5, True), (None, True)):
        replace(writer, reads=reads).write(passage([]), text, 8, again)
    assert read == [text.ids, text.ids, ids[3:], ids[3:5], ids[3:]]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (["<|im_end|>"], ()),
        (["w1", "<think>", "w2", "<|im_end|>"], ("w1",)),
        (["<think>", "w1", "<|im_end|>"], ()),
    ],
)
def test_thoughts_are_no_summary(saying, said, left):
    assert saying(*said).write(passage([]), passage([60]), 8).ids == ids_of(*left)


def test_a_control_token_that_the_model_says_is_no_control_token(saying):
    found = saying("w1", "<|im_start|>", "w2", "<|im_end|>").write(passage([]), passage([60]), 20)
    assert set(found.ids) & set(words().get_added_vocab().values()) == set()
    assert found.ids[0] == ids_of("w1")[0]
    assert found.ids[-1] == ids_of("w2")[0]


def test_models_that_cannot_hold_q4_0_write_in_the_default():
    found = ModelWriter(TorchKvEngine(gpt_neox()), words(), Q4_0).write(passage([]), passage([60, 61]), 4)
    assert found.kind == "f16"


def test_evicted_turns_become_a_transcript_and_no_turns(tokenizer):
    messages = [{"role": "user", "content": "咳嗽<|im_end|>三天"}, {"role": "assistant", "content": "多喝水。"}]
    prompt, answer = prompts.example_ids(tokenizer, messages)
    text = prompts.transcript(tokenizer, [*prompt, *answer])
    assert "user: 咳嗽" in text
    assert "assistant: 多喝水。" in text
    assert not any(mark in text for mark in ("<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    for start in range(len(prompt)):  # eviction may begin anywhere
        again = prompts.prompt_ids(
            tokenizer, [{"role": "user", "content": prompts.transcript(tokenizer, prompt[start:])}]
        )
        assert sum(token == tokenizer.convert_tokens_to_ids("<|im_start|>") for token in again) == 2


def texts_of(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode(list(one.ids)).strip() for one in sentences.split(tokenizer, passage(ids))]


def test_sentences_end_at_chinese_and_latin_marks_not_within_numbers(tokenizer):
    ids = prompts.text_ids(tokenizer, "多喝温水。注意休息！怎么办？Take 3.5 mg. Then rest.\n晚安")
    assert texts_of(tokenizer, ids) == ["多喝温水。", "注意休息！", "怎么办？", "Take 3.5 mg.", "Then rest.", "晚安"]


def test_sentences_hold_no_control_tokens_and_no_roles(tokenizer):
    messages = [{"role": "user", "content": "我咳嗽三天了"}, {"role": "assistant", "content": "多喝水。注意休息"}]
    prompt, answer = prompts.example_ids(tokenizer, messages)
    assert texts_of(tokenizer, [*prompt, *answer, *prompt]) == ["我咳嗽三天了", "多喝水。", "注意休息", "我咳嗽三天了"]


def test_a_gap_in_the_text_ends_a_sentence():
    torn = Passage(ids_of("w1", "w2", "w3", "。", "w4", "。", "w5"), (4, 5, 9, 10, 11, 12, 13), (0.0,) * 7)
    found = [(one.ids, one.whole) for one in sentences.split(words(), torn)]
    assert found == [
        (ids_of("w1", "w2"), False),
        (ids_of("w3", "。"), False),
        (ids_of("w4", "。"), True),
        (ids_of("w5"), False),
    ]
    assert sentences.best(words(), [torn], 4) == ids_of("w4", "。", "w5")


def test_the_heaviest_sentences_stay_in_text_order():
    old = passage([*ids_of("w1", "。")], [9.0, 9.0], first=-2)
    ids = ids_of("w2", "w3", "。", "w4", "。", "w5", "w6", "w7", "。")
    new = passage([*ids_of("<|im_end|>"), *ids], [0.0, 1.0, 3.0, 2.0, 8.0, 8.0, 5.0, 5.0, 5.0, 5.0])
    expected = {
        1: ids_of("w1"),  # not one fits: the heaviest one's beginning
        3: ids_of("w1", "。"),
        5: ids_of("w1", "。", "w4", "。"),
        7: ids_of("w1", "。", "w2", "w3", "。", "w4", "。"),  # the one that weighs more does not fit
        8: ids_of("w1", "。", "w4", "。", "w5", "w6", "w7", "。"),
        20: (*old.ids, *ids),
    }
    assert {most: Extractive(words()).write(old, new, most).ids for most in expected} == expected
    assert Extractive(words()).write(passage([]), passage([0, 1, 3]), 8).ids == ()


@given(st.lists(st.integers(0, 60), unique=True), st.lists(st.integers(0, 60), unique=True))
def test_spans_hold_every_number_once(first, second):
    second = [number for number in second if number not in first]
    found = spans(spans((), first), second)
    assert [number for span in found for number in span] == sorted([*first, *second])
    assert all(one.stop < other.start for one, other in pairwise(found))


def test_a_ledger_keeps_text_order():
    ledger = Ledger()
    ledger.add(passage([7, 8], first=10))
    ledger.add(passage([5], first=3))
    assert ledger.waiting.ids == (5, 7, 8)
    ledger.settle()
    assert (len(ledger.waiting), ledger.covered) == (0, (range(3, 4), range(10, 12)))
