"""Answers under policies: evaluate's own prompts, full KV's own text, and a count of what was evicted that adds up."""

from __future__ import annotations

import pytest
from tqdm import tqdm

from pipeline import bench, evaluate, io, prompts
from pipeline.benching import answering, plan
from pipeline.benching.prompts import Prompts
from pipeline.config import Answers
from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.kv import LlamaKvEngine

from .bench_runs import ANSWERED, with_bench

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

NAMES = ("streaming_llm", "snapkv", "h2o_online", "pyramidkv", "streaming_summary_extractive")
BUDGET, SLACK = 40, 8


@pytest.fixture
def planned(workplace, params) -> plan.Plan:
    """A plan of answers alone."""
    changes = {"policies": ("full",), "recall_tasks": 0, "dialogue_tasks": 0, "depths": (96,)}
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
            entries, evicted = one["entries"]["value"], one["evicted"]["value"]
            assert evicted > 0, row["policy"]
            assert len(sample.prompt_ids) <= entries + evicted
            if row["policy"] not in ("streaming_summary_extractive",):  # whose entries are not all of the text
                assert entries + evicted < len(sample.prompt_ids) + sample.tokens


def test_no_policies_answer_nothing(engine, workplace, params, samples):
    small = with_bench(params, answers=Answers(policies=(), budget=1)).bench
    none = plan.plan(small, bench.gguf("Q4_0"), bench.MERGED, bench.TEST, seed=1)
    assert answering.rows(engine, none, samples, tqdm(disable=True)) == []


def test_the_end_of_turn_ends_an_answer(engine, planned, samples):
    case = planned.answering[0]
    shared = Prompts(engine, samples[0].prompt_ids, [case.policy])
    whole = answering.answer(engine, case.policy, samples[0], shared, planned.words)
    first = planned.words(whole["answer"], add_special_tokens=False)["input_ids"][0]
    stopped = answering.Sample(samples[0].id, samples[0].prompt_ids, samples[0].tokens, stop=first)
    cut = answering.answer(engine, case.policy, stopped, shared, planned.words)
    assert cut["entries"]["value"] == len(samples[0].prompt_ids)
    assert whole["entries"]["value"] > cut["entries"]["value"]


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
