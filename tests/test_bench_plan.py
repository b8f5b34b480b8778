"""bench's plans: what does not fit is refused before any model is loaded, and documents are of dialogues."""

from __future__ import annotations

import re

import pytest

from pipeline import bench, prompts
from pipeline.benching import plan
from pipeline.config import Answers, Lossless
from pipeline.engines.llama import library
from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape
from pipeline.tasks import text

from .bench_runs import chats, with_bench
from .conftest import ROOT

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

ADDED = {  # recipes that are sound, each unfit for this model or engine
    "deep": "paper: none\nprefill: {keep: {recent: 4}, score: {by: {signal: key_norm}}, skip: [5]}\n",
    "summed_q8_0": "paper: none\nprecision: {k: q8_0, v: q8_0}\n"
    "decode: {keep: {recent: 4}, score: {by: {signal: attention_so_far, gather: sums}}}\n",
}


@pytest.fixture
def header_alone(monkeypatch):
    """Weights that must not be loaded."""
    load = library.load_model

    def load_header(path, *, vocab_only=False):
        assert vocab_only
        return load(path, vocab_only=True)

    monkeypatch.setattr(library, "load_model", load_header)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"budgets": (4,)}, ["bench.budgets: streaming_llm: decode: a budget of 4 leaves 4 entries to layer 0"]),
        ({"budgets": (32, 64)}, ["bench.budgets: snapkv: prefill: a budget of 32", "pyramidkv: prefill: a budget"]),
        (
            {"answers": Answers(policies=("streaming_llm", "snapkv", "kv_q4_0"), budget=4)},
            ["bench.answers.budget: streaming_llm: decode: a budget of 4", "bench.answers.budget: snapkv: prefill: a"],
        ),
        ({"depths": (320, 4000)}, ["bench.depths: 4000 and 30 tokens", "at most 2018"]),
        ({"depths": (2000,), "repetitions": 9}, ["the test dialogues have", "9 are needed"]),
        ({"depths": (96,)}, ["recall depth 96: expected at least 128", "dialogue depth 96: too short"]),
        ({"decode_tokens": 4}, ["bench.decode_tokens: 4, too few for a burst of 3 drafts; take at least 5"]),
        ({"policies": ("kv_q8_0", "recent_only")}, ["full KV is missing"]),
        ({"policies": ("full", "deep")}, ["bench.budgets: deep: prefill.skip: layer 5", "0 to 1"]),
        ({"policies": ("full", "summed_q8_0")}, ["bench.policies: summed_q8_0: q8_0/q8_0 needs flash", "take it out"]),
        (
            {"policies": ("full", "streaming_llm", "deep"), "budgets": (4,), "depths": (4000,)},
            ["streaming_llm: decode", "deep: prefill.skip", "bench.depths: 4000", "the test dialogues have"],
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_model_is_loaded(
    workplace, params, changes, messages, header_alone
):
    for name, recipe in ADDED.items():
        (workplace / f"recipes/kv/{name}.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(UserError) as error:
        bench.main(with_bench(params, **changes), "Q4_0")
    assert all(message in str(error.value) for message in messages), str(error.value)
    assert not (workplace / "eval").exists()


def test_a_cache_type_that_does_not_divide_the_head_is_refused(workplace, params, header_alone, monkeypatch):
    narrow = CacheShape(layers=2, kv_heads=2, key_length=80, value_length=80)
    monkeypatch.setattr(library, "cache_shape", lambda _: narrow)
    with pytest.raises(UserError, match=r"kv_q4_0: q4_0 holds 32 values a block.* length 80; take it out"):
        bench.main(with_bench(params), "Q4_0")


@pytest.mark.parametrize("encoding", ["FP8-Dynamic", "Q8_0"])
def test_an_encoding_without_a_gguf_is_refused(workplace, params, encoding):
    with pytest.raises(UserError, match=f"'{encoding}' has no GGUF file"):
        bench.main(with_bench(params), encoding)


def test_full_kv_leads_wherever_it_is_listed(workplace, params):
    found = planned(params, policies=("streaming_llm", "kv_q8_0", "full"), budgets=(24, 64))
    assert [(case.name, case.budget) for case in found.cases] == [
        ("full", None),
        ("streaming_llm", 24),
        ("streaming_llm", 64),
        ("kv_q8_0", None),
    ]
    assert [case.flash_settings for case in found.cases] == [(False, True), (False,), (False,), (True,)]
    assert [case.name for case in found.drafting] == ["streaming_llm", "streaming_llm", "kv_q4_0"]
    assert [(case.name, case.budget) for case in found.answering] == [
        ("full", None),
        ("streaming_llm", 40),
        ("snapkv", 40),
        ("kv_q4_0", None),
    ]
    # documents and depths by settings, questions by cases, documents of one depth by drafting cases
    assert found.trials == 2 * 2 * 5 + (3 + 2) * 4 + 2 * 3


def test_the_policy_that_the_readme_adds_is_sound(workplace, params):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipe = re.search(r"`recipes/kv/(\w+)\.yaml`:\n\n```yaml\n(.*?)```", readme, re.DOTALL)
    name, lines = recipe.groups()
    assert len(lines.splitlines()) < 10
    assert not (ROOT / f"recipes/kv/{name}.yaml").exists()
    (workplace / f"recipes/kv/{name}.yaml").write_text(lines, encoding="utf-8")
    assert [case.name for case in planned(params, policies=("full", name)).cases] == ["full", name]


def test_what_is_not_asked_for_is_not_planned(workplace, params):
    nothing = {"recall_contexts": 0, "conversations": 0, "lossless": Lossless(policies=(), draft_tokens=1)}
    nothing["answers"] = Answers(policies=(), budget=1)
    found = planned(params, **nothing, depths=(96,))
    assert (found.recall, found.dialogues, found.drafting, found.answering) == ({}, [], (), ())


def test_documents_start_with_dialogues_of_their_own(tokenizer):
    messages = [chat["messages"] for chat in chats(6)]
    first, second = text.documents(tokenizer, messages, 100, 2)
    opening = prompts.prompt_ids(tokenizer, messages[0][:1])
    assert len(first) == len(second) == 100
    assert first[: len(opening)] == opening
    assert tokenizer.decode(second).startswith("<|im_start|>user\n")
    assert first != second
    whole = "".join(tokenizer.apply_chat_template(one, tokenize=False) for one in messages)
    assert whole.startswith(tokenizer.decode(first[:90]))


def planned(params, **changes) -> plan.Plan:
    """Return the plan of a small benchmark of the current directory."""
    return plan.plan(with_bench(params, **changes).bench, bench.gguf("Q4_0"), bench.MERGED, bench.TEST, seed=1)
