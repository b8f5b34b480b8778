"""The laws that every recipe keeps on a model: identity, counts, segments, order, slack, idempotence, causality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.engines.prompt import prefilled
from pipeline.engines.snapshot import evict
from pipeline.engines.stream import Stream, room
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv import recipe
from pipeline.kv.allocators import Uniform
from pipeline.kv.cut import Cut
from pipeline.kv.policy import Policy
from pipeline.kv.precision import Precision
from pipeline.kv.scorer import Scorer
from pipeline.kv.segments import Segments
from pipeline.kv.selectors import top
from pipeline.kv.signals import Chance
from tests.kv_models import LAYERS, causal_view, gpt_neox, look, qwen3, random_ids
from tests.kv_runs import run, small

NAMES = recipes.names("kv")
ONLINE = [name for name in NAMES if recipe.read(name).online]
UNRESERVED = [name for name in ONLINE if not recipe.read(name).summary]  # nothing is set aside once text has gone
HOSTED = [name for name in NAMES if recipe.read(name).evicted == "host"]


def ample(name: str, length: int) -> Policy:
    """Return a recipe's policy at the least of some budgets that leaves a text of ``length`` whole in every layer."""
    source = recipe.read(name)
    for budget in (length, 40 * length):
        policy = replace(source.policy(budget, 0, LAYERS), precision=Precision())
        if not policy.decode or all(limit is None or limit >= length for limit in policy.decode.limits(budget, LAYERS)):
            return policy
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_as_long_as_the_text_is_full_kv(name):
    model, ids = qwen3(), random_ids(100)
    found = run(model, ample(name, 100), ids, 92)
    expected = look(model, ids, causal_view(model, 100)).numpy()[-len(found.logits) :]
    assert found.stream.lives == [100] * LAYERS
    assert np.abs(found.logits - expected).max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_counts_segments_and_order(name):
    model, ids, prompt = gpt_neox(), random_ids(80), 65
    policy = small(name, 3)
    found = run(model, policy, ids, prompt, step=1)
    states = [state for state, _, _ in found.record.before] + [found.stream.snapshot()]
    rule, before = policy.prefill or policy.decode, [0] * LAYERS
    for state in states:
        for layer, origins in enumerate(state.origins):
            written = int((origins[0] < 0).sum())  # a summary's entries stand behind the sinks
            assert (origins[:, : rule.segments.sinks if rule else 0] >= 0).all()
            assert (origins[origins >= 0].view(len(origins), -1).diff(dim=1) > 0).all()
            if rule and state.lives[layer] < min(state.seen, before[layer] + 1):
                sinks, newest = rule.segments.sinks, rule.segments.recent_of(state.lives[layer] - written)
                assert (origins[:, :sinks] == torch.arange(sinks)).all()
                assert (origins[:, origins.shape[1] - newest :] == torch.arange(state.seen - newest, state.seen)).all()
        rule, before = policy.decode, state.lives
    most = policy.most_entries(LAYERS, prompt, len(ids))
    assert all(peak <= bound for peak, bound in zip(found.stream.peaks, most, strict=True))
    if not policy.decode:
        assert found.stream.lives == most


@pytest.mark.parametrize("name", UNRESERVED)
def test_online_policies_cut_exactly_when_it_is_due(name):
    policy = small(name, 4)
    found = run(gpt_neox(), policy, random_ids(50), 50, step=1)
    lives = [0] * LAYERS
    for state, _, _ in [*found.record.before, (found.stream.snapshot(), 0, 0)]:
        assert state.lives == lives
        lives = [live + 1 for live in lives]
        if policy.room(lives) == 0:
            lives = policy.decode.targets(policy.budget, lives)
            assert policy.room(lives) > 0


@pytest.mark.parametrize("name", ["recent_only", "streaming_llm", "streaming_llm_original", "lm_infinite"])
def test_slack_changes_only_when(name):
    ids, entries = random_ids(60), {}
    for slack in (0, 5):
        policy = small(name, slack)
        found = run(gpt_neox(), policy, ids, 60, step=1)
        entries[slack] = {
            state.seen: [layer.tolist() for layer in state.origins]
            for state, _, _ in found.record.before
            if state.lives == [policy.budget] * LAYERS
        }
    assert 4 < len(entries[5]) < len(entries[0])
    assert entries[5].items() <= entries[0].items()


@pytest.mark.parametrize("name", [name for name in NAMES if recipe.read(name).budgeted and name not in HOSTED])
def test_a_second_cut_without_a_new_token_changes_nothing(name):
    policy, engine = small(name, 0), TorchKvEngine(gpt_neox())
    prompt = prefilled(engine, random_ids(70), replace(policy, online=False))
    for rule in policy.cuts:
        once = evict(prompt, rule, policy.budget, policy.positions, engine.rope)
        over = any(
            limit is not None and live > limit
            for limit, live in zip(rule.limits(policy.budget, LAYERS), once.lives, strict=True)
        )
        assert once is not prompt
        assert over or evict(once, rule, policy.budget, policy.positions, engine.rope) is once


@pytest.mark.parametrize("name", HOSTED)
def test_a_second_choice_without_a_new_token_changes_nothing(name):
    stream = run(gpt_neox(), small(name, 0), random_ids(90), 90).stream
    once, held = stream.snapshot(), stream.host.kv_bytes()
    again = stream.host.cut(once)
    for now, before in ((again.origins, once.origins), (again.positions, once.positions)):
        assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    assert all(torch.equal(a.keys(), b.keys()) for a, b in zip(again.layers, once.layers, strict=True))
    assert stream.host.kv_bytes() == held


@pytest.mark.parametrize("name", ONLINE)
def test_online_policies_do_not_look_ahead(name):
    policy, ids = small(name, 2), random_ids(55)
    whole = run(gpt_neox(), policy, ids, 55)
    single = run(gpt_neox(), policy, ids[:45], 45, step=1)
    assert np.abs(single.logits - whole.logits[:45]).max() < 1e-4


def test_chance_draws_the_same_for_the_same_seed():
    ids = random_ids(40)
    cuts = [Cut(Segments(1, 3), Scorer(Chance(seed), None, "mean", "head"), top, Uniform()) for seed in (1, 1, 2)]
    policies = [Policy(12, decode=cut, online=True) for cut in cuts]
    first, again, other = (run(gpt_neox(), policy, ids, 40).origins() for policy in policies)
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_streams_that_go_on_from_one_prompt_leave_it_alone():
    engine, ids, policy = TorchKvEngine(qwen3()), random_ids(80), ample("h2o", 80)
    prompt = prefilled(engine, ids[:60], policy)
    before = [memory.value().clone() for memory in prompt.memories]
    stream = Stream(engine, engine.cache(room(engine, policy, 60, 80)), policy)
    stream.take(prompt)
    stream.feed(ids[60:])
    assert all(torch.equal(memory.value(), sums) for memory, sums in zip(prompt.memories, before, strict=True))
