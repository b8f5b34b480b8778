"""The policy context_shift is llama.cpp's context shift: the same entries at the same places, by its own calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.stream import Stream, room
from pipeline.kv import recipe

from .llama_kv_runs import F32, LAYERS, random_ids

pytest_plugins = ["tests.llama_kv_models"]

KEEP, BUDGET = 4, 48
IDS = random_ids(200)


def shifted(gguf, full: int, discard: int) -> np.ndarray:
    """Return the logits after every token where a full context is shifted before the next one, as the server does."""
    logits, past = [], 0
    with library.loaded(gguf) as model, Context(model, n_ctx=full + 1, threads=1, precision=F32) as context:
        for token in IDS:
            if past == full:
                context.remove(KEEP, KEEP + discard)
                library.api().llama_memory_seq_add(context._memory, 0, KEEP + discard, past, -discard)
                past -= discard
            logits.append(context.decode([token], [past])[0].copy())
            past += 1
    return np.array(logits)


def test_it_computes_what_llama_cpp_computes(llama, kv_gguf):
    policy = recipe.read("context_shift").policy(BUDGET, 0, LAYERS)
    policy = replace(policy, precision=F32)
    full = policy.room([0] * LAYERS)
    left = policy.decode.targets(BUDGET, [full] * LAYERS)[0]
    cache = llama.cache(room(llama, policy, len(IDS), len(IDS)))
    stream = Stream(llama, cache, policy)
    found = np.concatenate([stream.feed([token]) for token in IDS])
    cache.close()
    assert full < len(IDS) / 2
    assert np.abs(found - shifted(kv_gguf, full, full - left)).max() < 2e-3


@pytest.mark.parametrize("budget", [48, 256, 1024])
def test_it_drops_half_and_holds_the_budget_on_average(budget):
    policy = recipe.read("context_shift").policy(budget, 0, LAYERS)
    full = policy.room([0] * LAYERS)
    left = policy.decode.targets(budget, [full] * LAYERS)[0]
    assert full - left == pytest.approx((full - KEEP) / 2, abs=0.01 * budget + 2)
    assert (full + left) / 2 == pytest.approx(budget, abs=0.01 * budget + 1)
