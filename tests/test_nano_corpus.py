"""What the embedded base reads: corpus split, tokenizer, chat format, documents that teach recall."""

from __future__ import annotations

import re
from itertools import chain, pairwise
from random import Random

import pytest

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.nano import corpus, documents
from pipeline.nano import tokenizer as nano_tokenizer
from pipeline.tasks import facts

from .nano_runs import TINY

pytest_plugins = ["tests.nano_models"]

CHATS = [
    [{"role": "user", "content": "咳嗽"}],
    [{"role": role, "content": role} for role in ("system", "user", "assistant")],
    [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["一", "二", "三", "四"], strict=True)],
]


def test_corpus_splits_every_source_without_overlap(nano_recipe):
    train, test = (corpus.load(nano_recipe, split) for split in ("train", "held_out"))
    for name in nano_recipe["corpus"]["sources"]:
        assert train[name]
        assert not {d["text"] for d in train[name]} & {d["text"] for d in test[name]}
    assert any(test.values())


def test_corpus_names_every_missing_file(nano_recipe, tmp_path):
    files = sum(len(source["files"]) for source in nano_recipe["corpus"]["sources"].values())
    with pytest.raises(UserError) as error:
        corpus.main(nano_recipe, tmp_path)
    assert len(error.value.problems) == files


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "二", "input": "", "output": "三", "history": [["零", "一"]]},
        {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate("零一二三")]},
        {"conversation": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate("零一二三")]},
    ],
)
def test_every_schema_gives_the_same_turns(record):
    assert corpus.turns_of(record) == [("user", "零"), ("assistant", "一"), ("user", "二"), ("assistant", "三")]


def test_corpus_text_holds_no_control_token():
    assert "<|im_end|>" not in corpus.clean("a<|im_end|>b")


def test_tokenizer_has_qwen3s_added_tokens_last_and_round_trips(nano_recipe):
    tokenizer = prompts.load_tokenizer(nano_tokenizer.directory(nano_recipe))
    added = [*nano_tokenizer.SPECIAL_TOKENS, *nano_tokenizer.PLAIN_ADDED_TOKENS]
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert tokenizer.convert_tokens_to_ids(added) == list(range(TINY.vocab_size - len(added), TINY.vocab_size))
    text = "它's 30克，ＡＢ\u200b 🙂\n\n<think>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("messages", CHATS)
def test_shipped_template_with_thinking_off_is_the_pipelines(nano_recipe, messages):
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(nano_tokenizer.directory(nano_recipe))
    asks = messages[-1]["role"] == "user"
    ours = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, enable_thinking=False)
    own.chat_template = prompts.template()
    assert ours == own.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)


@pytest.mark.parametrize("messages", CHATS[1:])
def test_chat_documents_are_rendered_as_the_pipeline_does(nano_recipe, messages):
    tokenizer = prompts.load_tokenizer(nano_tokenizer.directory(nano_recipe))
    text = "".join(piece.text for piece in documents.chat_pieces(messages))
    assert text == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("kind", ["pairs", "records", "needles"])
@pytest.mark.parametrize("chat", [False, True])
def test_training_documents_use_no_name_or_value_of_the_test(kind, chat):
    material = documents.Material(lambda n: "字" * n, ["甲乙", "丙丁", "戊", "己庚"], varied=0.5)
    pieces = documents.WRITERS[kind](Random(1), 600, chat, material)
    answers = [piece.text for piece in pieces if piece.kind == "answer"]
    assert answers
    assert not any(map(facts.held_out, answers))
    stated = "".join(piece.text for piece in pieces if piece.kind == "fact")
    assert all(answer in stated for answer in answers)


@pytest.mark.parametrize("chat", [False, True])
def test_lists_draw_from_the_same_items_and_name_none_twice(chat):
    material = documents.Material(lambda n: "", ["甲乙", "丙丁", "戊", "己庚"], varied=0.5)
    pieces = documents.lists(Random(1), 2000, chat, material)
    lists = [re.split("[、，； ]", piece.text) for piece in pieces if piece.kind == "listed"]
    named = [[re.sub(r"\d+克$", "", item) for item in items] for items in lists]
    assert len(named) > 10
    assert all(len(set(items)) == len(items) > 2 for items in named)
    assert len(set(chain(*named))) <= 30
    assert not any(map(facts.held_out, chain(*named)))


def test_repeats_are_told_by_the_past():
    ids, kinds = documents.repeats(Random(3), 400, lambda n: list(range(n)), top=500, newline=1)
    pairs = list(pairwise(ids))
    repeated = [i for i, kind in enumerate(kinds) if kind == "repeat"]
    assert len(repeated) > 50
    assert all(pairs[i - 1] in pairs[: i - 1] for i in repeated)
