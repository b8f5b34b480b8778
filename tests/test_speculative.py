"""Lossless decoding: the text is full KV's own, whatever drafts; and a rewound stream is one that never went astray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.engines import greedy, speculative
from pipeline.engines.prompt import prefilled
from pipeline.engines.stream import Mark, Stream, room
from pipeline.kv import recipe
from pipeline.kv.policy import FULL, Policy
from pipeline.kv.precision import Precision

from .llama_kv_runs import F32, PROMPT, random_ids, small

pytest_plugins = ["tests.llama_kv_models"]

NAMES = recipes.names("kv")
PLAIN = [name for name in NAMES if not recipe.read(name).types.quantised]
ENGINES = {"llama": F32, "reference": Precision()}  # and the precision that both store alike
CASES = [(engine, name) for engine in ENGINES for name in (NAMES if engine == "llama" else PLAIN)]
KINDS = ("recent_only", "streaming_llm", "h2o", "h2o_online", "tova_online", "snapkv", "gemfilter", "fastkv")
DRAFTS = [(engine, name) for engine, name in CASES if name in KINDS or name not in PLAIN]
TOKENS, MOST = 24, 3
BLOCK = speculative.block_size(MOST)
IDS = random_ids(PROMPT)


@pytest.fixture
def opened(request):
    """A function that returns a stream which has read ids under a policy, and the logits after them."""
    caches = []

    def start(engine: str, policy: Policy, ids: list[int] = IDS) -> tuple[Stream, np.ndarray]:
        loaded = request.getfixturevalue(engine)
        caches.append(loaded.cache(room(loaded, policy, len(ids), len(ids) + TOKENS + BLOCK)))
        stream = Stream(loaded, caches[-1], policy)
        if policy.online:
            return stream, stream.feed(ids)[-1]
        stream.take(prompt := prefilled(loaded, ids, policy))
        return stream, prompt.logits

    yield start
    for cache in caches:
        cache.close()


@pytest.fixture(scope="module")
def texts():
    """Full KV's greedy text of each engine, once it was decoded token by token."""
    return {}


def full(engine: str) -> Policy:
    return replace(FULL, precision=ENGINES[engine])


def policy_of(engine: str, name: str) -> Policy:
    kept = {} if recipe.read(name).types.quantised else {"precision": ENGINES[engine]}
    return small(name, **kept)


@pytest.mark.parametrize(("engine", "name"), DRAFTS)
def test_the_text_is_full_kvs_whatever_drafts(opened, texts, engine, name):
    if engine not in texts:
        texts[engine] = greedy.decode(*opened(engine, full(engine)), TOKENS)
    (verifier, logits), (draft, _) = opened(engine, full(engine)), opened(engine, policy_of(engine, name))
    found = speculative.decode(verifier, draft, greedy.best(logits), TOKENS, MOST)
    assert found.ids == texts[engine]
    assert found.accepted + found.calls + 1 == TOKENS  # the first token came with the prompt
    assert 0 <= found.accepted <= found.drafted <= MOST * found.calls
    assert verifier.seen == PROMPT + TOKENS - 1
    again, logits = opened(engine, full(engine))
    assert speculative.shortfall(again, logits, found.ids) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_draft_that_never_errs_is_always_accepted(opened, engine):
    (verifier, logits), (draft, _) = opened(engine, full(engine)), opened(engine, full(engine))
    found = speculative.decode(verifier, draft, greedy.best(logits), 1 + 3 * (MOST + 1), MOST)
    assert (found.drafted, found.accepted, found.calls) == (3 * MOST, 3 * MOST, 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_drafts_that_err_are_rejected_from_the_first_wrong_one(opened, engine):
    verifier, logits = opened(engine, full(engine))
    text = greedy.decode(*opened(engine, full(engine)), 4)
    wrong = (text[2] + 1) % len(logits)
    assert speculative.verify(verifier, text[0], [text[1], wrong, text[3]], BLOCK) == (1, text[2])
    assert verifier.seen == PROMPT + 2
    assert greedy.decode(verifier, verifier.feed([text[2]])[-1], 1) == [text[3]]


@pytest.mark.parametrize("engine", ENGINES)
def test_full_kv_alone_gives_the_same_text_in_blocks(opened, engine):
    stream, logits = opened(engine, full(engine))
    text = greedy.decode(*opened(engine, full(engine)), TOKENS)
    assert speculative.alone(stream, greedy.best(logits), TOKENS, MOST) == text
    assert stream.seen == PROMPT + TOKENS - 1


@pytest.mark.parametrize(("most", "block"), [(1, 4), (3, 4), (4, 8), (7, 8)])
def test_a_block_is_a_multiple_of_what_kernels_compute_at_once(most, block):
    assert speculative.block_size(most) == block


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shortfall_is_the_gap_to_the_best_token(opened, engine):
    _, logits = opened(engine, full(engine))
    worst = int(logits.argmin())
    stream, _ = opened(engine, full(engine))
    assert speculative.shortfall(stream, logits, [worst]) == pytest.approx(float(logits.max() - logits.min()))


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_rewound_stream_is_one_that_never_went_astray(opened, engine, name):
    policy, more, astray = policy_of(engine, name), random_ids(12, seed=5), random_ids(12, seed=6)
    (straight, _), (wandering, _) = opened(engine, policy), opened(engine, policy)
    for token in more:
        expected = straight.feed([token])
        found = wandering.feed([token])
        assert np.array_equal(found, expected)
        mark, left = wandering.mark(), 3 if wandering.room is None else min(3, wandering.room - 1)
        if left:
            wandering.feed(astray[:left])
            wandering.rewind(mark)
        assert_same(wandering, straight)


def assert_same(one: Stream, other: Stream) -> None:
    ours, theirs = one.snapshot(), other.snapshot()
    assert (ours.seen, ours.upcoming, ours.lives) == (theirs.seen, theirs.upcoming, theirs.lives)
    assert np.array_equal(ours.logits, theirs.logits)
    for name in ("origins", "positions"):
        assert all(map(torch.equal, getattr(ours, name), getattr(theirs, name)))
    assert all(torch.equal(a.keys(), b.keys()) for a, b in zip(ours.layers, theirs.layers, strict=True))
    assert all(torch.equal(a.value(), b.value()) for a, b in zip(ours.memories, theirs.memories, strict=True))
    for a, b in zip(ours.queries, theirs.queries, strict=True):
        assert torch.equal(a.vectors, b.vectors)
        assert torch.equal(a.origins, b.origins)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_undoes_a_cut(opened, engine):
    stream, _ = opened(engine, policy_of(engine, "streaming_llm"))
    mark = stream.mark()
    stream.feed(random_ids(stream.room, seed=5))
    with pytest.raises(RuntimeError, match="since the last cut"):
        stream.rewind(mark)


def test_running_scores_are_not_forgotten(opened):
    stream, logits = opened("reference", policy_of("reference", "h2o_online"))
    with pytest.raises(RuntimeError, match="without running scores"):
        stream.rewind(Mark(stream.seen, logits))
