"""Answers under policies: evaluate's own prompts, full KV's own text, and a count of what was evicted that adds up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tqdm import tqdm

from pipeline import bench, evaluate, io, prompts
from pipeline.benching import answering, lossless, plan
from pipeline.benching.prompts import Prompts
from pipeline.config import Answers
from pipeline.engines import greedy
from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.kv.policy import FULL

from .bench_runs import ANSWERED, with_bench

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

NAMES = ("streaming_llm", "snapkv", "h2o_online", "h2o")
BUDGET = 36


@pytest.fixture
def planned(workplace, params) -> plan.Plan:
    """A plan of answers alone."""
    changes = {"policies": ("full",), "recall_contexts": 0, "conversations": 0, "depths": (96,)}
    small = with_bench(params, answers=Answers(policies=NAMES, budget=BUDGET), **changes).bench
    return plan.plan(small, bench.gguf("Q4_0"), bench.MERGED, bench.TEST, seed=1)


@pytest.fixture
def samples(planned, params) -> list[answering.Sample]:
    """The prompts to answer."""
    return answering.samples(planned.words, bench.TEST, with_bench(params).evaluate)


@pytest.fixture
def engine(workplace):
    """The tiny model."""
    with LlamaKvEngine(bench.gguf("Q4_0"), threads=1) as loaded:
        yield loaded


def test_the_prompts_are_those_that_evaluate_shows_answers_to(planned, samples):
    dialogues = list(io.read_jsonl(bench.TEST))[: ANSWERED["dialogues"]]
    shown = evaluate.samples(dialogues, [""] * len(dialogues), ANSWERED["samples"])
    assert [one.id for one in samples] == [one["id"] for one in shown]
    messages = {dialogue["id"]: dialogue["messages"] for dialogue in dialogues}
    for one in samples:
        assert one.prompt_ids == prompts.example_ids(planned.words, messages[one.id])[0]
        assert (one.tokens, one.stop) == (ANSWERED["max_new_tokens"], prompts.end_of_turn_id(planned.words))


def test_every_token_is_held_or_evicted(engine, planned, samples):
    full, *others = answering.rows(engine, planned, samples, tqdm(disable=True))
    assert [row["policy"] for row in others] == list(NAMES)
    for one, sample in zip(full["answers"], samples, strict=True):
        assert one["evicted"]["value"] == 0
        assert one["answer"] == greedy_text(planned, sample)
    for row in others:
        for one, sample in zip(row["answers"], samples, strict=True):
            fed = one["entries"]["value"] + one["evicted"]["value"]
            assert one["evicted"]["value"] > 0, row["policy"]
            assert len(sample.prompt_ids) <= fed < len(sample.prompt_ids) + sample.tokens


def test_entries_of_a_summary_stand_for_no_token():
    layers = [torch.tensor([[-2, -1, 0, 9]] * 2), torch.tensor([[-1, 7, 8, 9]] * 2)]
    assert answering.evicted(SimpleNamespace(seen=10, origins=lambda: layers)) == 7.5


def test_no_policies_answer_nothing(engine, workplace, params, samples):
    small = with_bench(params, answers=Answers(policies=(), budget=1)).bench
    none = plan.plan(small, bench.gguf("Q4_0"), bench.MERGED, bench.TEST, seed=1)
    assert answering.rows(engine, none, samples, tqdm(disable=True)) == []


def test_the_end_of_turn_ends_an_answer(engine, planned, samples):
    prompt = samples[0].prompt_ids
    shared = Prompts(engine, prompt, [FULL])
    with lossless.reading(engine, FULL, prompt, shared, 1) as (_, logits):
        ending = replace(samples[0], stop=greedy.best(logits))
    found = answering.answer(engine, FULL, ending, shared, planned.words)
    assert found["entries"]["value"] == len(prompt)  # the only token of the answer is not fed


def greedy_text(planned: plan.Plan, sample: answering.Sample) -> str:
    """Return the model's greedy answer by llama.cpp alone, the whole text read anew for every token."""
    ids = list(sample.prompt_ids)
    with library.loaded(bench.gguf("Q4_0")) as model, Context(model, n_ctx=1024, threads=1) as context:
        for _ in range(sample.tokens):
            context.clear()
            scores = context.decode(ids, range(len(ids)), wanted=[False] * (len(ids) - 1) + [True])
            ids.append(int(scores[-1].argmax()))
            if ids[-1] == sample.stop:
                break
    return planned.words.decode(ids[len(sample.prompt_ids) :], skip_special_tokens=True)
