"""Entries in host memory on a GGUF file: the bytes that llama.cpp stored, whatever the type, and back to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import recipes
from pipeline.engines.cache import Cache
from pipeline.engines.stream import Stream, room
from pipeline.kv import recipe
from pipeline.kv.policy import Policy
from pipeline.kv.positions import Original
from pipeline.kv.precision import Precision

from .kv_runs import EVERYTHING
from .llama_kv_runs import LAYERS, random_ids

pytest_plugins = ["tests.llama_kv_models"]

HOSTED = [name for name in recipes.names("kv") if recipe.read(name).evicted == "host"]
BUDGET, N = 64, 150


def holdable(name: str, kind: str) -> bool:
    """Whether a recipe can be stored in a type."""
    raw = recipe.read(name).model_dump() | {"precision": {"k": kind, "v": kind}}
    return recipe.PolicyRecipe(**raw).unheld() is None


EVERY = pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in HOSTED for kind in ("f32", "f16", "q8_0", "q4_0") if holdable(name, kind)],
)


def stored_in(name: str, kind: str) -> Policy:
    return replace(recipe.read(name).policy(BUDGET, 0, LAYERS), precision=Precision(kind, kind))


def fed(llama, policy: Policy, ids: list[int]) -> tuple[Stream, Cache, np.ndarray]:
    """Feed tokens one by one; return the stream, its cache (close it) and the logits after every token."""
    cache = llama.cache(room(llama, policy, 0, len(ids)))
    stream = Stream(llama, cache, policy)
    return stream, cache, np.concatenate([stream.feed([token]) for token in ids])


@EVERY
def test_the_host_holds_what_was_stored(llama, name, kind):
    policy = stored_in(name, kind)
    cache = llama.cache(room(llama, policy, 0, N))
    stream, newest = Stream(llama, cache, policy), []
    for token in random_ids(N):
        stream.feed([token])
        newest.append([layer.gather(torch.full((2, 1), layer.entries - 1)).stored for layer in cache.read()])
    count = stream.host.layers[0].entries
    assert count == BUDGET + 5 * 16
    for token in range(count):
        for held, stored in zip(stream.host.layers, newest[token], strict=True):
            kept = held.gather(torch.full((2, 1), token)).stored
            assert kept.keys.tobytes() == stored.keys.tobytes()
            assert kept.values.tobytes() == stored.values.tobytes()
    assert stream.host_bytes() == policy.precision.kv_bytes(llama.shape, count)
    assert cache.kv_bytes() == policy.precision.kv_bytes(llama.shape, stream.lives[0])
    cache.close()


@EVERY
def test_all_blocks_back_at_their_own_positions_are_full_kv_to_the_bit(llama, name, kind):
    policy = replace(stored_in(name, kind), positions=Original())
    policy = replace(policy, decode=replace(policy.decode, allocator=EVERYTHING))
    ids = random_ids(N)
    found, cache, logits = fed(llama, policy, ids)
    cache.close()
    _, cache, expected = fed(llama, Policy(online=True, precision=policy.precision), ids)
    cache.close()
    assert found.lives == [N] * LAYERS
    assert found.host_bytes() == policy.precision.kv_bytes(llama.shape, N)
    assert logits.tobytes() == expected.tobytes()
