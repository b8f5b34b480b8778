"""The papers' rules, written out over full attention matrices, against the algebra run through an engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.engines.prompt import prefilled
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv import recipe
from pipeline.kv.allocators import ArithmeticPyramid, Dropping, Uniform
from pipeline.kv.cut import Cut
from pipeline.kv.narrowing import AtLayer, CosineCascade, Narrowing
from pipeline.kv.policy import Policy
from pipeline.kv.positions import Compact, Original, Positions
from pipeline.kv.precision import Precision
from pipeline.kv.running import Hits, Means, Sums
from pipeline.kv.scorer import Pool, Scorer
from pipeline.kv.segments import Segments
from pipeline.kv.selectors import cyclic_pairs, top
from pipeline.kv.signals import KeyNorm, LastLogit, RisingMean, RunningAttention, WindowAttention, total
from tests import kv_references as reference
from tests.kv_models import LAYERS, MODELS, causal_view, kv_heads, look, random_ids
from tests.kv_runs import run

N = 96
UNIFORM, ORIGINAL = Uniform(), Original()
BOTH = pytest.mark.parametrize("model", MODELS)


def cut(signal, segments: Segments, *, pool=None, group="mean", share="head", select=top, allocator=UNIFORM) -> Cut:
    return Cut(segments, Scorer(signal, pool, group, share), select, allocator)


def groups(rows: torch.Tensor, model) -> list[torch.Tensor]:
    """Return the rows of each KV head's query heads."""
    return list(rows.view(kv_heads(model), -1, *rows.shape[1:]))


def kept(model, policy: Policy, ids: list[int]) -> list[list[list[int]]]:
    """Return the tokens that each layer and KV head holds once a prompt is in."""
    return run(model, policy, ids, len(ids)).origins()


# The papers' rules on whole prompts.


@BOTH
@pytest.mark.parametrize("pool", [(5, "average"), (7, "maximum")])
def test_snapkv(model, pool):
    model, ids = MODELS[model](), random_ids(N)
    view = causal_view(model, N)
    look(model, ids, view)
    rule = cut(WindowAttention(8, total), Segments(0, 8), pool=Pool(pool[1], pool[0]))
    here = list(range(N))
    expected = [[reference.snapkv(group, here, 24, 8, pool) for group in groups(rows, model)] for rows in view.rows]
    assert kept(model, Policy(24, prefill=rule), ids) == expected


@BOTH
def test_pyramidkv(model):
    model, ids = MODELS[model](), random_ids(N)
    view = causal_view(model, N)
    look(model, ids, view)
    sizes = reference.pyramidkv_sizes(24, 8, LAYERS, N)
    rule = cut(
        WindowAttention(8, total), Segments(0, 8), pool=Pool("average", 5), allocator=ArithmeticPyramid(20, window=8)
    )
    expected = [
        [reference.snapkv(group, list(range(N)), size, 8, (5, "average")) for group in groups(rows, model)]
        for size, rows in zip(sizes, view.rows, strict=True)
    ]
    assert len(set(sizes)) == LAYERS
    assert kept(model, Policy(24, prefill=rule), ids) == expected


@pytest.mark.parametrize(
    ("capacity", "window", "first", "last", "mean"),
    [(512, 32, 968, 69, 518.5), (2048, 8, 3986, 111, 2048.5), (128, 8, 242, 25, 133.5)],
)
def test_pyramidkv_sizes_of_the_published_code(capacity, window, first, last, mean):
    sizes = ArithmeticPyramid(20, window).limits(capacity, 32)
    assert (sizes[0], sizes[-1], sum(sizes) / 32) == (first, last, mean)
    free = capacity - window
    for entries in (capacity - 1, capacity, 2 * free - 1, 2 * free, 2 * free + window // 2, 8 * capacity):
        found = ArithmeticPyramid(20, window).targets(capacity, [entries] * 32)
        assert found == reference.pyramidkv_sizes(capacity, window, 32, entries)


@BOTH
def test_knorm(model):
    model, ids = MODELS[model](), random_ids(N)
    view = causal_view(model, N)
    look(model, ids, view)
    expected = [[reference.knorm(head, 24) for head in keys] for keys in view.keys]
    assert kept(model, Policy(24, prefill=cut(KeyNorm(), Segments())), ids) == expected


@BOTH
def test_h2o_on_a_whole_prompt_ranks_by_column_sums(model):
    model, ids = MODELS[model](), random_ids(N)
    view = causal_view(model, N)
    look(model, ids, view)
    policy = Policy(24, decode=cut(RunningAttention(Sums), Segments(0, 12), group="sum"))
    found = prefilled(TorchKvEngine(model), ids, policy)
    for layer, rows in enumerate(view.rows):
        assert (found.memories[layer].value() - rows.sum(1)).abs().max() < 1e-4
        assert abs(float(found.memories[layer].value().sum()) - 4 * N) < 1e-2
    columns = [[group.sum((0, 1))[:-12].tolist() for group in groups(rows, model)] for rows in view.rows]
    newest = list(range(N - 12, N))
    assert kept(model, policy, ids) == [[reference.best(head, 12) + newest for head in heads] for heads in columns]


@BOTH
def test_fastkv(model):
    model, ids = MODELS[model](), random_ids(N)
    attention = WindowAttention(8, total)
    score = Scorer(attention, Pool("maximum", 7), "sum", "layer")
    policy = Policy(
        24,
        narrowing=Narrowing("hidden", AtLayer(0.5, 0.4), Segments(0, 8), score),
        prefill=cut(attention, Segments(0, 8), pool=Pool("maximum", 7), group="mean"),
    )
    view = causal_view(model, N)
    look(model, ids, view)
    going_on = reference.fastkv(view.rows[1], list(range(N)), int(0.4 * N), 8, 7)
    narrowed = causal_view(model, N)
    narrowed.visible[2:] = torch.eye(N, dtype=torch.bool)
    here = torch.tensor(going_on)
    narrowed.visible[2:, :, here[:, None], here] = torch.ones(len(here), len(here), dtype=torch.bool).tril()
    look(model, ids, narrowed)
    expected = []
    for layer, rows in enumerate(narrowed.rows):
        lives = list(range(N)) if layer < 2 else going_on
        expected.append([reference.snapkv(group, lives, 24, 8, (7, "maximum")) for group in groups(rows, model)])
    assert kept(model, policy, ids) == expected


@BOTH
def test_pyramidinfer(model):
    model, ids = MODELS[model](), random_ids(N)
    score = Scorer(WindowAttention(0.2, RisingMean(1.2)), None, "mean", "layer")
    narrowing = Narrowing("hidden", CosineCascade(0.5, min_context=8), Segments(4, 0.2), score)
    view, here = causal_view(model, N), list(range(N))
    expected = [here]
    for layer, (_, going_on) in enumerate(narrowing.stops(LAYERS, N, 24)):
        look(model, ids, fresh := replace(view, queries=[], keys=[], logits=[], rows=[]))
        here = reference.pyramidinfer(fresh.rows[layer], here, going_on, 1 + int(0.2 * N), 4, 1.2)
        view.visible[layer + 1 :] = torch.eye(N, dtype=torch.bool)
        index = torch.tensor(here)
        view.visible[layer + 1 :, :, index[:, None], index] = torch.ones(len(here), len(here), dtype=torch.bool).tril()
        expected.append(here)
    found = kept(model, Policy(24, narrowing=narrowing), ids)
    assert [len(here) for here in expected] == [N, N, 90, 72]
    assert found == [[layer] * kv_heads(model) for layer in expected]


@pytest.mark.parametrize(
    ("least", "recent", "percent"), [(0.01, 0.01, 33.6), (0.3, 0.2, 49.6), (0.7, 0.2, 59.6), (0.9, 0.2, 76.7)]
)
def test_pyramidinfer_holds_the_published_shares(least, recent, percent):
    tokens = 2048
    score = Scorer(WindowAttention(recent, total), None, "mean", "layer")
    narrowing = Narrowing("hidden", CosineCascade(least, min_context=0), Segments(0, recent), score)
    share = sum(narrowing.sizes(32, tokens, 1)) / 32 / tokens
    assert abs(share - reference.pyramidinfer_share(least, recent, 32, tokens)) < 0.002
    assert abs(100 * share - percent) < 0.5


@BOTH
def test_gemfilter_reads_the_chosen_tokens_alone(model):
    model, ids = MODELS[model](), random_ids(N + 5)
    score = Scorer(LastLogit(), Pool("average", 5), "sum", "layer")
    policy = Policy(24, narrowing=Narrowing("input", AtLayer(0.5, 0), Segments(), score))
    view = causal_view(model, N)
    look(model, ids[:N], view)
    chosen = reference.gemfilter(view.logits[1], 24, 5)
    found = run(model, policy, ids, N)
    assert found.prompt.origins[0].tolist() == [chosen] * kv_heads(model)
    short = [ids[j] for j in chosen] + ids[N:]
    expected = look(model, short, causal_view(model, len(short))).numpy()[len(chosen) - 1 :]
    assert np.abs(found.logits - expected).max() < 1e-4


# The papers' rules step by step: every token anew in a full forward pass, nothing cached.


def stepwise(model, ids: list[int], rule: reference.Rule, policy: Policy) -> list[list[list[int]]]:
    """Return what each layer and KV head holds after ``ids``, fed one by one; ``rule`` evicts after each."""
    view, heads = causal_view(model, len(ids)), kv_heads(model)
    alive = [[[] for _ in range(heads)] for _ in range(LAYERS)]
    evicted = 0
    for t in range(len(ids)):
        for layer in range(LAYERS):
            for head in range(heads):
                here = [*alive[layer][head], t]
                view.visible[layer, head, t] = False
                view.visible[layer, head, t, here] = True
                if policy.positions.shifts:
                    view.places[layer, head, t, here] = torch.arange(len(here))
                    view.own[t] = len(here) - 1
                alive[layer][head] = here
        now = replace(
            view,
            visible=view.visible[:, :, : t + 1, : t + 1],
            places=view.places[:, :, : t + 1, : t + 1],
            own=view.own[: t + 1],
            queries=[],
            keys=[],
            logits=[],
            rows=[],
        )
        look(model, ids[: t + 1], now)
        before = len(alive[0][0])
        for layer, rows in enumerate(now.rows):
            seen = groups(rows, model) if policy.decode.scorer.share == "head" else [rows] * heads
            alive[layer] = [rule(group, here, evicted) for group, here in zip(seen, alive[layer], strict=True)]
        evicted += before - len(alive[0][0])
    return alive


def online(budget: int, decode: Cut, positions: Positions = ORIGINAL) -> Policy:
    return Policy(budget, decode=decode, online=True, positions=positions)


STEPWISE = {
    "tova": (reference.tova(12), online(12, cut(WindowAttention(1, total), Segments(0, 1), share="layer"))),
    "h2o": (reference.h2o(12, 6), online(12, cut(RunningAttention(Sums), Segments(0, 6), group="sum"))),
    "scissorhands": (
        reference.scissorhands(14, 3, 10, 7),
        online(
            14,
            cut(RunningAttention(partial(Hits, 10)), Segments(0, 3), group="sum", allocator=Dropping(Uniform(), 0.5)),
        ),
    ),
    "treekv": (
        reference.treekv(14, 2, 4),
        online(14, cut(RunningAttention(Means), Segments(2, 4), select=cyclic_pairs), Compact()),
    ),
}


@BOTH
@pytest.mark.parametrize("name", STEPWISE)
def test_online_rules_step_by_step(model, name):
    model, ids = MODELS[model](), random_ids(45)
    rule, policy = STEPWISE[name]
    assert run(model, policy, ids, 20).origins() == stepwise(model, ids, rule, policy)


def test_treekv_halves_the_past_where_scores_are_equal():
    budget, sequence = 64, list(range(64))
    for evicted in range(30 * budget):
        sequence.append(64 + evicted)
        index = cyclic_pairs(torch.zeros(1, budget + 1), budget, evicted)[0]
        sequence = [sequence[j] for j in index.tolist()]
    ages = [sequence[-1] - token for token in sequence]
    found = [sum(64 * k <= age < 64 * (k + 1) for age in ages) for k in range(5)]
    assert all(abs(count - 64 // 2 ** (k + 1)) <= 1 for k, count in enumerate(found)), found


@BOTH
def test_streaming_llm_closes_ranks_at_every_token(model):
    model, ids = MODELS[model](), random_ids(40)
    policy = replace(recipe.read("streaming_llm").policy(12, 0, LAYERS), precision=Precision())
    found = run(model, policy, ids, 40, step=1)
    for state, position, _ in found.record.before:
        expected = reference.streaming(state.seen, 12, 4)
        assert position == len(expected)
        for layer in range(LAYERS):
            for head in range(kv_heads(model)):
                pairs = zip(state.origins[layer][head].tolist(), state.positions[layer][head].tolist(), strict=True)
                assert list(pairs) == expected
