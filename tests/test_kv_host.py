"""Evicted entries that live on in host memory: bit for bit, chosen among all anew, back at the places they had."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.engines.prompt import prefilled
from pipeline.engines.stream import Stream, room
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.kv import recipe
from pipeline.kv.cut import Cut
from pipeline.kv.policy import Policy
from pipeline.kv.positions import Original
from pipeline.kv.precision import CacheShape, Precision
from pipeline.kv.segments import Segments
from pipeline.kv.selectors import top
from tests import kv_references as reference
from tests.kv_models import LAYERS, MODELS, kv_heads, look, qwen3, random_ids
from tests.kv_runs import EVERYTHING, Run, run

HOSTED = [name for name in recipes.names("kv") if recipe.read(name).evicted == "host"]
N, BUDGET, BLOCK = 200, 96, 16
LAST_CUT = max(range(BUDGET + BLOCK, N + 1, BLOCK))
FULL_KV = Policy(online=True, precision=Precision())
EVERY = pytest.mark.parametrize("name", HOSTED)
BOTH = pytest.mark.parametrize("model", MODELS)


def hosted(name: str, **cut) -> Policy:
    """Return a recipe's policy with its own slack, stored as transformers does; ``cut`` changes its rule."""
    policy = recipe.read(name).policy(BUDGET, 0, LAYERS)
    return replace(policy, precision=Precision(), decode=replace(policy.decode, **cut))


def parts(name: str) -> tuple[int, int, int]:
    """Return a recipe's sinks, its window, and the entries that wait at each cut for their block to leave that."""
    segments = recipe.read(name).policy(BUDGET, 0, LAYERS).decode.segments
    window = segments.recent_of(BUDGET)
    return segments.sinks, window, (LAST_CUT - window - segments.sinks) % BLOCK


@EVERY
@BOTH
def test_all_blocks_back_at_their_own_positions_are_full_kv(model, name):
    model, ids = MODELS[model](), random_ids(N)
    policy = replace(hosted(name, allocator=EVERYTHING), positions=Original())
    found, expected = run(model, policy, ids, N, step=1), run(model, FULL_KV, ids, N, step=1)
    assert found.stream.lives == [N] * LAYERS
    assert found.stream.host_bytes() == Precision("f32", "f32").kv_bytes(shape(model), N)
    assert np.abs(found.logits - expected.logits).max() < 1e-4


@EVERY
@BOTH
def test_no_block_back_is_sinks_and_a_window_at_the_same_positions(model, name):
    """Beside the window stand the 15 entries that wait for their block to leave it, where cuts are 16 tokens apart."""
    model, ids, sinks = MODELS[model](), random_ids(N), parts(name)[0]
    policy = hosted(name, segments=Segments(sinks, BUDGET - sinks - (BLOCK - 1)))
    rule = Cut(Segments(sinks), None, top, policy.decode.allocator)
    found = run(model, policy, ids, N, step=1)
    expected = run(model, replace(policy, decode=rule, evicted="dropped"), ids, N, step=1)
    for (state, position, _), (true, place, _) in zip(found.record.before, expected.record.before, strict=True):
        assert position == place == state.seen
        assert all(map(torch.equal, state.origins, true.origins))
        assert all(map(torch.equal, state.positions, true.positions))
    assert found.stream.lives[0] < BUDGET + BLOCK < found.stream.host.layers[0].entries
    assert np.abs(found.logits - expected.logits).max() < 1e-4


@EVERY
def test_without_a_score_the_host_only_keeps_copies(name):
    policy = hosted(name, scorer=None)
    held, dropped = (run(qwen3(), replace(policy, evicted=fate), random_ids(N), N) for fate in ("host", "dropped"))
    assert held.origins() == dropped.origins()
    assert np.abs(held.logits - dropped.logits).max() < 1e-4
    assert held.stream.host_bytes() > dropped.stream.host_bytes() == 0


@EVERY
@BOTH
def test_every_entry_is_on_the_host_as_it_was_stored(model, name):
    model = MODELS[model]()
    found = run(model, hosted(name), random_ids(N), N, step=1)
    layers = found.stream.host.layers
    assert [layer.entries for layer in layers] == [LAST_CUT] * LAYERS
    for state, _, _ in found.record.before[1 : LAST_CUT + 1]:
        token = torch.full((kv_heads(model), 1), state.seen - 1)
        for held, layer in zip(layers, state.layers, strict=True):
            newest, kept = layer.gather(torch.full_like(token, layer.entries - 1)), held.gather(token)
            assert torch.equal(kept.stored, newest.stored)
            assert torch.equal(kept.values, newest.values)


@EVERY
@BOTH
def test_whole_blocks_come_back_beside_the_window(model, name):
    found = run(MODELS[model](), hosted(name), random_ids(N), N, step=1)
    sinks, window, waiting = parts(name)
    before: list[set[int]] = [set() for _ in range(LAYERS)]
    back = 0
    for state, _, _ in found.record.before:
        if state.lives != [BUDGET] * LAYERS or state.seen < BUDGET + BLOCK:
            continue
        local = range(state.seen - window - waiting, state.seen)
        for layer, heads in enumerate(state.origins):
            assert all(head.tolist() == heads[0].tolist() for head in heads)
            alive = heads[0].tolist()
            assert alive == sorted(set(alive))
            assert alive[:sinks] == list(range(sinks))
            assert alive[-len(local) :] == list(local)
            chosen = alive[sinks : -len(local)]
            blocks = {(token - sinks) // BLOCK for token in chosen}
            assert chosen == [sinks + block * BLOCK + at for block in sorted(blocks) for at in range(BLOCK)]
            left = set(range(sinks, state.seen - BLOCK - window - waiting))  # the window's of the last cut
            back += len(set(chosen) & left - before[layer])
            before[layer] = set(alive)
    assert back > 0, "no entry that was gone has come back"


def chosen_blocks(found: Run, layer: int, name: str) -> list[int]:
    """Return the blocks that were called back by the last cut."""
    sinks, window, waiting = parts(name)
    alive = found.origins()[layer][0]
    return sorted({(token - sinks) // BLOCK for token in alive if sinks <= token < LAST_CUT - window - waiting})


@BOTH
def test_infllm(model):
    """Representatives are those of the attention that blocks drew in the window; what came back draws in vain."""
    model, ids, name = MODELS[model](), random_ids(N), "infllm"
    found = run(model, hosted(name), ids, N)
    view, rope = found.view(model, N), TorchKvEngine(model).rope
    look(model, ids, view)
    sinks, window, waiting = parts(name)
    for layer in range(LAYERS):
        expected = reference.infllm(
            view.rows[layer],
            view.keys[layer],
            view.queries[layer][:, LAST_CUT - 16 : LAST_CUT],
            cuts=range(BUDGET + BLOCK, N + 1, BLOCK),
            sinks=sinks,
            window=window,
            turn=partial(turned, rope, int(0.6 * BUDGET)),
        )
        assert chosen_blocks(found, layer, name) == sorted(expected[: (BUDGET - sinks - window - waiting) // BLOCK])


@BOTH
def test_semantic_blocks(model):
    model, ids, name = MODELS[model](), random_ids(N), "semantic_block_offload"
    found = run(model, hosted(name), ids, N)
    view = found.view(model, N)
    look(model, ids, view)
    sinks, window, waiting = parts(name)
    count = (LAST_CUT - window - sinks) // BLOCK
    for layer in range(LAYERS):
        expected = reference.semantic_blocks(
            view.keys[layer][:, sinks : sinks + count * BLOCK], view.queries[layer][:, LAST_CUT - 16 : LAST_CUT], BLOCK
        )
        assert chosen_blocks(found, layer, name) == sorted(expected[: (BUDGET - sinks - window - waiting) // BLOCK])


def turned(rope, distance: int, vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors [n, head_dim] turned by a distance."""
    return rope.rotate(vectors, torch.full((len(vectors),), distance))


def shape(model) -> CacheShape:
    return TorchKvEngine(model).shape


@EVERY
def test_a_prompt_is_fed_not_prefilled(name):
    engine, ids, policy = TorchKvEngine(qwen3()), random_ids(120), hosted(name)
    stream = Stream(engine, engine.cache(room(engine, policy, 0, 120)), policy)
    with pytest.raises(ValueError, match="feed the prompt"):
        stream.take(prefilled(engine, ids, FULL_KV))
